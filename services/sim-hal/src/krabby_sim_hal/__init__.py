"""HAL server over a simulator: the crab in MuJoCo, on the wire of the real robot."""
