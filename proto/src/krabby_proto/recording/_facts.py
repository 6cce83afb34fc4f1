"""What a recording knows about its run, from the hellos of the processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from krabby_proto.hello import JsonObject, parse_json
from krabby_proto.recording._format import HELLO, MAIN

__all__ = ["RunFacts"]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The run behind a recording; what it does not say is None or empty."""

    run_id: str = ""
    revision: str = ""
    """Of the checkout that recorded, with ``-dirty`` behind it when it had changes."""
    course: str | None = None
    difficulty: float | None = None
    seed: int | None = None
    """Of the course's layout."""
    course_hash: str | None = None
    robot: str | None = None
    robot_hash: str | None = None
    policies: tuple[JsonObject, ...] = ()
    """The chosen and the blind policy at the start: `name`, `path`, `manifest` and `hashes`."""
    control: JsonObject = field(default_factory=dict[str, Any])
    """Configuration of the game loop."""
    hal: JsonObject = field(default_factory=dict[str, Any])
    """Configuration of the HAL."""
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Any])
    """Versions of packages by process."""
    processor: str = ""
    """That computed the commands."""
    lockstep: bool = False
    """Whether time was simulated."""
    hellos: Mapping[str, JsonObject] = field(default_factory=dict[str, Any])
    """Whole hello by process: `hal`, `gameloop`."""

    @classmethod
    def read(cls, metadata: Mapping[str, Mapping[str, str]]) -> RunFacts:
        """From the metadata of a recording."""
        main = metadata.get(MAIN, {})
        hellos = {
            name.removeprefix(HELLO): parse_json(fields.get("hello", "").encode()) or {}
            for name, fields in metadata.items()
            if name.startswith(HELLO)
        }
        hal, loop = hellos.get("hal", {}), hellos.get("gameloop", {})
        hal_extra, loop_extra = _object(hal, "extra"), _object(loop, "extra")
        course = _object(hal_extra, "course")
        robot = _object(hal, "robot") or _object(loop, "robot")
        versions = {
            name: {str(key): str(value) for key, value in _object(extra, "versions").items()}
            for name, extra in (("hal", hal_extra), ("gameloop", loop_extra))
        }
        policies = loop_extra.get("policies")
        found = cast("list[Any]", policies) if isinstance(policies, list) else []
        return cls(
            run_id=main.get("run_id", ""),
            revision=main.get("revision", ""),
            course=_text(course, "name"),
            difficulty=_number(course, "difficulty"),
            seed=None if (seed := _number(course, "seed")) is None else int(seed),
            course_hash=_text(course, "hash"),
            robot=_text(robot, "name"),
            robot_hash=_text(robot, "hash"),
            policies=tuple(cast("JsonObject", one) for one in found if isinstance(one, dict)),
            control=_object(loop_extra, "config"),
            hal=_object(hal_extra, "config"),
            versions=versions,
            processor=_text(loop_extra, "processor") or "",
            lockstep=hal.get("clock") == "simulated",
            hellos=hellos,
        )


def _object(of: Mapping[str, Any], key: str) -> JsonObject:
    value = of.get(key)
    return cast("JsonObject", value) if isinstance(value, dict) else {}


def _text(of: Mapping[str, Any], key: str) -> str | None:
    value = of.get(key)
    return value if isinstance(value, str) else None


def _number(of: Mapping[str, Any], key: str) -> float | None:
    value = of.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
