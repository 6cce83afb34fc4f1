"""The operator's requests, served beside the loop so that loading a policy never delays a tick."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import structlog
from krabby.robot.errors import RobotError
from krabby_proto import ControlServer

from krabby_gameloop.policy_switch import load_runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krabby.policy.network import Backend
    from krabby.robot.description import RobotDescription

    from krabby_gameloop.brain import Wish
    from krabby_gameloop.policy_switch import Runner

__all__ = ["Control"]

log = structlog.get_logger(__name__)

_POLL_S = 0.1


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
        backend: Backend | None = None,
    ) -> None:
        self._desc = desc
        self._control_rate_hz = control_rate_hz
        self._status = status
        self._backend = backend
        self._server = ControlServer(endpoint, hello=hello)
        self._stop = threading.Event()
        self._wish: Wish | None = None
        self._runner: Runner | None = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it is bound."""
        return self._server.endpoint

    def take_wish(self) -> Wish | None:
        """What was asked for since the last call."""
        wish, self._wish = self._wish, None
        return wish

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
                self._wish = wish
                log.info("asked", op=wish)
                return {"ok": True, **self._status()}
            case "policy":
                return self._load(request.get("policy"))
            case "status":
                return {"ok": True, **self._status()}
            case other:
                reason = f"unknown op {other!r}; use stand, sit, policy or status"
                return {"ok": False, "reason": reason}

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
