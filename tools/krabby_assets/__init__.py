"""Writes what is generated under `assets/`.

`make assets` runs it; with `tools` on the module path:

    python -m krabby_assets.generate             # URDF, MJCF, USD and pictures of the robot
    python -m krabby_assets.generate --check     # exit 1 and name the first line that differs
    python -m krabby_assets.gait_bundle          # the bundle of the gait; --check likewise

Needs the extras `assets` and `render` of krabby; a running robot reads `robot.toml`.
"""
