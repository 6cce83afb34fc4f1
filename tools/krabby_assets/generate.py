"""Write what follows from each robot's sources: `python -m krabby_assets.generate`.

robot.toml and crab_hex.urdf.xacro are the sources; URDF, MJCF, USD and pictures follow from them,
and the drawing of the default robot's wiring from its hardware.toml.
A robot without its own xacro file has the default robot's shape.
`--check` writes nothing and fails on the first difference. The text formats are the same byte for
byte on every machine; pictures are only checked to be there, because their last bits depend on the
versions of MuJoCo and NumPy.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from krabby.drivers.can.hardware import HardwareDescription
from krabby.robot.assets import DEFAULT_ROBOT, assets_dir
from krabby.robot.description import RobotDescription
from krabby.robot.errors import AssetError, RobotError

from krabby_assets import mjcf, urdf, usd, wiring

__all__ = ["PICTURES", "first_difference", "main", "robots", "texts"]

PICTURES = ("crab_hex.png", "views.png")
"""Files in `pictures/` of the default robot: on a course, and from front, side and top."""

_MAX_PICTURE_BYTES = 400_000


def texts(folder: Path) -> dict[str, str]:
    """The text files that follow from the sources in `folder`, by name."""
    name, description = folder.name, RobotDescription.load(folder / "robot.toml")
    if description.name != name:
        raise AssetError(f"{folder}: robot.toml has name = {description.name!r}; call both alike")
    shape = folder / f"{name}.urdf.xacro"
    if not shape.is_file():
        shape = folder.parent / DEFAULT_ROBOT / f"{DEFAULT_ROBOT}.urdf.xacro"
    urdf_text = urdf.expand(description, shape)
    tree = urdf.parse(urdf_text)
    found = {
        f"{name}.urdf": urdf_text,
        f"{name}.xml": mjcf.to_mjcf(tree, description),
        f"{name}.usda": usd.to_usda(tree, description),
    }
    if name == DEFAULT_ROBOT:
        hardware = HardwareDescription.load(folder / "hardware.toml", description)
        found["wiring.svg"] = wiring.to_svg(hardware, description)
    return found


def robots() -> list[Path]:
    """Folders of all robots, the default one first."""
    folders = (path.parent for path in assets_dir().glob("*/robot.toml"))
    return sorted(folders, key=lambda folder: (folder.name != DEFAULT_ROBOT, folder.name))


def first_difference(folder: Path) -> str | None:
    """What in `folder` is not what its sources say, in one line; None when all is well."""
    for name, expected in texts(folder).items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        found = path.read_text(encoding="utf-8")
        if found != expected:
            return f"{path}:{_differing_line(found, expected)}"
    for name in PICTURES if folder.name == DEFAULT_ROBOT else ():
        path = folder / "pictures" / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size > _MAX_PICTURE_BYTES:
            return f"{path} has {path.stat().st_size} bytes; the most is {_MAX_PICTURE_BYTES}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m krabby_assets.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    parser.add_argument("--no-pictures", action="store_true", help="leave the pictures alone")
    arguments = parser.parse_args(argv)
    try:
        for folder in robots():
            if not arguments.check:
                _write(folder, pictures=not arguments.no_pictures)
            elif _check(folder):
                return 1
    except RobotError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _check(folder: Path) -> int:
    difference = first_difference(folder)
    if difference is None:
        return 0
    sys.stderr.write(f"{difference}; run `make assets`\n")
    return 1


def _write(folder: Path, *, pictures: bool) -> None:
    for name, text in texts(folder).items():
        (folder / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {folder / name}\n")
    if pictures and folder.name == DEFAULT_ROBOT:
        # Loads the simulator; the text formats do not need it.
        from krabby_assets.pictures import write_pictures

        for path in write_pictures(folder):
            sys.stdout.write(f"wrote {path} ({path.stat().st_size // 1000} kB)\n")


def _differing_line(found: str, expected: str) -> str:
    """`LINE: has ..., sources give ...` of the first line that differs."""
    theirs, ours = found.splitlines(), expected.splitlines()
    for i, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        if a != b:
            return f"{i + 1}: has {a.strip()!r}, its sources give {b.strip()!r}"
    return (
        f"{min(len(theirs), len(ours)) + 1}: has {len(theirs)} lines, its sources give {len(ours)}"
    )


if __name__ == "__main__":
    sys.exit(main())
