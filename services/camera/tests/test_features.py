"""Depth encoders: the robot's state of the picture's moment, memory, rate, and what is refused."""

import shutil
import tempfile

import numpy as np
import onnx
import pytest
from krabby.policy.bundle import OnnxEncoder, write_bundle
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError
from krabby.runtime.testing import running, until
from krabby_camera.config import CameraCfg, EndpointsCfg
from krabby_camera.errors import CameraError
from krabby_camera.features import FrameDropped, LatentMaker
from krabby_camera.service import CameraService
from krabby_camera.states import StateTrack
from krabby_proto import (
    CAMERA,
    FEATURES,
    FLAG_LATENT,
    FLAG_LOCKSTEP,
    FLAG_RESET,
    STATE,
    LatestSubscriber,
    Publisher,
    decode,
    encode,
    pack,
)
from onnx import TensorProto, helper

MS = 1_000_000
DESC = RobotDescription.load()


def tensor(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def constant(name, value):
    return onnx.numpy_helper.from_array(np.asarray(value, np.float32), name)


def model(nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return made.SerializeToString()


def policy_onnx():
    node = helper.make_node("MatMul", ["obs", "w"], ["actions"])
    return model(
        [node],
        [tensor("obs", 1, 3)],
        [tensor("actions", 1, 18)],
        [constant("w", np.zeros((3, 18)))],
    )


def encoder_onnx(*, proprio, memory):
    """latent[0] = the image's mean, [1] = frames seen before, [2:5] = base_ang_vel."""
    eye = np.eye(32, dtype=np.float32)
    constants = [constant("e0", eye[:1])]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "e0"], ["sum0"]),
    ]
    inputs, outputs, last = [tensor("image", 1, 1, 58, 87)], [], "sum0"
    if memory:
        constants += [constant("e1", eye[1:2]), constant("one", [[1.0]])]
        nodes += [
            helper.make_node("MatMul", ["seen", "e1"], ["part1"]),
            helper.make_node("Add", [last, "part1"], ["sum1"]),
            helper.make_node("Add", ["seen", "one"], ["seen_next"]),
        ]
        inputs.append(tensor("seen", 1, 1))
        outputs.append(tensor("seen_next", 1, 1))
        last = "sum1"
    if proprio:
        constants.append(constant("e2", eye[2:5]))
        nodes += [
            helper.make_node("MatMul", ["proprio", "e2"], ["part2"]),
            helper.make_node("Add", [last, "part2"], ["sum2"]),
        ]
        inputs.append(tensor("proprio", 1, 3))
        last = "sum2"
    nodes.append(helper.make_node("Identity", [last], ["latent"]))
    return model(nodes, inputs, [tensor("latent", 1, 32), *outputs], constants)


def bundle(folder, *, proprio="", memory=False, rate_hz=30.0):
    term = {"name": proprio, "size": 3, "scale": 1.0, "history": 1}
    state = {"input": "seen", "output": "seen_next", "shape": [1, 1]}
    manifest = {
        "name": "student",
        "observation": [{"name": "base_ang_vel", "size": 3, "scale": 0.25, "history": 1}],
        "action": {"scale": 0.1, "offset": DESC.default_joint_pos.tolist(), "clip": 1.0},
        "encoder": {
            "rate_hz": rate_hz,
            "proprio": [term] if proprio else [],
            "state": [state] if memory else [],
        },
    }
    files = {
        "policy.onnx": policy_onnx(),
        "depth_encoder.onnx": encoder_onnx(proprio=bool(proprio), memory=memory),
    }
    return write_bundle(f"{folder}/student", manifest, files, DESC)


def frame(capture_ms, flags=0):
    return decode(
        encode(
            CAMERA,
            np.ones((60, 106), np.float32),
            instance_id=1,
            sequence=1,
            capture_ns=capture_ms * MS,
            publish_ns=capture_ms * MS,
            flags=flags,
        )
    )


def state_payload(roll_rate):
    return pack(
        STATE,
        base_quat_w=(0, 0, 0, 1),
        base_ang_vel_b=(roll_rate, 0, 0),
        base_lin_acc_b=(0, 0, 9.81),
        joint_pos=np.zeros(18),
        joint_vel=np.zeros(18),
        joint_effort=np.zeros(18),
        foot_contact=np.ones(6),
    )


IMAGE = np.full((58, 87), 0.25, np.float32)


@pytest.fixture
def folder():
    path = tempfile.mkdtemp(prefix="cam")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def hal(folder):
    with Publisher(f"ipc://{folder}/state", STATE) as publisher:
        yield publisher


@pytest.fixture
def track(folder, hal):
    """A state track that has joined; its first state was captured at 1 ms."""
    states = StateTrack(f"ipc://{folder}/state")

    def joined():
        hal.publish(state_payload(0.0), capture_ns=1 * MS)
        states.update()
        return states.at(1 * MS)

    until(joined)
    yield states
    states.close()


def told(track, hal, capture_ms, roll_rate=0.0, flags=0):
    hal.publish(state_payload(roll_rate), capture_ns=capture_ms * MS, flags=flags)

    def arrived():
        track.update()
        return track.at(10**18).capture_ns == capture_ms * MS

    until(arrived)


def test_a_latent_is_made_of_the_image_alone(folder):
    maker = LatentMaker(OnnxEncoder(bundle(folder)), DESC, None)
    latent = maker.make(IMAGE, frame(100))
    assert latent.shape == (32,)
    assert latent[0] == pytest.approx(0.25)
    assert maker.flags == FLAG_LATENT


def test_the_encoder_sees_the_state_of_the_pictures_moment(folder, track, hal):
    maker = LatentMaker(OnnxEncoder(bundle(folder, proprio="base_ang_vel")), DESC, track)
    for capture_ms, roll_rate in [(10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4)]:
        told(track, hal, capture_ms, roll_rate)
    assert maker.make(IMAGE, frame(29))[2] == pytest.approx(0.2)
    assert maker.make(IMAGE, frame(30))[2] == pytest.approx(0.3)
    assert maker.make(IMAGE, frame(99))[2] == pytest.approx(0.4)


def test_without_any_state_the_frame_is_dropped(folder):
    states = StateTrack(f"ipc://{folder}/absent")
    try:
        maker = LatentMaker(OnnxEncoder(bundle(folder, proprio="base_ang_vel")), DESC, states)
        with pytest.raises(FrameDropped) as dropped:
            maker.make(IMAGE, frame(100))
        assert dropped.value.reason == "no_state"
    finally:
        maker.close()


def test_memory_is_carried_from_frame_to_frame_and_warm_up_leaves_none(folder, track):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    assert [maker.make(IMAGE, frame(k))[1] for k in (100, 133, 166)] == [0.0, 1.0, 2.0]


def test_memory_ends_where_the_robot_is_put_back(folder, track, hal):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    told(track, hal, 10)
    told(track, hal, 150, flags=FLAG_RESET)
    told(track, hal, 160)
    seen = [maker.make(IMAGE, frame(k))[1] for k in (100, 133, 166, 200)]
    assert seen == [0.0, 1.0, 0.0, 1.0]  # the reset at 150 ms lies before the third picture


def test_a_reset_that_lock_step_says_twice_ends_the_memory_once(folder, track, hal):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    told(track, hal, 10)
    told(track, hal, 100, flags=FLAG_RESET)
    seen = [maker.make(IMAGE, frame(100))[1]]
    told(track, hal, 100, flags=FLAG_RESET)
    told(track, hal, 110)
    assert track.at(105 * MS).capture_ns == 100 * MS
    seen += [maker.make(IMAGE, frame(k))[1] for k in (133, 166)]
    assert seen == [0.0, 1.0, 2.0]


def test_memory_ends_with_another_hal(folder, track, hal):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    maker.make(IMAGE, frame(100))
    hal.instance_id, hal.sequence = 12345, 0
    told(track, hal, 120)
    assert maker.make(IMAGE, frame(133))[1] == 0.0


@pytest.mark.parametrize("capture_ms", [1200, 50])
def test_memory_ends_with_a_long_gap_and_with_time_that_runs_backwards(folder, track, capture_ms):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    maker.make(IMAGE, frame(100))
    assert maker.make(IMAGE, frame(capture_ms))[1] == 0.0


def test_frames_are_used_at_the_rate_the_encoder_was_trained_on(folder):
    maker = LatentMaker(OnnxEncoder(bundle(folder, rate_hz=10.0)), DESC, None)
    used = []
    for k in range(30):  # a second at 30 Hz, with 5 ms of jitter
        capture_ms = 100 + k * 100 // 3 + (5 if k % 2 else 0)
        if maker.wants(capture_ms * MS):
            maker.make(IMAGE, frame(capture_ms))
            used.append(k)
    assert used == list(range(0, 30, 3))


def test_a_latent_that_is_not_finite_is_dropped_and_the_memory_with_it(folder, track):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    maker.make(IMAGE, frame(100))
    with pytest.raises(FrameDropped) as dropped:
        maker.make(np.full_like(IMAGE, np.nan), frame(133))
    assert dropped.value.reason == "encoder"
    assert maker.make(IMAGE, frame(166))[1] == 0.0


def test_an_encoder_that_wants_the_command_is_refused_with_what_there_is(folder):
    made = bundle(folder, proprio="nav_command")
    with pytest.raises(CameraError, match=r"'nav_command'.*base_ang_vel"):
        CameraService(CameraCfg(metrics_port=0, bundle=str(made.path)))


def test_a_missing_bundle_is_named():
    with pytest.raises(BundleError, match="nonesuch"):
        CameraService(CameraCfg(metrics_port=0, bundle="nonesuch"))


class Maker:
    """Writes down what it is told."""

    flags = 0

    def __init__(self):
        self.told = []

    def wants(self, capture_ns):
        return True

    def make(self, image, frame):
        raise FrameDropped("encoder")

    def idle(self):
        self.told.append("idle")

    def forget(self):
        self.told.append("forget")


def test_while_frames_are_withheld_states_are_read_and_a_frozen_picture_is_forgotten():
    service = CameraService(CameraCfg(metrics_port=0))
    for capture_ms, told in ((100, ["idle"]), (599, ["idle"]), (600, ["idle", "forget"])):
        maker = Maker()
        service._handle(frame(capture_ms), maker, publisher=None)
        assert maker.told == told
    assert service.dropped["encoder"] == 2
    assert service.dropped["frozen"] == 1


def test_memory_ends_with_a_frozen_picture(folder, track):
    maker = LatentMaker(OnnxEncoder(bundle(folder, memory=True)), DESC, track)
    assert [maker.make(IMAGE, frame(k))[1] for k in (100, 133)] == [0.0, 1.0]
    maker.forget()
    assert maker.make(IMAGE, frame(166))[1] == 0.0


@pytest.mark.parametrize("flags", [0, FLAG_LOCKSTEP])
def test_the_service_publishes_flagged_latents(folder, hal, flags):
    made = bundle(folder, proprio="base_ang_vel", memory=True)
    endpoints = EndpointsCfg(
        camera=f"ipc://{folder}/camera",
        state=f"ipc://{folder}/state",
        features=f"ipc://{folder}/features",
    )
    cfg = CameraCfg(metrics_port=0, bundle=str(made.path), endpoints=endpoints)
    with (
        Publisher(endpoints.camera, CAMERA) as camera,
        LatestSubscriber(endpoints.features, FEATURES) as features,
        running(CameraService(cfg)),
    ):
        noise = np.random.default_rng(0)
        seen, captures = [], []

        def answered():
            depth = noise.uniform(1, 2, (60, 106))
            captures.append((100 + 33 * len(captures)) * MS)
            hal.publish(state_payload(0.5), capture_ns=captures[-1])
            camera.publish(depth, capture_ns=captures[-1], flags=flags)
            seen.append(features.wait(0.1))
            return seen[-1]

        until(answered)
    assert seen[-1].payload.size == 32
    assert seen[-1].payload[2] == pytest.approx(0.5)
    assert seen[-1].flags == FLAG_LATENT | flags
    assert seen[-1].capture_ns in captures


def test_in_lock_step_a_slow_encoder_still_answers_every_frame(folder):
    made = bundle(folder, rate_hz=10.0)
    endpoints = EndpointsCfg(
        camera=f"ipc://{folder}/camera",
        state=f"ipc://{folder}/state",
        features=f"ipc://{folder}/features",
    )
    cfg = CameraCfg(metrics_port=0, bundle=str(made.path), endpoints=endpoints)
    with (
        Publisher(endpoints.camera, CAMERA) as camera,
        LatestSubscriber(endpoints.features, FEATURES) as features,
        running(CameraService(cfg)),
    ):
        latents, shown_ms = {}, {}
        for k, metres in enumerate([1.0, 2.0, 3.0, 3.5]):
            capture_ns = (100 + 33 * k) * MS
            depth = np.full((60, 106), metres, np.float32)

            def answered(capture_ns=capture_ns, depth=depth):
                camera.publish(depth, capture_ns=capture_ns, flags=FLAG_LOCKSTEP)
                message = features.wait(0.1)
                if message is not None:
                    latents[message.header.publish_ns] = float(message.payload[0])
                    shown_ms[message.header.publish_ns] = message.capture_ns // MS
                return capture_ns in latents

            until(answered)
    # the age of what they show is not hidden by saying it again
    assert list(shown_ms.values()) == [100, 100, 100, 199]
    # one metre is 0.25 of the range, less 0.5; the fourth frame is the next that is looked at
    assert list(latents.values()) == pytest.approx([-0.25, -0.25, -0.25, 0.375])
