"""The loop around back ends that do nothing but what a test asks of them; with real sockets."""

import numpy as np
import pytest
from krabby.hal.backend import HalBackend, Reading, SimBackend, SimulatedClock
from krabby.hal.errors import BackendUnusable
from krabby.hal.loop import HalLoop
from krabby.hal.measurement import Measurement
from krabby.robot.description import RobotDescription
from krabby.runtime.rate import Tick
from krabby.runtime.testing import free_ports, running, until
from krabby.runtime.testing_traces import TraceReceiver
from krabby.runtime.tracing import TracingCfg, make_tracer
from krabby_proto import (
    FLAG_LOCKSTEP,
    FLAG_RESET,
    TRUTH,
    EndpointInUse,
    Fault,
    HalClient,
    LatestSubscriber,
    Publisher,
    SafetyState,
)

DESC = RobotDescription.load()
MS = 1_000_000


class Robot(HalBackend):
    """It stands where it is."""

    name = "some-hal"
    desc = DESC

    def __init__(self):
        self.measured = Measurement(18, 6)
        self.measured.joint_pos[:] = DESC.default_joint_pos
        self.slots = []
        self.calls = []
        self.incomplete = False
        self.was_reset = False
        self.faults = Fault(0)
        self.on_start = lambda: None
        self.on_summary = dict

    def start(self):
        self.calls.append("start")
        self.on_start()

    def read(self, slot):
        self.slots.append(slot)
        was_reset, self.was_reset = self.was_reset, False
        measured = None if self.incomplete else self.measured
        return Reading(measured, slot.woke_ns, self.faults, was_reset)

    def write(self, drive, now_ns):
        return now_ns

    def summary(self):
        return self.on_summary()

    def close(self):
        self.calls.append("close")


class Simulation(SimBackend, Robot):
    """The same with a clock that the loop holds, and slots of 10 ms."""

    rate_hz = 100.0

    def __init__(self):
        Robot.__init__(self)
        self.clock_ns = SimulatedClock()
        self._truth = np.zeros(TRUTH.size, np.float32)

    @property
    def sim_time_s(self):
        return sum(slot.slots for slot in self.slots) / self.rate_hz

    def control_tick(self, now_ns):
        self._truth[TRUTH.slices["sim_time"]] = self.sim_time_s
        return self._truth


@pytest.fixture
def endpoints():
    names = ("state", "camera", "command", "safety", "truth")
    ports = free_ports(len(names))
    return {name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}


@pytest.fixture
def client(endpoints):
    with HalClient(endpoints) as client:
        yield client


# --- what it can run -----------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [150.0, 0.0, -100.0])
def test_a_rate_that_is_no_multiple_of_the_commands_is_refused(endpoints, rate_hz):
    robot = Robot()
    robot.rate_hz = rate_hz
    with pytest.raises(BackendUnusable, match=rf"some-hal would run at {rate_hz:g} Hz"):
        HalLoop(robot, endpoints)


def test_a_robot_has_no_simulated_clock(endpoints):
    robot = Robot()
    robot.clock_ns = SimulatedClock()
    with pytest.raises(BackendUnusable, match="derive it from SimBackend"):
        HalLoop(robot, endpoints)


# --- start and end -------------------------------------------------------------------------


def test_a_back_end_gets_what_a_long_read_beats_with(endpoints):
    robot = Robot()
    robot.beat()  # nothing watches yet
    with running(HalLoop(robot, endpoints)) as runtime:
        until(lambda: robot.slots)
        assert robot.beat == runtime.beat


def test_sockets_are_bound_before_devices_are_opened(endpoints):
    robot = Robot()

    def bind_the_same():
        with pytest.raises(EndpointInUse):
            Publisher(endpoints["truth"], TRUTH)

    robot.on_start = bind_the_same
    with running(HalLoop(robot, endpoints)):
        assert robot.calls == ["start"]
    assert robot.calls == ["start", "close"]


def test_a_start_that_fails_half_way_is_closed(endpoints):
    robot = Robot()
    robot.on_start = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError), running(HalLoop(robot, endpoints)):
        pass
    assert robot.calls == ["start", "close"]


def test_what_goes_wrong_at_the_end_does_not_keep_the_robot_from_being_closed(endpoints):
    robot = Robot()
    robot.on_summary = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError), running(HalLoop(robot, endpoints)):
        pass
    assert robot.calls == ["start", "close"]


def test_it_is_disarmed_before_it_is_closed(endpoints, client):
    robot = Robot()
    loop = HalLoop(robot, endpoints)
    states = []
    robot.close = lambda: states.append(loop.handler.gate.state)
    with running(loop):
        assert client.state.wait(60.0) is not None
        assert client.safety("arm", "test", 60.0)["ok"]
    assert states == [SafetyState.DISARMED]


# --- slots ---------------------------------------------------------------------------------


def test_missed_slots_are_made_up_for_by_at_most_four(endpoints):
    loop = HalLoop(Robot(), endpoints)
    slots = [
        loop._slot_of(Tick(100 * MS, 101 * MS, skipped), 105 * MS).slots for skipped in (0, 1, 4, 6)
    ]
    assert slots == [1, 2, 5, 5]
    summary = loop.shutdown()
    assert (summary["slots_skipped"], summary["slots_lost"]) == (11, 2)


def test_a_slot_says_when_the_next_one_begins(endpoints, client):
    robot = Robot()
    with running(HalLoop(robot, endpoints)):
        assert client.state.wait(60.0) is not None
    for slot in robot.slots:
        assert slot.scheduled_ns % (5 * MS) == 0
        assert slot.deadline_ns == slot.scheduled_ns + 5 * MS
        assert slot.woke_ns >= slot.scheduled_ns


def test_of_an_incomplete_measurement_nothing_is_published(endpoints, client):
    robot = Robot()
    robot.incomplete = True
    robot.faults = Fault.IMU
    with running(HalLoop(robot, endpoints)) as runtime:
        client.hello(60.0)
        until(lambda: len(robot.slots) > 20)
        assert client.state.latest() is None
        robot.incomplete = False
        assert client.state.wait(60.0) is not None
        # Every answer carries what the gate has, published or not.
        state = client.state.latest() or client.state.wait(60.0)
        reply = client.send_command(
            DESC.default_joint_pos, capture_ns=state.capture_ns, deadline_s=60.0
        )
    assert reply.fault_bits == Fault.IMU
    assert 20 < runtime.summary["measurements_incomplete"] < runtime.summary["slots"]


def test_a_reset_in_an_incomplete_slot_is_told_with_the_next_state(endpoints, client):
    robot = Robot()
    robot.incomplete = robot.was_reset = True
    with running(HalLoop(robot, endpoints)):
        client.hello(60.0)
        until(lambda: robot.slots)
        robot.incomplete = False
        flags = [client.state.wait(60.0).flags & FLAG_RESET for _ in range(3)]
    # The first may have been published before this reader was connected.
    assert flags in ([FLAG_RESET, 0, 0], [0, 0, 0])


# --- lock-step -----------------------------------------------------------------------------


def test_a_simulation_takes_one_turn_of_10_ms_an_answer_at_any_rate(endpoints, client):
    simulation = Simulation()
    loop = HalLoop(simulation, endpoints, duration_s=0.2)
    captures = []
    with LatestSubscriber(endpoints["truth"], TRUTH) as truth, running(loop) as runtime:
        assert client.hello(60.0)["clock"] == "simulated"
        while len(captures) < 21:
            state = client.state.wait(60.0)
            if captures and state.capture_ns == captures[-1]:
                continue  # said again
            captures.append(state.capture_ns)
            assert state.flags & FLAG_LOCKSTEP
            newest = truth.latest()
            client.send_command(
                DESC.default_joint_pos,
                capture_ns=state.capture_ns,
                publish_ns=state.capture_ns,
                deadline_s=60.0,
            )
        until(lambda: runtime.summary)
    assert np.diff(captures).tolist() == [10 * MS] * 20
    assert newest.payload[TRUTH.slices["sim_time"]] == pytest.approx(0.2)
    assert [slot.slots for slot in simulation.slots] == [0] + [1] * 20
    assert "obs_age_p50_ms" not in runtime.summary


def test_in_lock_step_a_measurement_is_never_incomplete(endpoints):
    simulation = Simulation()
    simulation.incomplete = True
    with (
        pytest.raises(BackendUnusable, match="incomplete"),
        running(HalLoop(simulation, endpoints)),
    ):
        until(lambda: simulation.calls[-1:] == ["close"])


def test_a_cycle_becomes_a_trace_of_its_stages(endpoints):
    with TraceReceiver() as receiver:
        tracer = make_tracer(TracingCfg(endpoint=receiver.endpoint, every=10), "some-hal")
        robot = Robot()
        with running(HalLoop(robot, endpoints, tracer=tracer)):
            until(lambda: receiver.traces("cycle"))
    root, stages = receiver.traces("cycle")[0]
    assert [span.name for span in stages] == [robot.stage, "publish", "render and serve"]
    facts = {one.key: one.value for one in root.attributes}
    assert facts["krabby.safety"].string_value == "disarmed"
    assert facts["krabby.state.sequence"].int_value == 10
    assert root.start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= root.end_time_unix_nano
