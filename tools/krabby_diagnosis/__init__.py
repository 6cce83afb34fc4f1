"""How well `krabby diagnose` finds faults that were planted in the HAL: docs/diagnosis.md."""
