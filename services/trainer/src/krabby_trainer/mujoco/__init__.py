"""Robots in MuJoCo, the physics of the runtime's simulation: for evaluation, and to imitate in."""
