"""What the running services do when one of them stalls, dies or is asked to stop."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from krabby.runtime.testing import free_ports, log_events, until, worst_lateness
from krabby_proto import (
    STATE,
    ControlClient,
    HalClient,
    LatestSubscriber,
    RequestTimeout,
    unpack,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MODULES = {
    "sim-hal": "krabby_sim_hal", "camera": "krabby_camera", "gameloop": "krabby_gameloop",
}  # fmt: skip
STREAMS = ("state", "camera", "command", "safety", "truth", "features", "nav", "control", "fault")


class Stack:
    """The three services on free ports, each with its log in a file."""

    def __init__(self, folder, policy="gait", *, camera=True, sim=None, **gameloop):
        ports = dict(zip(STREAMS, free_ports(len(STREAMS)), strict=True))
        self.endpoints = {name: f"tcp://127.0.0.1:{port}" for name, port in ports.items()}
        self._folder = folder
        self._policy = policy
        self._gameloop = gameloop
        self._sim = sim or {}
        self.processes = {}
        self.start_sim()
        if camera:
            self.start_camera()
        self.start_gameloop()
        self.hal = HalClient({name: self.endpoints[name] for name in ("command", "safety")})
        self.control = ControlClient(self.endpoints["control"])
        self.sensor = ControlClient(self.endpoints["fault"])

    def start(self, name, *streams, **keys):
        endpoints = [f"endpoints.{stream}={self.endpoints[stream]}" for stream in streams]
        others = [f"{key}={value}" for key, value in keys.items()]
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", MODULES[name], "metrics_port=0", *endpoints, *others],
                stdout=log,
                stderr=log,
            )

    def start_sim(self):
        streams = ("state", "camera", "command", "safety", "truth", "nav", "fault")
        self.start("sim-hal", *streams, **self._sim)

    def start_camera(self):
        self.start("camera", "camera", "state", "features", bundle=self._policy)

    def start_gameloop(self):
        streams = ("state", "command", "features", "nav", "control")
        self.start("gameloop", *streams, policy=self._policy, **self._gameloop)

    def is_walking(self):
        return self._mode() == "policy" and self.safety() == "active"

    def sees(self):
        return self.is_walking() and self._status().get("blind") is False

    def _mode(self):
        return self._status()["mode"]

    def _status(self):
        try:
            return self.control.request("status", timeout_s=1.0)
        except RequestTimeout:
            return {"mode": None, "blind": None}

    def ask(self, op):
        return self.hal.safety(op, "test", timeout_s=60.0)

    def safety(self):
        return self.ask("status")["state"]

    def events(self, name):
        return log_events(self._folder / f"{name}.log")

    def times(self, name, event, since_ns):
        """When a service logged an event after a moment [ns, CLOCK_MONOTONIC]."""
        logged = [each["mono_ns"] for each in self.events(name) if each["event"] == event]
        return [stamp_ns for stamp_ns in logged if stamp_ns >= since_ns]

    def stop(self):
        """Ctrl-C each, the loop first; their exit statuses."""
        statuses = {}
        for name in ("gameloop", "camera", "sim-hal"):
            if name not in self.processes:
                continue
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            statuses[name] = process.wait(timeout=60)
        return statuses

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.hal.close()
        self.control.close()
        self.sensor.close()


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    try:
        until(stack.is_walking)
        yield stack
    finally:
        stack.close()


@pytest.mark.parametrize("name", ["gameloop", "sim-hal"])
def test_a_stall_of_one_second_makes_it_safe_and_it_walks_on(stack, name):
    process = stack.processes[name]
    process.send_signal(signal.SIGSTOP)
    try:
        if name == "gameloop":
            until(lambda: stack.safety() == "damp")
        else:
            until(lambda: stack._mode() == "silent")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
    finally:
        process.send_signal(signal.SIGCONT)
    until(stack.is_walking)
    assert stack.stop() == {"gameloop": 0, "camera": 0, "sim-hal": 0}
    summary = stack.events("sim-hal")[-1]
    assert summary["event"] == "summary"
    assert summary["falls"] == 0
    # what was waiting when it woke up was refused: nothing old was applied
    assert summary["obs_age_max_ms"] < 100.0


def test_a_stalled_camera_leaves_the_blind_walk_alone(stack):
    camera = stack.processes["camera"]
    camera.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        camera.wait(1.0)
    until(stack.is_walking)
    camera.send_signal(signal.SIGCONT)
    assert stack.stop()["camera"] == 0


def test_a_seeing_walk_goes_on_blind_without_its_camera_and_sees_again_with_one(
    tmp_path, seeing_gait
):
    stack = Stack(tmp_path, policy=seeing_gait)
    try:
        until(stack.sees)
        with worst_lateness() as late_s:
            stack.processes["camera"].kill()
            killed_ns = time.monotonic_ns()
            until(lambda: stack._status()["blind"])
            late_ms = 1e3 * late_s()
        until(stack.is_walking)
        assert not stack.sees()
        stack.processes["camera"].wait()
        started_ns = time.monotonic_ns()
        stack.start_camera()
        until(stack.sees)
        assert stack.stop()["gameloop"] == 0
    finally:
        stack.close()
    blind_ns = stack.times("gameloop", "walking blind", killed_ns)
    seen_ns = stack.times("gameloop", "seeing again", started_ns)
    # The last picture was taken before the kill and serves for 150 ms; a tick notices that it is
    # older, and a busy machine has late ticks, or was blind already.
    assert not blind_ns or (blind_ns[0] - killed_ns) * 1e-6 <= 150 + 10 + 30 + LATE * late_ms
    # Features are trusted again after half a second. On a machine so busy that the gate let go of
    # the robot it has stood up since, and begun anew.
    assert not seen_ns or seen_ns[0] - started_ns >= 0.5e9
    assert stack.events("sim-hal")[-1]["falls"] == 0


NOTICED_MS = {
    # A picture serves for 150 ms from its capture; the request waits for a period of 10 ms, a tick
    # notices 10 ms later at most, and a busy machine is late by as much again as is left here.
    "camera-black": 150 + 10 + 10 + 60,
    "camera-nan": 150 + 10 + 10 + 60,
    "camera-stop": 150 + 10 + 10 + 60,
    # The same picture is believed for half a second.
    "camera-frozen": 500 + 150 + 10 + 10 + 60,
}
LATE = 3
"""Processes that may be late one after the other, each by what sleeps of the test were late."""
FAULT_NS = 2_500_000_000
"""Long enough to walk some steps blind, also where a busy machine stops the walk for a moment."""
SAID = {
    "camera-black": "frame dropped: dark",
    "camera-nan": "frame dropped: dark",
    "camera-stop": "no camera frames",
    "camera-frozen": "frame dropped: frozen",
}


def break_and_mend(stack, kind, event):
    """Break the camera, see that the loop goes blind with `event`, mend it, see that it sees.

    Returns how long the loop took and what a busy machine may add [ms]; None when it was blind
    already, on too busy a machine.
    """
    until(stack.sees)
    with worst_lateness() as late_s:
        broken_ns = time.monotonic_ns()
        assert stack.sensor.request("fault", kind=kind)["ok"]
        until(lambda: stack.times("camera", SAID[kind], broken_ns))
        until(lambda: stack._status()["blind"])
        late_ms = 1e3 * late_s()
    until(lambda: time.monotonic_ns() - broken_ns > FAULT_NS)
    until(stack.is_walking)  # a busy machine makes the gate hold for a moment
    noticed_ns = stack.times("gameloop", event, broken_ns)
    mended_ns = time.monotonic_ns()
    assert stack.sensor.request("clear")["ok"]
    until(stack.sees)
    # Nothing good was captured before it was mended; then it is trusted after half a second. Who
    # was so late that the gate let go of the robot has stood up since, and begun anew.
    seen_ns = stack.times("gameloop", "seeing again", mended_ns)
    assert not seen_ns or seen_ns[0] - mended_ns >= 0.5e9
    return ((noticed_ns[0] - broken_ns) * 1e-6, LATE * late_ms) if noticed_ns else None


def test_a_student_walks_blind_through_every_fault_of_its_camera_and_never_falls(tmp_path, student):
    stack = Stack(tmp_path, policy=student)
    try:
        until(stack.sees)
        took_ms = {kind: break_and_mend(stack, kind, "walking blind") for kind in NOTICED_MS}
        assert stack.stop() == {"gameloop": 0, "camera": 0, "sim-hal": 0}
    finally:
        stack.close()
    measured = {kind: both for kind, both in took_ms.items() if both is not None}
    late = {kind: ms for kind, (ms, late_ms) in measured.items() if ms - late_ms > NOTICED_MS[kind]}
    assert late == {}
    assert sum(measured.get("camera-frozen", (501, 0))) > 500  # a late machine is blind earlier
    loop, camera, hal = (stack.events(name)[-1] for name in ("gameloop", "camera", "sim-hal"))
    assert hal["falls"] == 0
    assert loop["blind_switches"] >= 4
    assert 4 * 1.5 < loop["blind_s"] < loop["policy_s"]
    assert loop["bad_outputs"] == 0
    # Black stays black: after half a second of it the picture counts as frozen.
    assert camera["dropped"]["dark"] >= 2 * 10
    assert camera["dropped"]["frozen"] >= 20


def test_without_a_blind_policy_a_broken_camera_makes_the_robot_stand_still(tmp_path, student):
    stack = Stack(tmp_path, policy=student, blind_policy='""')
    try:
        until(stack.sees)
        took_ms = break_and_mend(stack, "camera-black", "standing still")
        assert stack.stop()["gameloop"] == 0
    finally:
        stack.close()
    assert took_ms is None or took_ms[0] <= NOTICED_MS["camera-black"] + took_ms[1]
    assert stack.events("sim-hal")[-1]["falls"] == 0
    assert stack.events("gameloop")[-1]["blind_s"] > 0.5


def test_an_emergency_stop_stays_until_an_operator_resets_and_arms(stack):
    assert stack.ask("estop")["state"] == "estop"
    until(lambda: stack._mode() == "passive")
    assert not stack.ask("arm")["ok"]
    assert stack.safety() == "estop"
    assert stack.ask("reset")["ok"]
    assert stack.safety() == "disarmed"
    assert stack.ask("arm")["ok"]
    until(stack.is_walking)


def test_a_policy_is_swapped_while_walking_and_a_bad_one_refused(stack):
    refused = stack.control.request("policy", timeout_s=60.0, policy="nosuch")
    assert not refused["ok"]
    assert "no policy 'nosuch'" in refused["reason"]
    assert stack.control.request("policy", timeout_s=60.0, policy="gait")["ok"]
    until(stack.is_walking)
    stack.stop()
    assert any(event["event"] == "policy swapped" for event in stack.events("gameloop"))
    ended = stack.events("sim-hal")[-1]
    assert ended["falls"] == 0
    assert ended["gate_position_clamps"] == 0
    # A command that a busy machine delays is followed by the next one within less than a period.
    assert ended["gate_rate_clamps"] < 0.02 * 18 * ended["commands"]["applied"]


def test_control_c_sits_the_robot_down_first(stack):
    assert stack.stop() == {"gameloop": 0, "camera": 0, "sim-hal": 0}
    modes = [event["now"] for event in stack.events("gameloop") if event["event"] == "mode"]
    assert modes[-2:] == ["sit_down", "passive"]


# --- requests end with the gate's permission --------------------------------------------------


STILL_RAD = 0.05
"""Joints of an armed robot that lies or hangs in its drives; standing up moves them by over 0.5."""


@pytest.fixture
def patient(tmp_path):
    """Neither arms nor stands up by itself, as the robot; walking."""
    stack = Stack(tmp_path, camera=False, sim={"auto_arm": "false"}, auto_stand="false")
    try:
        until(lambda: stack._mode() == "passive")
        arm_and_stand(stack)
        yield stack
    finally:
        stack.close()


def arm_and_stand(stack):
    """What an operator types, the second right behind the first; again while nothing comes of it.

    A machine that is busy starting processes delays the HAL by 30 ms now and then. Arming is begun
    again then, which ends the request to stand.
    """

    def walks():
        if stack._mode() == "passive":
            if stack.safety() not in ("arming", "active"):
                stack.ask("arm")
            stack.control.request("stand", timeout_s=60.0)
        return stack.is_walking()

    until(walks)


def joints_move(stack, seconds):
    """How far any joint gets from where it is now [rad], and the gate's states meanwhile."""
    gate = set()
    with LatestSubscriber(stack.endpoints["state"], STATE) as states:
        first = unpack(STATE, states.wait(60.0).payload)["joint_pos"].copy()
        farthest, end_s = 0.0, time.monotonic() + seconds
        while time.monotonic() < end_s:
            gate.add(stack.safety())
            message = states.wait(0.5)
            if message is not None:
                joint_pos = unpack(STATE, message.payload)["joint_pos"]
                farthest = max(farthest, float(np.abs(joint_pos - first).max()))
    return farthest, gate


def assert_arm_alone_moves_nothing(stack):
    """Arms it; measured again where a busy machine let go of the robot meanwhile, which sinks."""

    def lies_still():
        if stack.safety() in ("disarmed", "damp"):
            stack.ask("arm")
        if stack.safety() != "active":
            return False
        moved_rad, gate = joints_move(stack, 2.0)
        mode = stack._mode()
        assert mode in ("passive", "silent", None)
        if not gate <= {"active", "hold"}:
            return False
        assert moved_rad < STILL_RAD
        return (mode, stack.safety()) == ("passive", "active")

    until(lies_still)
    arm_and_stand(stack)


@pytest.mark.parametrize("ops", [("estop", "reset"), ("disarm",)])
def test_after_a_stop_an_arm_alone_moves_nothing(patient, ops):
    for op in ops:
        assert patient.ask(op)["ok"]
    until(lambda: patient._mode() == "passive")
    joints_move(patient, 2.0)  # it sinks
    refused = patient.control.request("stand", timeout_s=60.0)
    assert refused["reason"] == "the gate is in DISARMED; arm, then ask again"
    assert_arm_alone_moves_nothing(patient)


def test_after_an_estop_within_a_storm_of_reset_and_arm_nothing_moves(patient):
    stop = threading.Event()

    def storm():
        with HalClient({"safety": patient.endpoints["safety"]}) as client:
            while not stop.wait(0.005):
                for op in ("reset", "arm"):
                    with contextlib.suppress(RequestTimeout):
                        client.safety(op, "storm", timeout_s=0.2)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        until(lambda: patient.safety() == "active")
        assert patient.ask("estop")["state"] == "estop"
        assert_arm_alone_moves_nothing(patient)  # the storm has undone it
        assert patient.ask("estop")["state"] == "estop"  # and a second one counts
    finally:
        stop.set()
        thread.join()
    until(lambda: patient._mode() == "passive")


def test_a_hal_that_was_killed_and_started_is_armed_and_does_not_stand_up(patient):
    patient.processes["sim-hal"].kill()
    until(lambda: patient._mode() == "silent")
    patient.processes["sim-hal"].wait()
    patient.start_sim()
    until(lambda: patient._mode() == "passive")
    assert_arm_alone_moves_nothing(patient)


def test_a_loop_that_stalled_through_a_stop_and_an_arm_does_not_walk_on(patient):
    loop = patient.processes["gameloop"]
    loop.send_signal(signal.SIGSTOP)
    try:
        until(lambda: patient.safety() == "damp")
        stale = ControlClient(patient.endpoints["control"])
        with pytest.raises(RequestTimeout):  # it lies in the socket until the loop runs again
            stale.request("stand", timeout_s=1.1)
        # Armed less than a tick before the loop is back; ACTIVE comes after 0.5 s of it.
        assert patient.ask("arm")["ok"]
    finally:
        loop.send_signal(signal.SIGCONT)
    assert_arm_alone_moves_nothing(patient)
    stale.close()


def test_another_writer_that_took_the_lease_is_shown_and_the_loop_stays_where_it_is(patient):
    loop = patient.processes["gameloop"]
    with (
        LatestSubscriber(patient.endpoints["state"], STATE) as states,
        HalClient({"command": patient.endpoints["command"]}) as intruder,
    ):

        def sends(seconds):
            """Holds the robot where it is, 100 times a second; the last answer."""
            end_s, status = time.monotonic() + seconds, None
            while time.monotonic() < end_s:
                state = states.wait(60.0)
                target = unpack(STATE, state.payload)["joint_pos"]
                reply = intruder.send_command(target, capture_ns=state.capture_ns, deadline_s=0.05)
                status = None if reply is None else reply.status_name
            return status

        def has_it():
            """Armed, again where a busy machine let go of the robot; a second of its commands."""
            if patient.safety() in ("disarmed", "damp"):
                patient.ask("arm")
            return sends(1.0) == "applied"

        loop.send_signal(signal.SIGSTOP)
        try:
            sends(0.7)  # the gate has damped it by then, and the lease is the intruder's
            until(has_it)
        finally:
            loop.send_signal(signal.SIGCONT)
        until(lambda: has_it() and (patient._mode(), patient.safety()) == ("no_lease", "active"))
        refused = patient.control.request("stand", timeout_s=60.0)
        assert "another writer holds the command lease" in refused["reason"]
        sends(0.2)
    until(lambda: patient._mode() == "passive")
    until(lambda: patient.safety() == "damp")
    assert_arm_alone_moves_nothing(patient)
    patient.stop()
    assert patient.events("gameloop")[-1]["lease_losses"] >= 1
    lost = [e for e in patient.events("gameloop") if "another writer" in e["event"]]
    assert lost
    assert lost[0]["level"] == "warning"
