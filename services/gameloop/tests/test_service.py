"""The loop with real sockets, in front of a HAL without a robot."""

import contextlib
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from krabby.control.controller import JointCommand
from krabby.runtime.testing import captured_logs, free_ports, running
from krabby.runtime.testing_traces import TraceReceiver
from krabby.runtime.tracing import TracingCfg
from krabby.safety.trajectories import rest_joint_pos
from krabby_gameloop import metrics
from krabby_gameloop.config import EndpointsCfg
from krabby_gameloop.service import Gameloop, state_of_period
from krabby_proto import (
    FEATURES,
    FLAG_FEATURES_DUE,
    FLAG_LOCKSTEP,
    FLAG_NAV_DUE,
    FLAG_OPERATOR,
    NAV,
    STATE,
    ControlClient,
    HalClient,
    HelloMismatch,
    PeerClock,
    Publisher,
    make_hello,
)
from krabby_proto.testing import FakeHal
from prometheus_client import REGISTRY

MS = 1_000_000


def eventually(condition, timeout_s=60.0):
    """Wait until `condition` gives something true, and return that."""
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline_s, "it never came true"
        threading.Event().wait(0.005)
    return result


@pytest.fixture
def make_hal(desc):
    """Makes a HAL whose robot stands in the default pose."""

    def make(*, robot=None, clock="monotonic", **options):
        hello = make_hello(service="fake-hal", clock=clock, robot=robot or desc.identity)
        hal = FakeHal(hello=hello, **options)
        hal.state = hal.state.copy()
        hal.state[STATE.slices["joint_pos"]] = desc.default_joint_pos
        return hal

    return make


@pytest.fixture
def connected(cfg):
    """Makes a configuration that talks to a HAL's endpoints."""
    nav, control, features = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))

    def make(hal_endpoints, **keys):
        endpoints = EndpointsCfg(
            state=hal_endpoints["state"],
            command=hal_endpoints["command"],
            nav=nav,
            control=control,
            features=features,
        )
        return msgspec.structs.replace(cfg, endpoints=endpoints, metrics_port=0, **keys)

    return make


@pytest.fixture
def ask(connected):
    """Asks the loop on its control endpoint."""
    client = None

    def request(service, op, **arguments):
        nonlocal client
        client = client or ControlClient(service._cfg.endpoints.control)
        return client.request(op, 60.0, **arguments)  # a policy is tried in a process

    yield request
    if client is not None:
        client.close()


def reaches(ask, service, mode):
    return eventually(lambda: ask(service, "status")["mode"] == mode)


def last_offset(hal, desc):
    """How far the last applied target is from the default pose, by the first joint [rad]."""
    return float(hal.applied[-1].payload[0] - desc.default_joint_pos[0])


def rates(applied):
    """Speed of the fastest joint from each target to the next [rad/s].

    On a busy machine a lost tick makes a step larger, and a late one the time to the next shorter.
    """
    targets = np.array([message.payload for message in applied])
    times_s = np.array([message.header.publish_ns for message in applied]) * 1e-9
    return np.abs(np.diff(targets, axis=0)).max(axis=1) / np.maximum(np.diff(times_s), 0.01)


def test_it_stands_up_walks_and_sits_down_when_told_to_stop(make_hal, connected, ask, desc):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service) as runtime:
            reaches(ask, service, "policy")
            eventually(lambda: last_offset(hal, desc) == pytest.approx(0.1))
            begun_s = time.monotonic()
        assert time.monotonic() - begun_s < 50.0  # a loop that is not told to runs on for ever
        np.testing.assert_allclose(hal.applied[-1].payload, rest_joint_pos(desc), atol=1e-3)
        assert rates(hal.applied).max() < 2 * desc.velocity_limit.min()
    summary = runtime.summary
    assert summary["policy"] == "blind"
    assert summary["ticks"] > 50
    for key in ("loop_hz", "deadline_misses", "skipped", "command_timeouts", "obs_age_p50_ms",
                "obs_age_p99_ms", "command_rtt_p99_ms", "work_p99_ms"):  # fmt: skip
        assert key in summary


class Stream:
    """A subscriber that has one state and gets the next, if any, while it waits."""

    def __init__(self, has, gets=None):
        self.has, self.gets, self.waited_s = has, gets, 0.0

    def latest(self):
        return self.has

    def wait(self, timeout_s):
        self.waited_s += timeout_s
        return self.gets


def test_the_state_of_a_period_is_taken_at_once(state):
    now_ns = time.monotonic_ns()
    stream = Stream(state(now_ns))
    assert state_of_period(stream, now_ns, now_ns + 100 * MS).capture_ns == now_ns
    assert stream.waited_s == 0.0


def test_a_hal_that_is_late_is_waited_for(state):
    now_ns = time.monotonic_ns()
    stream = Stream(state(now_ns - 5 * MS), gets=state(now_ns + MS))
    assert state_of_period(stream, now_ns, now_ns + 100 * MS).capture_ns == now_ns + MS
    assert 0.0 < stream.waited_s <= 0.1


def test_a_hal_that_is_too_late_is_not_and_the_state_before_is_what_there_is(state):
    now_ns = time.monotonic_ns()
    stream = Stream(state(now_ns - 5 * MS))
    assert state_of_period(stream, now_ns, now_ns + 100 * MS).capture_ns == now_ns - 5 * MS
    late = Stream(state(now_ns - 5 * MS), gets=state(now_ns + MS))
    assert state_of_period(late, now_ns, now_ns).capture_ns == now_ns - 5 * MS
    assert late.waited_s == 0.0


def test_before_the_first_state_nothing_is_waited_for():
    now_ns = time.monotonic_ns()
    assert state_of_period(Stream(None), now_ns, now_ns + 100 * MS) is None


def test_a_robot_that_is_not_armed_gets_its_measured_pose(make_hal, connected, ask):
    with make_hal() as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service) as runtime:
            reaches(ask, service, "passive")
            eventually(lambda: hal.server.stats.commands["not_armed"] > 5)
            assert not hal.applied
    assert runtime.summary["not_applied"]["not_armed"] > 5


def test_it_waits_for_a_hal_and_says_so(make_hal, connected, ask):
    state, command = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    others = dict.fromkeys(("camera", "truth", "safety"), "tcp://127.0.0.1:*")
    endpoints = {"state": state, "command": command, **others}
    service = Gameloop(connected(endpoints))
    with captured_logs() as logs, running(service):
        warning = eventually(
            lambda: [each for each in logs if each["event"] == "waiting for the HAL"]
        )[0]
        assert warning["command"] == command
        with make_hal(armed=True, endpoints=endpoints):
            reaches(ask, service, "policy")


def test_a_hal_of_another_robot_ends_it_with_the_first_difference(make_hal, connected, desc):
    names = list(desc.joint_names)
    names[4], names[5] = names[5], names[4]
    with (
        make_hal(armed=True, robot={**desc.identity, "joint_names": names}) as hal,
        pytest.raises(HelloMismatch, match=r"robot\.joint_names\[4\] is 'lm_knee'"),
        running(Gameloop(connected(hal.endpoints))) as runtime,
    ):
        eventually(lambda: runtime.summary)
    assert not hal.applied


def test_a_policy_that_does_not_fit_refuses_to_start_with_status_2(policies, desc, tmp_path):
    manifest = (policies / "blind" / "manifest.json").read_text()
    swapped = manifest.replace('"lm_knee"', '"?"').replace('"lm_hip_pitch"', '"lm_knee"')
    bundle = tmp_path / "policies" / "foreign"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text(swapped.replace('"?"', '"lm_hip_pitch"'))
    (bundle / "policy.onnx").write_bytes((policies / "blind" / "policy.onnx").read_bytes())
    run = subprocess.run(
        [sys.executable, "-m", "krabby_gameloop", f"policy={bundle}", "metrics_port=0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 2
    assert "joint 4 = 'lm_knee', the robot 'lm_hip_pitch'" in run.stderr
    assert run.stderr.count("\n") == 1


def test_state_that_stops_silences_it_and_state_that_returns_moves_it_again(
    make_hal, connected, ask
):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service) as runtime:
            reaches(ask, service, "policy")
            hal.publishing = False
            reaches(ask, service, "silent")
            sent = hal.server.stats.commands["applied"]
            eventually(lambda: ask(service, "status")["mode"] == "silent")
            assert hal.server.stats.commands["applied"] == sent
            hal.publishing = True
            reaches(ask, service, "policy")
    assert runtime.summary["holds"] > 0


def test_a_hal_that_does_not_answer_does_not_stop_the_loop(make_hal, connected, ask):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service) as runtime:
            reaches(ask, service, "policy")
            hal.serving = False
            before = service._io.ticks
            eventually(lambda: service._io.ticks > before + 30)
            hal.serving = True
            applied = len(hal.applied)
            eventually(lambda: len(hal.applied) > applied)
    assert runtime.summary["command_timeouts"] > 0


def test_a_lost_answer_is_no_warning_but_five_in_a_row_are(make_hal, connected, desc, state):
    """The gate holds after 50 ms, five periods: before that nothing has happened to the robot."""
    command = JointCommand(desc.default_joint_pos, state(time.monotonic_ns()), None, hold=True)
    with make_hal(armed=True) as hal, captured_logs() as logs:
        service = Gameloop(connected(hal.endpoints))
        service.startup()
        try:
            for answered in (False, True, False):
                hal.serving = answered
                hal.take_note()
                for _ in range(1 if answered else 4):
                    assert service._io.send(command, None, 60.0 if answered else 0.001) is answered
            assert logs == []
            service._io.send(command, None, 0.001)
        finally:
            summary = service.shutdown()
    (warning,) = logs
    assert (warning["event"], warning["commands"]) == ("no answer to commands", 5)
    assert summary["command_timeouts"] == 9


def test_a_hal_that_restarts_is_asked_again_and_the_robot_stands_up_anew(make_hal, connected, ask):
    with make_hal(armed=True) as hal:
        endpoints = dict(hal.endpoints)
        service = Gameloop(connected(endpoints))
        instance = running(service)
        runtime = instance.__enter__()
        reaches(ask, service, "policy")
    try:
        reaches(ask, service, "silent")
        with captured_logs() as logs, make_hal(armed=True, endpoints=endpoints) as hal:
            reaches(ask, service, "policy")
            events = [each["event"] for each in logs]
            assert events.index("the HAL restarted") < events.index("met the HAL")
            assert hal.applied
            instance.__exit__(None, None, None)
    finally:
        runtime.stop("test over")


@pytest.mark.slow
def test_an_operator_sits_it_down_and_stands_it_up(make_hal, connected, ask):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service):
            reaches(ask, service, "policy")
            assert ask(service, "sit")["ok"]
            reaches(ask, service, "passive")
            assert ask(service, "stand")["ok"]
            reaches(ask, service, "policy")


def test_without_auto_stand_it_waits_for_the_operator(make_hal, connected, ask):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints, auto_stand=False))
        with running(service):
            eventually(lambda: len(hal.applied) > 20)
            assert ask(service, "status")["mode"] == "passive"
            ask(service, "stand")
            reaches(ask, service, "policy")


def test_an_armed_robot_stands_up_for_a_request_right_behind_the_arm(make_hal, connected, ask):
    with make_hal() as hal, HalClient({"safety": hal.endpoints["safety"]}) as operator:
        service = Gameloop(connected(hal.endpoints, auto_stand=False))
        with running(service):
            reaches(ask, service, "passive")
            answer = ask(service, "stand")
            assert (answer["ok"], answer["reason"]) == (
                False,
                "the gate is in DISARMED; arm, then ask again",
            )
            assert operator.safety("arm", "test", 60.0)["ok"]
            assert ask(service, "stand")["ok"]  # one round trip later
            reaches(ask, service, "policy")


def test_a_request_to_stand_that_waited_for_over_a_second_is_refused(make_hal, connected, ask):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints, auto_stand=False))
        with running(service):
            eventually(lambda: len(hal.applied) > 20)
            second_ns = 1_000_000_000
            answer = ask(service, "stand", sent_ns=time.monotonic_ns() - second_ns - 50 * MS)
            assert answer["reason"] == "stand was sent more than 1 s ago; send it again"
            answer = ask(service, "stand", sent_ns=time.monotonic_ns() + 3600 * second_ns)
            assert answer["reason"].startswith("stand refused: clocks differ by 3600 s")
            assert ask(service, "status")["mode"] == "passive"
            assert ask(service, "stand", sent_ns=time.monotonic_ns() - 100 * MS)["ok"]


@pytest.mark.parametrize("way_out", ["estop", "disarm"])
def test_after_a_stop_an_arm_moves_nothing_until_it_is_asked_to_stand(
    make_hal, connected, ask, way_out
):
    with make_hal() as hal, HalClient({"safety": hal.endpoints["safety"]}) as operator:
        service = Gameloop(connected(hal.endpoints, auto_stand=False))
        with running(service):
            reaches(ask, service, "passive")
            operator.safety("arm", "test", 60.0)
            assert ask(service, "stand")["ok"]
            reaches(ask, service, "policy")
            operator.safety(way_out, "test", 60.0)
            reaches(ask, service, "passive")
            operator.safety("reset", "test", 60.0)
            pose = hal.state[STATE.slices["joint_pos"]].copy()
            applied = len(hal.applied)
            operator.safety("arm", "test", 60.0)
            eventually(lambda: len(hal.applied) > applied + 100)
            assert ask(service, "status")["mode"] == "passive"
            np.testing.assert_array_equal(hal.state[STATE.slices["joint_pos"]], pose)
            assert ask(service, "stand")["ok"]
            reaches(ask, service, "policy")


@contextlib.contextmanager
def intruder(hal, target):
    """Another writer that sends the same target a hundred times a second."""
    stop = threading.Event()
    statuses = []

    def send():
        with HalClient({"command": hal.endpoints["command"]}) as client:
            while not stop.wait(0.01):
                reply = client.send_command(target, capture_ns=time.monotonic_ns(), deadline_s=0.1)
                statuses.append(None if reply is None else reply.status_name)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def test_a_lease_that_another_writer_took_shows_everywhere_and_nothing_goes_on(
    make_hal, connected, ask, desc
):
    losses = "krabby_gameloop_lease_losses_total"
    before = REGISTRY.get_sample_value(losses)
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints, auto_stand=False))
        with captured_logs() as logs, running(service) as runtime:
            eventually(lambda: len(hal.applied) > 20)
            ask(service, "stand")
            reaches(ask, service, "policy")
            hal.publishing = False  # the loop falls silent, and its lease runs out
            reaches(ask, service, "silent")
            theirs = desc.default_joint_pos + 0.05
            with intruder(hal, theirs) as statuses:
                eventually(lambda: statuses and statuses[-1] == "applied")
                hal.publishing = True
                reaches(ask, service, "no_lease")
                steps = service.controller.policies.ticks
                rejected = service._io.not_applied["rejected_lease"]
                eventually(lambda: service._io.not_applied["rejected_lease"] > rejected + 50)
                assert service.controller.policies.ticks == steps
                assert hal.applied[-1].payload == pytest.approx(theirs)
                answer = ask(service, "stand")
                assert not answer["ok"]
                assert "another writer holds the command lease" in answer["reason"]
                shown = REGISTRY.get_sample_value("krabby_gameloop_mode", {"mode": "no_lease"})
                assert shown == 1.0
            reaches(ask, service, "passive")
            assert service.controller.policies.ticks == steps
            assert hal.applied[-1].payload == pytest.approx(theirs)  # it stays where it was left
    events = [each["event"] for each in logs]
    assert events.count("another writer holds the command lease") == 1
    assert REGISTRY.get_sample_value(losses) == before + 1
    assert runtime.summary["lease_losses"] == 1


def test_a_policy_is_swapped_while_walking_without_a_jump(make_hal, connected, ask, policies, desc):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service):
            reaches(ask, service, "policy")
            eventually(lambda: last_offset(hal, desc) == pytest.approx(0.1))
            start = len(hal.applied)
            assert ask(service, "policy", policy=str(policies / "other"))["ok"]
            eventually(lambda: last_offset(hal, desc) == pytest.approx(-0.1))
            applied = hal.applied[start:]
    assert rates(applied).max() < desc.velocity_limit.min()  # 0.2 rad in 0.3 s: 1 rad/s at most


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"op": "policy", "policy": "no-such"}, "no policy 'no-such'"),
        ({"op": "policy", "policy": 3}, "policy is 3"),
        ({"op": "jump"}, "unknown op 'jump'; use stand, sit, policy, mark or status"),
    ],
)
def test_what_cannot_be_done_is_answered_with_the_reason(
    make_hal, connected, ask, request_, reason
):
    with make_hal(armed=True) as hal:
        service = Gameloop(connected(hal.endpoints))
        with running(service):
            answer = ask(service, **request_)
            assert not answer["ok"]
            assert reason in answer["reason"]
            assert ask(service, "status")["policy"] == "blind"


class LockstepHal:
    """A HAL whose clock stands still while it waits for an answer."""

    def __init__(self, make_hal):
        self.now_ns = 1_000_000_000
        self.hal = make_hal(armed=True, clock="simulated", clock_ns=lambda: self.now_ns)

    def state(self, flags=0):
        """Publish one state; return the commands that answer it within 0.2 s of the first."""
        before = len(self.hal.applied)
        self.hal.state_flags = FLAG_LOCKSTEP | flags
        deadline_s = time.monotonic() + 60.0
        self.hal.publish()
        while len(self.hal.applied) == before:
            assert time.monotonic() < deadline_s, "no answer"
            if not self.hal.server.poll(0.25):
                self.hal.publish()  # a peer that was still connecting missed it
        return self.hal.applied[before:]

    def step(self, flags=0):
        self.now_ns += 10 * MS
        return self.state(flags)


def test_in_lock_step_every_state_is_answered_once_and_at_its_own_time(
    make_hal, connected, ask, desc
):
    lock = LockstepHal(make_hal)
    service = Gameloop(connected(lock.hal.endpoints))
    with running(service) as runtime:
        lock.state()
        for _ in range(120):
            answers = lock.step()
            assert [message.capture_ns for message in answers] == [lock.now_ns]
            assert answers[0].header.publish_ns == lock.now_ns
        assert lock.hal.server.poll(0.05) == 0
        # Standing took 0.3 s and the blend 0.3 s of simulated time, at any wall time.
        assert last_offset(lock.hal, desc) == pytest.approx(0.1)
        runtime.stop("test over")
        for _ in range(250):
            if runtime.summary:
                break
            lock.now_ns += 10 * MS
            lock.hal.publish()
            lock.hal.server.poll(0.02)
    lock.hal.stop()


def test_in_lock_step_it_waits_for_what_the_state_announces(
    make_hal, connected, ask, desc, policies
):
    lock = LockstepHal(make_hal)
    cfg = connected(lock.hal.endpoints, policy=str(policies / "seeing"), sit_on_exit_s=0.0)
    service = Gameloop(cfg)
    nav = Publisher(cfg.endpoints.nav, NAV, clock=lambda: lock.now_ns, bind=False)
    seen = Publisher(cfg.endpoints.features, FEATURES, clock=lambda: lock.now_ns)
    image = np.zeros(service.controller.policies.chosen.features_size, np.float32)

    def late():
        """Publish after the state, as a slow camera service would."""
        threading.Event().wait(0.02)
        seen.publish(image, capture_ns=lock.now_ns - 40 * MS)
        nav.publish((0.3, 0.0, 0.0), capture_ns=lock.now_ns)

    with running(service):
        lock.state()
        for k in range(200):
            due = k % 4 == 0
            if due:
                thread = threading.Thread(target=late)
                thread.start()
            lock.step(FLAG_FEATURES_DUE | FLAG_NAV_DUE if due else 0)
            if due:
                thread.join()
        assert not service.controller.policies.blind
        assert last_offset(lock.hal, desc) == pytest.approx(0.2)
        assert service.controller.nav.command[0] == pytest.approx(0.3)
    for each in (nav, seen):
        each.close()
    lock.hal.stop()


def refused(reason):
    return metrics.NAV_REFUSED[reason]._value.get()


def test_a_mission_stamped_ahead_moves_nothing_and_is_counted_and_named(make_hal, connected, ask):
    before = refused("future")
    with make_hal(armed=True) as hal, captured_logs() as logs:
        cfg = connected(hal.endpoints)
        service = Gameloop(cfg)
        with (
            running(service),
            Publisher(cfg.endpoints.nav, NAV, bind=False) as mission,
            Publisher(cfg.endpoints.nav, NAV, bind=False) as operator,
        ):
            reaches(ask, service, "policy")

            def said():
                ahead_ns = time.monotonic_ns() + 5_000_000_000
                mission.publish((0.9, 0, 0), capture_ns=ahead_ns, publish_ns=ahead_ns)
                return [e for e in logs if e["event"] == "walking command refused: future"]

            event = eventually(said)[0]
            assert -5.0 <= event["age_s"] < -1.0
            assert event["instance_id"] == f"{mission.instance_id:016x}"
            assert not event["operator"]
            assert refused("future") > before
            assert not service.controller.nav.command.any()

            def walks():
                operator.publish((0.2, 0, 0), capture_ns=time.monotonic_ns(), flags=FLAG_OPERATOR)
                said()
                return ask(service, "status")["nav"][0] == pytest.approx(0.2)

            eventually(walks)
            assert ask(service, "status")["nav_source"] == "operator"


@pytest.mark.parametrize("shift_s", [3600, -20])  # this host may have booted a minute ago
def test_walking_commands_of_another_clock_are_refused_by_that_name(
    make_hal, connected, ask, shift_s
):
    with make_hal(armed=True) as hal, captured_logs() as logs:
        cfg = connected(hal.endpoints)
        service = Gameloop(cfg)
        with running(service), Publisher(cfg.endpoints.nav, NAV, bind=False) as laptop:
            reaches(ask, service, "policy")

            def said():
                stamp_ns = time.monotonic_ns() + shift_s * 1_000_000_000
                laptop.publish((0.3, 0, 0), capture_ns=stamp_ns, flags=FLAG_OPERATOR)
                return [e for e in logs if "clocks differ by " in e["event"]]

            assert eventually(said)[0]["event"].startswith("walking command refused: clocks differ")
            assert not service.controller.nav.command.any()


def test_in_lock_step_a_person_is_heard_without_a_mission(make_hal, connected):
    lock = LockstepHal(make_hal)
    cfg = connected(lock.hal.endpoints, sit_on_exit_s=0.0)
    service = Gameloop(cfg)
    with running(service), Publisher(cfg.endpoints.nav, NAV, bind=False) as operator:
        lock.state()

        def walks():
            operator.publish((0.2, 0, 0), capture_ns=time.monotonic_ns(), flags=FLAG_OPERATOR)
            lock.step()
            return service.controller.nav.command[0] == pytest.approx(0.2)

        eventually(walks)
        assert service.controller.nav.source == "operator"
    lock.hal.stop()


def test_in_lock_step_a_person_outranks_the_mission_whose_turn_is_still_waited_for(
    make_hal, connected
):
    lock = LockstepHal(make_hal)
    cfg = connected(lock.hal.endpoints, sit_on_exit_s=0.0)
    service = Gameloop(cfg)
    with (
        running(service),
        Publisher(cfg.endpoints.nav, NAV, bind=False) as operator,
        Publisher(cfg.endpoints.nav, NAV, clock=lambda: lock.now_ns, bind=False) as mission,
    ):
        lock.state()

        def turn():
            was_heard = service.controller.nav.source == "operator"
            operator.publish((-0.1, 0, 0), capture_ns=time.monotonic_ns(), flags=FLAG_OPERATOR)
            lock.now_ns += 10 * MS
            lock.hal.state_flags = FLAG_LOCKSTEP | FLAG_NAV_DUE
            lock.hal.publish()
            assert lock.hal.server.poll(0.02) == 0, "it went on without the mission"

            def answered():
                mission.publish((0.5, 0, 0), capture_ns=lock.now_ns)
                lock.hal.publish()
                lock.hal.server.poll(0.02)
                return lock.hal.applied[-1].capture_ns == lock.now_ns

            eventually(answered)
            # The mission's link may be there first.
            assert service.controller.nav.command[0] <= 0.0 or not was_heard
            return service.controller.nav.command[0] == pytest.approx(-0.1)

        eventually(turn)
    lock.hal.stop()


def test_in_lock_step_a_state_said_again_is_answered_again_only_if_the_answer_was_lost(
    make_hal, connected
):
    lock = LockstepHal(make_hal)
    service = Gameloop(connected(lock.hal.endpoints, sit_on_exit_s=0.0))
    with running(service):
        lock.state()
        lock.step()
        lock.hal.publish()
        assert lock.hal.server.poll(0.2) == 0
        (answer,) = lock.step()
        assert answer.capture_ns == lock.now_ns
    lock.hal.stop()


def test_in_lock_step_it_waits_for_late_features_as_long_as_it_takes(make_hal, connected, policies):
    lock = LockstepHal(make_hal)
    cfg = connected(lock.hal.endpoints, policy=str(policies / "seeing"), sit_on_exit_s=0.0)
    service = Gameloop(cfg)
    image = np.zeros(service.controller.policies.chosen.features_size, np.float32)
    with (
        captured_logs() as events,
        Publisher(cfg.endpoints.features, FEATURES, clock=lambda: lock.now_ns) as seen,
        running(service),
    ):
        lock.state()
        lock.now_ns += 10 * MS
        lock.hal.state_flags = FLAG_LOCKSTEP | FLAG_FEATURES_DUE
        lock.hal.publish()

        def waits():
            assert lock.hal.server.poll(0.05) == 0, "it went on without"
            return [e for e in events if e["event"] == "waiting for an announced message"]

        event = eventually(waits)[0]
        assert (event["stream"], event["endpoint"]) == ("features", cfg.endpoints.features)

        def answered():
            seen.publish(image, capture_ns=lock.now_ns)
            lock.hal.server.poll(0.05)
            return lock.hal.applied[-1].capture_ns == lock.now_ns

        eventually(answered)
    lock.hal.stop()


def test_in_lock_step_it_does_not_wait_for_a_hal_that_has_ended_to_sit_down(make_hal, connected):
    lock = LockstepHal(make_hal)
    service = Gameloop(connected(lock.hal.endpoints))
    with running(service):
        lock.state()
        for _ in range(40):
            lock.step()
        assert not service.controller.resting
        lock.hal.stop()
        # It may sit down for longer than `running` waits for it.
        service._leave_at_ns = time.monotonic_ns() + 60_000 * MS


def test_status_shows_sight_and_what_the_range_of_the_policy_cuts(
    make_hal, connected, ask, policies
):
    """It stands without a picture, and follows -0.2 of the -0.4 m/s asked for with one."""
    with make_hal(armed=True) as hal:
        cfg = connected(hal.endpoints, policy=str(policies / "remembering"))
        service = Gameloop(cfg)
        with (
            running(service),
            Publisher(cfg.endpoints.nav, NAV, bind=False) as operator,
            Publisher(cfg.endpoints.features, FEATURES) as camera,
        ):
            reaches(ask, service, "policy")
            assert eventually(lambda: ask(service, "status")["sight"] == "lost")
            status = ask(service, "status")
            assert (status["blind"], status["abilities"]["side_steps"]) == (False, False)
            assert 0 <= status["late"] <= status["ticks"]
            assert status["command_range"]["vx"] == [-0.2, 0.6]

            def follows():
                stamp_ns = time.monotonic_ns()
                camera.publish(np.zeros(5046, np.float32), capture_ns=stamp_ns)
                operator.publish((-0.4, 0.0, 0.0), capture_ns=stamp_ns, flags=FLAG_OPERATOR)
                status = ask(service, "status")
                return status if status["nav"][0] == pytest.approx(-0.2) else None

            status = eventually(follows)
            assert status["sight"] == "fresh"
            assert status["nav_asked"] == [-0.4, 0.0, 0.0]
            assert status["nav_clamped"] == ["vx"]


def test_a_hal_whose_clock_was_not_heard_for_long_is_asked_again(cfg, monkeypatch):
    """By bounds that are 0.2 s wide its states are too old, and a silent loop gets no answers."""
    loop = Gameloop(cfg)
    now_ns = time.monotonic_ns()
    clock, asked = PeerClock(), []
    monkeypatch.setattr(loop, "_opened", SimpleNamespace(client=SimpleNamespace(clock=clock)))
    monkeypatch.setattr(loop, "_greet", lambda: asked.append(True))
    loop.controller.hal_checked = True
    clock.note(now_ns - 2 * MS, now_ns + 5000_000 * MS, now_ns)
    loop._meet_again(now_ns)
    assert asked == []
    clock = PeerClock()
    loop._opened.client.clock = clock
    clock.note(now_ns - 100_002 * MS, now_ns + 4900_000 * MS, now_ns - 100_000 * MS)
    loop._meet_again(now_ns)
    assert asked == [True]
    loop._meet_again(now_ns + 400 * MS)
    assert asked == [True]


def test_a_tick_that_walks_becomes_a_trace_of_its_stages(make_hal, connected, ask):
    def walking():
        """The first trace of a tick that walked; asks again after a stall has ended a request."""
        if ask(service, "status")["mode"] == "passive":
            ask(service, "stand")
        walks = ["read", "observe", "infer", "exchange", "record"]
        traces = receiver.traces("tick")
        return next((one for one in traces if [span.name for span in one[1]] == walks), None)

    with TraceReceiver() as receiver, make_hal(armed=True) as hal:
        tracing = TracingCfg(endpoint=receiver.endpoint, every=5)
        service = Gameloop(connected(hal.endpoints, tracing=tracing))
        with running(service):
            root, stages = eventually(walking, 90.0)
    facts = {one.key: one.value for one in root.attributes}
    assert facts["krabby.mode"].string_value == "policy"
    assert facts["krabby.policy"].string_value == "blind"
    assert facts["krabby.command.sequence"].int_value > 0
    assert facts["krabby.state.sequence"].int_value > 0
    end_ns = root.start_time_unix_nano
    for span in stages:  # one after the other, within the tick
        assert end_ns <= span.start_time_unix_nano <= span.end_time_unix_nano
        end_ns = span.end_time_unix_nano
    assert end_ns <= root.end_time_unix_nano
    assert receiver.resource["service.name"] == "gameloop"
