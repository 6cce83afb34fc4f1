"""An operator's requests and walking commands, as `krabby teleop` and `krabby view` send them."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from krabby_proto import FLAG_OPERATOR, NAV, ControlClient, HalClient, ProtoError, Publisher

from krabby_cli.keys import Nav
from krabby_cli.operate import POLICY_TIMEOUT_S, operator_name
from krabby_cli.status import inability_words

__all__ = ["PERIOD_S", "Operator", "describe"]

PERIOD_S: Final = 0.05
"""Between two walking commands [s]."""
_ANSWER_S: Final = 1.0
_WATCH_S: Final = 0.5
_MEET_S: Final = 5.0
_FAREWELLS: Final = 3
"""Zero commands at the end: a closed socket drops what it has not sent yet."""
_GATE: Final = ("estop", "arm", "disarm", "reset")
"""Requests to the safety gate; the others are the game loop's."""


_SIGHTS: Final = {
    "memory": "NO PICTURE: walks on memory",
    "lost": "NO PICTURE: stands",
}


def describe(loop: Mapping[str, Any]) -> str:
    """What the game loop's status says about driving: what is clamped, sight, the policy's range.

    Empty before the first answer; keys that an older loop does not send are left out.
    """
    asked = dict(zip(Nav._fields, loop.get("nav_asked", ()), strict=False))
    said = [f"CLAMPED {axis} {asked.get(axis, 0):+.2f}" for axis in loop.get("nav_clamped", ())]
    said.append("walks blind" if loop.get("blind") else _SIGHTS.get(loop.get("sight", ""), ""))
    if "walking" in loop:
        limits = loop.get("command_range") or {}
        ranges = [f"{axis} {low:g}..{high:g}" for axis, (low, high) in limits.items()]
        said.append(", ".join((str(loop["walking"]), *ranges)))
        said.append(inability_words(loop))
    return "   ".join(filter(None, said))


_UNCONFIRMED: Final = "E-STOP NOT CONFIRMED, use the switch on the robot: "


class Operator(contextlib.AbstractContextManager["Operator"]):
    """The operator's sockets: walking commands and requests to the game loop, safety to the HAL.

    A request waits for its answer up to a second, walking commands do not wait for it. An e-stop
    has its own thread and socket, so that it is never behind another request; so have the
    questions for the loop's status.
    """

    def __init__(self, endpoints: Mapping[str, str], command: str = "teleop") -> None:
        """`command` is named beside the user in the HAL's log."""
        self.name = f"{operator_name()} ({command})"
        self.said = ""
        """Result of the last request; empty before the first answer."""
        self.loop: Mapping[str, Any] = {}
        """Newest status of the game loop; empty before the first answer and after none came."""
        self._nav = Publisher(endpoints["nav"], NAV, bind=False)
        self._stop = HalClient({"safety": endpoints["safety"]})
        self._hal = HalClient({"safety": endpoints["safety"]})
        self._loop = ControlClient(endpoints["control"])
        self._watched = ControlClient(endpoints["control"])
        self._watcher = ThreadPoolExecutor(1, "status")
        self._watch: Future[None] | None = None
        self._watch_due_s = 0.0
        self._stopper = ThreadPoolExecutor(1, "estop")
        self._asker = ThreadPoolExecutor(1, "requests")
        self._asked: dict[str, Future[None]] = {}
        self._control = endpoints["control"]
        self._loading: threading.Thread | None = None
        self._stops = 0
        self._meet_due_s = -math.inf

    def publish(self, nav: Nav) -> None:
        """Send a walking command that outranks any mission."""
        now_s = time.monotonic()
        if now_s >= self._meet_due_s:  # for the clock of a loop on another host
            self._meet_due_s = now_s + _MEET_S
            self._asker.submit(self._meet)
        stamp_ns = self._loop.clock.earliest(time.monotonic_ns())
        self._nav.publish(nav, capture_ns=stamp_ns, publish_ns=stamp_ns, flags=FLAG_OPERATOR)

    def _meet(self) -> None:
        with contextlib.suppress(ProtoError):
            self._loop.hello(_ANSWER_S)

    def leave(self) -> None:
        """Command zero, give it time to go out, and wait for a pending e-stop."""
        for _ in range(_FAREWELLS):
            self.publish(Nav())
            time.sleep(PERIOD_S / 2)
        self._stopper.shutdown()

    def request(self, request: str) -> None:
        """Carry a request out in another thread; the result appears in `said`.

        `request` is estop, arm, disarm or reset of the safety gate, stand or sit of the game loop.

        A request that is pending is not sent twice: a held key repeats.
        """
        under_way = self._asked.get(request)
        if under_way is None or under_way.done():
            self._stops += request == "estop"
            executor = self._stopper if request == "estop" else self._asker
            self._asked[request] = executor.submit(self._carry_out, request, self._stops)

    def change_policy(self, name: str) -> None:
        """Ask the loop for another policy, beside all other requests: it may take 15 s."""
        if self._loading is not None and self._loading.is_alive():
            self.said = "policy: the last change is still under way"
            return
        self.said = f"policy {name}: loading"
        self._loading = threading.Thread(target=self._load, args=(name, self._stops), daemon=True)
        self._loading.start()

    def _load(self, name: str, stops: int) -> None:
        try:
            with ControlClient(self._control) as loop:
                answer = loop.request(
                    "policy", timeout_s=POLICY_TIMEOUT_S, by=self.name, policy=name
                )
            said = f"policy {name}: {'done' if answer.get('ok') else answer.get('reason', '')}"
        except ProtoError as error:
            said = f"policy {name}: {error}"
        self._say(said, stops)

    def watch(self, now_s: float) -> None:
        """Ask for the loop's status every half second; the answer appears in `loop`."""
        if now_s >= self._watch_due_s and (self._watch is None or self._watch.done()):
            self._watch_due_s = now_s + _WATCH_S
            self._watch = self._watcher.submit(self._ask_status)

    def _ask_status(self) -> None:
        try:
            self.loop = self._watched.request("status", timeout_s=_WATCH_S)
        except ProtoError:
            self.loop = {}

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return all(asked.done() for asked in self._asked.values())

    def _carry_out(self, request: str, stops: int) -> None:
        self._say(self.ask(request), stops, settles=request == "estop")

    def _say(self, said: str, stops: int, *, settles: bool = False) -> None:
        """Show a result; `settles` if it may take the place of an unconfirmed e-stop."""
        if stops != self._stops:
            return  # what was asked before an e-stop must not hide its answer
        if settles or not self.said.startswith(_UNCONFIRMED):
            self.said = said

    def ask(self, request: str) -> str:
        """Carry a request out within a second; returns the result in a few words."""
        try:
            if request in _GATE:
                client = self._stop if request == "estop" else self._hal
                answer = client.safety(request, self.name, timeout_s=_ANSWER_S)
            else:
                answer = self._loop.request(request, timeout_s=_ANSWER_S, by=self.name)
        except ProtoError as error:
            return f"{_UNCONFIRMED if request == 'estop' else ''}{error}"
        if not answer.get("ok"):
            return f"{request} refused: {answer.get('reason', '')}"
        return f"{request}: gate {answer['state']}" if "state" in answer else f"{request}: done"

    def close(self) -> None:
        """Close the sockets; waits for pending requests, a second at most."""
        self._stopper.shutdown()
        for executor in (self._asker, self._watcher):
            executor.shutdown(cancel_futures=True)
        for each in (self._nav, self._stop, self._hal, self._loop, self._watched):
            each.close()

    def __exit__(self, *_: object) -> None:
        self.close()
