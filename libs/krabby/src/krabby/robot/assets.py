"""Where the data files are.

Assets are data, not code: they live in the repository's `assets/` folder and are mounted into
containers, so they are found at run time. A wheel carries what a simulation needs of them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from krabby.robot.errors import AssetError

__all__ = [
    "ASSETS_ENV",
    "DEFAULT_ROBOT",
    "ROBOT_ENV",
    "assets_dir",
    "choose_robot",
    "robot_dir",
    "robot_file",
    "robot_name",
]

ASSETS_ENV = "KRABBY_ASSETS"
"""Environment variable that names the assets folder outright."""

ROBOT_ENV = "KRABBY_ROBOT"
"""Environment variable that names the robot: a folder of the assets folder."""

DEFAULT_ROBOT = "crab_hex"

_MARKER = Path(DEFAULT_ROBOT) / "robot.toml"


def assets_dir() -> Path:
    """Folder that holds `crab_hex/robot.toml`.

    `KRABBY_ASSETS` decides when it is set. Otherwise the nearest `assets/` above the working
    directory, then the nearest one above this package (an editable install in a checkout), then
    the package's own, which a wheel has.
    """
    named = os.environ.get(ASSETS_ENV)
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / _MARKER).is_file():
            raise AssetError(
                f"{ASSETS_ENV}={named} holds no {_MARKER}; set it to the repository's assets folder"
            )
        return folder
    for folder in _candidates():
        if (folder / _MARKER).is_file():
            return folder
    raise AssetError(
        f"no assets/{_MARKER} above {Path.cwd()}; run from inside the repository or set "
        f"{ASSETS_ENV} to its assets folder"
    )


def robot_name() -> str:
    """The chosen robot: what `KRABBY_ROBOT` says, or else the default one."""
    return os.environ.get(ROBOT_ENV) or DEFAULT_ROBOT


def choose_robot(name: str) -> None:
    """Make `name` the robot of this process and of those it starts; "" leaves it as it is."""
    if name:
        os.environ[ROBOT_ENV] = name
    robot_dir()


def robot_dir() -> Path:
    """Folder of the chosen robot's own files: `robot.toml`, URDF, MJCF, USD, pictures."""
    assets = assets_dir()
    folder = assets / robot_name()
    if folder.parent != assets or not (folder / "robot.toml").is_file():
        there = ", ".join(sorted(path.parent.name for path in assets.glob("*/robot.toml")))
        raise AssetError(f"{ROBOT_ENV}={robot_name()}: {assets} has no such robot; it has {there}")
    return folder


def robot_file(suffix: str) -> Path:
    """The chosen robot's generated model: `suffix` is "urdf", "xml" (MJCF) or "usda"."""
    folder = robot_dir()
    return folder / f"{folder.name}.{suffix}"


def _candidates() -> Iterator[Path]:
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for ancestor in (start, *start.parents):
            yield ancestor / "assets"
    yield Path(__file__).resolve().parents[1] / "_assets"
