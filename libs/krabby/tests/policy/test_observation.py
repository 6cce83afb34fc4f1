import math

import numpy as np
import pytest
from krabby.policy.observation import (
    TERMS,
    ObservationBuilder,
    ObservationError,
    ObservationInputs,
    ObservationLayout,
    ObservationTerm,
    standard_term,
)
from krabby.robot.description import RobotDescription


@pytest.fixture(scope="module")
def desc() -> RobotDescription:
    return RobotDescription.load()


def inputs(desc, **changes) -> ObservationInputs:
    values = {
        "base_quat_w": np.array([0.0, 0.0, 0.0, 1.0]),
        "base_ang_vel_b": np.zeros(3),
        "base_lin_acc_b": np.array([0.0, 0.0, 9.81]),
        "joint_pos": desc.default_joint_pos,
        "joint_vel": np.zeros(18),
        "foot_contact": np.zeros(6),
        "nav_command": np.zeros(3),
        "last_action": np.zeros(18),
    }
    return ObservationInputs(**(values | changes))


def layout(*terms: ObservationTerm) -> ObservationLayout:
    return ObservationLayout(terms)


def test_terms_fill_the_observation_in_order_and_scaled(desc):
    builder = ObservationBuilder(
        layout(
            standard_term("base_ang_vel"),
            standard_term("projected_gravity"),
            standard_term("nav_command"),
            standard_term("joint_pos_rel"),
            standard_term("joint_vel"),
            standard_term("foot_contact"),
        ),
        desc,
    )
    joint_pos = desc.default_joint_pos.copy()
    joint_pos[2] += 0.5
    joint_vel = np.zeros(18)
    joint_vel[17] = -2.0
    obs = builder.build(
        inputs(
            desc,
            base_ang_vel_b=np.array([1.0, -2.0, 4.0]),
            # Nose down by 30 degrees: gravity points to -z and, by sin 30, forward.
            base_quat_w=np.array([0.0, math.sin(math.pi / 12), 0.0, math.cos(math.pi / 12)]),
            nav_command=np.array([0.4, 0.1, -0.2]),
            joint_pos=joint_pos,
            joint_vel=joint_vel,
            foot_contact=np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
        )
    )
    assert obs.shape == (1, 3 + 3 + 3 + 18 + 18 + 6)
    assert obs.dtype == np.float32
    assert obs[0, :3].tolist() == [0.25, -0.5, 1.0]
    assert obs[0, 3:6] == pytest.approx([0.5, 0.0, -math.sqrt(0.75)])
    assert obs[0, 6:9] == pytest.approx([0.4, 0.1, -0.2])
    assert obs[0, 9:27] == pytest.approx([0.0, 0.0, 0.5] + [0.0] * 15)
    assert obs[0, 27:45] == pytest.approx([0.0] * 17 + [-0.1])
    assert obs[0, 45:51].tolist() == [0.5, -0.5, 0.5, -0.5, 0.5, -0.5]


def test_history_is_stacked_oldest_first_beside_its_term(desc):
    builder = ObservationBuilder(
        layout(standard_term("nav_command", history=3), standard_term("foot_contact")), desc
    )
    for vx in (1.0, 2.0, 3.0, 4.0):
        obs = builder.build(inputs(desc, nav_command=np.array([vx, 0.0, -vx])))
    assert obs[0, :9].tolist() == [2.0, 0.0, -2.0, 3.0, 0.0, -3.0, 4.0, 0.0, -4.0]
    assert obs[0, 9:].tolist() == [-0.5] * 6


def test_after_a_reset_the_first_frame_stands_for_all_past_ones(desc):
    builder = ObservationBuilder(layout(standard_term("nav_command", history=2)), desc)
    builder.build(inputs(desc, nav_command=np.array([9.0, 9.0, 9.0])))
    builder.reset()
    obs = builder.build(inputs(desc, nav_command=np.array([1.0, 2.0, 3.0])))
    assert obs[0].tolist() == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]


def test_a_scale_may_differ_from_number_to_number(desc):
    term = ObservationTerm(name="nav_command", size=3, scale=(2.0, 1.0, 0.5))
    obs = ObservationBuilder(layout(term), desc).build(
        inputs(desc, nav_command=np.array([1.0, 1.0, 1.0]))
    )
    assert obs[0].tolist() == [2.0, 1.0, 0.5]


def test_the_remaining_terms_pass_their_input_on(desc):
    builder = ObservationBuilder(
        layout(
            standard_term("base_lin_acc"),
            standard_term("last_action"),
            standard_term("features", size=32),
        ),
        desc,
    )
    action, latent = np.arange(18.0), np.arange(32.0, dtype=np.float32)
    obs = builder.build(inputs(desc, last_action=action, features=latent))
    assert obs[0, :3] == pytest.approx([0.0, 0.0, 0.981])
    assert obs[0, 3:21].tolist() == action.tolist()
    assert obs[0, 21:].tolist() == latent.tolist()


def test_the_observation_lies_in_one_buffer_that_readers_cannot_spoil(desc):
    builder = ObservationBuilder(layout(standard_term("nav_command")), desc)
    first = builder.build(inputs(desc))
    assert np.shares_memory(first, builder.build(inputs(desc)))
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1.0


def test_every_term_takes_a_batch_and_treats_its_rows_alike(desc):
    rng = np.random.default_rng(0)
    rows = 5
    quat = rng.normal(size=(rows, 4))
    batch = {
        "base_quat_w": quat / np.linalg.norm(quat, axis=1, keepdims=True),
        "base_ang_vel_b": rng.normal(size=(rows, 3)),
        "base_lin_acc_b": rng.normal(size=(rows, 3)),
        "joint_pos": rng.normal(size=(rows, 18)),
        "joint_vel": rng.normal(size=(rows, 18)),
        "foot_contact": rng.integers(0, 2, (rows, 6)).astype(float),
        "nav_command": rng.normal(size=(rows, 3)),
        "last_action": rng.normal(size=(rows, 18)),
        "features": rng.normal(size=(rows, 32)),
        "features_age": rng.uniform(size=(rows, 1)),
        "height_scan": rng.normal(size=(rows, 325)),
    }
    for spec in TERMS.values():
        together = spec.compute(ObservationInputs(**batch), desc)
        for i in range(rows):
            alone = {key: value[i] for key, value in batch.items()}
            one = spec.compute(ObservationInputs(**alone), desc)
            assert together[i] == pytest.approx(one, abs=1e-15)


def test_slices_say_where_a_term_lies():
    terms = layout(standard_term("nav_command", history=2), standard_term("foot_contact"))
    assert terms.size == 12
    assert terms.slices == {"nav_command": slice(0, 6), "foot_contact": slice(6, 12)}
    assert terms.term("foot_contact") is terms.terms[1]
    assert terms.term("features") is None


def test_a_manifest_repeats_the_terms_at_full_precision():
    terms = layout(
        ObservationTerm(name="nav_command", size=3, scale=(0.1, 0.2, 1 / 3)),
        standard_term("joint_vel", history=10),
    )
    assert terms.to_manifest() == [
        {"name": "nav_command", "size": 3, "scale": [0.1, 0.2, 1 / 3], "history": 1},
        {"name": "joint_vel", "size": 18, "scale": 0.05, "history": 10},
    ]


def test_an_unknown_term_names_the_nearest_one():
    with pytest.raises(ObservationError, match="'joint_position'; did you mean 'joint_pos_rel'"):
        ObservationTerm(name="joint_position", size=18)
    with pytest.raises(ObservationError, match="did you mean 'joint_vel'"):
        standard_term("joint_val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 12}, "size 12; expected 18"),
        ({"name": "features", "size": 0}, "size 0; expected at least 1"),
        ({"history": 0}, "history 0"),
        ({"scale": math.nan}, "scale nan"),
        ({"scale": (1.0, 2.0)}, "18 of them"),
    ],
)
def test_a_term_that_cannot_be_built_is_refused(changes, message):
    values = {"name": "joint_vel", "size": 18} | changes
    with pytest.raises(ObservationError, match=message):
        ObservationTerm(**values)


def test_a_layout_needs_terms_and_each_once():
    with pytest.raises(ObservationError, match="no terms"):
        layout()
    with pytest.raises(ObservationError, match="'joint_vel' occurs twice"):
        layout(standard_term("joint_vel"), standard_term("joint_vel"))


def test_values_of_the_wrong_size_are_refused_and_leave_the_history_alone(desc):
    builder = ObservationBuilder(
        layout(standard_term("nav_command", history=2), standard_term("features", size=32)), desc
    )
    good = {"features": np.zeros(32), "nav_command": np.array([1.0, 0.0, 0.0])}
    builder.build(inputs(desc, **good))
    with pytest.raises(ObservationError, match=r"'features' got values of shape \(5046,\)"):
        builder.build(inputs(desc, nav_command=np.ones(3), features=np.zeros(5046)))
    with pytest.raises(ObservationError, match="start the camera service"):
        builder.build(inputs(desc, nav_command=np.ones(3)))
    obs = builder.build(inputs(desc, **good))
    assert obs[0, :6].tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_a_height_scan_is_taken_as_it_is_and_no_robot_has_one(desc):
    builder = ObservationBuilder(layout(standard_term("height_scan")), desc)
    scan = np.linspace(-1.5, 1.5, 325)
    np.testing.assert_allclose(builder.build(inputs(desc, height_scan=scan))[0], scan, atol=1e-6)
    with pytest.raises(ObservationError, match="only a simulator knows it"):
        builder.build(inputs(desc))
    unknown = [name for name, spec in TERMS.items() if not spec.measurable]
    assert unknown == ["height_scan"]
    assert not standard_term("height_scan").measurable


def test_a_height_scan_of_another_grid_is_refused():
    with pytest.raises(ObservationError, match="size 132; expected 325"):
        ObservationTerm(name="height_scan", size=132)
