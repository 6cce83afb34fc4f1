"""Observations against those of the policy's evaluation."""

import numpy as np
import pytest
from krabby.diagnosis.observations import check_observations
from krabby.policy.bundle import PolicyBundle, bundle_dir
from krabby.policy.statistics import ObservationStatistics, TermStatistics, load_statistics
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError

DESC = RobotDescription.load()


def walking(**arrays):
    """Six seconds that follow commands, standing still."""
    from krabby.diagnosis.log import RunLog

    count = 600
    quat = np.tile((0.0, 0.0, 0.0, 1.0), (count, 1))
    fields = {
        "base_quat_w": quat,
        "base_ang_vel_b": np.zeros((count, 3)),
        "base_lin_acc_b": np.tile((0.0, 0.0, 9.81), (count, 1)),
        "joint_pos": np.tile(DESC.default_joint_pos, (count, 1)),
        "joint_vel": np.zeros((count, 18)),
        "joint_effort": np.zeros((count, 18)),
        "foot_contact": np.ones((count, 6), bool),
    }
    joined = np.ones(count, bool)
    return RunLog(
        time_s=0.01 * np.arange(count), joined=joined, following=joined, **{**fields, **arrays}
    )


@pytest.mark.parametrize("name", ["gait", "parkour"])
def test_shipped_policies_carry_statistics_of_what_they_observe(name):
    bundle = PolicyBundle.load(bundle_dir(name), DESC)
    statistics = load_statistics(bundle)
    assert statistics is not None
    assert statistics.samples > 10_000
    assert len(statistics.terms["joint_pos_rel"].mean) == 18
    for term in statistics.terms.values():
        assert (np.array(term.low) <= np.array(term.high)).all()


def test_a_joint_outside_its_range_for_half_of_the_time_is_found():
    bundle = PolicyBundle.load(bundle_dir("gait"), DESC)
    term = TermStatistics(mean=(0.0,) * 18, std=(0.1,) * 18, low=(-0.2,) * 18, high=(0.2,) * 18)
    statistics = ObservationStatistics(source="s", samples=1, terms={"joint_pos_rel": term})
    pos = np.tile(DESC.default_joint_pos, (600, 1))
    # 0.2 and half of the range of 0.4 are allowed; the robot stands up for 3 s, then 299 count
    pos[450:, 4] += 0.41
    pos[450:, 5] += 0.39
    findings = check_observations(walking(joint_pos=pos), DESC, bundle.observation, statistics)
    assert [finding.where for finding in findings] == [("lm_hip_pitch",)]
    assert "50% of the time" in findings[0].evidence


def test_statistics_are_read_back_as_they_were_written():
    values = np.linspace(-1.0, 1.0, 1001)[:, None] * np.arange(1.0, 4.0)
    term = TermStatistics.of(values)
    assert term.mean == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert term.high == pytest.approx((0.99, 1.98, 2.97))
    written = ObservationStatistics(source="s", samples=1001, terms={"base_ang_vel": term})
    import msgspec

    assert msgspec.json.decode(written.to_json(), type=ObservationStatistics) == written


def test_statistics_of_another_layout_are_refused(tmp_path):
    import dataclasses

    from krabby.policy.statistics import STATISTICS_FILE

    bundle = PolicyBundle.load(bundle_dir("gait"), DESC)
    term = TermStatistics(mean=(0.0,), std=(0.0,), low=(0.0,), high=(0.0,))
    content = ObservationStatistics(source="s", samples=1, terms={"joint_pos_rel": term}).to_json()
    wrong = dataclasses.replace(bundle, files={**bundle.files, STATISTICS_FILE: content})
    with pytest.raises(BundleError, match=r"joint_pos_rel\.mean has 1 numbers, .* observes 18"):
        load_statistics(wrong)
