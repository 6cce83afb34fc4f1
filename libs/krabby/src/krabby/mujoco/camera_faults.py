"""Breaking the camera of a running simulation on request, to see what the others make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from krabby.mujoco.depth_camera import CAMERA_FAULTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby.mujoco.depth_camera import DepthCamera

__all__ = ["answer_fault_request"]

log = structlog.get_logger(__name__)


def answer_fault_request(
    camera: DepthCamera | None, request: Mapping[str, Any], now_ns: int
) -> dict[str, Any]:
    """Carry out a request and say what is broken now.

    Args:
        camera: what can be broken; None when the simulation has none.
        request: ``{"op": "fault", "kind": one of CAMERA_FAULTS, "for_s": seconds}``, without
            ``for_s`` until it is cleared; ``{"op": "clear"}``; ``{"op": "status"}``.
        now_ns: the clock of exposures.
    """
    if camera is None:
        return _refusal("there is no camera to break; set camera.enabled=true")
    op, kind, for_s = request.get("op"), request.get("kind"), request.get("for_s")
    match op:
        case "fault":
            if kind not in CAMERA_FAULTS:
                names = ", ".join(CAMERA_FAULTS)
                return _refusal(f"kind is {str(kind)[:40]!r}; use one of {names}")
            if for_s is not None and not (isinstance(for_s, int | float) and 0 < for_s < 1e6):
                return _refusal(f"for_s is {str(for_s)[:40]!r}; give seconds, or leave it out")
            camera.break_down(kind, None if for_s is None else now_ns + round(for_s * 1e9))
            log.info("camera broken on request", kind=kind, for_s=for_s)
        case "clear":
            camera.mend()
            log.info("camera mended on request")
        case "status":
            pass
        case _:
            return _refusal(f"unknown op {str(op)[:40]!r}; use fault, clear or status")
    return {"ok": True, "fault": camera.fault(now_ns) or ""}


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason}
