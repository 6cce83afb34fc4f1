"""What viewers draw of a recording: Foxglove's messages in protobuf, beside the raw streams.

| topic | message | from | rate |
| --- | --- | --- | --- |
| /joint_states | foxglove.JointStates | state | 25 Hz |
| /joint_targets | foxglove.JointStates | commands that the HAL was sent | 25 Hz |
| /tf | foxglove.FrameTransforms: world, base, the links of the legs | state and truth | 25 Hz |
| /camera/depth | foxglove.RawImage, 16UC1 in mm | camera | 10 Hz |
| /camera/colour | foxglove.CompressedImage, JPEG | colour | as they come |
| /camera/calibration | foxglove.CameraCalibration | hello of the HAL | once |
| /course | foxglove.SceneUpdate: the boxes of the course | hello of the HAL | once |
| /log | foxglove.Log: gate, requests, modes, missed messages | trace, ticks | as they come |

Frames and links have the names of the robot's URDF. Without truth, on a robot, `base` stands at the
origin of `world` and turns with the measured attitude. Times are those of the robot's clock.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.JointStates_pb2 import JointStates
from foxglove_schemas_protobuf.Log_pb2 import Log
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from foxglove_schemas_protobuf.SceneUpdate_pb2 import SceneUpdate
from krabby.course.courses import make_course
from krabby.robot.description import JOINTS_PER_LEG, RobotDescription
from krabby.robot.errors import RobotError
from krabby.robot.rotations import from_euler, from_matrix
from krabby_proto import (
    CAMERA,
    COLOUR,
    STATE,
    TICKS,
    TRACE,
    TRUTH,
    Exchange,
    ExchangeKind,
    FrameError,
    GateView,
    Message,
    RawMessage,
    Tick,
    unpack,
)
from krabby_proto.exchanges import AskedTarget
from krabby_proto.recording import Recorder
from mcap_protobuf.schema import build_file_descriptor_set
from numpy.typing import ArrayLike, NDArray

__all__ = ["Drawing"]

_DRAWN_NS: Final = 40_000_000
_IMAGE_NS: Final = 100_000_000
_GREY: Final = (0.55, 0.53, 0.5, 1.0)
_ASKED: Final = b'"op"'
"""In a record of `ticks`: an operator asked something."""
_WORLD, _BASE, _OPTICAL = "world", "base", "camera_optical"


class Drawing:
    """Adds what viewers draw to a recording.

    Args:
        recorder: of the recording.
        desc: the robot whose frames are drawn.
    """

    def __init__(self, recorder: Recorder, desc: RobotDescription) -> None:
        self._recorder = recorder
        self._desc = desc
        self._channels: dict[str, int] = {}
        self._due_ns: dict[str, int] = {}
        self._truth: RawMessage | None = None
        self._mode_byte = b""
        self._gate: GateView | None = None
        self._asked = AskedTarget()
        self._mode = ""
        self._camera: dict[str, Any] = {}
        self._is_robot = True

    def take(self, raw: RawMessage) -> None:
        """A raw message was recorded; what is none of this contract is not drawn."""
        with contextlib.suppress(FrameError):
            self._take(raw, raw.publish_ns)

    def _take(self, raw: RawMessage, now_ns: int) -> None:
        stream = raw.stream
        if stream is STATE:
            if self._is_due("/joint_states", now_ns, _DRAWN_NS):
                self._draw_state(raw.decode(), now_ns)
        elif stream is TRUTH:
            self._truth = raw
        elif stream is CAMERA:
            if self._is_due("/camera/depth", now_ns, _IMAGE_NS):
                self._draw_image(raw.decode(), now_ns)
        elif stream is COLOUR:
            self._draw_colour(raw.decode(), now_ns)
        elif stream is not TICKS and stream is not TRACE:
            return
        elif stream is TRACE:
            self._draw_exchange(Exchange.unpack(raw.payload), now_ns)
        elif raw.payload[1:2] != self._mode_byte or _ASKED in raw.payload:  # of ticks
            self._mode_byte = raw.payload[1:2]
            self._draw_tick(Tick.unpack(raw.decode()), now_ns)

    def take_hello(self, name: str, hello: Mapping[str, Any], now_ns: int) -> None:
        """A process said what it is: course, camera and robot come from the HAL's words."""
        self.log(f"{name} is {hello.get('service')}", now_ns)
        if name != "hal":
            return
        robot = hello.get("robot")
        known = isinstance(robot, dict) and robot.get("hash") == self._desc.identity["hash"]
        self._is_robot = known
        if not known:
            self.log(
                f"not the robot {self._desc.name}: its links are not drawn", now_ns, Log.WARNING
            )
        camera = hello.get("camera")
        if isinstance(camera, dict) and camera.get("width"):
            self._camera = camera
            self._draw_calibration(now_ns)
        extra = hello.get("extra")
        course = extra.get("course") if isinstance(extra, dict) else None
        if isinstance(course, dict):
            self._draw_course(course, now_ns)

    def log(self, text: str, now_ns: int, level: Any = Log.INFO, name: str = "krabby") -> None:
        """Add a line to /log."""
        line = Log(level=level, message=text, name=name)
        line.timestamp.FromNanoseconds(now_ns)
        self._write("/log", line, now_ns)

    def _is_due(self, topic: str, now_ns: int, period_ns: int) -> bool:
        """Whether this is the first message of a new period."""
        due_ns = self._due_ns.get(topic, 0)
        if 0 < due_ns - now_ns < 10 * period_ns:  # further ahead: the clock began again
            return False
        late = now_ns - due_ns < period_ns
        self._due_ns[topic] = (due_ns if late else now_ns) + period_ns
        return True

    def _write(self, topic: str, message: Any, now_ns: int) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            kind = type(message)
            schema = build_file_descriptor_set(kind).SerializeToString()
            name = kind.DESCRIPTOR.full_name
            channel = self._recorder.register(topic, name, "protobuf", schema, "protobuf")
            self._channels[topic] = channel
        self._recorder.append(channel, message.SerializeToString(), now_ns)

    # --- what is measured --------------------------------------------------------------------

    def _draw_state(self, message: Message, now_ns: int) -> None:
        values = unpack(STATE, message.payload)
        states = JointStates()
        states.timestamp.FromNanoseconds(message.capture_ns)
        numbers = zip(
            self._desc.joint_names,
            values["joint_pos"].tolist(),
            values["joint_vel"].tolist(),
            values["joint_effort"].tolist(),
            strict=True,
        )
        for name, position, velocity, effort in numbers:
            states.joints.add(name=name, position=position, velocity=velocity, effort=effort)
        self._write("/joint_states", states, now_ns)
        frames = FrameTransforms()
        base_pos, base_quat = np.zeros(3), values["base_quat_w"]
        if self._truth is not None:
            truth = unpack(TRUTH, self._truth.decode().payload)
            base_pos, base_quat = truth["base_pos_w"], truth["base_quat_w"]
        _add_frame(frames, _WORLD, _BASE, base_pos, base_quat, message.capture_ns)
        if self._is_robot:
            for parent, child, at, quat in _links(self._desc, values["joint_pos"]):
                _add_frame(frames, parent, child, at, quat, message.capture_ns)
        if self._camera:
            at, quat = _optical(self._camera)
            _add_frame(frames, _BASE, _OPTICAL, at, quat, message.capture_ns)
        self._write("/tf", frames, now_ns)

    def _draw_image(self, message: Message, now_ns: int) -> None:
        width, height = self._camera.get("width", 0), self._camera.get("height", 0)
        if width * height != message.payload.size:  # the HAL has not said how wide it is
            return
        depth_mm = np.clip(np.nan_to_num(message.payload) * 1e3, 0, 65535).astype("<u2")
        image = RawImage(
            frame_id=_OPTICAL,
            width=width,
            height=height,
            encoding="16UC1",
            step=2 * width,
            data=depth_mm.tobytes(),
        )
        image.timestamp.FromNanoseconds(message.capture_ns)
        self._write("/camera/depth", image, now_ns)

    def _draw_colour(self, message: Message, now_ns: int) -> None:
        image = CompressedImage(frame_id=_OPTICAL, data=message.payload.tobytes(), format="jpeg")
        image.timestamp.FromNanoseconds(message.capture_ns)
        self._write("/camera/colour", image, now_ns)

    def _draw_calibration(self, now_ns: int) -> None:
        width, height = self._camera["width"], self._camera["height"]
        focal = 0.5 * width / math.tan(0.5 * self._camera["hfov_rad"])
        centre_x, centre_y = 0.5 * width, 0.5 * height
        calibration = CameraCalibration(
            frame_id=_OPTICAL,
            width=width,
            height=height,
            distortion_model="plumb_bob",
            D=[0.0] * 5,
            K=[focal, 0, centre_x, 0, focal, centre_y, 0, 0, 1],
            R=[1, 0, 0, 0, 1, 0, 0, 0, 1],
            P=[focal, 0, centre_x, 0, 0, focal, centre_y, 0, 0, 0, 1, 0],
        )
        calibration.timestamp.FromNanoseconds(now_ns)
        self._write("/camera/calibration", calibration, now_ns)

    def _draw_course(self, course: Mapping[str, Any], now_ns: int) -> None:
        try:
            made = make_course(course["name"], course["difficulty"], course["seed"])
        except (KeyError, RobotError) as error:
            self.log(f"the course is not drawn: {error}", now_ns, Log.WARNING)
            return
        if made.content_hash != course.get("hash"):
            text = "the course is not drawn: this version makes another one of its name and seed"
            self.log(text, now_ns, Log.WARNING)
            return
        scene = SceneUpdate()
        entity = scene.entities.add(frame_id=_WORLD, id="course")
        entity.timestamp.FromNanoseconds(now_ns)
        for box in made.boxes:
            cube = entity.cubes.add()
            _set_pose(cube.pose, box.center, box.quat)
            cube.size.x, cube.size.y, cube.size.z = (2.0 * half for half in box.half_extents)
            cube.color.r, cube.color.g, cube.color.b, cube.color.a = _GREY
        self._write("/course", scene, now_ns)

    # --- what was asked ----------------------------------------------------------------------

    def _draw_tick(self, tick: Tick, now_ns: int) -> None:
        if tick.mode != self._mode:
            self.log(f"mode {tick.mode}", now_ns, name="gameloop")
            self._mode = tick.mode
        if tick.policy is not None:
            self.log(f"policy {tick.policy.get('name')}", now_ns, name="gameloop")
        for exchange in tick.exchanges:
            self._draw_exchange(exchange, now_ns)

    def _draw_exchange(self, exchange: Exchange, now_ns: int) -> None:
        gate = exchange.gate
        if gate is not None and gate != self._gate:
            self._gate = gate
            level = Log.ERROR if gate.fault_bits else Log.INFO
            text = f"gate {gate.safety_name}" + "".join(f", {name}" for name in gate.faults)
            self.log(text, now_ns, level, "gate")
        if exchange.kind is ExchangeKind.COMMAND:
            command, reply = exchange.command, exchange.reply
            if command is not None and reply is not None:
                target = self._asked.take(command, reply)
                if self._is_due("/joint_targets", now_ns, _DRAWN_NS):
                    self._draw_targets(target.tolist(), command.header.publish_ns, now_ns)
        elif exchange.kind is not ExchangeKind.GATE and exchange.asked.get("op") != "status":
            asked, answered = exchange.asked, exchange.answered
            who = f" by {asked['by']}" if asked.get("by") else ""
            refused = "" if answered.get("ok") else f", refused: {answered.get('reason')}"
            level = Log.WARNING if refused or asked.get("op") == "estop" else Log.INFO
            self.log(f"{asked.get('op')}{who}{refused}", now_ns, level, exchange.kind.name.lower())

    def _draw_targets(self, targets: Sequence[float], stamp_ns: int, now_ns: int) -> None:
        states = JointStates()
        states.timestamp.FromNanoseconds(stamp_ns)
        for name, target in zip(self._desc.joint_names, targets, strict=True):
            states.joints.add(name=name, position=target)
        self._write("/joint_targets", states, now_ns)


def _links(
    desc: RobotDescription, joint_pos: NDArray[np.floating]
) -> Iterable[tuple[str, str, ArrayLike, ArrayLike]]:
    """Parent, link, position [m] and quaternion of every link of the legs, as in the URDF."""
    geometry = desc.geometry
    angles = joint_pos.reshape(-1, JOINTS_PER_LEG).astype(np.float64)
    hips = geometry.hip_pos_b
    for index, (leg, (yaw, pitch, knee)) in enumerate(zip(desc.leg_names, angles, strict=True)):
        heading = from_euler(0.0, 0.0, geometry.leg_yaw[index] + yaw)
        yield _BASE, f"{leg}_hip", hips[index], heading
        # A positive pitch lifts the leg: about -y.
        at = (geometry.hip_length, 0.0, 0.0)
        yield f"{leg}_hip", f"{leg}_femur", at, from_euler(0.0, -pitch, 0.0)
        at = (geometry.femur_length, 0.0, 0.0)
        yield f"{leg}_femur", f"{leg}_tibia", at, from_euler(0.0, -knee, 0.0)
        yield f"{leg}_tibia", f"{leg}_foot", (geometry.tibia_length, 0.0, 0.0), (0, 0, 0, 1)


def _optical(camera: Mapping[str, Any]) -> tuple[ArrayLike, ArrayLike]:
    """Place of the camera in the base frame and its turn: x right, y down, z along the axis."""
    pitch = camera["mount_pitch_rad"]
    ahead = np.array([math.cos(pitch), 0.0, -math.sin(pitch)])
    right = np.array([0.0, -1.0, 0.0])
    return camera["mount_xyz"], from_matrix(np.stack([right, np.cross(ahead, right), ahead], 1))


def _add_frame(
    frames: Any, parent: str, child: str, at: ArrayLike, quat: ArrayLike, now_ns: int
) -> None:
    frame = frames.transforms.add(parent_frame_id=parent, child_frame_id=child)
    frame.timestamp.FromNanoseconds(now_ns)
    place, turn = frame.translation, frame.rotation
    place.x, place.y, place.z = np.asarray(at).tolist()
    turn.x, turn.y, turn.z, turn.w = np.asarray(quat).tolist()


def _set_pose(pose: Any, at: Iterable[float], quat: Iterable[float]) -> None:
    pose.position.x, pose.position.y, pose.position.z = at
    turn = pose.orientation
    turn.x, turn.y, turn.z, turn.w = quat
