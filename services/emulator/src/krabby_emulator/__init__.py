"""The robot's hardware, emulated: drives on CAN, an IMU on a serial line, depth; MuJoCo behind."""
