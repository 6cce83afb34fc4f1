"""One cycle after another on a fake clock: arming, faults and how fast, shutting down."""

import numpy as np
import pytest
from krabby.drivers.can import DriveFault, DriveMode, IdConflict
from krabby.drivers.errors import DriveError, ImuError
from krabby.robot import rotations
from krabby.runtime.testing import captured_logs
from krabby_jetson_hal.config import ImuCfg
from krabby_proto import STATE, CommandStatus, Fault, SafetyState, unpack

MS = 1_000_000


# --- start ---------------------------------------------------------------------------------


def test_it_is_brought_up_limp_and_disarmed(rig):
    assert rig.bus.calls == ["open", "probe", "enable"]
    assert rig.gate.state is SafetyState.DISARMED
    for targets in rig.bus.targets:
        assert not targets.kp.any()
        assert targets.kd == pytest.approx(np.full(18, 10.0))


def test_it_never_arms_by_itself(rig, desc):
    statuses = rig.follow(desc.default_joint_pos, 5.0)
    assert set(statuses) == {CommandStatus.NOT_ARMED}
    assert rig.gate.state is SafetyState.DISARMED


def test_a_missing_drive_ends_the_start_before_any_is_switched_on(build_rig):
    rig = build_rig()
    rig.bus.present[2] = False
    with pytest.raises(DriveError, match=r"lf_knee \(bus front, id 13\)"):
        rig.robot.start()
    assert "enable" not in rig.bus.calls


def test_an_imu_whose_orientation_is_no_rotation_ends_the_start(build_rig):
    rig = build_rig(imu=ImuCfg(settle_s=0.2))
    rig.imu.quat_wb = np.array([0.0, 0.0, 0.0, 0.5])
    with pytest.raises(ImuError, match=r"norm.* after 0\.2 s"):
        rig.robot.start()
    assert "enable" not in rig.bus.calls


def test_a_joint_outside_its_range_is_named_at_start_and_keeps_it_from_arming(build_rig):
    rig = build_rig()
    rig.bus.pos[2] = 0.5  # lf_knee: -2.6 to 0
    with captured_logs() as events:
        rig.bring_up()
    (warning,) = [event for event in events if "outside its range" in event["event"]]
    assert warning["joint"] == "lf_knee"
    answer = rig.handler.on_safety("arm", "test")
    assert not answer.ok
    assert "JOINT_RANGE" in answer.reason


# --- arming and following ------------------------------------------------------------------


def test_arming_holds_the_measured_pose_while_the_gains_rise(rig):
    pose = rig.bus.pos.copy()
    assert rig.handler.on_safety("arm", "test").ok
    rig.bus.targets.clear()
    rig.slots(110)
    kp = np.array([targets.kp[0] for targets in rig.bus.targets])
    assert np.all(np.diff(kp) >= 0.0)
    assert kp[-1] == 250.0
    assert all(targets.joint_pos == pytest.approx(pose) for targets in rig.bus.targets)


def test_a_command_reaches_the_drives_with_the_next_exchange(rig, desc):
    rig.armed()
    target = rig.bus.pos + 0.02
    rig.slot()
    assert rig.command(target) is CommandStatus.APPLIED
    rig.bus.targets.clear()
    rig.slot()
    assert rig.bus.targets[0].joint_pos == pytest.approx(target)


def test_the_gates_effort_limit_goes_to_the_drives(rig):
    rig.armed()
    assert rig.bus.limits == pytest.approx(np.full(18, 120.0))


def test_the_drives_bus_is_told_which_legs_carry_load(rig):
    rig.bus.effort[4] = -60.0  # lm_hip_pitch presses its foot down, a metre further out
    rig.slots(2)
    assert rig.bus.carrying.reshape(6, 3).tolist() == [[leg == 1] * 3 for leg in range(6)]
    rig.bus.effort[4] = 12.0  # now it holds its leg up
    rig.slots(2)
    assert not rig.bus.carrying.any()


def test_state_says_what_drives_and_imu_measure(rig):
    rig.imu.quat_wb = rotations.from_euler(0.1, -0.2, 0.3)
    rig.bus.pos[4] = 0.7
    payload, capture_ns = rig.slots(30)  # the check lets the attitude change once
    fields = unpack(STATE, payload)
    assert fields["base_quat_w"] == pytest.approx(rig.imu.quat_wb, abs=1e-6)
    assert fields["base_lin_acc_b"] == pytest.approx([0, 0, 9.81], abs=0.01)
    assert fields["joint_pos"][4] == pytest.approx(0.7)
    assert capture_ns <= rig.clock()


def test_the_capture_time_lies_before_the_drives_measured(rig):
    rig.bus.took_ns = 2 * MS
    before = rig.clock() + 5 * MS
    _, capture_ns = rig.slot()
    assert capture_ns == before
    assert rig.clock() == before + 2 * MS


# --- stalls: the process stands still for a while, and then continues ----------------------


def kp_sent(rig):
    return np.array([targets.kp[0] for targets in rig.bus.targets])


@pytest.mark.parametrize("where", ["in the exchange", "before it", "after it"])
@pytest.mark.parametrize("armed_s", [0.1, 0.6], ids=["arming", "following"])
def test_a_stall_of_100_ms_damps_with_the_next_exchange(rig, armed_s, where):
    rig.armed(armed_s)
    rig.slot()
    rig.bus.targets.clear()
    if where == "in the exchange":
        rig.bus.stall_ns = 100 * MS
    elif where == "before it":
        rig.clock.now_ns += 100 * MS
    rig.slot()
    if where == "after it":
        rig.clock.now_ns += 100 * MS
    assert rig.command(rig.bus.pos) is CommandStatus.REJECTED_SAFETY
    rig.slot()
    assert rig.gate.state is SafetyState.DAMP
    ended_by_measurement = where == "in the exchange"
    assert rig.gate.faults == (Fault.STATE_GAP if ended_by_measurement else Fault.STATE_STALE)
    assert kp_sent(rig)[-1] == 0.0


def test_the_gap_that_a_stall_in_the_exchange_makes_is_named(rig):
    rig.armed()
    rig.bus.stall_ns = 140 * MS
    rig.slot()  # its drives were heard: nothing but the time that passed is wrong
    assert rig.robot.watch.findings == ()
    assert rig.gate.faults == Fault.STATE_GAP


def test_a_short_stall_in_the_exchange_starts_the_arming_again(rig):
    rig.armed(0.4)
    risen = rig.robot.drive.kp[0]
    assert risen == pytest.approx(195.0, abs=5.0)
    rig.bus.targets.clear()
    rig.bus.stall_ns = 60 * MS
    rig.slot()
    sagged = rig.bus.pos - 0.3
    rig.bus.pos[:] = sagged
    rig.slots(30)
    assert rig.gate.state is SafetyState.ARMING
    assert rig.gate.faults == Fault(0)
    kp = kp_sent(rig)
    assert kp[1] == 0.0
    assert np.diff(kp[1:]).max() == pytest.approx(2.5)  # 5 of 500 ms of 250
    assert rig.bus.targets[-1].joint_pos == pytest.approx(sagged)


def test_a_short_stall_in_the_exchange_holds_the_pose(rig):
    rig.armed()
    rig.slot()
    rig.bus.stall_ns = 40 * MS
    rig.slot()
    assert rig.gate.state is SafetyState.HOLD  # what came is 40 ms old itself
    assert rig.command(rig.bus.pos + 0.1) is CommandStatus.HELD
    rig.slots(2)
    assert rig.command(rig.bus.pos) is CommandStatus.APPLIED
    assert rig.gate.faults == Fault(0)


def test_no_stall_anywhere_makes_the_gains_jump(rig):
    rig.armed(0.02)
    rng = np.random.default_rng(12)
    rig.bus.targets.clear()
    for _ in range(2000):
        stall_ns = 0
        if rng.random() < 0.01:  # every half a second: some hit the arming, some do not
            stall_ns = int(rng.choice([20, 35, 90, 140, 5000])) * MS
        if rng.random() < 0.5:
            rig.bus.stall_ns = stall_ns
        else:
            rig.clock.now_ns += stall_ns
        rig.slot()
        rig.command(rig.bus.pos)
        if not rig.gate.state.live:
            rig.slots(4)
            rig.handler.on_safety("arm", "test")
    kp = kp_sent(rig)
    assert kp.max() == 250.0
    assert np.diff(kp).max() <= 10.0 + 1e-9  # 20 of 500 ms of 250


# --- faults --------------------------------------------------------------------------------

BAD_DRIVE = {
    DriveFault.NO_REPLY: Fault.DRIVE,
    DriveFault.OVERCURRENT: Fault.DRIVE,
    DriveFault.STUCK_ENCODER: Fault.DRIVE,
    DriveFault.DROPPED_OUT: Fault.DRIVE,
    DriveFault.VOLTAGE_LOW: Fault.DRIVE,
    DriveFault.OVER_TEMPERATURE: Fault.OVER_TEMPERATURE,
    DriveFault.TOO_HOT: Fault.OVER_TEMPERATURE,
    DriveFault.BUS_OFF: Fault.BUS,
}


@pytest.mark.parametrize(("bit", "fault"), BAD_DRIVE.items(), ids=lambda value: value.name)
def test_what_a_drive_suffers_damps_all_joints_two_exchanges_later(rig, bit, fault):
    rig.armed()
    rig.bus.bits[2] |= bit
    rig.slot()  # seen here
    assert rig.gate.state is SafetyState.DAMP
    assert rig.gate.faults == fault
    rig.bus.targets.clear()
    rig.slot()  # acted upon here
    assert not rig.bus.targets[0].kp.any()


def test_a_fault_is_logged_once_with_all_its_joints_and_a_remedy(rig):
    rig.armed()
    with captured_logs() as events:
        rig.bus.bits[2:4] = DriveFault.NO_REPLY
        rig.slots(50)
    (event,) = [event for event in events if event["event"] == "fault"]
    assert (event["fault"], event["what"]) == ("drive", "no_reply")
    assert event["where"] == ["lf_knee", "lm_hip_yaw"]
    assert "plug" in event["remedy"]


def test_a_fault_that_comes_and_goes_is_one_until_it_stays_away_for_a_second(rig):
    with captured_logs() as events:
        for _ in range(10):
            rig.bus.bits[2] |= DriveFault.NO_REPLY
            rig.slots(5)
            rig.bus.bits[2] = 0
            rig.slots(5)
        rig.slots(220)
    faults = [event["event"] for event in events if event["event"].startswith("fault")]
    assert faults == ["fault", "fault over"]


def test_a_whole_bus_without_replies_is_the_buss_fault(rig):
    rig.armed()
    front = [rig.desc.joint_index(f"{leg}_{kind}") for leg in ("lf", "rf")
             for kind in ("hip_yaw", "hip_pitch", "knee")]  # fmt: skip
    rig.bus.bits[front] = DriveFault.NO_REPLY
    rig.slot()
    assert rig.gate.faults == Fault.BUS
    assert [(finding.where, finding.what) for finding in rig.robot.watch.findings] == [
        ("front", "no_reply")
    ]


def test_an_imu_that_falls_silent_damps_within_40_ms(rig):
    rig.armed()
    rig.imu.silent = True
    assert rig.until_state(SafetyState.DAMP) <= 40.0
    assert Fault.IMU in rig.gate.faults


def test_an_imu_that_jumps_damps_with_the_next_cycle(rig):
    rig.armed()
    rig.imu.quat_wb = rotations.from_euler(0.5, 0.0, 0.0)
    assert rig.until_state(SafetyState.DAMP) == pytest.approx(5.0)
    assert rig.gate.faults == Fault.IMU


def test_one_lost_reply_is_no_fault_and_the_state_goes_on(rig):
    rig.armed()
    rig.bus.silent[2] = True
    assert rig.slot() is not None
    rig.bus.silent[2] = False
    assert rig.gate.state is SafetyState.ACTIVE
    assert rig.robot.readings.missed[2] == 1


def test_a_drive_that_always_answers_late_is_a_fault_after_60_ms(rig):
    rig.armed()
    began = rig.clock()
    while rig.gate.state is not SafetyState.DAMP:
        rig.bus.silent[2] = True
        rig.slot()
        rig.command(rig.bus.pos)
        rig.bus.readings.stamp_ns[2] = rig.clock() - 12 * MS  # the answer to an older command
        assert rig.clock() - began < 100 * MS
    assert [(f.where, f.what) for f in rig.robot.watch.findings] == [("lf_knee", "late_replies")]


def test_a_measurement_that_stays_incomplete_is_published_no_more_and_damps(rig):
    rig.armed()
    rig.bus.silent[2] = True  # and the bus below says nothing about it
    states = [rig.slot() is not None for _ in range(6)]
    assert states == [True] * 4 + [False] * 2  # 20 ms are believed
    assert rig.until_state(SafetyState.HOLD) <= 30.0
    assert rig.until_state(SafetyState.DAMP) <= 100.0
    assert rig.gate.faults == Fault.DRIVE


def test_a_loop_that_stalled_for_100_ms_finds_itself_damped(rig):
    rig.armed()
    rig.clock.advance(0.11)
    rig.bus.targets.clear()
    rig.slot()
    assert rig.gate.state is SafetyState.DAMP
    assert not rig.bus.targets[0].kp.any()


def test_it_cannot_be_armed_while_something_is_wrong(rig):
    rig.bus.bits[2] |= DriveFault.STUCK_ENCODER
    rig.slot()
    answer = rig.handler.on_safety("arm", "test")
    assert not answer.ok
    assert "lf_knee stuck encoder" in answer.reason


TWIN = IdConflict("front", 13, "lf_knee")
STRANGER = IdConflict("front", 21, "", "lm_hip_yaw (bus middle, id 21)")


@pytest.mark.parametrize(
    ("conflict", "joints", "bit", "fault", "says"),
    [
        (TWIN, [2], DriveFault.SHARED_ID, Fault.DRIVE,
         "lf_knee shared id (two drives answer to id 13 on bus front, joint lf_knee: unplug one, "
         "give it another id); reset first"),
        (STRANGER, [0, 1, 2, 9, 10, 11], DriveFault.UNKNOWN_ID, Fault.BUS,
         "front unknown id (a drive with id 21 answers on bus front; hardware.toml has lm_hip_yaw "
         "(bus middle, id 21): plug it into its own bus; look for two buses that are joined); "
         "reset first"),
    ],
    ids=["twin", "stranger"],
)  # fmt: skip
def test_an_id_that_is_not_one_drives_damps_and_keeps_it_from_arming(
    rig, conflict, joints, bit, fault, says
):
    rig.armed()
    rig.bus.bits[joints] |= np.uint32(bit)
    rig.bus.readings.conflicts = (conflict,)
    with captured_logs() as events:
        rig.slots(3)
    assert rig.gate.state is SafetyState.DAMP
    assert rig.gate.faults == fault
    (event,) = [event for event in events if event["event"] == "fault"]
    assert event["detail"] == str(conflict)
    answer = rig.handler.on_safety("arm", "test")
    assert (answer.ok, answer.reason) == (False, f"not while there is {says}")
    assert rig.handler.on_safety("reset", "test").ok
    rig.bus.readings.conflicts = ()  # unplugged
    rig.slots(2)
    assert rig.handler.on_safety("arm", "test").ok


def test_a_reset_clears_the_drives_and_only_then_it_can_be_armed(rig):
    rig.armed()
    rig.bus.bits[2] |= DriveFault.DROPPED_OUT
    rig.bus.readings.mode[2] = DriveMode.OFF
    rig.slot()
    refused = rig.handler.on_safety("arm", "test")
    assert not refused.ok
    assert "reset first" in refused.reason
    assert rig.handler.on_safety("reset", "test").ok
    rig.slots(2)
    assert rig.bus.calls[-1] == "enable"
    assert rig.gate.state is SafetyState.DISARMED
    assert rig.handler.on_safety("arm", "test").ok


def test_drives_that_do_not_come_back_are_a_fault_again(rig):
    rig.bus.bits[2] |= DriveFault.DROPPED_OUT
    rig.bus.readings.mode[2] = DriveMode.OFF
    rig.slot()
    rig.bus.refuses = True
    assert rig.handler.on_safety("reset", "test").ok
    with captured_logs() as events:
        rig.slot()
    assert any("id 13) stays off" in event.get("reason", "") for event in events)
    assert Fault.DRIVE in rig.gate.faults


def test_a_reset_does_what_a_start_does(rig):
    rig.bus.bits[:] = np.uint32(DriveFault.DROPPED_OUT)  # the contactor cut the supply
    rig.bus.readings.mode[:] = DriveMode.OFF
    rig.slot()
    rig.bus.calls.clear()
    assert rig.handler.on_safety("reset", "test").ok
    rig.slots(2)
    assert rig.bus.calls == ["recover", "probe", "enable"]
    assert rig.handler.on_safety("arm", "test").ok


def test_what_keeps_drives_from_coming_back_is_said_when_it_is_to_be_armed(rig):
    rig.bus.bits[2] |= DriveFault.DROPPED_OUT
    rig.bus.readings.mode[2] = DriveMode.OFF
    rig.slot()
    rig.bus.refuses = True
    rig.handler.on_safety("reset", "test")
    rig.slot()
    answer = rig.handler.on_safety("arm", "test")
    assert not answer.ok
    assert "(lf_knee (bus front, id 13) stays off; look at its fault); reset first" in answer.reason


def test_an_imu_that_returns_needs_a_reset_and_no_restart(rig):
    rig.armed()
    rig.imu.silent = True
    rig.until_state(SafetyState.DAMP)
    assert not rig.handler.on_safety("arm", "test").ok
    rig.imu.silent = False
    rig.slots(220)  # its rate is judged over a second
    assert rig.handler.on_safety("reset", "test").ok
    rig.slots(2)
    assert rig.handler.on_safety("arm", "test").ok


def test_joints_that_follow_each_other_are_named_with_the_cause(rig):
    rig.armed()
    rig.bus.bits[[2, 11]] = np.uint32(DriveFault.CROSSED)
    rig.bus.readings.crossed = ((2, 11),)
    rig.slot()
    assert rig.gate.state is SafetyState.DAMP
    said = rig.robot.watch.describe()
    assert "lf_knee crossed (it moves when rf_knee is commanded: Exchange the plugs" in said
    assert "rf_knee crossed (it moves when lf_knee is commanded" in said


# --- who moves what, and which way is up -----------------------------------------------------


def test_a_robot_whose_joints_were_never_confirmed_is_not_armed(build_rig):
    rig = build_rig()
    rig.bus.unconfirmed = "never confirmed; run krabby drives identify"
    with captured_logs() as events:
        rig.bring_up()
    assert "the robot cannot be armed" in [event["event"] for event in events]
    answer = rig.handler.on_safety("arm", "test")
    assert (answer.ok, answer.reason) == (False, "never confirmed; run krabby drives identify")


@pytest.mark.parametrize(
    ("force", "says"),
    [
        ((0.0, 0.0, -9.81), "its sign is wrong"),
        ((0.0, 0.0, 1.0), "it counts in g"),
        ((0.0, 0.0, 0.0), "it is dead or off"),
        ((9.81, 0.0, 0.0), r"finds up along the base's \+x, 90 degrees from where"),
        ((0.0, 0.0, 13.0), "its scale is off"),
    ],
)
def test_a_start_refuses_an_accelerometer_that_contradicts_the_attitude(build_rig, force, says):
    rig = build_rig()
    rig.imu.force = np.array(force)
    with pytest.raises(ImuError, match=f"gravity after 0.5 s; .*{says}"):
        rig.robot.start()
    assert "enable" not in rig.bus.calls


def feels(rig, up_mps2):
    """Let the accelerometer show what a function of the seconds since the start says."""
    began_ns, latest = rig.clock(), rig.imu.latest

    def at_this_time():
        rig.imu.force = np.array([0.0, 0.0, up_mps2((rig.clock() - began_ns) * 1e-9)])
        return latest()

    rig.imu.latest = at_this_time


def test_a_start_waits_until_a_robot_that_falls_lies_still(build_rig):
    """As after a killed process: 5 looks of 25 at 30 m/s^2 make an average of 13.8."""
    rig = build_rig()
    feels(rig, lambda now_s: 30.0 if 0.1 < now_s < 0.2 else 9.81)
    with captured_logs() as events:
        rig.robot.start()
    assert [e["heard_s"] for e in events if e["event"].startswith("the body moves")] == [0.5]
    assert "enable" in rig.bus.calls


def test_a_start_does_not_wait_for_ever_for_a_robot_that_is_shaken(build_rig):
    rig = build_rig()
    feels(rig, lambda now_s: 20.0 if now_s % 0.1 < 0.05 else 10.0)
    with pytest.raises(ImuError, match=r"gravity after 4 s; .*keep the robot still"):
        rig.robot.start()


def test_an_accelerometer_that_turns_its_sign_while_it_walks_damps_with_the_cause(rig):
    rig.armed(1.6)
    rig.imu.force = np.array([0.0, 0.0, -9.81])
    assert rig.until_state(SafetyState.DAMP, limit_s=1.0) <= 1000.0
    assert rig.gate.faults == Fault.IMU
    (finding,) = rig.robot.watch.findings
    assert finding.what == "gravity"
    assert finding.detail


def test_an_imu_bolted_upside_down_keeps_it_from_arming_with_the_remedy(rig):
    rig.imu.quat_wb, rig.imu.force = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 0.0, -9.81])
    rig.slots(30)
    answer = rig.handler.on_safety("arm", "test")
    assert not answer.ok
    assert "tilted by 180 degrees" in answer.reason
    assert "mount_quat in hardware.toml" in answer.reason


# --- the emergency stop --------------------------------------------------------------------


def test_the_button_stops_within_a_cycle_and_stays(rig):
    rig.armed()
    rig.estop.is_pressed = True
    assert rig.until_state(SafetyState.ESTOP) == pytest.approx(5.0)
    assert not rig.handler.on_safety("reset", "test").ok
    rig.estop.is_pressed = False
    rig.slots(100)
    assert rig.gate.state is SafetyState.ESTOP
    assert not rig.handler.on_safety("arm", "test").ok
    assert rig.handler.on_safety("reset", "test").ok
    assert rig.handler.on_safety("arm", "test").ok


# --- the end -------------------------------------------------------------------------------


def test_it_sinks_damped_and_is_switched_off_before_anything_is_closed(rig):
    rig.armed()
    rig.bus.targets.clear()
    began = rig.clock()
    rig.robot.close()
    assert len(rig.bus.targets) == 40  # so many find it at rest
    assert rig.clock() - began == 200 * MS
    for targets in rig.bus.targets:
        assert not targets.kp.any()
        assert targets.kd == pytest.approx(np.full(18, 10.0))
    assert rig.bus.calls[-2:] == ["disable", "close"]
    assert rig.imu.calls[-1] == "close"
    assert rig.estop.closed


def test_joints_that_do_not_rest_are_switched_off_after_a_second(rig):
    rig.bus.vel[:] = 0.1
    began = rig.clock()
    rig.robot.close()
    assert rig.clock() - began == 1000 * MS
    assert rig.bus.calls[-2:] == ["disable", "close"]


def test_closing_does_not_need_a_start(build_rig):
    rig = build_rig()
    rig.robot.close()
    assert rig.bus.targets == []
    assert rig.bus.calls == ["disable", "close"]
