"""Presets of `krabby_trainer.config`: folders are choices, files their values."""
