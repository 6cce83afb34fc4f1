"""The krabby command: run, drive, look, check."""
