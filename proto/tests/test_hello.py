import pytest
from krabby_proto import HelloMismatch, check_hello, make_hello
from krabby_proto.hello import parse_json

ROBOT = {"name": "crab_hex", "joint_names": ["lf_hip_yaw", "lf_hip_pitch"], "units": {"pos": "rad"}}


def test_equal_hellos_agree_and_more_on_their_side_does_not_matter():
    ours = make_hello(service="gameloop", robot=ROBOT)
    theirs = {**make_hello(service="sim-hal", robot={**ROBOT, "mass": 28.6}), "instance_id": "ab"}
    del ours["service"]
    check_hello(theirs, ours)


def test_first_difference_is_named_with_both_values():
    theirs = make_hello(service="sim-hal", robot={**ROBOT, "joint_names": ["lf_hip_yaw", "knee"]})
    with pytest.raises(
        HelloMismatch,
        match=r"hello of sim-hal: robot\.joint_names\[1\] is 'knee', "
        r"this process expects 'lf_hip_pitch'; start both sides from the same robot",
    ):
        check_hello(theirs, {"robot": ROBOT})


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({}, "robot is absent, this process expects"),
        ({"robot": {"name": "crab_hex"}}, r"robot\.joint_names is absent"),
        ({"robot": {**ROBOT, "joint_names": ["lf_hip_yaw"]}}, r"length of robot\.joint_names is 1"),
        ({"robot": {**ROBOT, "units": "rad"}}, r"robot\.units is 'rad', .* \{'pos': 'rad'\}"),
        ({"robot": None}, "robot is None"),
    ],
)
def test_absent_shorter_and_other_kinds_are_differences(theirs, message):
    with pytest.raises(HelloMismatch, match=message):
        check_hello(theirs, {"robot": ROBOT})


def test_another_contract_names_the_remedy():
    ours = make_hello(service="gameloop")
    theirs = {**ours, "schema_hash": "0" * 16}
    with pytest.raises(HelloMismatch, match=r"schema_hash is '0{16}'.*install the same krabby-pro"):
        check_hello(theirs, ours)


def test_tuples_and_lists_are_the_same_as_they_are_in_json():
    check_hello({"joint_names": ["a", "b"]}, {"joint_names": ("a", "b")})


def test_a_clock_must_be_one_of_two():
    with pytest.raises(ValueError, match="clock is 'wall'; use one of monotonic, simulated"):
        make_hello(service="x", clock="wall")


@pytest.mark.parametrize("raw", [b"", b"[1]", b"\xff{", b"{", b"[" * 50_000, b"9" * 5000, b"null"])
def test_what_is_no_json_object_reads_as_none(raw):
    assert parse_json(raw) is None
