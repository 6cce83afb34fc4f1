"""Command line, configuration, checkpoints, telemetry, export."""
