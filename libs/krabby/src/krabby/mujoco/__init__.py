"""The robot on a course in MuJoCo: model, physics, depth camera, pictures."""
