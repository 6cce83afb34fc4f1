"""What a recorded run says about wiring, mounting and timing of the robot: `krabby diagnose`."""
