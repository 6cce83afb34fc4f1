"""Presets of `trainer.config`: folders are choices, files their values."""
