"""The operator's requests, served beside the loop so that loading a policy never delays a tick."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from krabby.control.controller import Request
from krabby.control.policy_manager import PolicyRunner, load_runner
from krabby.policy.bundle import POLICY_FILE
from krabby.policy.network import Backend
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError, RobotError
from krabby.runtime.realtime import yield_to_loop
from krabby_proto import ControlServer, Exchange, untimely

from krabby_gameloop.rehearsal import LIMIT_S, rehearse

Answer = Callable[[Mapping[str, Any]], None]

__all__ = ["ControlSocket"]

log = structlog.get_logger(__name__)

_POLL_S = 0.05
_OPEN_S = 5.0
"""Longest time to open a policy after it was rehearsed."""
_CLOSE_S = 1.0
_SHOWN = 200
"""Characters of a request that an answer or the log repeats."""


class _Load:
    """A policy being loaded in a thread, so that the requests of others are answered meanwhile."""

    def __init__(self, name: str, work: Callable[[], PolicyRunner], answer: Answer) -> None:
        self.name = name
        self.answer = answer
        self.began_s = time.monotonic()
        self.runner: PolicyRunner | None = None
        self.reason = ""
        self._work = work
        self.thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self.thread.start()

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self.began_s > LIMIT_S + _OPEN_S

    def _run(self) -> None:
        yield_to_loop()
        try:
            self.runner = self._work()
        except RobotError as error:
            self.reason = str(error)
        except Exception as error:
            log.exception("a policy could not be loaded", policy=self.name)
            self.reason = f"{type(error).__name__}: {error}"


class ControlSocket:
    """A thread with the control socket; the loop takes its requests at the next tick."""

    def __init__(
        self,
        endpoint: str,
        desc: RobotDescription,
        *,
        control_rate_hz: float,
        hello: Mapping[str, object],
        status: Callable[[], Mapping[str, object]],
        request: Callable[[Request], str | None],
        backend: Backend | None = None,
        answered: Callable[[Exchange], object] = lambda exchange: None,
    ) -> None:
        self._desc = desc
        self._control_rate_hz = control_rate_hz
        self._status = status
        self._request = request
        self._backend = backend
        self._server = ControlServer(endpoint, hello=hello, answered=answered)
        self._stop = threading.Event()
        self._runner: PolicyRunner | None = None
        self._load: _Load | None = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it is bound."""
        return self._server.endpoint

    def take_runner(self) -> PolicyRunner | None:
        """A policy that was loaded since the last call."""
        runner, self._runner = self._runner, None
        return runner

    def close(self) -> None:
        """End the thread and close the socket; a policy being loaded is not waited for."""
        self._stop.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        with self._server:  # a socket belongs to one thread
            while not self._stop.is_set():
                try:
                    self._server.poll(_POLL_S, self._answer)
                    self._see_to_load()
                except Exception:  # the next request is still to be answered
                    log.exception("a request failed")
                    self._stop.wait(_POLL_S)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        match request.get("op"):
            case "stand" | "sit" as op:
                reason = self._refusal(op, request.get("sent_ns"))
                log.info("asked", op=op, refused=reason)
                if reason is not None:
                    return {"ok": False, "reason": reason}
                return {"ok": True, **self._status()}
            case "policy":
                return self._begin_load(request.get("policy"))
            case "mark" | "status":  # a mark is for recorders, which read this exchange
                return {"ok": True, **self._status()}
            case other:
                reason = (
                    f"unknown op {str(other)[:_SHOWN]!r}; use stand, sit, policy, mark or status"
                )
                return {"ok": False, "reason": reason}

    def _refusal(self, request: Request, sent_ns: object) -> str | None:
        """Hand a request to the loop; why not, when it is refused."""
        late = untimely(request, sent_ns, time.monotonic_ns()) if request == "stand" else ""
        return late or self._request(request)

    def _begin_load(self, name: object) -> dict[str, Any] | None:
        """Start to load a policy; its answer comes when that is done."""
        if not isinstance(name, str) or not name:
            reason = f"policy is {repr(name)[:_SHOWN]}; name a folder under assets/policies"
            return {"ok": False, "reason": reason}
        if self._load is not None:
            since_s = time.monotonic() - self._load.began_s
            shown = self._load.name[:_SHOWN]
            reason = f"still loading policy {shown!r}, for {since_s:.1f} s; ask again afterwards"
            return {"ok": False, "reason": reason}
        self._load = _Load(name, lambda: self._loaded(name), self._server.defer())
        return None

    def _loaded(self, name: str) -> PolicyRunner:
        """Tried out in a child process first, then loaded here."""
        digest = rehearse(name, self._desc, self._control_rate_hz, stopping=self._stop.is_set)
        runner = load_runner(name, self._desc, self._control_rate_hz, self._backend)
        if runner.bundle.hashes[POLICY_FILE] != digest:
            raise BundleError(f"policy {name!r} changed while it was loaded; ask again")
        return runner

    def _see_to_load(self) -> None:
        """Answer a request for a policy, once that is loaded, refused or overdue."""
        load = self._load
        if load is None:
            return
        if not load.thread.is_alive():
            self._load = None
            self._answer_load(load, load.runner, load.reason)
        elif load.overdue and load.answer is not _ignore:
            limit_s = LIMIT_S + _OPEN_S
            reason = f"not loaded within {limit_s:g} s, given up; export the policy again"
            self._answer_load(load, None, reason)
            load.answer = _ignore

    def _answer_load(self, load: _Load, runner: PolicyRunner | None, reason: str) -> None:
        if load.answer is _ignore:  # it was given up
            return
        if runner is None:
            log.warning("policy refused, keeping the old one", policy=load.name, reason=reason)
            load.answer({"ok": False, "reason": reason})
            return
        self._runner = runner
        load.answer({"ok": True, **self._status(), "policy": load.name})


def _ignore(_: Mapping[str, Any]) -> None:
    """Takes the answer of a load that was given up."""
