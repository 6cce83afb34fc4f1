"""What speaks to the robot's hardware, in both directions: drives on CAN, an IMU on a serial line.

The codecs are pure and symmetrical, so that the emulated robot answers with the very same code that
the real one is asked with.
"""
