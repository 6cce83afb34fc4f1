"""The robot's state at the moment of an image, for depth encoders that read it."""

import time
from collections import deque

import numpy as np
from krabby.policy.observation import ObservationInputs, ObservationLayout
from krabby_proto import FLAG_RESET, STATE, LatestSubscriber, Message, unpack, wait_any

from krabby_camera.errors import CameraError

__all__ = ["StateTrack", "check_terms", "observation_inputs"]

_STATE_FIELDS = (
    "base_quat_w",
    "base_ang_vel_b",
    "base_lin_acc_b",
    "joint_pos",
    "joint_vel",
    "foot_contact",
)
_TERMS = (
    "base_ang_vel",
    "base_lin_acc",
    "projected_gravity",
    "joint_pos_rel",
    "joint_vel",
    "foot_contact",
)
"""Terms that follow from the stream `state` alone."""


class StateTrack(LatestSubscriber):
    """The newest second of the stream `state`.

    An image is some tens of milliseconds old when it arrives and belongs to the state of that
    moment, not to the newest one.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, STATE)
        self._states: deque[Message] = deque(maxlen=200)
        self._resets: deque[int] = deque(maxlen=16)

    def update(self) -> None:
        """Take in what has arrived."""
        for message in self.drain():
            newest = self._states[-1] if self._states else None
            if newest is not None and message.header.instance_id != newest.header.instance_id:
                self._states.clear()  # another HAL: nothing that was belongs to what comes
                self._resets.append(message.capture_ns)
            elif newest is not None and message.capture_ns == newest.capture_ns:
                continue  # lock-step says it again; a reset happened once
            elif message.flags & FLAG_RESET:
                self._resets.append(message.capture_ns)
            self._states.append(message)

    def wait_for(self, capture_ns: int, timeout_s: float) -> None:
        """In lock-step the state of an image's moment may be on its way: wait for it."""
        deadline = time.monotonic() + timeout_s
        self.update()
        while not self._states or self._states[-1].capture_ns < capture_ns:
            if not wait_any([self], deadline - time.monotonic()):
                return
            self.update()

    def at(self, capture_ns: int) -> Message | None:
        """The newest state not after `capture_ns`, else the oldest there is; None without any."""
        for message in reversed(self._states):
            if message.capture_ns <= capture_ns:
                return message
        return self._states[0] if self._states else None

    def reset_before(self, capture_ns: int) -> bool:
        """Whether the robot was put back since the last call, up to `capture_ns`."""
        found = False
        while self._resets and self._resets[0] <= capture_ns:
            self._resets.popleft()
            found = True
        return found


def check_terms(layout: ObservationLayout) -> None:
    """Raise a `CameraError` for an encoder that reads what only the game loop knows."""
    for term in layout.terms:
        if term.name not in _TERMS:
            raise CameraError(
                f"the depth encoder reads the term {term.name!r}, which the camera service cannot "
                f"know; it has {', '.join(_TERMS)}. Export the encoder without it"
            )


def observation_inputs(state: Message) -> ObservationInputs:
    """What `_TERMS` are computed from."""
    fields = unpack(STATE, state.payload)
    return ObservationInputs(
        **{name: fields[name] for name in _STATE_FIELDS},
        nav_command=np.zeros(3, np.float32),
        last_action=np.zeros(fields["joint_pos"].size, np.float32),
    )
