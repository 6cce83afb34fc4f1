import math

import pytest
from krabby_emulator.faults import FaultBoard, FaultRefused

S = 1_000_000_000


@pytest.fixture
def board(desc):
    return FaultBoard(
        desc.joint_names, ("front", "middle", "rear"), [0, 0, 0, 1, 1, 1, 2, 2, 2] * 2
    )


def test_a_fault_of_a_bus_strikes_its_six_joints(board):
    board.inject("lost-replies", 0, bus="middle", value=0.5)
    assert [j for j, share in enumerate(board.lost_share) if share] == [3, 4, 5, 12, 13, 14]
    assert board.lost_share[3] == 0.5


def test_a_fault_of_one_joint_strikes_only_it(board):
    board.inject("over-temperature", 0, joint="rf_knee", value=90.0)
    assert board.heat_c[11] == 90.0
    assert sum(not math.isnan(value) for value in board.heat_c) == 1


def test_it_lasts_as_long_as_it_was_asked_to(board):
    board.inject("late-replies", 5 * S, joint="lf_knee", for_s=0.25)
    board.refresh(5 * S + S // 4 - 1)
    assert board.delay_ns[2] == 20_000_000
    board.refresh(5 * S + S // 4)
    assert board.delay_ns[2] == 0
    assert board.active == []


def test_without_a_duration_it_lasts_until_it_is_cleared(board):
    board.inject("bus-off", 0, bus="rear")
    board.inject("imu-silence", 0)
    board.refresh(10**15)
    assert board.bus_off == [False, False, True]
    assert board.clear("bus-off") == 1
    assert board.bus_off == [False, False, False]
    assert board.imu_silent
    assert board.clear() == 1
    assert not board.imu_silent


def test_faults_pile_up_and_lift_one_by_one(board):
    board.inject("voltage-sag", 0, for_s=1.0, value=5.0)
    board.inject("imu-jump", 0, for_s=2.0)
    board.refresh(S)
    assert board.sag_v == 0.0
    assert board.imu_roll == 0.5
    assert [fault["kind"] for fault in board.describe(S)] == ["imu-jump"]
    assert board.describe(S)[0]["left_s"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("brain-drain",), "no fault is called 'brain-drain'; use one of lost-replies"),
        (("lost-replies", {"joint": "lf_toe"}), "no joint is called 'lf_toe'; use one of lf_"),
        (("bus-off", {"bus": "can9"}), "no bus is called 'can9'; use one of front"),
        (("bus-off", {"joint": "lf_knee"}), "strikes the bus, not a joint; omit joint="),
        (("imu-jump", {"bus": "rear"}), "strikes the robot, not a bus"),
        (("stuck-encoder", {"value": 1.0}), "takes no value"),
        (("twin", {"value": 4.0}), "value 4.0 of twin must be above 0 and at most 3 rad"),
        (("lost-replies", {"value": 1.5}), "must be above 0 and at most 1 share"),
        (("lost-replies", {"value": math.nan}), "must be above 0"),
        (("reset", {"for_s": -1.0}), "for_s -1.0 must be 0"),
        (("reset", {"joint": "lf_knee", "bus": "rear"}), "not both"),
    ],
)  # fmt: skip
def test_what_cannot_be_broken_is_refused_with_the_remedy(board, arguments, words):
    kind, options = arguments[0], (arguments[1] if len(arguments) > 1 else {})
    with pytest.raises(FaultRefused, match=words.replace("(", r"\(")):
        board.inject(kind, 0, **options)
    assert board.active == []
