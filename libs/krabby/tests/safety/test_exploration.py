"""Every sequence of events: gate, command lease and the game loop's modes, breadth first.

The shipped `GateHandler` with its `SafetyGate`, `CommandAdmission` and `LocomotionController` are
stepped in one thread on a fake clock. What stands in: back end (joints follow the gate's target at
once, limp ones sag), sockets (a command is delivered, lost or late), trajectories (two periods
long) and the policy (one constant pose). Times are scaled so that each threshold is a few control
periods of 10 ms; their order is that of `robot.toml`.

A state is explored once for each value of its projection (`PROJECTION`); ages are counted in
periods up to the threshold after which they no longer matter. After every event the invariants
(`World.check` and those in the methods that apply commands) hold, or the shortest sequence that
breaks one is printed. Gate and lease, whose writers may command at any time, are explored to the
end; with the game loop the states left are counted:

    python -m pytest -m slow libs/krabby/tests/safety/test_exploration.py

KRABBY_TRANSITIONS raises how many are played; ten million reach the end with the game loop, too.
From a lying robot without what delays messages (`LOSSES`): 69,584 states, 1,043,760 transitions,
25 events deep, in 16 minutes. From a walking one with all events: 267,677 states, 5,353,540
transitions, 21 events deep, in an hour of what a busy machine left.
"""

import copyreg
import dataclasses
import io
import os
import pickle
import re
import time
import zlib
from collections import Counter, deque
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from krabby.control import controller as control
from krabby.control.config import ControlCfg, FreshnessCfg
from krabby.control.controller import LocomotionController
from krabby.control.modes import Mode
from krabby.control.nav import NavFilter
from krabby.control.permission import Permission
from krabby.hal.backend import HalBackend, Reading, Slot
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import Measurement
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock, captured_logs
from krabby.safety.gate import GateCfg, SafetyGate
from krabby.safety.trajectories import JointTrajectory, rest_joint_pos
from krabby_proto import (
    COMMAND,
    FLAG_HOLD,
    STATE,
    CommandReply,
    CommandStatus,
    Fault,
    SafetyState,
    decode,
    encode,
    pack,
)
from krabby_proto.admission import CommandAdmission

TICK_NS = 10_000_000
TIMES_S = {
    "hold_after_s": 0.02, "damp_after_s": 0.03, "state_stale_s": 0.02, "state_stop_s": 0.03,
    "arming_s": 0.04,
}  # fmt: skip
"""The gate's; `robot.toml` has 0.05, 0.15, 0.03, 0.1, 0.5."""
LEASE_S, TTL_S, CAPTURE_TTL_S = 0.04, 0.01, 0.02
"""A HAL has 0.5, 0.025, 0.1."""
FRESHNESS = FreshnessCfg(state_hold_s=0.02, state_stop_s=0.03)
HOLD, DAMP, STALE, STOP, ARMING, TTL = 2, 3, 2, 3, 4, 1
"""The same in periods."""
SAG_RAD, MOST_SAG_RAD = 0.03, 0.3
"""What joints of a limp robot give way in a period, and in all."""
SHIFT_RAD = 0.04
"""What the other writer moves the robot by with a command."""
LIMP = (SafetyState.DISARMED, SafetyState.DAMP, SafetyState.ESTOP)
LOOP, OTHER = 0x100, 0x999
"""Instance ids of writers: the loop's rises with each restart."""

PROJECTION = (
    "gate: state, age of the newest command and measurement, age and rise of the gains",
    "lease: holder (loop, an earlier loop, other writer), periods left",
    "loop: mode, trajectory, whether it has a last target, whether it knows this HAL, age of its"
    " state",
    "permission: gate as last heard, whether its arm count is the gate's, request to stand, pending"
    " request, lease, unapplied, was live, followed, ages of taken and heard",
    "wire: command under way, its age, whether a newer one was applied",
    "promise: a request to stand was accepted since the gate was armed",
)
OPS = ("arm", "disarm", "estop", "reset")
EVENTS = (
    *OPS, "stand", "sit", "fault", "second writer", "deliver", "restart HAL", "restart loop",
    "tick", "tick: gap", "tick: state lost", "tick: command lost", "tick: command late",
    "tick: exchange stalls", "tick: reply lost", "tick: loop stalled", "tick: HAL stalled",
)  # fmt: skip
"""A tick is a control period; the others take no time, so any number of them lies between two."""
DELAYS = ("deliver", "tick: command late", "tick: exchange stalls", "tick: reply lost",
          "tick: HAL stalled")  # fmt: skip
LOSSES = tuple(event for event in EVENTS if event not in DELAYS)
"""What is lost, stopped and started again, and comes in time if it comes."""
MOST_TRANSITIONS = int(os.environ.get("KRABBY_TRANSITIONS", "0"))
"""0: as many as each test has time for."""
GATE_EVENTS = (
    *OPS, "fault", "writer", "second writer", "restart HAL", "tick: loop stalled",
    "tick: gap, loop stalled", "tick: exchange stalls, loop stalled",
)  # fmt: skip
"""Those of gate and lease, to which the loop is a writer like the other: its commands come at any
time and not at all."""


class BrokenError(AssertionError):
    """An invariant does not hold."""


class Walk:
    """Stands in for the policies: one pose beside the default one."""

    needs_features = halts = False
    command_range = None

    def __init__(self, desc):
        self.active = self
        self._target = desc.default_joint_pos + 0.05
        self.steps = 0

    def start(self, target, now_ns):
        pass

    def wait(self, elapsed_ns):
        pass

    def step(self, inputs, features, last_target, now_ns):
        self.steps += 1
        return self._target


class Drives(HalBackend):
    """Joints that follow at once; limp ones sag."""

    name = "test-hal"

    def __init__(self, desc, clock):
        self.desc = desc
        self.clock_ns = clock
        self.pos = rest_joint_pos(desc)
        self.sagged = 0.0
        self.gap = False
        self.stall_ns = 0
        """How long the next exchange with the drives takes."""
        self.kp = 0.0
        self.kp_ns = clock()

    def read(self, slot):
        if self.kp == 0.0:
            step = min(SAG_RAD, MOST_SAG_RAD - self.sagged)
            self.sagged += step
            self.pos = self.pos + step * (self.desc.default_joint_pos > 0)
        stall_ns, self.stall_ns = self.stall_ns, 0
        self.clock_ns.now_ns += stall_ns
        if self.gap:
            return Reading(None, slot.woke_ns)
        measured = Measurement(18, 6)
        measured.joint_pos[:] = self.pos
        return Reading(measured, self.clock_ns())

    def write(self, drive, now_ns):
        kp = float(drive.kp.max() / self.desc.kp.max())
        credit_ns = min(now_ns - self.kp_ns, 2 * TICK_NS)
        require(kp <= self.kp + credit_ns / (ARMING * TICK_NS) + 1e-9,
                f"stiffness jumped from {self.kp:.2f} to {kp:.2f} of its full value")  # fmt: skip
        self.kp, self.kp_ns = kp, now_ns
        if kp:
            self.pos = drive.joint_pos.copy()
            self.sagged = 0.0
        return now_ns


SHARED = {}
"""What no event changes, by name: not copied with a world."""
_DISPATCH = copyreg.dispatch_table.copy()


def shared(name):
    return SHARED[name]


def share(**objects):
    """Objects of types of which there is one each."""
    SHARED.update(objects)
    for name, each in objects.items():
        _DISPATCH[type(each)] = lambda _, name=name: (shared, (name,))


def ignore(*_):
    """Takes what a handler reports."""


def require(holds, what):
    if not holds:
        raise BrokenError(what)


class World:
    """HAL and loop, what is on its way between them, and what the invariants have to remember."""

    def __init__(self, desc, cfg):
        self.desc, self.cfg = desc, cfg
        self.clock = FakeClock()
        self.loop_id, self.hal_id = LOOP, 7
        self.drives = Drives(desc, self.clock)
        self.sequence = Counter()
        self.start_hal()
        self.start_loop()
        self.late = None
        self.asked = cfg.auto_stand
        self.arm_count = self.gate.arm_count
        self.heard_ns = None
        self.admitted = None
        """Writer and time of the newest admitted command."""
        self.was = SafetyState.DISARMED

    def start_hal(self):
        self.handler = GateHandler(self.drives)
        self.handler.on_actuated = ignore
        self.gate = self.handler.gate
        self.gate.arm_count = (self.hal_id + 1) << 16  # a random one, but the same in each run
        self.admission = CommandAdmission(ttl_s=TTL_S, lease_s=LEASE_S, capture_ttl_s=CAPTURE_TTL_S)
        self.hal_id += 1
        self.admitted = None
        self.state_sequence = 0
        self.drives.write(self.gate.step(self.clock()), self.clock())

    def start_loop(self):
        self.loop_id += 1
        self.loop = LocomotionController(self.cfg, self.desc, SHARED["walk"])
        self.loop.nav = NavFilter(self.cfg.nav, self.cfg.freshness, host_clock=self.clock)
        self.loop.hal_checked = True
        self.state = None
        self.late = None

    def frozen(self):
        """The world as bytes, without what no event changes: `pickle.loads` makes it anew."""
        out = io.BytesIO()
        pickler = pickle.Pickler(out, 5)
        pickler.dispatch_table = _DISPATCH
        pickler.dump(self)
        return zlib.compress(out.getvalue(), 1)

    # --- events ------------------------------------------------------------------------------

    def play(self, event):
        """One event; raises `BrokenError`."""
        if event.startswith("tick"):
            self.tick(event.removeprefix("tick").removeprefix(": "))
        elif event in OPS:
            self.handler.on_safety("status", "test")  # time counts before the request does
            before = self.gate.state
            answer = self.handler.on_safety(event, "test")
            now = self.gate.state
            if event == "estop":
                require(answer.ok and now is SafetyState.ESTOP, "an e-stop did not count")
            elif event != "reset":
                require(
                    before is not SafetyState.ESTOP or now is before, f"{event} ended an e-stop"
                )
            if event == "reset":
                require(now is before or now is SafetyState.DISARMED, f"a reset led to {now.name}")
            if event == "disarm":
                require(not now.live, "a disarm left the robot live")
        elif event in ("stand", "sit"):
            # One of before an arm that the loop has yet to hear of is taken, and must not count.
            if self.loop.request(event) is None and event == "stand" and self.gate.state.live:
                self.asked = True
        elif event == "fault":
            self.gate.raise_fault(Fault.DRIVE, self.clock())
            self.handler._write(self.clock())
            require(self.gate.state in LIMP, "a fault left the robot live")
        elif event == "writer":
            # A loop that asks for no motion. The target itself would move it: float32 rounds.
            self.deliver(self.command(self.loop_id, self.gate.target, self.clock(), FLAG_HOLD))
        elif event == "second writer":
            self.deliver(self.command(OTHER, self.gate.target + SHIFT_RAD, self.clock()))
        elif event == "deliver":
            if self.late is not None:
                late, self.late = self.late, None
                self.deliver(late)
        elif event == "restart HAL":
            self.start_hal()
        elif event == "restart loop":
            self.start_loop()
        self.note_gate()
        self.check()

    def tick(self, what):
        clock, loop = self.clock, self.loop
        clock.now_ns += TICK_NS
        now = clock()
        if what != "HAL stalled":
            self.drives.gap = what.startswith("gap")
            self.drives.stall_ns = STOP * TICK_NS if what.startswith("exchange stalls") else 0
            measured_ns = self.gate._measured.at_ns
            live = self.gate.state.live
            reading = self.handler.cycle(Slot(now, now, 1, now + TICK_NS))
            now = clock()
            self.note_gate()
            gap_ns = now - measured_ns if live else 0
            require(gap_ns < STOP * TICK_NS or not self.gate.state.live,
                    f"a gap of {gap_ns * 1e-6:.0f} ms was forgiven")  # fmt: skip
            if reading.measured is not None and what != "state lost":
                self.state_sequence += 1
                self.state = self.make_state(now)
        if what.endswith("loop stalled"):
            return
        if self.state is not None:
            loop.handle_state(self.state)
        sent = loop.tick(self.state, None, now)
        self.check_mode()
        loop.hal_checked = True
        if sent is None:
            require(loop.mode is Mode.SILENT, "silent in a mode that commands")
            return
        flags = FLAG_HOLD if sent.hold else 0
        command = self.command(self.loop_id, sent.joint_pos, sent.state.capture_ns, flags)
        match what:
            case "command lost":
                return
            case "command late" | "HAL stalled":
                self.late = command
                return
        reply = self.deliver(command)
        if what != "reply lost":
            self.heard_ns = now
            loop.handle_reply(reply)

    def make_state(self, now_ns):
        payload = pack(
            STATE, base_quat_w=(0.0, 0.0, 0.0, 1.0), base_ang_vel_b=np.zeros(3),
            base_lin_acc_b=(0.0, 0.0, 9.81), joint_pos=self.drives.pos, joint_vel=np.zeros(18),
            joint_effort=np.zeros(18), foot_contact=np.ones(6),
        )  # fmt: skip
        frames = encode(
            STATE, payload, instance_id=self.hal_id, sequence=self.state_sequence,
            capture_ns=now_ns, publish_ns=now_ns,
        )  # fmt: skip
        return decode(frames, STATE)

    def command(self, writer, target, capture_ns, flags=0):
        self.sequence[writer] += 1
        return encode(
            COMMAND, target, instance_id=writer, sequence=self.sequence[writer],
            capture_ns=capture_ns, publish_ns=self.clock(), flags=flags,
        )  # fmt: skip

    def deliver(self, frames):
        """What a HAL makes of a command; its reply."""
        now = self.clock()
        before = self.gate.target
        status, sequence, message = self.admission.admit(frames, now, now)
        if message is not None:
            self.note_admitted(message, now)
            outcome = self.handler.on_command(message)
            status = outcome.status
            self.note_gate()
            if status is CommandStatus.APPLIED and message.header.instance_id != OTHER:
                self.check_applied(before)
        gate = self.gate
        return CommandReply(
            b"KRPL", 1, int(status), int(gate.state), int(gate.faults), 0, 0, gate.arm_count,
            sequence, sequence, now, now,
        )  # fmt: skip

    # --- invariants --------------------------------------------------------------------------

    def note_admitted(self, message, now):
        writer = message.header.instance_id
        require(now - message.header.publish_ns <= TTL_S * 1e9, "admitted after its time to live")
        require(now - message.capture_ns <= CAPTURE_TTL_S * 1e9, "admitted for an old state")
        if self.admitted is not None and self.admitted[0] != writer:
            silence_ns = now - self.admitted[1]
            require(silence_ns >= LEASE_S * 1e9,
                    f"two writers admitted within {silence_ns * 1e-6:.0f} ms")  # fmt: skip
        self.admitted = writer, now

    def note_gate(self):
        """Follow the gate's state; a stop and an arm end what was asked for."""
        was, now = self.was, self.gate.state
        if was is SafetyState.ESTOP and now is not was:
            require(now is SafetyState.DISARMED, f"an e-stop ended in {now.name}")
        if now in LIMP or self.gate.arm_count != self.arm_count:
            self.asked = self.cfg.auto_stand
        self.was, self.arm_count = now, self.gate.arm_count

    def check_applied(self, before):
        """A command of the loop without a request moves nothing."""
        away = float(np.abs(self.gate.target - before).max())
        require(self.asked or away == 0.0,
                f"the loop moved the robot by {away:.2f} rad without a request")  # fmt: skip

    def check(self):
        gate, now = self.gate, self.clock()
        state = gate.state
        if self.drives.kp_ns == now:
            require(state.live or self.drives.kp == 0.0, f"stiff in {state.name}")
        if gate._now_ns == now:  # else its process stands, and the drives' own watchdogs count
            seen_ns = now - gate._measured.at_ns if state.live else 0
            command_ns = now - gate._command_ns if state.following else 0
            require(seen_ns < STOP * TICK_NS, f"{state.name} without measurements")
            require(command_ns < DAMP * TICK_NS, f"{state.name} without commands")
            if state is SafetyState.ACTIVE:
                require(seen_ns < STALE * TICK_NS, "ACTIVE on an old measurement")
                require(command_ns < HOLD * TICK_NS, "ACTIVE on an old command")

    def check_mode(self):
        """What the loop does in this tick fits what it has heard."""
        mode, permission = self.loop.mode, self.loop.permission
        if mode in (Mode.STAND_UP, Mode.POLICY, Mode.SIT_DOWN):
            require(permission.has_lease, f"{mode.name} without the lease")
            require(permission.safety.following, f"{mode.name}, gate {permission.safety.name}")
            silence_ns = self.clock() - self.heard_ns
            require(silence_ns < DAMP * TICK_NS,
                    f"{mode.name}, {silence_ns * 1e-6:.0f} ms after a reply")  # fmt: skip

    # --- projection --------------------------------------------------------------------------

    def projection(self):
        gate, loop, admission, now = self.gate, self.loop, self.admission, self.clock()
        permission, pending = loop.permission, loop.permission._pending

        def age(since_ns, most):
            return -1 if since_ns is None else min((now - since_ns) // TICK_NS, most)

        state = gate.state
        following = state.following
        holder = {None: 0, OTHER: 1, self.loop_id: 2}.get(admission.holder, 3)
        lease = (admission._lease_until_ns - now) // TICK_NS
        late = None
        if self.late is not None:
            header = decode(self.late, COMMAND).header
            overtaken = header.instance_id == admission.holder
            overtaken = overtaken and header.sequence <= admission._sequence
            late = (age(header.publish_ns, TTL + 1), age(header.capture_ns, 3), overtaken)
        trajectory = loop._trajectory is not None and age(loop._trajectory_ns, 3)
        return (
            int(state),
            age(gate._command_ns, DAMP) if following else 0,
            age(gate._measured.at_ns, STOP),
            gate._ramp_ns // 1_000_000 if state is SafetyState.ARMING else 0,
            age(gate._ramp_at_ns, 2) if state is SafetyState.ARMING else 0,
            holder, max(lease, 0) if holder else 0,
            loop.mode.value, trajectory,
            loop._last_target is not None,
            loop._instance == self.hal_id,
            age(None if self.state is None else self.state.capture_ns, STOP),
            int(permission.safety), permission._arm_count == gate.arm_count,
            permission.stand_requested, permission.has_lease,
            permission.unapplied, permission._was_live, permission._followed,
            pending and (pending.request, pending.permission == permission._number),
            age(permission._taken_ns, DAMP), age(permission._heard_ns, DAMP),
            late, self.asked,
        )  # fmt: skip


class Explored(NamedTuple):
    states: int
    transitions: int
    depth: int
    """Events after which the last state played was reached; all nearer ones were played."""
    waiting: int
    """States that were reached and not played; 0 when nothing is left to explore."""
    seen: Counter
    """States played, by the gate's state and the loop's mode."""
    seconds: float
    broken: str = ""
    path: tuple = ()
    """The shortest sequence to what is broken."""

    def __str__(self):
        return (
            f"{self.states} states, {self.transitions} transitions, all sequences of "
            f"{self.depth} events, {self.waiting} states left, {self.seconds:.0f} s"
        )


def explore(world, most_transitions, events=EVENTS):
    """Breadth first from `world`; ends at the first broken invariant."""
    began_s = time.perf_counter()
    came = [(0, "", 0)]  # from which state, by which event, after how many
    known = {world.projection()}
    queue = deque([(0, world.frozen())])
    seen = Counter()
    transitions = depth = 0

    def result(**facts):
        seconds = time.perf_counter() - began_s
        return Explored(len(came), transitions, depth, len(queue), seen, seconds, **facts)

    while queue and transitions < most_transitions:
        index, frozen = queue.popleft()
        thawed = zlib.decompress(frozen)
        depth = came[index][2]
        for event in events:
            there = pickle.loads(thawed)
            transitions += 1
            try:
                there.play(event)
            except BrokenError as broken:
                path = [event]
                while index:
                    index, last, _ = came[index]
                    path.insert(0, last)
                return result(broken=str(broken), path=tuple(path))
            key = there.projection()
            if key not in known:
                known.add(key)
                queue.append((len(came), there.frozen()))
                came.append((index, event, depth + 1))
        here = pickle.loads(thawed)
        seen[here.gate.state.name, here.loop.mode.name] += 1
    return result()


LYING = ()
ARMED = ("tick", "arm", *["tick"] * ARMING, "tick")
WALKING = (*ARMED, "stand", *["tick"] * 4)
BEHIND_ANOTHER = (*ARMED, "tick: loop stalled", *["tick: HAL stalled"] * 2, "disarm",
                  *["tick: loop stalled"] * 2, "second writer", "tick")  # fmt: skip
STARTS = {"lying": LYING, "walking": WALKING, "behind another writer": BEHIND_ANOTHER}


@pytest.fixture
def start(monkeypatch):
    """Makes a world after a sequence of events."""
    desc = RobotDescription.load()
    desc = dataclasses.replace(desc, safety=dataclasses.replace(desc.safety, **TIMES_S))
    gate_cfg = GateCfg.from_description(desc)
    monkeypatch.setattr(GateCfg, "from_description", lambda _: gate_cfg)
    rest = rest_joint_pos(desc)

    def move(_, start, *, to):
        return JointTrajectory(np.array([start, to, to]))

    monkeypatch.setattr(control, "stand_up", partial(move, to=desc.default_joint_pos))
    monkeypatch.setattr(
        control, "sit_down", lambda desc, start, walking: move(desc, start, to=rest)
    )
    cfg = ControlCfg(auto_stand=False, freshness=FRESHNESS)
    share(desc=desc, cfg=cfg, gate_cfg=gate_cfg, walk=Walk(desc))

    def make(events):
        world = World(desc, cfg)
        for event in events:
            world.play(event)
        return world

    with captured_logs():
        yield make


def test_the_starts_are_what_they_are_called(start):
    walking, behind = start(WALKING), start(BEHIND_ANOTHER)
    assert (walking.gate.state, walking.loop.mode) == (SafetyState.ACTIVE, Mode.POLICY)
    assert walking.loop.policies.steps > 0
    assert behind.admission.holder == OTHER


@pytest.mark.parametrize("name", STARTS)
def test_no_sequence_of_events_breaks_an_invariant(start, name):
    found = explore(start(STARTS[name]), 4_000)
    assert found.broken == "", found.path
    assert found.depth >= 2


MOVED_ONCE = {
    "gave way unseen": ("tick", "tick: state lost", "arm", "tick: state lost", *["tick"] * 4),
    "armed again by a gap": ("tick", "arm", "tick", "tick: gap", *["tick"] * 6),
    "asked before the arm": ("tick", "arm", "tick", "disarm", "tick: command lost", "stand", "arm",
                             *["tick"] * 6),
}  # fmt: skip
"""The shortest sequences in which an arm once moved the robot."""


@pytest.mark.parametrize("name", MOVED_ONCE)
def test_an_arm_moves_nothing(start, name):
    world = start(MOVED_ONCE[name])
    assert world.gate.state is SafetyState.ACTIVE
    assert world.loop.mode is Mode.PASSIVE
    np.testing.assert_array_equal(world.gate.target, world.drives.pos)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STARTS)
def test_no_longer_sequence_of_events_breaks_an_invariant(start, name, capsys):
    found = explore(start(STARTS[name]), MOST_TRANSITIONS or 150_000)
    with capsys.disabled():
        print(f"\n{name}: {found}", *PROJECTION, sep="\n    ")  # noqa: T201
        for (gate, mode), count in sorted(found.seen.items()):
            print(f"        {gate:9} {mode:9} {count}")  # noqa: T201
    assert found.broken == "", found.path
    assert found.depth >= 4


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_sequence_of_losses_breaks_an_invariant(start, capsys):
    """To the end where KRABBY_TRANSITIONS allows for it."""
    most = MOST_TRANSITIONS or 30_000
    found = explore(start(LYING), most, LOSSES)
    with capsys.disabled():
        print(f"\nlying, losses: {found}")  # noqa: T201
    assert found.broken == "", found.path
    assert found.waiting == 0 or found.transitions >= most
    assert found.depth >= 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gate_and_lease_are_explored_to_the_end(start, capsys):
    """Every state that their part of the projection tells apart, with both writers at any time."""
    found = explore(start(LYING), 100_000, GATE_EVENTS)
    with capsys.disabled():
        print(f"\ngate and lease: {found}", *PROJECTION[:2], sep="\n    ")  # noqa: T201
    assert found.broken == "", found.path
    assert found.waiting == 0
    assert {gate for gate, _ in found.seen} == {state.name for state in SafetyState}


# --- planted bugs: each is found ------------------------------------------------------------


def gate_that_arms_with_the_gains_it_had(monkeypatch):
    monkeypatch.setattr(SafetyGate, "_begin_rising", lambda self, now_ns: None)


def gate_that_moves_on_a_hold(monkeypatch):
    command = SafetyGate.command

    def follow(self, joint_pos_target, now_ns, *, hold=False):
        return command(self, joint_pos_target, now_ns)

    monkeypatch.setattr(SafetyGate, "command", follow)


def gate_that_forgives_a_gap(monkeypatch):
    """It takes a measurement in before it judges how long there was none."""
    supervise = SafetyGate._supervise

    def late(self, now_ns, missing=Fault.STATE_STALE):
        if missing is Fault.STATE_STALE:
            supervise(self, now_ns)

    monkeypatch.setattr(SafetyGate, "_supervise", late)


def loop_that_keeps_the_request_to_stand(monkeypatch):
    end = Permission._end_permission

    def keep(self, reason):
        requested = self.stand_requested
        end(self, reason)
        self.stand_requested = requested

    monkeypatch.setattr(Permission, "_end_permission", keep)


def loop_that_does_not_compare_arm_counts(monkeypatch):
    handle_reply = Permission.handle_reply

    def blind(self, reply, sent_ns=None):
        handle_reply(self, reply._replace(arm_count=0), sent_ns)

    monkeypatch.setattr(Permission, "handle_reply", blind)


def loop_that_walks_on_without_replies(monkeypatch):
    monkeypatch.setattr(Permission, "judge", lambda self, now_ns: None)


def lease_that_anybody_takes(monkeypatch):
    admit = CommandAdmission.admit

    def take(self, *args):
        self.holder = None
        return admit(self, *args)

    monkeypatch.setattr(CommandAdmission, "admit", take)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "broken"),
    [
        (gate_that_arms_with_the_gains_it_had, "stiffness jumped from 0.00 to"),
        (gate_that_forgives_a_gap, "a gap of 40 ms was forgiven|on an old measurement"),
        (lease_that_anybody_takes, "two writers admitted within 0 ms"),
    ],
)
def test_a_planted_bug_is_found_with_gate_and_lease_alone(start, monkeypatch, plant, broken):
    plant(monkeypatch)
    found = explore(start(LYING), 100_000, GATE_EVENTS)
    assert re.search(broken, found.broken), found


@pytest.mark.parametrize(
    ("plant", "then", "broken"),
    [
        (gate_that_arms_with_the_gains_it_had, (), "stiffness jumped from 0.00 to 1.00"),
        (gate_that_forgives_a_gap, (), "a gap of 40 ms was forgiven"),
        (loop_that_keeps_the_request_to_stand, ("disarm", "tick", "arm", *["tick"] * ARMING),
         "moved the robot by .* without a request"),
        (gate_that_moves_on_a_hold, ("disarm", "tick: state lost", "arm", *["tick"] * ARMING),
         "moved the robot by .* without a request"),
        (loop_that_does_not_compare_arm_counts,
         ("disarm", "tick", "arm", "tick", "disarm", "tick: command lost", "stand", "arm",
          *["tick"] * ARMING),
         "moved the robot by .* without a request"),
        (loop_that_walks_on_without_replies, (), "POLICY, 40 ms after a reply"),
        (lease_that_anybody_takes, (), "two writers admitted within 0 ms"),
    ],
)  # fmt: skip
def test_a_planted_bug_is_found(start, monkeypatch, plant, then, broken):
    world = start(WALKING)
    plant(monkeypatch)
    for event in then:
        world.play(event)
    found = explore(world, 10_000)
    assert re.search(broken, found.broken), found
