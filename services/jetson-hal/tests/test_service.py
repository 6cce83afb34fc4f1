"""The loop with real sockets over fake drives: the contract, the relay, the end."""

import time

import numpy as np
import pytest
from krabby.runtime.rate import Rate
from krabby.runtime.testing import running, until
from krabby_jetson_hal.service import JetsonHal
from krabby_proto import (
    CAMERA,
    STATE,
    CommandStatus,
    EndpointInUse,
    HalClient,
    LatestSubscriber,
    Publisher,
    SafetyState,
    unpack,
)
from krabby_proto.conformance import check_hal


@pytest.fixture
def service(cfg, build_devices):
    return JetsonHal(cfg(), build_devices())


@pytest.fixture
def client(endpoints):
    with HalClient(endpoints) as client:
        yield client


def command(client, target, seconds):
    """Send a target at 100 Hz; the answers."""
    rate, answers = Rate(0.01, phase_s=0.0015), []
    for _ in range(round(seconds / 0.01)):
        rate.wait()
        state = client.state.latest()
        if state is not None:
            answers.append(client.send_command(target, capture_ns=state.capture_ns, deadline_s=0.1))
    return [answer for answer in answers if answer is not None]


def test_it_passes_the_same_conformance_check_as_the_simulator(service, endpoints):
    with running(service):
        results = check_hal(endpoints)
    # How regular the state is depends on what else this machine does.
    failed = {result.name: result.detail for result in results if not result.passed}
    assert failed.keys() <= {"state rate", "state order", "state age"}, failed
    assert service.handler.gate.state is SafetyState.DISARMED


def test_the_hello_says_which_robot_and_how_it_was_calibrated(service, client, desc):
    with running(service):
        hello = client.hello(60.0)
    assert hello["service"] == "jetson-hal"
    assert hello["clock"] == "monotonic"
    assert hello["robot"]["hash"] == desc.content_hash
    assert (hello["camera"]["width"], hello["camera"]["height"]) == (106, 60)
    extra = hello["extra"]
    assert (extra["rate_hz"], extra["calibrated"]) == (200.0, "2026-11-01")


def test_an_operator_arms_it_and_then_it_follows(service, client, desc):
    with running(service) as runtime:
        client.state.wait(60.0)
        assert {CommandStatus(a.status) for a in command(client, desc.default_joint_pos, 0.2)} <= {
            CommandStatus.NOT_ARMED,
            CommandStatus.REJECTED_STALE,
        }
        target = desc.default_joint_pos + 0.1
        answers = []

        def follows():
            """A busy machine is late with some commands, and damped when 150 ms are without any."""
            if client.safety("status", "test", 60.0)["state"] in ("disarmed", "damp"):
                client.safety("arm", "test", 60.0)
                command(client, desc.default_joint_pos, 0.6)
            answers.extend(command(client, target, 0.5))
            state = unpack(STATE, client.state.latest().payload)
            return (
                answers and answers[-1].applied and np.abs(state["joint_pos"] - target).max() < 1e-6
            )

        until(follows)
    # The answer names the exchange that carries the command out: at most a slot away.
    ahead_s = np.array([answer.applied_ns - answer.server_ns for answer in answers if
                        answer.applied]) * 1e-9  # fmt: skip
    assert np.median(ahead_s) < 0.006
    assert runtime.summary["commands"]["applied"] > 20
    assert runtime.summary["obs_age_p50_ms"] > 0.0


def test_the_cameras_images_come_through_with_their_capture_times(service, endpoints):
    image = np.arange(60 * 106, dtype=np.float32)
    with (
        running(service),
        Publisher(endpoints["raw"], CAMERA) as raw,
        LatestSubscriber(endpoints["camera"], CAMERA) as camera,
    ):

        def seen():
            raw.publish(image, capture_ns=12345)
            return camera.wait(0.05) is not None

        until(seen)
        frame = camera.latest()
    assert frame.capture_ns == 12345
    assert np.array_equal(frame.payload, image)


def test_of_images_that_came_together_only_the_newest_goes_on(cfg, build_devices, endpoints):
    service = JetsonHal(cfg(), build_devices())
    with running(service), Publisher(endpoints["raw"], CAMERA) as raw:

        def some_overtaken():
            for _ in range(3):
                raw.publish(np.zeros(10), capture_ns=1)
            return service.robot.relay.overtaken

        until(some_overtaken)
        assert service.robot.relay.forwarded


def test_the_state_goes_on_at_200_hz_without_any_command(service, client):
    with running(service):
        client.state.wait(60.0)
        rates = []
        while len(rates) < 20 and max(rates, default=0.0) <= 150.0:  # a busy machine skips some
            began, first = time.monotonic(), client.state.latest().header
            while time.monotonic() - began < 0.5:
                client.state.wait(0.1)
            last = client.state.latest().header
            passed_s = (last.capture_ns - first.capture_ns) * 1e-9
            rates.append((last.sequence - first.sequence) / passed_s)
    assert 150.0 < max(rates) <= 210.0


def test_at_the_end_the_drives_are_damped_switched_off_and_let_go_of(cfg, build_devices, client,
                                                                     desc):  # fmt: skip
    devices = build_devices()
    with running(JetsonHal(cfg(), devices)):
        client.state.wait(60.0)
        client.safety("arm", "test", 60.0)
        command(client, desc.default_joint_pos, 0.6)
    assert devices.bus.calls[-2:] == ["disable", "close"]
    assert not devices.bus.targets[-1].kp.any()
    assert devices.bus.targets[-1].kd == pytest.approx(np.full(18, 10.0))


def test_a_crash_in_the_loop_damps_and_switches_off_too(cfg, build_devices, client):
    devices = build_devices()

    def crash(sample, now_ns):
        raise RuntimeError("a bug")

    def run_into_it():
        service = JetsonHal(cfg(), devices)
        with running(service):
            client.state.wait(60.0)
            service.robot.imu_check.observe = crash
            until(lambda: "close" in devices.bus.calls)

    with pytest.raises(RuntimeError, match="a bug"):
        run_into_it()
    assert devices.bus.calls[-2:] == ["disable", "close"]
    assert not devices.bus.targets[-1].kp.any()


def test_a_start_that_fails_half_way_lets_go_of_everything(cfg, build_devices):
    devices = build_devices()
    devices.bus.present[2] = False
    with pytest.raises(Exception, match="lf_knee"), running(JetsonHal(cfg(), devices)):
        pass
    assert devices.bus.calls == ["open", "probe", "disable", "close"]
    assert devices.imu.calls == ["open", "close"]


def test_a_second_hal_ends_before_it_touches_a_drive(cfg, build_devices, client):
    second = build_devices()
    with running(JetsonHal(cfg(), build_devices())):
        client.hello(60.0)
        with pytest.raises(EndpointInUse), running(JetsonHal(cfg(), second)):
            pass
    assert "open" not in second.bus.calls
    assert "open" not in second.imu.calls
