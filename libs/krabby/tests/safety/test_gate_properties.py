"""No sequence of commands, measurements, requests and times makes the gate break a promise."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from krabby.safety.gate import DriveMode, GateCfg, SafetyGate
from krabby_proto import CommandStatus, Fault, SafetyState

MS = 1_000_000
N = 3
CFG = GateCfg(
    lower=[-1.0, -2.6, 0.2],
    upper=[1.0, 0.0, 0.9],
    max_rate=[12.0, 3.0, 5.0],
    kp=[250.0, 100.0, 50.0],
    kd=[10.0, 4.0, 2.0],
    damp_kd=[6.0, 12.0, 2.0],
    rated_torque=[40.0, 10.0, 5.0],
    peak_torque=[120.0, 30.0, 5.0],
    arming_s=0.06,
    rms_window_s=5.0,
)
UPRIGHT = (0.0, 0.0, 0.0, 1.0)
START_POS = np.array([0.1, -0.5, 0.5])
LIMP = (SafetyState.DISARMED, SafetyState.DAMP, SafetyState.ESTOP)

anything = st.floats(width=32) | st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30, -1e30])
fraction = st.floats(0.0, 1.0)
durations_ns = st.sampled_from([0, 1, 5 * MS, 20 * MS, 29 * MS, 30 * MS, 50 * MS, 99 * MS, -MS])
stalls_ns = st.sampled_from(
    [25 * MS, 29 * MS, 30 * MS, 50 * MS, 99 * MS, 100 * MS, 149 * MS, 150 * MS, 10**9]
)
lags_ns = st.sampled_from([None, 0, 4 * MS, 29 * MS, 40 * MS, 200 * MS, -MS])
jumps_ns = st.one_of(
    st.integers(100 * MS, 700 * MS), st.integers(1, 10**18), st.integers(-(10**18), -MS - 1)
)
quaternions = st.one_of(
    st.just(UPRIGHT),
    st.just(UPRIGHT),
    st.floats(-math.pi, math.pi).map(lambda a: (math.sin(a / 2), 0.0, 0.0, math.cos(a / 2))),
    st.tuples(anything, anything, anything, anything),
)


class GateMachine(RuleBasedStateMachine):
    """Drives obey `effort_limit` and nothing else: they push as hard as they may, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = SafetyGate(CFG)
        self.clock_ns = 0  # what the gate is told
        self.time_ns = 0  # the gate's own: it never runs backwards but for a clock fault
        self.stopped = False
        self.measured = self.last_good = START_POS
        self.drive = self.gate.step(0)
        self.stepped_ns = 0
        self.stall = None  # calls to go until the process stalls, and for how long
        self.target = self.drive.joint_pos  # what the drives may hold, once armed
        self.moved_ns = 0  # newest applied command or start of ACTIVE
        self.alive_ns = 0  # newest valid command or start of ACTIVE
        self.seen_ns = -(10**18)  # capture of the newest valid measurement

    @initialize(start=st.integers(0, 10**15), armed=st.booleans())
    def begin(self, start, armed):
        self.tell(start)
        self.settle()
        if armed:
            self.the_robot_is_armed()
            self.settle()

    def tell(self, now_ns):
        """Moves the clock; the gate learns of it with the next call."""
        self.clock_ns = now_ns

    def account(self):
        """What the gate must make of the clock in this call."""
        behind = self.time_ns - self.clock_ns
        if behind <= MS:
            self.time_ns = max(self.time_ns, self.clock_ns)
        else:
            self.time_ns = self.clock_ns
            self.seen_ns = -(10**18)

    @contextmanager
    def a_call(self, *, measures=False, resets=False):
        """Around every call: the process may stall before it, and the silence counts in it.

        `measures`: the call brings a valid measurement. `resets`: it clears the faults.
        """
        if self.stall is not None:
            calls, duration = self.stall
            self.stall = (calls - 1, duration) if calls else None
            if not calls:
                self.tell(self.clock_ns + duration)
        self.account()
        before = self.gate.state
        unseen = self.time_ns - self.seen_ns
        unheard = self.time_ns - self.alive_ns
        yield
        state = self.gate.state
        if before is SafetyState.ARMING and state in (SafetyState.ACTIVE, SafetyState.HOLD):
            assert unseen < 30 * MS
            self.alive_ns = self.moved_ns = self.time_ns
        if before in LIMP:
            return
        if unseen >= 100 * MS:
            assert state in LIMP
            missing = Fault.STATE_GAP if measures else Fault.STATE_STALE
            assert resets or self.gate.faults & (missing | Fault.CLOCK)
        if before is not SafetyState.ARMING and unheard >= 150 * MS:
            assert state in LIMP
        if measures and before is state is SafetyState.ARMING and unseen >= 30 * MS:
            self.target = start_of(self.last_good)

    @rule(calls=st.integers(0, 9), duration=stalls_ns)
    def the_process_will_stall(self, calls, duration):
        self.stall = (calls, duration)

    def live(self):
        return self.gate.state not in LIMP

    def limp(self):
        return self.gate.state in LIMP

    @rule(duration=durations_ns)
    def time_passes(self, duration):
        self.tell(max(self.clock_ns + duration, 0))

    @precondition(live)
    @rule(duration=jumps_ns, seen=st.booleans())
    def time_jumps(self, duration, seen):
        self.tell(max(self.clock_ns + duration, 0))
        if seen:
            self.measure(self.measured, UPRIGHT, np.ones(N))

    @precondition(live)
    @rule(
        duration=stalls_ns,
        call=st.sampled_from(["measure", "nonsense", "command", "request", "raise_fault"]),
        where=fraction,
    )
    def a_stall_ends(self, duration, call, where):
        self.stall = (0, duration)
        place = CFG.lower + where * (CFG.upper - CFG.lower)
        match call:
            case "measure":
                self.measure(place, UPRIGHT, np.ones(N))
            case "nonsense":
                self.nonsense_is_measured([math.nan] * 3 * N, UPRIGHT)
            case "command":
                self.command(place)
            case "request":
                self.an_operator_asks("status")
            case "raise_fault":
                self.the_hal_finds_a_fault(Fault.HAL)

    @precondition(limp)
    @rule(stall=st.none() | st.tuples(st.integers(0, 12), stalls_ns))
    def the_robot_is_armed(self, stall=None):
        """Without such luck random calls would hardly ever reach ACTIVE."""
        self.measured = START_POS
        for op in ("reset", "arm"):
            self.measure(self.measured, UPRIGHT, np.zeros(N))
            self.an_operator_asks(op)
        self.stall = stall
        self.the_robot_works(9, 8, 0.5, measuring=True, following=True)

    @precondition(live)
    @rule(
        cycles=st.integers(1, 40),
        period_ms=st.sampled_from([10, 5, 1, 0, 12]),
        where=fraction,
        measuring=st.sampled_from([True, True, False]),
        following=st.sampled_from([True, True, False]),
        lag=lags_ns,
    )
    def the_robot_works(self, cycles, period_ms, where, measuring, following, lag=None):
        """A well-behaved stretch, or one in which either side falls silent."""
        reach = CFG.upper - CFG.lower
        for i in range(cycles):
            self.tell(self.clock_ns + period_ms * MS)
            if measuring:
                self.measured = START_POS + 0.05 * math.sin(i + where)  # it sags and swings
                self.measure(self.measured, UPRIGHT, np.ones(N), lag)
            if following:  # to a place up to half the range beyond the limits, and wavering
                place = 2.0 * where - 0.5 + 0.2 * math.sin(i)
                self.command(CFG.lower + reach * np.array([place, 1.0 - place, place]))
            self.settle()
            self.promises()
            if self.gate.state in LIMP:
                break

    @rule(
        where=st.lists(st.floats(-0.05, 1.05), min_size=N, max_size=N),
        share=st.lists(st.floats(-1.0, 1.0), min_size=N, max_size=N),
        quat=quaternions,
        lag=lags_ns,
    )
    def drives_are_measured(self, where, share, quat, lag):
        self.measured = CFG.lower + np.array(where) * (CFG.upper - CFG.lower)
        self.measure(self.measured, quat, np.array(share), lag)

    @rule(values=st.lists(anything, min_size=3 * N, max_size=3 * N), quat=quaternions)
    def nonsense_is_measured(self, values, quat):
        rows = np.array(values).reshape(3, N)
        if not np.isfinite(rows).all():
            with self.a_call():
                self.gate.observe(*rows, np.array(quat), self.clock_ns)
            assert self.gate.state in LIMP

    @rule(
        wanted=st.lists(anything, min_size=N, max_size=N) | st.lists(anything, max_size=N + 1),
        hold=st.booleans(),
    )
    def a_command_comes(self, wanted, hold):
        self.command(np.array(wanted), hold)

    @rule(op=st.sampled_from(["arm", "disarm", "estop", "reset", "status", "jump"]))
    def an_operator_asks(self, op):
        before = self.gate.state
        with self.a_call(resets=op == "reset"):
            reply = self.gate.request(op, self.clock_ns)
        if op == "estop":
            assert reply.ok
            self.stopped = True
        elif op == "reset" and reply.ok:
            self.stopped = False
        elif op == "arm" and reply.ok:
            assert before in LIMP
            assert before is not SafetyState.ESTOP
            # No jump: the first target is where the robot is, as far as targets may be.
            self.target = start_of(self.last_good)
            assert np.array_equal(self.gate.target, self.target)
            armed_ns = self.time_ns
            self.settle()
            assert self.time_ns > armed_ns or not self.drive.kp.any()

    @precondition(lambda self: self.stopped)
    @rule(op=st.sampled_from(["arm", "disarm"]))
    def an_operator_wants_to_go_on_after_a_stop(self, op):
        with self.a_call():
            assert not self.gate.request(op, self.clock_ns).ok

    @rule(fault=st.sampled_from(list(Fault)))
    def the_hal_finds_a_fault(self, fault):
        with self.a_call():
            self.gate.raise_fault(fault, self.clock_ns)
        assert self.gate.state in LIMP
        self.stopped |= fault is Fault.ESTOP

    def measure(self, pos, quat, share, lag=None):
        # A drive pushes up to its newest limit, even when time has long run out for it.
        effort = self.drive.effort_limit * share
        valid = 0.8 < sum(float(q) ** 2 for q in quat) < 1.2
        if valid:
            self.last_good = pos.copy()
        with self.a_call(measures=valid):
            captured_ns = None if lag is None else self.clock_ns - lag
            self.gate.observe(pos, np.zeros(N), effort, np.array(quat), self.clock_ns, captured_ns)
        if valid:
            captured_ns = self.time_ns if captured_ns is None else min(captured_ns, self.time_ns)
            self.seen_ns = max(self.seen_ns, captured_ns)

    def command(self, target, hold=False):
        before = self.gate.target
        with self.a_call():
            result = self.gate.command(target, self.clock_ns, hold=hold)
        if result.status in (CommandStatus.APPLIED, CommandStatus.HELD):
            assert target.shape == (N,)
            assert np.isfinite(target).all()
            self.alive_ns = self.time_ns
        if hold or result.status is not CommandStatus.APPLIED:
            assert np.array_equal(self.gate.target, before)
        if result.status is not CommandStatus.APPLIED:
            return
        credit_s = min(self.time_ns - self.moved_ns, 20 * MS) * 1e-9
        assert (np.abs(self.gate.target - before) <= CFG.max_rate * credit_s + 1e-12).all()
        self.moved_ns = self.time_ns
        self.target = self.gate.target

    def settle(self):
        """What a HAL does after everything: asks the gate what the drives do now."""
        before = self.drive
        with self.a_call():
            self.drive = self.gate.step(self.clock_ns)
        # The gains never jump: they rise by the time since the step before, 20 ms of it at most.
        credit_s = min(max(self.time_ns - self.stepped_ns, 0), 20 * MS) * 1e-9
        assert (self.drive.kp <= before.kp + CFG.kp * (credit_s / CFG.arming_s + 1e-9)).all()
        self.stepped_ns = self.time_ns

    @invariant()
    def always(self):
        self.settle()
        self.promises()

    def promises(self):
        drive, state, now = self.drive, self.gate.state, self.time_ns
        assert all(np.isfinite(array).all() for array in drive[1:])
        assert (drive.joint_pos >= CFG.target_lower).all()
        assert (drive.joint_pos <= CFG.target_upper).all()
        assert (drive.kp >= 0.0).all()
        assert (drive.kp <= CFG.kp).all()
        assert (drive.kd >= 0.0).all()
        assert (state is SafetyState.ESTOP) == self.stopped
        assert (drive.mode is DriveMode.DAMP) == (state in LIMP)
        if state in LIMP:
            assert not drive.kp.any()
            assert np.array_equal(drive.kd, CFG.damp_kd)
        else:
            assert np.array_equal(drive.joint_pos, self.target)  # as armed or commanded
            assert now - self.seen_ns < 100 * MS
        if state is SafetyState.ARMING and now - self.seen_ns >= 30 * MS:
            assert not drive.kp.any()
        if state is SafetyState.ACTIVE:
            assert now - self.alive_ns < 50 * MS
            assert now - self.seen_ns < 30 * MS
        if state is SafetyState.HOLD:
            assert now - self.alive_ns < 150 * MS
        assert (drive.effort_limit >= CFG.rated_torque).all()
        assert (drive.effort_limit <= CFG.peak_torque).all()
        assert (self.gate.effort.rms <= CFG.rated_torque * (1.0 + 1e-12)).all()


def start_of(pos):
    """The first target of an arming at a pose: where the robot is, as far as targets may be."""
    return np.clip(pos, CFG.target_lower, CFG.target_upper)


def exhaustive(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


class TestGate(GateMachine.TestCase):
    settings = exhaustive(examples=100, steps=25)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestGateAtLength(GateMachine.TestCase):
    settings = exhaustive(examples=400, steps=50)
