"""The command rules, one by one, with the clock stepped by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from krabby_proto import COMMAND, CommandStatus, encode
from krabby_proto.admission import CommandAdmission

MS = 1_000_000
NOW = 5_000 * MS
INVALID = json.loads((Path(__file__).parents[1] / "golden" / "invalid.json").read_text())


@pytest.fixture
def admission():
    return CommandAdmission(ttl_s=0.025, lease_s=0.5, capture_ttl_s=0.1)


def command(sequence, *, writer=1, published=NOW, captured=None, joint_pos=None):
    return encode(
        COMMAND,
        np.zeros(18) if joint_pos is None else joint_pos,
        instance_id=writer,
        sequence=sequence,
        capture_ns=published if captured is None else captured,
        publish_ns=published,
    )


def status(admission, frames, now_ns=NOW, process_ns=None):
    return admission.admit(frames, now_ns, now_ns if process_ns is None else process_ns).status


def test_a_valid_command_is_admitted_with_its_message(admission):
    targets = np.linspace(-1, 1, 18, dtype=np.float32)
    verdict = admission.admit(command(3, joint_pos=targets), NOW, NOW)
    assert verdict.status is CommandStatus.APPLIED
    assert verdict.sequence == 3
    assert verdict.message.payload.tolist() == targets.tolist()
    assert admission.holder == 1


@pytest.mark.parametrize("case", INVALID, ids=[case["name"] for case in INVALID])
def test_bad_bytes_are_refused_by_name_and_take_no_lease(admission, case):
    verdict = admission.admit([bytes.fromhex(frame) for frame in case["frames"]], NOW, NOW)
    assert verdict.status == case["status"]
    assert verdict.message is None
    assert verdict.sequence == (0 if case["error"] in ("ShortFrame", "BadMagic") else 7)
    assert admission.holder is None


@pytest.mark.parametrize("body", [[], [b"command"], [b"", b"", b""]])
def test_what_has_no_header_has_no_sequence(admission, body):
    verdict = admission.admit(body, NOW, NOW)
    assert (verdict.status, verdict.sequence) == (CommandStatus.REJECTED_MALFORMED, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("joint", [0, 17])
def test_a_target_that_is_no_number_is_refused(admission, bad, joint):
    targets = np.zeros(18)
    targets[joint] = bad
    frames = command(1, joint_pos=targets)
    assert status(admission, frames) is CommandStatus.REJECTED_NONFINITE


def test_large_finite_targets_are_the_gates_business(admission):
    frames = command(1, joint_pos=np.full(18, np.finfo(np.float32).max))
    assert status(admission, frames) is CommandStatus.APPLIED


@pytest.mark.parametrize(
    ("age_ns", "expected"),
    [
        (25 * MS, CommandStatus.APPLIED),
        (25 * MS + 1, CommandStatus.REJECTED_STALE),
        (-1 * MS, CommandStatus.APPLIED),  # rounding between two readings of the clock
        (-1 * MS - 1, CommandStatus.REJECTED_FUTURE),
    ],
)
def test_commands_live_25_ms(admission, age_ns, expected):
    assert status(admission, command(1, published=NOW - age_ns)) is expected


@pytest.mark.parametrize(
    ("age_ns", "expected"),
    [(100 * MS, CommandStatus.APPLIED), (100 * MS + 1, CommandStatus.REJECTED_STALE)],
)
def test_a_new_command_from_an_old_state_is_stale_too(admission, age_ns, expected):
    assert status(admission, command(1, captured=NOW - age_ns)) is expected


def test_a_state_from_the_future_is_refused(admission):
    assert status(admission, command(1, captured=NOW + 2 * MS)) is CommandStatus.REJECTED_FUTURE


@pytest.mark.parametrize("sequence", [7, 6, 1, 0])
def test_the_sequence_has_to_rise(admission, sequence):
    assert status(admission, command(7)) is CommandStatus.APPLIED
    assert status(admission, command(sequence)) is CommandStatus.REJECTED_ORDER
    assert status(admission, command(8)) is CommandStatus.APPLIED


def test_a_sequence_may_jump_but_not_start_at_0(admission):
    assert status(admission, command(0)) is CommandStatus.REJECTED_ORDER
    assert status(admission, command(2**64 - 1)) is CommandStatus.APPLIED


def test_a_second_writer_waits_until_the_first_was_silent_for_half_a_second(admission):
    assert status(admission, command(9, writer=1)) is CommandStatus.APPLIED
    for later, expected in (
        (0, CommandStatus.REJECTED_LEASE),
        (500 * MS - 1, CommandStatus.REJECTED_LEASE),
        (500 * MS, CommandStatus.APPLIED),
    ):
        now = NOW + later
        assert status(admission, command(1, writer=2, published=now), now) is expected
    # the first one, back from its pause, is the second writer now
    late = NOW + 500 * MS
    assert (
        status(admission, command(10, writer=1, published=late), late)
        is CommandStatus.REJECTED_LEASE
    )


def test_every_admitted_command_renews_the_lease_and_a_refused_one_does_not(admission):
    assert status(admission, command(1)) is CommandStatus.APPLIED
    later = NOW + 400 * MS
    assert status(admission, command(2, published=later), later) is CommandStatus.APPLIED
    for sequence in range(3, 6):  # the holder continues, but too late each time
        later += 200 * MS
        stale = command(sequence, published=later - 30 * MS)
        assert status(admission, stale, later) is CommandStatus.REJECTED_STALE
    assert status(admission, command(1, writer=2, published=later), later) is CommandStatus.APPLIED


def test_a_holder_whose_lease_ran_out_continues_when_no_other_took_it(admission):
    assert status(admission, command(1)) is CommandStatus.APPLIED
    later = NOW + 5_000 * MS
    assert status(admission, command(2, published=later), later) is CommandStatus.APPLIED
    assert status(admission, command(2, published=later), later) is CommandStatus.REJECTED_ORDER


def test_in_lock_step_ages_run_on_simulated_time_and_leases_on_the_hosts(admission):
    # the simulation stands still at NOW while the writer is restarted
    assert status(admission, command(1, writer=1), process_ns=0) is CommandStatus.APPLIED
    restarted = command(1, writer=2)
    assert status(admission, restarted, process_ns=499 * MS) is CommandStatus.REJECTED_LEASE
    assert status(admission, restarted, process_ns=500 * MS) is CommandStatus.APPLIED
