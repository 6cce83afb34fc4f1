"""The operator's requests, served beside the loop so that loading a policy never delays a tick."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import structlog
from krabby_proto import ControlServer
from krabby_robot.errors import RobotError

from gameloop.pilot import load_runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krabby_robot.description import RobotDescription
    from krabby_robot.network import Backend

    from gameloop.brain import Wish
    from gameloop.pilot import Runner

__all__ = ["Control"]

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_REQUEST_TTL_NS = 1_000_000_000
"""A request to stand that waited longer is refused: the client has long been told it failed."""


class Control:
    """A thread with the control socket. What it hands to the loop is taken at the next tick."""

    def __init__(
        self,
        endpoint: str,
        desc: RobotDescription,
        *,
        control_rate_hz: float,
        hello: Mapping[str, object],
        status: Callable[[], Mapping[str, object]],
        ask: Callable[[Wish], str | None],
        backend: Backend | None = None,
    ) -> None:
        self._desc = desc
        self._control_rate_hz = control_rate_hz
        self._status = status
        self._ask = ask
        self._backend = backend
        self._server = ControlServer(endpoint, hello=hello)
        self._stop = threading.Event()
        self._runner: Runner | None = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it is bound."""
        return self._server.endpoint

    def take_runner(self) -> Runner | None:
        """A policy that was loaded since the last call."""
        runner, self._runner = self._runner, None
        return runner

    def close(self) -> None:
        """End the thread and close the socket."""
        self._stop.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._server.poll(_POLL_S, self._answer)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "stand" | "sit" as wish:
                reason = self._refusal(wish, request.get("sent_ns"))
                log.info("asked", op=wish, refused=reason)
                if reason is not None:
                    return {"ok": False, "reason": reason}
                return {"ok": True, **self._status()}
            case "policy":
                return self._load(request.get("policy"))
            case "status":
                return {"ok": True, **self._status()}
            case other:
                reason = f"unknown op {other!r}; use stand, sit, policy or status"
                return {"ok": False, "reason": reason}

    def _refusal(self, wish: Wish, sent_ns: object) -> str | None:
        """Hand a request to the loop; why not, when it is refused."""
        waited = isinstance(sent_ns, int) and time.monotonic_ns() - sent_ns > _REQUEST_TTL_NS
        if wish == "stand" and waited:
            return "stand was sent more than 1 s ago; send it again"
        return self._ask(wish)

    def _load(self, name: object) -> dict[str, Any]:
        if not isinstance(name, str) or not name:
            reason = f"policy is {name!r}; name a folder under assets/policies"
            return {"ok": False, "reason": reason}
        try:
            self._runner = load_runner(name, self._desc, self._control_rate_hz, self._backend)
        except RobotError as error:
            log.warning("policy refused, keeping the old one", policy=name, reason=str(error))
            return {"ok": False, "reason": str(error)}
        return {"ok": True, **self._status(), "policy": name}
