"""Which requests still count: what the gate's replies say about this loop's permission to move.

A request to stand counts for one permission of the gate, from ARMING to the end of ACTIVE or HOLD.
The permission has ended when

* a reply shows the gate in any other state, or armed anew: its arm count is another one;
* no reply has shown for `safety.damp_after_s` that the gate takes this loop's commands. The gate
  damps the robot after that time without a command, so it may have been armed again unseen;
* the HAL restarted, the robot was respawned, or another writer has taken the command lease.

Then requests to stand and to walk are dropped and the measured pose is sent, until the gate is
armed again and a new request to stand comes (or `auto_stand` is set).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import structlog
from krabby_proto import CommandReply, CommandStatus
from krabby_proto.states import SafetyState

from krabby.control.config import ControlCfg
from krabby.control.tape import Tape
from krabby.robot.description import RobotDescription

__all__ = ["Permission", "Request"]

log = structlog.get_logger(__name__)

_SAFETY_STATES: Final = {int(state): state for state in SafetyState}
_TAKEN: Final = frozenset(status for status in CommandStatus if status < 16)
"""The HAL admitted the command as the lease holder's and passed it to the gate."""
_MOVED: Final = frozenset({CommandStatus.APPLIED, CommandStatus.SUPERSEDED})
Request = Literal["stand", "sit"]
"""What an operator may ask of the loop."""


class _Pending(NamedTuple):
    request: Request
    permission: int
    """Number of the permission it was made for."""


class Permission:
    """The gate as its replies show it, and the requests made under its permission."""

    def __init__(
        self,
        cfg: ControlCfg,
        desc: RobotDescription,
        on_end: Callable[[], None],
        tape: Tape | None = None,
    ) -> None:
        """Not armed, nothing requested but what `auto_stand` requests.

        Args:
            cfg: `auto_stand` and the control rate.
            desc: The gate's times.
            on_end: Called when a permission ends.
            tape: Notes replies and requests as they come to count.
        """
        self._tape = tape
        self.safety = SafetyState.DISARMED
        """The gate's state as of its last reply."""
        self.stand_requested = cfg.auto_stand
        """Whether standing was requested under this permission."""
        self.has_lease = True
        """False while the HAL refuses commands because another writer holds the lease."""
        self.lease_losses = 0
        """Times another writer was found to hold the lease."""
        self.sent_ns = 0
        """Tick of the last command [ns]."""
        self.unapplied = False
        """Whether the gate has not made the last target its own."""
        self._auto_stand = cfg.auto_stand
        self._on_end = on_end
        self._stands_by_itself = cfg.auto_stand
        """`auto_stand`, but not after a request to sit."""
        self._leaving = False
        self._pending: _Pending | None = None
        self._number = 0
        self._was_live = self._followed = False
        """Whether the gate was armed, and followed commands, under this permission."""
        self._taken_ns: int | None = None
        """Tick of the last command that a live gate took; None while not armed."""
        self._heard_ns: int | None = None
        """Tick of the last command that was answered at all."""
        self._arm_count = 0
        """The gate's as of its last reply while armed; 0 for a HAL that does not count."""
        self._damp_ns = round(desc.safety.damp_after_s * 1e9)

    def request(self, request: Request, *, silent: bool) -> str | None:
        """Ask to stand or to sit; returns the reason when that is refused.

        Args:
            request: Taken at the next tick, unless the permission has ended by then.
            silent: Whether the HAL sends no fresh state.
        """
        number = self._number
        if request == "stand":
            reason = self._stand_refusal(silent)
            if reason is not None:
                return reason
        self._pending = _Pending(request, number)
        return None

    def sit_for_good(self) -> None:
        """Sit down and do not stand up again: the process ends."""
        self._stands_by_itself = self.stand_requested = False
        self._leaving = True

    def handle_reply(self, reply: CommandReply, sent_ns: int | None = None) -> None:
        """Take the HAL's reply to the command of the tick at `sent_ns`, the last one when None."""
        if sent_ns is None:
            sent_ns = self.sent_ns
        if self._tape is not None:
            self._tape.add_reply(reply, sent_ns)
        self._heard_ns = sent_ns
        # A newer HAL may know more states; what we do not know we do not follow.
        self.safety = _SAFETY_STATES.get(reply.safety_state, SafetyState.DISARMED)
        if reply.status == CommandStatus.REJECTED_LEASE:
            self._lose_lease()
            return
        if reply.status in _TAKEN and not self.has_lease:
            self.has_lease = True
            log.info("this loop holds the command lease again")
        if not self.safety.live:
            if self._was_live:
                self._end_permission(f"the gate is in {self.safety.name}")
            return
        if self._was_live and self._armed_again(reply):
            self._end_permission("the gate was armed again")
        self._arm_count = reply.arm_count
        if reply.status in _TAKEN:
            self._taken_ns = sent_ns
        self._was_live = True
        self._followed = self.safety.following
        self.unapplied = self._followed and reply.status not in _MOVED

    def start_over(self, reason: str) -> None:
        """The HAL restarted or the robot was respawned: what the gate last replied is void."""
        self._end_permission(reason)
        self.safety = SafetyState.DISARMED
        self.has_lease = True

    def _stand_refusal(self, silent: bool) -> str | None:
        """Why the robot cannot be asked to stand up now; None when it can."""
        if self._leaving:
            return "the game loop is ending"
        if not self.has_lease:
            return "another writer holds the command lease; stop it, arm, then ask again"
        if silent:
            return "the HAL sends no fresh state; see `krabby status`"
        if self.safety is SafetyState.ESTOP:
            return "the emergency stop is latched; reset, arm, then ask again"
        if not self.safety.live:
            return f"the gate is in {self.safety.name}; arm, then ask again"
        return None

    def _lose_lease(self) -> None:
        """Another writer moves the robot; the gate's state is about that one's commands."""
        if self.has_lease:
            self.lease_losses += 1
            log.warning(
                "another writer holds the command lease",
                remedy="stop it; this loop commands again 0.5 s after its last command",
            )
        self.has_lease = False
        self._end_permission("another writer holds the command lease")

    def _armed_again(self, reply: CommandReply) -> bool:
        """Whether the gate took a pose to arm from since the last reply, which showed it live."""
        rearmed = self.safety is SafetyState.ARMING and self._followed  # of a HAL without a count
        return rearmed or reply.arm_count != self._arm_count

    def _end_permission(self, reason: str) -> None:
        """Drop every request made so far."""
        if self.stand_requested and not self._stands_by_itself:
            log.info("the request to stand has ended", reason=reason)
        self._number += 1
        self.stand_requested = self._stands_by_itself
        self._was_live = self._followed = self.unapplied = False
        self._taken_ns = None
        self._on_end()

    def judge(self, now_ns: int) -> None:
        """Judge the gate's last reply by its age."""
        if self._taken_ns is not None and now_ns - self._taken_ns >= self._damp_ns:
            silence_s = round((now_ns - self._taken_ns) * 1e-9, 3)
            self._end_permission(f"the gate has not answered to a command for {silence_s} s")
            self.safety = SafetyState.DISARMED  # until it says otherwise
        if self._heard_ns is not None and now_ns - self._heard_ns >= self._damp_ns:
            # It may have damped a robot that gives way since: hold no pose from before.
            self.safety = SafetyState.DISARMED

    def repeat_request(self, request: Request, permission: int) -> None:
        """Have the next `take_request` take the request that a tape has.

        Args:
            request: As `Tape.add_request` was given it.
            permission: Number of the permission it was made for.
        """
        self._pending = _Pending(request, permission)

    def take_request(self) -> None:
        """Make the pending request count, unless its permission has ended."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if self._tape is not None:
            self._tape.add_request(*pending)
        if pending.request == "sit":
            self._stands_by_itself = self.stand_requested = False
        elif pending.permission == self._number and not self._leaving:
            self._stands_by_itself = self._auto_stand
            self.stand_requested = True
        else:
            log.info("the request to stand has ended", reason="the gate was left before it counted")
