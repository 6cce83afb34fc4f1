"""From depth pictures to features, as the camera service makes them, in simulated time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from krabby_proto import FLAG_LATENT, STATE, unpack

from krabby.policy.bundle import OnnxEncoder, PolicyOutputError
from krabby.policy.depth_image import CROP, DepthPreprocessor
from krabby.policy.observation import ObservationBuilder, ObservationInputs

if TYPE_CHECKING:
    from krabby_proto import Message
    from numpy.typing import NDArray

    from krabby.policy.bundle import PolicyBundle
    from krabby.robot.description import RobotDescription

__all__ = ["Features", "Sight"]

_AT_LENS: Final = 1.1
"""Readings within this many times the nearest one say that something is on the lens."""
_MIN_SEEN: Final = 0.02
"""A picture with a smaller share of pixels that see something is withheld."""
_FROZEN_NS: Final = 500_000_000
"""Pictures whose content has not changed for this long are withheld."""
_STATES: Final = 100


class Features(NamedTuple):
    """Payload of `features` and the exposure of the picture that it shows."""

    payload: NDArray[np.float32]
    capture_ns: int
    flags: int


class Sight:
    """Makes the features of one bundle; they keep the time at which their picture was exposed."""

    def __init__(self, bundle: PolicyBundle, desc: RobotDescription) -> None:
        self._encoder = None if bundle.encoder is None else OnnxEncoder(bundle)
        proprio = None if bundle.encoder is None else bundle.encoder.proprio
        self._builder = None if proprio is None else ObservationBuilder(proprio, desc)
        rate_hz = 0.0 if bundle.encoder is None else bundle.encoder.rate_hz
        self._period_ns = round(1e9 / rate_hz) if rate_hz else 0
        forget_after_s = 0.0 if bundle.encoder is None else bundle.encoder.forget_after_s
        self._forget_after_ns = round(1e9 * forget_after_s)
        self._preprocess = DepthPreprocessor(desc.camera)
        self._at_lens_m = np.float32(desc.camera.near_m * _AT_LENS)
        self._states: deque[tuple[int, dict[str, NDArray[np.float32]]]] = deque(maxlen=_STATES)
        self.reset()

    def reset(self) -> None:
        """Forget everything: another robot, another trial."""
        self._states.clear()
        self._last_ns: int | None = None
        self._content: bytes = b""
        self._content_ns = 0
        self._forget()

    def note(self, state: Message) -> None:
        """Take in the robot's state, once per control period."""
        self._states.append((state.capture_ns, unpack(STATE, state.payload.copy())))

    def wants(self, capture_ns: int) -> bool:
        """Whether a picture exposed then is used, or comes too soon after the last one."""
        # a quarter of a period for jitter: 10 Hz out of 30 Hz takes every third frame
        last = self._last_ns
        return last is None or not 0 <= capture_ns - last < 0.75 * self._period_ns

    def see(self, depth: NDArray[np.float32], capture_ns: int) -> Features | None:
        """Features of a picture (height, width) [m]; None where it is withheld or too early."""
        if self._is_frozen(depth, capture_ns):
            self._forget()
            return None
        if not self.wants(capture_ns):
            return None
        seen = np.count_nonzero(depth[CROP] > self._at_lens_m) / depth[CROP].size
        if seen < _MIN_SEEN:
            return None
        image = self._preprocess(depth)
        if self._encoder is None:
            return Features(image.ravel(), capture_ns, 0)
        last = self._last_ns
        if last is not None and not 0 <= capture_ns - last < self._forget_after_ns:
            self._forget()
        try:
            latent = self._encoder.step(image, self._proprio(capture_ns))
        except PolicyOutputError:
            return None
        self._last_ns = capture_ns
        return Features(latent, capture_ns, FLAG_LATENT)

    def _is_frozen(self, depth: NDArray[np.float32], capture_ns: int) -> bool:
        content = depth[::7, ::7].tobytes()
        if content != self._content:
            self._content, self._content_ns = content, capture_ns
        return capture_ns - self._content_ns >= _FROZEN_NS

    def _forget(self) -> None:
        if self._encoder is not None:
            self._encoder.reset()
        if self._builder is not None:
            self._builder.reset()

    def _proprio(self, capture_ns: int) -> NDArray[np.float32] | None:
        """The encoder's own observation, of the newest state not after the exposure."""
        if self._builder is None:
            return None
        fields = self._states[0][1]
        for stamp_ns, values in reversed(self._states):
            if stamp_ns <= capture_ns:
                fields = values
                break
        nothing = np.zeros(3, np.float32)
        return self._builder.build(
            ObservationInputs(
                base_quat_w=fields["base_quat_w"],
                base_ang_vel_b=fields["base_ang_vel_b"],
                base_lin_acc_b=fields["base_lin_acc_b"],
                joint_pos=fields["joint_pos"],
                joint_vel=fields["joint_vel"],
                foot_contact=fields["foot_contact"],
                nav_command=nothing,
                last_action=np.zeros_like(fields["joint_pos"]),
            )
        )
