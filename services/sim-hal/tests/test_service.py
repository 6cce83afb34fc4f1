"""The loop with real sockets: the stream contract, lock-step, and what bad peers can do to it."""

import functools
import re
import threading

import msgspec
import numpy as np
import pytest
from krabby.hal.config import LockstepCfg
from krabby.hal.errors import LoopSilent
from krabby.mujoco.config import CourseCfg
from krabby.runtime.app import Runtime
from krabby.runtime.testing import running
from krabby.safety.trajectories import rest_joint_pos, stand_up
from krabby_proto import (
    CAMERA,
    FLAG_FEATURES_DUE,
    FLAG_LOCKSTEP,
    FLAG_NAV_DUE,
    FLAG_RESET,
    NAV,
    STATE,
    TRUTH,
    CommandStatus,
    HalClient,
    HalServer,
    LatestSubscriber,
    SafetyState,
    unpack,
)
from krabby_proto.conformance import check_hal
from krabby_sim_hal.config import EndpointsCfg, SimHalCfg
from krabby_sim_hal.service import SimHal

MS = 1_000_000


@pytest.fixture
def cfg(endpoints):
    def build(**keys):
        return SimHalCfg(endpoints=EndpointsCfg(**endpoints), metrics_port=0, **keys)

    return build


@pytest.fixture
def client(endpoints):
    with HalClient(endpoints) as client:
        yield client


class Walker:
    """A scripted game loop in lock-step: stands the robot up, then waves with all legs."""

    def __init__(self, client, desc):
        self.client = client
        self.desc = desc
        self.safety = SafetyState.DISARMED
        self.began_ns = None
        self.states = []
        """Capture time and flags of every state answered."""

    def target(self, state):
        if self.safety is not SafetyState.ACTIVE:
            self.began_ns = None
            return unpack(STATE, state.payload)["joint_pos"]
        if self.began_ns is None:
            self.began_ns = state.capture_ns
        t = (state.capture_ns - self.began_ns) * 1e-9
        stand = stand_up(self.desc, rest_joint_pos(self.desc))
        return stand.at(t) + 0.05 * np.sin(4.0 * t * np.arange(1, 19) / 6.0)

    def receive(self):
        """The next state that was not answered yet."""
        state = self.client.state.wait(60.0)
        while state is not None and self.states and self.states[-1][0] == state.capture_ns:
            state = self.client.state.wait(60.0)  # said again, until somebody answers
        assert state is not None
        self.states.append((state.capture_ns, state.flags))
        return state

    def reply(self, state):
        """Answer a state."""
        reply = self.client.send_command(
            self.target(state),
            capture_ns=state.capture_ns,
            publish_ns=state.capture_ns,
            deadline_s=10.0,
        )
        assert reply is not None
        self.safety = SafetyState(reply.safety_state)

    def answer(self):
        self.reply(self.receive())

    def walk(self, seconds):
        end = len(self.states) + round(seconds / 0.01)
        while len(self.states) < end:
            self.answer()


# --- the contract --------------------------------------------------------------------------


def test_it_passes_the_conformance_check_and_stays_disarmed(cfg, endpoints):
    service = SimHal(cfg(mission=msgspec.structs.replace(SimHalCfg().mission, enabled=False)))
    with running(service):
        results = check_hal(endpoints)
    # How regular the state is depends on what else this machine does.
    failed = {result.name: result.detail for result in results if not result.passed}
    assert failed.keys() <= {"state rate", "state age"}, failed
    assert service.handler.gate.state is SafetyState.DISARMED


def test_the_hello_says_which_robot_on_which_course(cfg, client, desc):
    service = SimHal(cfg(course=CourseCfg(name="gap", difficulty=0.3, seed=5)))
    with running(service):
        hello = client.hello(60.0)
    assert hello["service"] == "sim-hal"
    assert hello["clock"] == "monotonic"
    assert hello["robot"]["hash"] == desc.content_hash
    assert hello["robot"]["joint_names"] == list(desc.joint_names)
    assert (hello["camera"]["width"], hello["camera"]["height"]) == (106, 60)
    course = hello["extra"]["course"]
    assert (course["name"], course["difficulty"], course["seed"]) == ("gap", 0.3, 5)
    assert course["hash"] == service.sim.course.content_hash
    assert np.array(course["waypoints"]) == pytest.approx(service.sim.course.waypoints, abs=1e-3)


def test_every_stream_flows_at_its_rate(cfg, client, endpoints):
    service = SimHal(cfg(duration_s=2.0))
    with (
        LatestSubscriber(endpoints["nav"], NAV, bind=True) as nav,
        LatestSubscriber(endpoints["camera"], CAMERA) as camera,
        LatestSubscriber(endpoints["truth"], TRUTH) as truth,
        running(service) as runtime,
    ):
        newest = {}
        while (state := client.state.wait(2.0)) is not None:
            newest["state"] = state
            for name, subscriber in (("nav", nav), ("camera", camera), ("truth", truth)):
                newest[name] = subscriber.latest()
    slots = runtime.summary["slots"]
    assert runtime.summary["sim_time_s"] == pytest.approx(2.0, abs=0.03)
    # A busy machine skips slots; of those that ran, each sent what was due.
    sent = {name: message.sequence for name, message in newest.items()}
    assert sent["state"] == pytest.approx(slots, abs=1)
    assert slots / 4 <= sent["truth"] <= slots * 3 / 4
    assert sent["nav"] == pytest.approx(sent["truth"] / 5, abs=2)
    assert 20 <= sent["camera"] <= 60
    assert newest["camera"].payload.size == 60 * 106
    assert newest["nav"].payload == pytest.approx([0.35, 0.0, 0.0], abs=0.01)
    assert not newest["state"].flags & FLAG_LOCKSTEP


def test_frames_carry_the_time_of_their_exposure_not_of_their_arrival(cfg, endpoints):
    with running(SimHal(cfg())), LatestSubscriber(endpoints["camera"], CAMERA) as camera:
        for _ in range(10):
            frame = camera.wait(5.0)
            age_s = (frame.header.publish_ns - frame.capture_ns) * 1e-9
            assert age_s >= 0.03  # 40 ms of latency, give or take 10


# --- lock-step -----------------------------------------------------------------------------


def lockstep_run(cfg, client, desc, seconds=4.0, meddle=None, **keys):
    """Summary and walker of a run of the scripted game loop that lasts exactly so long."""
    service = SimHal(cfg(speed=0.0, duration_s=seconds, **keys))
    with running(service) as runtime:
        client.hello(60.0)
        walker = Walker(client, desc)
        for _ in range(round(seconds / 0.01) + 1):  # the first state is that of time 0
            walker.answer()
            if meddle is not None:
                meddle(len(walker.states))
    assert runtime.summary["sim_time_s"] == pytest.approx(seconds)
    return runtime.summary, walker


def test_the_same_seed_gives_the_same_trajectory_twice(cfg, endpoints, desc):
    hashes, falls = [], []
    for _ in range(2):
        with HalClient(endpoints) as client:
            summary, _ = lockstep_run(cfg, client, desc, course=CourseCfg(name="mixed"))
        hashes.append(summary["trajectory_hash"])
        falls.append(summary["falls"])
    assert hashes[0] == hashes[1]
    assert falls == [0, 0]


BAD = ((np.nan, 0), (0.0, 26))
"""Angle [rad] and age [ms]: not a number; older than the 25 ms a command may be."""


@pytest.fixture
def lasting_leases(monkeypatch):
    """A writer keeps its lease however long a busy machine puts it aside: that is wall time."""
    server = functools.partial(HalServer, process_clock_ns=lambda: 0)
    monkeypatch.setattr("krabby.hal.publisher.HalServer", server)


@pytest.mark.usefixtures("lasting_leases")
def test_bad_commands_do_not_change_the_trajectory_by_one_bit(cfg, endpoints, desc):
    with HalClient(endpoints) as client:
        clean, _ = lockstep_run(cfg, client, desc, seconds=3.0)

    statuses = []
    with HalClient(endpoints) as client, HalClient({"command": endpoints["command"]}) as intruder:

        def meddle(period):
            now_ns = 1_000_000_000 + (period - 1) * 10 * MS
            fine = np.zeros(18)
            reply = (
                {
                    0: lambda: intruder.send_command(
                        np.full(18, np.nan), capture_ns=now_ns, publish_ns=now_ns, deadline_s=5.0
                    ),
                    1: lambda: intruder.send_command(
                        fine, capture_ns=now_ns, publish_ns=now_ns - 26 * MS, deadline_s=5.0
                    ),
                    2: lambda: intruder.send_command(
                        fine, capture_ns=now_ns, publish_ns=now_ns, deadline_s=5.0
                    ),
                }[period % 3]()
                if period > 50 and period % 7 == 0
                else None
            )
            if reply is not None:
                statuses.append(CommandStatus(reply.status))

        meddled, _ = lockstep_run(cfg, client, desc, seconds=3.0, meddle=meddle)
    assert meddled["trajectory_hash"] == clean["trajectory_hash"]
    assert CommandStatus.REJECTED_NONFINITE in statuses
    assert all(status.name.startswith("REJECTED") for status in statuses)


def test_each_state_is_ten_simulated_milliseconds_after_the_last(cfg, client, desc):
    _, walker = lockstep_run(cfg, client, desc, seconds=1.0)
    captures = np.array([capture for capture, _ in walker.states])
    assert np.diff(captures).tolist() == [10 * MS] * (len(captures) - 1)
    assert all(flags & FLAG_LOCKSTEP for _, flags in walker.states)


def test_what_is_due_was_sent_before_the_state_that_says_so(cfg, client, endpoints, desc):
    service = SimHal(cfg(speed=0.0))
    walker = Walker(client, desc)
    with (
        LatestSubscriber(endpoints["nav"], NAV, bind=True) as nav,
        LatestSubscriber(endpoints["camera"], CAMERA) as camera,
        running(service),
    ):
        client.hello(60.0)
        while nav.latest() is None or camera.latest() is None:  # until both links are up
            walker.answer()
        newest_ns = 0
        due = {"nav": 0, "features": 0}
        for _ in range(200):
            state = walker.receive()
            if state.flags & FLAG_NAV_DUE:
                due["nav"] += 1
                command = nav.latest()
                while command.capture_ns < state.capture_ns:
                    command = nav.wait(2.0)
                assert command.capture_ns == state.capture_ns
            if state.flags & FLAG_FEATURES_DUE:
                due["features"] += 1
                frame = camera.latest()
                # Exposed 30 to 50 ms before it arrived, which is at most one period ago.
                while frame.capture_ns <= max(newest_ns, state.capture_ns - 61 * MS):
                    frame = camera.wait(2.0)
                newest_ns = frame.capture_ns
                assert state.capture_ns - newest_ns >= 30 * MS
                assert frame.flags & FLAG_LOCKSTEP
            walker.reply(state)
    assert due["nav"] == 40  # 20 Hz
    assert 54 <= due["features"] <= 60  # 30 Hz less what the sensor loses


def test_until_it_is_answered_a_turn_is_said_again_and_is_the_same(cfg, client, endpoints, desc):
    walker = Walker(client, desc)
    with (
        LatestSubscriber(endpoints["nav"], NAV, bind=True) as nav,
        LatestSubscriber(endpoints["camera"], CAMERA) as camera,
        running(SimHal(cfg(speed=0.0))),
    ):
        client.hello(60.0)
        first = walker.receive()
        # A peer that connects late still gets what the first state announces.
        assert first.flags & FLAG_NAV_DUE
        assert first.flags & FLAG_FEATURES_DUE
        for late in (nav, camera):
            assert late.wait(5.0).capture_ns == first.capture_ns
        for said in (camera, nav, client.state):
            once, again = said.wait(5.0), said.wait(5.0)
            assert again.sequence > once.sequence
            assert again.capture_ns == once.capture_ns == first.capture_ns
            assert again.flags == once.flags
            np.testing.assert_array_equal(again.payload, once.payload)
        walker.reply(first)
        assert walker.receive().capture_ns == first.capture_ns + 10 * MS


def test_an_answer_to_another_state_is_refused(cfg, client, desc):
    service = SimHal(cfg(speed=0.0))
    with running(service):
        client.hello(60.0)
        walker = Walker(client, desc)
        walker.walk(0.1)
        state = client.state.wait(60.0)
        late = client.send_command(
            desc.default_joint_pos,
            capture_ns=state.capture_ns - 10 * MS,
            publish_ns=state.capture_ns,
            deadline_s=5.0,
        )
        assert late.status == CommandStatus.REJECTED_STALE
        good = client.send_command(
            desc.default_joint_pos,
            capture_ns=state.capture_ns,
            publish_ns=state.capture_ns,
            deadline_s=5.0,
        )
        assert good.status == CommandStatus.NOT_ARMED


def run_here(service):
    """Run a service in this thread to its end."""
    try:
        service.startup()
        service.run(Runtime("test"))
    finally:
        service.shutdown()


def test_a_game_loop_that_falls_silent_ends_the_run_with_its_remedy(cfg, client, desc):
    service = SimHal(cfg(speed=0.0, lockstep=LockstepCfg(answer_timeout_s=1.5)))

    def walk():
        client.hello(60.0)
        Walker(client, desc).walk(0.3)

    loop = threading.Thread(target=walk)
    loop.start()
    with pytest.raises(LoopSilent, match=r"did not answer the state of simulated time 0\.300 s"):
        run_here(service)
    loop.join()


def test_without_a_game_loop_it_gives_up_and_says_what_to_start(cfg, endpoints):
    service = SimHal(cfg(speed=0.0, lockstep=LockstepCfg(start_timeout_s=0.2)))
    with pytest.raises(LoopSilent, match=re.escape(endpoints["command"])):
        run_here(service)


def test_a_fall_in_lock_step_ends_in_a_flagged_reset_and_a_robot_that_stands(cfg, client, desc):
    service = SimHal(cfg(speed=0.0))
    with running(service) as runtime:
        client.hello(60.0)
        walker = Walker(client, desc)
        walker.walk(4.0)
        assert walker.safety is SafetyState.ACTIVE
        # While it waits for the next answer the simulation stands still.
        service.sim.world.data.qpos[3:7] = [np.cos(0.6), np.sin(0.6), 0, 0]
        service.sim.world.data.qpos[2] += 0.6
        fell_ns = walker.states[-1][0]
        walker.walk(6.5)
    assert runtime.summary["falls"] == 1
    assert runtime.summary["resets"] == 1
    reset_ns = [capture for capture, flags in walker.states if flags & FLAG_RESET]
    assert len(reset_ns) == 1
    assert (reset_ns[0] - fell_ns) * 1e-9 == pytest.approx(2.0, abs=0.03)
    assert walker.safety is SafetyState.ACTIVE
    assert service.sim.world.base_pos_w[2] == pytest.approx(0.42, abs=0.05)
