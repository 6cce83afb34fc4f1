"""The parsers under test: seeds, the call, and the errors that a bad input may raise.

An input is one byte string. Messages of several frames are joined by `joined`, so that a mutation
may also move, drop and double frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zmq
from krabby.config import Config, ConfigError, load
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.codec import Frame, Scale
from krabby.drivers.can.damiao import DamiaoCodec
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.makes import MODELS
from krabby.drivers.can.robstride import RobStrideCodec
from krabby.drivers.errors import DriveError, HardwareError
from krabby.drivers.imu import vectornav as vn
from krabby.drivers.imu.server import Vn100Device
from krabby.policy.bundle import (
    MANIFEST_FILE,
    POLICY_FILE,
    SAMPLE_FILES,
    PolicyBundle,
    bundle_dir,
    policy_network,
)
from krabby.robot.assets import assets_dir, robot_dir
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError, RobotError
from krabby_camera.config import CameraCfg
from krabby_cli.keys import Drive, NavLimits, parse_js_events
from krabby_cli.logs import LogLine
from krabby_cli.terminal import KeyDecoder
from krabby_gameloop.config import GameloopCfg
from krabby_jetson_hal.config import JetsonHalCfg
from krabby_proto import (
    CommandReply,
    FrameError,
    HelloMismatch,
    RecordingError,
    check_hello,
    decode,
    make_hello,
)
from krabby_proto.access import ClientKey, KeyPair
from krabby_proto.admission import CommandAdmission
from krabby_proto.errors import KeyFileError
from krabby_proto.hello import parse_request
from krabby_proto.recording import Recorder, Recording
from zmq.utils import z85

__all__ = ["TARGETS", "Target", "frames_of", "joined"]

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "proto" / "golden"


class Target(NamedTuple):
    """One parser."""

    name: str
    share: float
    """Of all inputs; slow parsers get fewer."""
    seeds: Callable[[], list[bytes]]
    parse: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...] = ()
    """What a bad input may raise; all else is a finding."""


def joined(frames: Sequence[bytes]) -> bytes:
    """Frames as one byte string: a length of three bytes before each."""
    return b"".join(len(frame).to_bytes(3, "little") + frame for frame in frames)


def frames_of(data: bytes) -> list[bytes]:
    """The frames of any byte string."""
    frames = []
    while data:
        size = int.from_bytes(data[:3], "little")
        frames.append(data[3 : 3 + size])
        data = data[3 + size :]
    return frames


def _golden(name: str) -> list[bytes]:
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    return [bytes.fromhex(frame) for frame in facts.get("frames", [facts.get("frame")])]


_STREAMS = ("camera", "state", "command", "features", "nav", "trace", "ticks", "truth", "colour")


def _messages() -> list[bytes]:
    return [joined(_golden(name)) for name in _STREAMS]


_admission = CommandAdmission(ttl_s=1e18, lease_s=0.0, capture_ttl_s=1e18)


def _message(data: bytes) -> None:
    frames = frames_of(data)
    verdict = _admission.admit(frames, 1 << 63, 0)
    assert (verdict.message is None) == (verdict.status.name != "APPLIED")
    message = decode(frames)
    assert message.payload.size == message.header.num_elements
    assert message.frames() == frames


def _reply(data: bytes) -> None:
    reply = CommandReply.unpack(data)
    assert reply.status_name
    assert reply.safety_name


_hello = make_hello(service="gameloop", robot={"name": "crab", "joint_names": ["a", "b"]})


def _request(data: bytes) -> None:
    request = parse_request([b"safety", data], b"safety")
    if request is not None:
        json.dumps(request)
        check_hello(request, _hello)


def _requests() -> list[bytes]:
    return [
        json.dumps(each).encode()
        for each in (
            {"op": "arm", "by": "me", "sent_ns": 1}, {"op": "policy", "policy": "gait"}, _hello,
        )
    ]  # fmt: skip


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """A path that reads as `data`, in memory."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


_desc = RobotDescription.load()
_shipped = PolicyBundle.load(bundle_dir("gait"), _desc)


def _manifest(data: bytes) -> None:
    (_folder() / MANIFEST_FILE).write_bytes(data)
    PolicyBundle.load(_folder(), _desc)


def _folder() -> Path:
    """Of this process, with the networks of a shipped bundle."""
    if _folders.get("pid") != os.getpid():
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = tempfile.TemporaryDirectory(prefix="krabby-fuzz-", dir=parent)
        for name, content in _shipped.files.items():
            Path(folder.name, name).write_bytes(content)
        _folders.update(pid=os.getpid(), folder=folder)
    return Path(_folders["folder"].name)


_folders: dict = {}


def _samples(data: bytes) -> None:
    files = {**_shipped.files, SAMPLE_FILES[POLICY_FILE]: data}
    policy_network(dataclasses.replace(_shipped, files=files))


def _sample_seeds() -> list[bytes]:
    packed = io.BytesIO()
    np.savez_compressed(packed, obs=np.zeros((3, 1, _shipped.observation.size), np.float32))
    plain = io.BytesIO()
    np.savez(plain, obs=np.zeros((2, 1, _shipped.observation.size), np.float32))
    return [packed.getvalue(), plain.getvalue()]


_SERVICES: tuple[tuple[type[Config], str], ...] = (
    (JetsonHalCfg, "jetson-hal"), (GameloopCfg, "gameloop"), (CameraCfg, "camera"),
)  # fmt: skip


def _service_toml(data: bytes) -> None:
    cls, _ = _SERVICES[len(data) % len(_SERVICES)]
    with _as_file(data) as path:
        load(cls, path)


def _service_seeds() -> list[bytes]:
    texts = [
        path.read_bytes() for _, name in _SERVICES for path in _tomls(ROOT / "services" / name)
    ]
    return [text + b"#" * extra for text in texts for extra in range(len(_SERVICES))]


def _tomls(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.toml") if path.name != "pyproject.toml")


def _robot_toml(data: bytes) -> None:
    with _as_file(data) as path:
        RobotDescription.load(path)


def _hardware_toml(data: bytes) -> None:
    with _as_file(data) as path:
        HardwareDescription.load(path, _desc)


_hardware = HardwareDescription.load(None, _desc)


def _calibration_toml(data: bytes) -> None:
    with _as_file(data) as path:
        Calibration.load(path, _hardware)


def _calibration_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.toml"
        Calibration.nominal(_hardware).save(path)
        return [path.read_bytes().replace(b'measured = ""', b'measured = "today"')]


def _key_file(data: bytes) -> None:
    with _as_file(data) as path:
        path.chmod(0o600)
        assert len(ClientKey.read(path).options) == 3


def _key_files() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.toml"
        secret = z85.encode(bytes(range(32)))
        public = zmq.curve_public(secret).decode()
        ClientKey(KeyPair(public, secret.decode()), public).write(path)
        return [path.read_bytes()]


def _recording(data: bytes) -> None:
    with _as_file(data) as path:
        for message in Recording(path):
            message.frames()


def _recordings() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.mcap"
        with Recorder(path) as recorder:
            for name in ("state", "nav", "command", "truth"):
                recorder.write(decode(_golden(name)))
        return [path.read_bytes()]


_CODECS = (RobStrideCodec(), DamiaoCodec())
_scales = [Scale.of([model]) for model in MODELS.values()]


def _can_frame(data: bytes) -> None:
    """Bytes 0 to 3 are the id and whether it is extended, the rest the data."""
    number = int.from_bytes(data[:4], "little")
    frame = Frame(number & 0x1FFFFFFF, data[4:12], bool(number >> 31))
    for codec in _CODECS:
        codec.sender(frame)
        codec.is_foreign(frame)
        codec.parse_request(frame)
        codec.parse_reply(frame)
    if len(frame.data) == 8 and number % 8 == 0:  # what is not 8 bytes never comes to these
        ids = np.array([frame.arbitration_id], np.uint32)
        row = np.frombuffer(frame.data, np.uint8).reshape(1, 8)
        for codec in _CODECS:
            scale = _scales[number % len(_scales)]
            assert all(np.isfinite(part).all() for part in codec.decode_feedbacks(scale, ids, row))
            assert all(np.isfinite(part).all() for part in codec.decode_commands(scale, ids, row))


def _can_seeds() -> list[bytes]:
    frames = (
        (0x1100FD7F, "1e70000000000000"), (0x11007FFD, "1e7000000000f041"),
        (0x0180000B, "800080000ccd199a"), (0x02800BFD, "80008000800000fa"),
        (0x15000BFD, "0840000000000000"), (0x1200FD0B, "28700000d0070000"),
        (0x001, "fffffffffffffffc"), (0x011, "1180008000800019"), (0x7FF, "0100331100000000"),
    )  # fmt: skip
    return [
        (number | (1 << 31 if number > 0x7FF else 0)).to_bytes(4, "little") + bytes.fromhex(text)
        for number, text in frames
    ]


def _imu(data: bytes) -> None:
    """The driver's parser, fed in two pieces, and the emulated sensor."""
    parser = vn.StreamParser()
    half = len(data) // 2
    for received in parser.feed(data[:half]) + parser.feed(data[half:]):
        if isinstance(received.message, vn.Reply):
            assert received.message.error is None or received.message.error
    _device.receive(data)
    assert _device.rate_hz >= 0.0


_device = Vn100Device()


def _imu_seeds() -> list[bytes]:
    measured = vn.Measurement(5, (0.0, 0.0, 0.0, 1.0), (0.1, 0.2, 0.3), (0.0, 0.0, -9.81), 25.0)
    line = vn.encode_ascii
    return [
        vn.encode_measurement(measured) * 2,
        line("VNWRG", "75", *vn.binary_output(1, 4)) + vn.encode_measurement(measured),
        line("VNRRG", "05", "115200") + line("VNERR", "03") + line("VNASY", "0"),
        line("VNWRG", "26", "1", "0", "0", "0", "1", "0", "0", "0", "1") + line("VNRRG", "35"),
    ]


def _operator(data: bytes) -> None:
    """Keys as a terminal decodes them, and events of a gamepad."""
    drive = Drive(NavLimits())
    events, rest = parse_js_events(data)
    assert len(rest) < 8
    for now_s in (0.0, 1.0, 9.0):
        nav, _ = drive.turn(KeyDecoder().feed(data), events, now_s)
        assert all(abs(value) <= 0.6 for value in nav)


def _inputs() -> list[bytes]:
    return [
        b"wasd qe 123x",
        bytes.fromhex("00000000ff7f0201 0000000001000104"),
        b"\x1b[A\x1bOB\x03",
    ]


def _log_line(data: bytes) -> None:
    line = LogLine.parse(data.decode(errors="replace"))
    assert isinstance(line.readable(), str)
    assert line.is_loud in (True, False)


def _log_seeds() -> list[bytes]:
    event = {"time": "t", "level": "warning", "event": "behind", "slots": 2, "exception": "a\nb"}
    return [json.dumps(event).encode(), b"Traceback (most recent call last):"]


TARGETS = {
    target.name: target
    for target in (
        Target("messages", 0.38, _messages, _message, (FrameError,)),
        Target("replies", 0.20, lambda: _golden("reply"), _reply, (FrameError,)),
        Target("requests", 0.08, _requests, _request, (HelloMismatch,)),
        Target("can", 0.12, _can_seeds, _can_frame, (DriveError,)),
        Target("imu", 0.08, _imu_seeds, _imu),
        Target("operator", 0.05, _inputs, _operator),
        Target("keys", 0.005, _key_files, _key_file, (KeyFileError,)),
        Target("logs", 0.045, _log_seeds, _log_line),
        Target("recordings", 0.012, _recordings, _recording, (RecordingError,)),
        Target(
            "manifests", 0.008,
            lambda: [(_path / MANIFEST_FILE).read_bytes() for _path in _bundles()],
            _manifest, (BundleError,),
        ),
        Target("samples", 0.008, _sample_seeds, _samples, (BundleError,)),
        Target("service-toml", 0.004, _service_seeds, _service_toml, (ConfigError,)),
        Target(
            "robot-toml", 0.002, lambda: [(robot_dir() / "robot.toml").read_bytes()],
            _robot_toml, (RobotError,),
        ),
        Target(
            "hardware-toml", 0.003, lambda: [(robot_dir() / "hardware.toml").read_bytes()],
            _hardware_toml, (HardwareError, RobotError),
        ),
        Target("calibration-toml", 0.003, _calibration_seeds, _calibration_toml, (HardwareError,)),
    )
}  # fmt: skip


def _bundles() -> list[Path]:
    return sorted(path.parent for path in (assets_dir() / "policies").glob(f"*/{MANIFEST_FILE}"))
