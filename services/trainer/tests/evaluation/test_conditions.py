"""What evaluations make harder."""

import pytest
from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation import evaluate
from krabby_trainer.evaluation.conditions import CONDITIONS, find_condition
from krabby_trainer.evaluation.suite import find_suite


def changed(name):
    cfg = find_suite("paper").env_cfg(robots=16, seed=1)
    find_condition(name).change(cfg)
    return cfg


def test_nominal_leaves_the_published_protocol_as_it_is():
    cfg = changed("nominal")
    plain = find_suite("paper").env_cfg(robots=16, seed=1)
    cfg.camera.errors = plain.camera.errors
    assert cfg == plain


def test_deployable_has_noise_everywhere_and_the_cameras_own_delays():
    cfg = changed("deployable")
    r, errors = cfg.randomisation, cfg.camera.errors
    assert min(r.joint_pos_bias, r.gyro_bias, r.joint_vel_noise, r.gravity_noise) > 0.0
    assert errors.latency_s == [0.04, 0.04]
    assert errors.latency_jitter_s == 0.01
    assert errors.noise_rel == [0.01, 0.01]
    assert errors.mount_angle_rad == pytest.approx(0.0175)


def test_every_other_condition_changes_one_thing_besides():
    for name, read, expected in (
        ("drop30", lambda cfg: cfg.camera.errors.drop_probability, [0.3, 0.3]),
        ("latency120", lambda cfg: cfg.camera.errors.latency_s, [0.12, 0.12]),
        ("noise2", lambda cfg: cfg.camera.errors.noise_rel, [0.02, 0.02]),
        ("tilt3", lambda cfg: cfg.camera.errors.mount_pitch_rad, 0.05236),
        ("weak20", lambda cfg: cfg.randomisation.motor_strength, [0.8, 0.8]),
        ("payload5", lambda cfg: cfg.randomisation.added_mass_kg, [5.0, 5.0]),
        ("heavy", lambda cfg: cfg.randomisation.mass_factor, [1.56, 1.56]),
        ("friction04", lambda cfg: cfg.randomisation.friction, [0.4, 0.4]),
    ):
        assert read(changed(name)) == expected
        assert read(changed("deployable")) != expected
    assert len(CONDITIONS) == 10


def test_a_student_gets_no_more_pictures_than_it_looks_at(monkeypatch, tmp_path):
    class Slow:
        sees, rate_hz = True, 12.0

    class Stop(Exception):  # noqa: N818
        pass

    def walk(policy, cfg, **_):
        raise Stop(cfg.camera.errors.rate_hz)

    monkeypatch.setattr("krabby_trainer.evaluation.mujoco.evaluate_mujoco", walk)
    for rate_hz, expected in ((12.0, [12.0, 12.0]), (60.0, [30.0, 30.0])):
        Slow.rate_hz = rate_hz
        with pytest.raises(Stop) as seen:
            evaluate(policy=Slow(), about={}, suite="smoke", backend="mujoco", out=tmp_path)
        assert seen.value.args == (expected,)


def test_an_unknown_condition_names_the_nearest():
    with pytest.raises(EvaluationError, match="did you mean 'payload5'"):
        find_condition("payload")
