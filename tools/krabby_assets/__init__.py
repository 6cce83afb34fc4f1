"""The robot in the formats of other programs: URDF, MJCF, USD.

Only `krabby_assets.generate` uses these (extra `assets`); a running robot reads `robot.toml`.
"""
