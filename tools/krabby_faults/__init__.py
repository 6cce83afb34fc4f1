"""Faults on the running stack: inject, measure, recover, report. `make faults`, `make soak`."""
