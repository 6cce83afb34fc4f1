"""From a depth image to what the game loop gets: the policy image, or a latent of it."""

import numpy as np
from krabby.policy.bundle import LATENT_SIZE, OnnxEncoder, PolicyOutputError
from krabby.policy.depth_image import CROP, IMAGE_SHAPE, DepthPreprocessor
from krabby.policy.observation import ObservationBuilder
from krabby.robot.description import CameraModel, RobotDescription
from krabby_proto import FLAG_LATENT, FLAG_LOCKSTEP, Message
from numpy.typing import NDArray

from krabby_camera.metrics import VALID_RATIO, DropReason
from krabby_camera.states import StateTrack, check_terms, observation_inputs

__all__ = ["Eye", "FeatureMaker", "FrameDropped", "LatentMaker"]

_STATE_TIMEOUT_S = 1.0
_AT_LENS = 1.1
"""Readings within this many times the nearest one show that something is on the lens."""


class FrameDropped(Exception):  # noqa: N818 - not an error: this frame gives no features
    """A frame that gives no features, and why."""

    def __init__(self, reason: DropReason, **facts: object) -> None:
        super().__init__(reason)
        self.reason: DropReason = reason
        self.facts = facts


class FeatureMaker:
    """Makes the payload of the stream `features`: here the policy image as it is."""

    flags = 0
    """Flags of its messages."""
    size = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]
    """Floats of its payload."""

    def wants(self, capture_ns: int) -> bool:
        """Whether a frame captured then is to be used, or comes too soon after the last one."""
        return True

    def make(self, image: NDArray[np.float32], frame: Message) -> NDArray[np.float32]:
        """Features of a policy image (58, 87).

        Raises:
            FrameDropped: There are none for this frame.
        """
        return image

    def idle(self) -> None:
        """Called for a frame that is left out, and ten times a second while none comes."""

    def forget(self) -> None:
        """Recent images are not to be believed."""

    def close(self) -> None:
        """Close the sockets."""


class LatentMaker(FeatureMaker):
    """The latent of a bundle's depth encoder, at the rate it was trained on."""

    flags = FLAG_LATENT
    size = LATENT_SIZE

    def __init__(
        self, encoder: OnnxEncoder, desc: RobotDescription, states: StateTrack | None
    ) -> None:
        """`states` may be None only for an encoder without memory and proprioception."""
        spec = encoder.spec
        self._encoder, self._states = encoder, states
        self._builder = ObservationBuilder(spec.proprio, desc) if spec.proprio else None
        self._period_ns = round(1e9 / spec.rate_hz)
        self._forget_after_ns = round(1e9 * spec.forget_after_s)
        self._last_ns: int | None = None
        # The first run allocates; better now than on the first frame.
        proprio = None if spec.proprio is None else np.zeros((1, spec.proprio.size), np.float32)
        encoder.step(np.zeros(IMAGE_SHAPE, np.float32), proprio)
        encoder.reset()

    @staticmethod
    def needs_states(encoder: OnnxEncoder) -> bool:
        """Whether `states` is needed; also checks that it can be enough.

        Raises:
            CameraError: The encoder reads what only the game loop knows.
        """
        if encoder.spec.proprio is not None:
            check_terms(encoder.spec.proprio)
        return encoder.spec.proprio is not None or bool(encoder.spec.state)

    def wants(self, capture_ns: int) -> bool:
        # a quarter of a period for jitter: 10 Hz out of 30 Hz takes every third frame
        last = self._last_ns
        return last is None or not 0 <= capture_ns - last < 0.75 * self._period_ns

    def make(self, image: NDArray[np.float32], frame: Message) -> NDArray[np.float32]:
        proprio = self._proprio(frame)
        try:
            latent = self._encoder.step(image, proprio)
        except PolicyOutputError as error:
            raise FrameDropped("encoder", detail=str(error)) from error
        self._last_ns = frame.capture_ns
        return latent

    def idle(self) -> None:
        if self._states is not None:
            self._states.update()

    def forget(self) -> None:
        self._encoder.reset()
        if self._builder is not None:
            self._builder.reset()

    def close(self) -> None:
        if self._states is not None:
            self._states.close()

    def _proprio(self, frame: Message) -> NDArray[np.float32] | None:
        capture_ns, states, last = frame.capture_ns, self._states, self._last_ns
        if states is not None:
            if frame.flags & FLAG_LOCKSTEP:
                states.wait_for(capture_ns, _STATE_TIMEOUT_S)
            else:
                states.update()
            if states.reset_before(capture_ns):
                self.forget()
        if last is not None and not 0 <= capture_ns - last < self._forget_after_ns:
            self.forget()  # what it remembers is another time and place
        if self._builder is None or states is None:
            return None
        state = states.at(capture_ns)
        if state is None:
            raise FrameDropped("no_state")
        return self._builder.build(observation_inputs(state))


class Eye:
    """Checks a frame and makes its policy image."""

    def __init__(self, camera: CameraModel, *, min_valid_ratio: float) -> None:
        self._shape = (camera.height, camera.width)
        self._at_lens_m = np.float32(camera.near_m * _AT_LENS)
        self._preprocess = DepthPreprocessor(camera)
        self._min_valid_ratio = min_valid_ratio
        self._preprocess(np.zeros(self._shape, np.float32))

    @property
    def valid_ratio(self) -> float:
        """Share of pixels with a reading in the newest frame."""
        return self._preprocess.valid_ratio

    def see(self, frame: Message) -> NDArray[np.float32]:
        """Policy image (58, 87) of a frame.

        Raises:
            FrameDropped: It is not from this robot's camera, or shows nothing.
        """
        height, width = self._shape
        if frame.payload.size != height * width:
            raise FrameDropped(
                "size", pixels=frame.payload.size, expected=f"{height} x {width} from robot.toml"
            )
        depth = frame.payload.reshape(self._shape)
        image = self._preprocess(depth)
        VALID_RATIO.set(self.valid_ratio)
        self._refuse_dark(depth)
        return image

    def _refuse_dark(self, depth: NDArray[np.float32]) -> None:
        """A covered lens gives no readings, or the nearest one everywhere."""
        kept = depth[CROP]
        seen = np.count_nonzero(kept > self._at_lens_m) / kept.size  # false for NaN
        if seen < self._min_valid_ratio:
            raise FrameDropped(
                "dark", valid_ratio=round(self.valid_ratio, 4), seen_ratio=round(seen, 4)
            )
