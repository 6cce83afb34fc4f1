"""The camera process: newest frame in, features out.

Event-driven: it sleeps until a frame comes. A frame's capture time is the features' capture time,
so the age that the game loop sees is that of the image.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
from krabby.policy.bundle import OnnxEncoder, PolicyBundle, bundle_dir
from krabby.policy.tensorrt.backend import move
from krabby.robot.description import RobotDescription
from krabby.runtime.app import Runtime
from krabby.runtime.metrics import Quantiles, Totals
from krabby.runtime.throttle import log_every
from krabby_proto import CAMERA, FEATURES, FLAG_LOCKSTEP, Message, Publisher
from numpy.typing import NDArray

from krabby_camera import metrics
from krabby_camera.colour import ColourStream
from krabby_camera.config import CameraCfg
from krabby_camera.devices import DepthDevice, DeviceSource
from krabby_camera.errors import CameraError
from krabby_camera.features import Eye, FeatureMaker, FrameDropped, LatentMaker
from krabby_camera.realsense import RealSenseCamera
from krabby_camera.selfcheck import SelfCheck
from krabby_camera.sources import FrameSource, HalSource, ReplaySource
from krabby_camera.states import StateTrack
from krabby_camera.zed import ZedCamera

__all__ = ["CameraService"]

log = structlog.get_logger(__name__)

_WAIT_S = 0.1
_STARTING_NS = 3_000_000_000
"""Before the first frame silence is the HAL starting up, for so long."""


class CameraService:
    """Depth source to policy depth image or encoder features."""

    def __init__(self, cfg: CameraCfg, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Read robot, bundle and recording; no socket is opened yet."""
        self._cfg = cfg
        self._clock = clock
        self._desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        self._eye = Eye(self._desc.camera, min_valid_ratio=cfg.min_valid_ratio)
        self._encoder = self._load_encoder()
        self._needs_states = self._encoder is not None and LatentMaker.needs_states(self._encoder)
        self._source: FrameSource | None = None
        if cfg.source == "replay":
            self._source = ReplaySource(Path(cfg.replay.path), loop=cfg.replay.loop, clock=clock)
        self._device = self._choose_device()
        self._raw: Publisher | None = None
        self._colour: ColourStream | None = None
        self._self_check: SelfCheck | None = None
        self._maker = FeatureMaker()
        self._publisher: Publisher | None = None
        self._warn = log_every(log, clock=clock)
        self._watch = _Watch(cfg, clock)
        self._totals = Totals()
        self._answer: _Answer | None = None
        """Lock-step: the newest features, said again for frames that give none."""
        self.frames = 0
        """Frames whose features were published."""
        self.dropped: dict[str, int] = dict.fromkeys(metrics.DROP_REASONS, 0)
        """Frames received and not published, by reason."""
        self._publish_age = Quantiles()
        self._processing = Quantiles()
        self._valid_ratios = Quantiles()

    def prepare(self, runtime: Runtime) -> None:
        """Put the encoder where the configuration wants it: an engine may have to be built."""
        if self._encoder is not None:
            move([self._encoder], self._cfg.inference, runtime)

    def startup(self) -> None:
        """Bind `features`, then connect to where frames come from."""
        cfg = self._cfg
        self._publisher = Publisher(cfg.endpoints.features, FEATURES, clock=self._clock)
        if self._encoder is not None:
            states = StateTrack(cfg.endpoints.state) if self._needs_states else None
            self._maker = LatentMaker(self._encoder, self._desc, states)
        check = cfg.self_check.when
        if check == "only" or (check == "start" and self._device is not None):
            self._self_check = SelfCheck(
                cfg.self_check, self._desc, cfg.endpoints.state, self._clock
            )
        if self._device is not None:
            self._raw = Publisher(cfg.endpoints.raw, CAMERA, clock=self._clock)
            rate_hz = self._desc.camera.rate_hz
            source = DeviceSource(self._device, rate_hz=rate_hz, clock=self._clock)
            self._source = source
            if cfg.colour.enabled:
                place = cfg.endpoints.colour
                self._colour = ColourStream(cfg.colour, place, source, self._clock)
        elif self._source is None:
            self._source = HalSource(cfg.endpoints.camera)

    def run(self, runtime: Runtime) -> None:
        """Publish features of the newest frame until told to stop, or the recording ends."""
        source, maker, publisher = self._source, self._maker, self._publisher
        assert source is not None, "startup comes first"
        assert publisher is not None
        with runtime.watched():
            while not runtime.stopping:
                runtime.beat()
                frame = source.wait(_WAIT_S)
                runtime.doing(source.doing)
                if frame is not None:
                    if self._raw is not None:
                        self._raw.publish(
                            frame.payload, capture_ns=frame.capture_ns, flags=frame.flags
                        )
                    self._check_view(frame, runtime)
                    self._handle(frame, maker, publisher)
                    for name, counter in _COUNTERS.items():
                        self._totals.show(counter, getattr(source, name))
                elif source.exhausted:
                    log.info("recording ended", path=self._cfg.replay.path)
                    break
                else:
                    maker.idle()
                    if self._answer is None:  # else simulated time stands still
                        self._watch.silence(self._warn)
                if self._colour is not None:
                    self._colour.work()

    def shutdown(self) -> Mapping[str, object]:
        """Close the sockets."""
        source = self._source
        counts = {} if source is None else {name: getattr(source, name) for name in _COUNTERS}
        colour = {} if self._colour is None else {"colour": self._colour.published}
        open_ = (source, self._maker, self._publisher, self._raw, self._colour, self._self_check)
        for each in open_:
            if each is not None:
                each.close()
        return {
            "frames": self.frames,
            "dropped": self.dropped,
            "stream": counts,
            **colour,
            **self._publish_age.summary_ms("age"),
            **self._processing.summary_ms("processing"),
            "valid_ratio_mean": round(self._valid_ratios.mean, 4) if self.frames else None,
        }

    def _load_encoder(self) -> OnnxEncoder | None:
        if not self._cfg.bundle:
            return None
        bundle = PolicyBundle.load(bundle_dir(self._cfg.bundle), self._desc)
        # One that reads images, or is blind, has no encoder: so one setting serves every policy.
        return None if bundle.encoder is None else OnnxEncoder(bundle)

    def _choose_device(self) -> DepthDevice | None:
        cfg, camera = self._cfg, self._desc.camera
        scale = cfg.colour.scale if cfg.colour.enabled else 0
        if cfg.source == "zed":
            return ZedCamera(cfg.zed, camera, colour_scale=scale, clock=self._clock)
        if cfg.source == "realsense":
            return RealSenseCamera(cfg.realsense, camera, colour_scale=scale, clock=self._clock)
        return None

    def _check_view(self, frame: Message, runtime: Runtime) -> None:
        check, camera = self._self_check, self._desc.camera
        if check is None or frame.payload.size != camera.height * camera.width:
            return
        if not check.see(frame.payload.reshape(camera.height, camera.width)):
            return
        self._self_check = None
        if self._cfg.self_check.when == "only":
            runtime.stop("self-check over")
            if check.problems:
                raise CameraError("; ".join(check.problems))

    def _handle(self, frame: Message, maker: FeatureMaker, publisher: Publisher) -> None:
        received_ns = self._clock()
        lockstep = bool(frame.flags & FLAG_LOCKSTEP)
        try:
            self._watch.see(frame, received_ns)
            again = self._answer is not None and frame.capture_ns == self._answer.frame_ns
            if again or not maker.wants(frame.capture_ns):
                maker.idle()
                if lockstep:
                    self._answer_again(publisher, maker, frame)
                return
            image = self._eye.see(frame)
            features = maker.make(image, frame)
        except FrameDropped as drop:
            self._count_drop(drop)
            maker.idle()  # states come while frames are withheld, and one may be a reset
            if drop.reason == "frozen":
                maker.forget()  # it remembers half a second of a frozen image
            if lockstep:
                self._answer_again(publisher, maker, frame)
            return
        flags = maker.flags | (frame.flags & FLAG_LOCKSTEP)
        publisher.publish(
            features,
            capture_ns=frame.capture_ns,
            publish_ns=frame.capture_ns if lockstep else None,
            flags=flags,
        )
        published_ns = self._clock()
        stamp_ns = frame.capture_ns
        self._answer = _Answer(features, stamp_ns, stamp_ns, flags) if lockstep else None
        self._count(frame, received_ns, published_ns, lockstep)
        ratio = self._eye.valid_ratio
        self._valid_ratios.add(ratio)
        if ratio < self._cfg.warn_valid_ratio:
            self._warn.warning("few valid depth pixels", valid_ratio=round(ratio, 3))

    def _answer_again(self, publisher: Publisher, maker: FeatureMaker, frame: Message) -> None:
        """Lock-step waits for an answer to every frame, also to one that gives no features.

        That is the last features, with the capture time of their own image; NaN without any.
        """
        if self._answer is None:
            nothing = np.full(maker.size, np.nan, np.float32)
            flags = maker.flags | FLAG_LOCKSTEP
            self._answer = _Answer(nothing, frame.capture_ns, frame.capture_ns, flags)
        self._answer = answer = self._answer._replace(frame_ns=frame.capture_ns)
        publisher.publish(
            answer.features,
            capture_ns=answer.capture_ns,
            publish_ns=answer.frame_ns,
            flags=answer.flags,
        )

    def _count(self, frame: Message, received_ns: int, published_ns: int, lockstep: bool) -> None:
        processing_s = (published_ns - received_ns) * 1e-9
        self.frames += 1
        metrics.FRAMES.inc()
        metrics.PROCESSING.observe(processing_s)
        self._processing.add(processing_s)
        if not lockstep:  # simulated time and the wall clock have no difference to speak of
            age_s = frame.age_s(published_ns)
            metrics.CAMERA_AGE.observe(frame.age_s(received_ns))
            metrics.PUBLISH_AGE.observe(age_s)
            self._publish_age.add(age_s)

    def _count_drop(self, drop: FrameDropped) -> None:
        self.dropped[drop.reason] += 1
        metrics.DROPPED[drop.reason].inc()
        self._warn.warning(f"frame dropped: {drop.reason}", **drop.facts)


class _Answer(NamedTuple):
    """Lock-step: features that were published."""

    features: NDArray[np.float32]
    capture_ns: int
    """Of their image."""
    frame_ns: int
    """Capture time of the newest frame that they answer."""
    flags: int


_COUNTERS: dict[str, Any] = {
    "received": metrics.RECEIVED,
    "discarded": metrics.DISCARDED,
    "gaps": metrics.GAPS,
    "invalid": metrics.INVALID,
}


class _Watch:
    """Notices a camera that falls silent or repeats one image.

    A frozen camera with fresh stamps looks healthy to everybody behind it. Frames whose content
    has not changed for a while are therefore withheld; the game loop then sees its features age.
    """

    def __init__(self, cfg: CameraCfg, clock: Callable[[], int]) -> None:
        self._silent_after_ns = round(cfg.silent_after_s * 1e9)
        self._frozen_after_ns = round(cfg.frozen_after_s * 1e9)
        self._clock = clock
        self._started_ns = clock()
        self._received_ns: int | None = None
        """None before the first frame."""
        self._content: tuple[int, int] | None = None
        self._content_capture_ns: int | None = None
        self._lockstep = False
        metrics.FRAME_AGE.set_function(self.age_s)

    def age_s(self) -> float:
        """Time since the newest content was captured [s]; NaN before the first or in lock-step."""
        if self._content_capture_ns is None or self._lockstep:
            return float("nan")
        return (self._clock() - self._content_capture_ns) * 1e-9

    def see(self, frame: Message, now_ns: int) -> None:
        """Take note of a frame.

        Raises:
            FrameDropped: Its content has been the same for too long.
        """
        self._received_ns = now_ns
        self._lockstep = bool(frame.flags & FLAG_LOCKSTEP)
        content = (frame.header.crc32, frame.header.num_elements)
        if content != self._content or self._content_capture_ns is None:
            self._content, self._content_capture_ns = content, frame.capture_ns
        same_for_ns = frame.capture_ns - self._content_capture_ns
        frozen = 0 < self._frozen_after_ns <= same_for_ns
        metrics.FROZEN.set(frozen)
        if frozen:
            raise FrameDropped("frozen", same_content_s=round(same_for_ns * 1e-9, 3))

    def silence(self, warn: Any) -> None:
        """Complain when no frame has come for too long."""
        ever = self._received_ns is not None
        since_ns = self._clock() - (self._received_ns or self._started_ns)
        if since_ns >= (self._silent_after_ns if ever else _STARTING_NS):
            warn.warning("no camera frames", for_s=round(since_ns * 1e-9, 3), ever=ever)
