"""HAL server over real drives and an IMU."""
