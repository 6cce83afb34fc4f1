"""Presets of `krabby_trainer.run.config`: folders are choices, files their values."""
