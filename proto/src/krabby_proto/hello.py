"""The exchange at start: service, contract and robot; a process refuses to start on a mismatch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from krabby_proto.errors import HelloMismatch
from krabby_proto.header import SCHEMA_VERSION

__all__ = [
    "CLOCKS",
    "HELLO_TOPIC",
    "MAX_JSON_BYTES",
    "HelloAnswer",
    "JsonObject",
    "check_hello",
    "clock_of",
    "make_hello",
    "parse_json",
    "parse_request",
]

JsonObject = dict[str, Any]
"""A JSON object as Python reads it."""

HELLO_TOPIC: Final = b"hello"
MAX_JSON_BYTES: Final = 1 << 16
MAX_JSON_DEPTH: Final = 32
"""Objects and arrays within each other in a request or an answer."""
CLOCKS: Final = ("monotonic", "simulated")
"""What ``capture_ns`` counts: CLOCK_MONOTONIC of the host, or simulated time (lock-step)."""


def make_hello(
    *,
    service: str,
    clock: str = "monotonic",
    robot: Mapping[str, Any] | None = None,
    camera: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JsonObject:
    """The hello of a process: its service, one of `CLOCKS`, robot, camera and other facts."""
    if clock not in CLOCKS:
        raise ValueError(f"clock is {clock!r}; use one of {', '.join(CLOCKS)}")
    from krabby_proto.schema import schema_hash  # an e-stop reads JSON and has no use for it

    return {
        "schema_version": SCHEMA_VERSION,
        "schema_hash": schema_hash(),
        "service": service,
        "clock": clock,
        "robot": dict(robot or {}),
        "camera": dict(camera or {}),
        "extra": dict(extra or {}),
    }


class HelloAnswer:
    """A server's answer to every hello: what `make_hello` gives, its instance and its clocks."""

    def __init__(
        self,
        hello: Mapping[str, Any],
        instance_id: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        text = json.dumps({**hello, "instance_id": f"{instance_id:016x}"})
        self._begin = text.removesuffix("}").encode()
        self._clock_ns = clock_ns

    def frames(self) -> tuple[bytes, bytes]:
        """Topic and JSON, with `clocks` as they are now."""
        clocks = {"monotonic_ns": self._clock_ns(), "wall_ns": time.time_ns()}
        return HELLO_TOPIC, b'%s, "clocks": %s}' % (self._begin, json.dumps(clocks).encode())


def clock_of(hello: Mapping[str, Any]) -> int | None:
    """CLOCK_MONOTONIC of the host that answered a hello [ns]; None when it does not say."""
    clocks = hello.get("clocks")
    found = cast("JsonObject", clocks).get("monotonic_ns") if isinstance(clocks, dict) else None
    return found if isinstance(found, int) and 0 <= found < 1 << 63 else None


def check_hello(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare a peer's hello with what this process expects, key by key of `ours`.

    Raises:
        HelloMismatch: names the first difference by its path, for example
            ``robot.joint_names[4]``, with both values.
    """
    difference = _first_difference(_plain(ours), _plain(theirs), "")
    if difference is None:
        return
    path, our_value, their_value = difference
    who = theirs.get("service", "the peer")
    remedy = (
        "install the same krabby-proto on both sides"
        if path.startswith("schema")
        else "start both sides from the same robot description and configuration"
    )
    raise HelloMismatch(
        f"hello of {who}: {path} is {their_value}, this process expects {our_value}; {remedy}"
    )


def parse_json(raw: bytes | memoryview) -> JsonObject | None:
    """The JSON object in a frame, or None when there is none that can be used.

    NaN, infinity and nesting deeper than `MAX_JSON_DEPTH` are refused.
    """
    try:
        value: object = json.loads(bytes(raw), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):  # also bad UTF-8 and absurdly long integers
        return None
    if not isinstance(value, dict):
        return None
    found = cast("JsonObject", value)
    return None if _is_deep(found) else found


def parse_request(body: Sequence[bytes], topic: bytes) -> JsonObject | None:
    """The JSON object of a request ``[topic, json]``, or None when it is not one."""
    if len(body) != 2 or body[0] != topic or len(body[1]) > MAX_JSON_BYTES:
        return None
    return parse_json(body[1])


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def _is_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_JSON_DEPTH):
        below: list[object] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(cast("JsonObject", each).values())
            elif isinstance(each, list):
                below.extend(cast("list[object]", each))
        if not below:
            return False
        level = below
    return True


def _plain(value: Mapping[str, Any]) -> JsonObject:
    """The value after a round trip through JSON: tuples are lists, keys are text."""
    return cast("JsonObject", json.loads(json.dumps(value)))


def _first_difference(ours: Any, theirs: Any, path: str) -> tuple[str, str, str] | None:
    """Path, our value and their value where two JSON values first differ; depth first."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in cast("JsonObject", ours).items():
            where = f"{path}.{key}" if path else key
            if key not in theirs:
                return where, repr(value), "absent"
            found = _first_difference(value, theirs[key], where)
            if found:
                return found
        return None
    if isinstance(ours, list) and isinstance(theirs, list):
        pair = cast("list[Any]", ours), cast("list[Any]", theirs)
        for index, (mine, other) in enumerate(zip(*pair, strict=False)):
            found = _first_difference(mine, other, f"{path}[{index}]")
            if found:
                return found
        mine_n, other_n = map(len, pair)
        return (f"length of {path}", str(mine_n), str(other_n)) if mine_n != other_n else None
    return None if ours == theirs else (path, f"{ours!r}", f"{theirs!r}")
