"""Checkpoints are whole or not there, and only tensors and plain values are read."""

from __future__ import annotations

import hashlib
import os
import pickle
import random

import numpy as np
import pytest
import torch
from krabby_trainer.errors import CheckpointDamaged, CheckpointError
from krabby_trainer.run import checkpoints
from krabby_trainer.task.observations import described


def payload(iteration=1, **more):
    return {
        "iteration": iteration,
        "env_steps": 96 * iteration,
        "wall_s": 1.5,
        "algorithm": {"weights": torch.arange(2000.0)},
        "environment": {"level": torch.tensor([3, 1])},
        "random": checkpoints.random_state(),
        "config": {"seed": 0, "env": {"terrain": {"types": ["gap"]}}},
        "provenance": {"revision": "abc", "gpu": None},
        **more,
    }


def write(folder, *iterations):
    paths = [folder / checkpoints.checkpoint_name(n) for n in iterations]
    for path, n in zip(paths, iterations, strict=True):
        checkpoints.save(path, payload(n))
    return paths


def test_what_is_saved_is_what_is_loaded(tmp_path):
    (path,) = write(tmp_path / "checkpoints", 7)
    read = checkpoints.load(path)
    assert read["iteration"] == 7
    assert read["config"] == payload()["config"]
    assert torch.equal(read["algorithm"]["weights"], torch.arange(2000.0))
    assert not [each for each in path.parent.iterdir() if "partial" in each.name]


def test_a_pth_is_a_checkpoint_as_a_pt_is(tmp_path):
    first, second = write(tmp_path, 1, 2)
    renamed = second.rename(second.with_suffix(".pth"))
    assert checkpoints.find_checkpoints(tmp_path) == [first, renamed]
    assert checkpoints.load(renamed)["iteration"] == 2


def test_sum_beside_it_is_one_that_sha256sum_checks(tmp_path):
    (path,) = write(tmp_path, 1)
    digest, name = (tmp_path / (path.name + ".sha256")).read_text().split()
    assert name == path.name
    assert len(digest) == 64


def test_weights_are_kept_without_what_only_a_resumed_run_needs(tmp_path):
    whole, slim = tmp_path / "iteration_000007.pt", tmp_path / "slim.pt"
    networks = {"actor_state_dict": torch.arange(5.0), "updates": 7}
    optimisers = {"optimizer_state_dict": 1, "history_optimizer_state_dict": 2}
    checkpoints.save(whole, payload(7, algorithm=networks | optimisers, ranks=[{"random": 3}]))
    checkpoints.save_weights(whole, slim)
    read = checkpoints.load(slim)
    assert read["algorithm"].keys() == networks.keys()
    assert torch.equal(read["algorithm"]["actor_state_dict"], torch.arange(5.0))
    assert (read["environment"], read["random"], read["ranks"]) == (None, None, [])
    assert (read["iteration"], read["config"]) == (7, payload()["config"])
    assert read["weights_of_sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    checkpoints.save_weights(slim, tmp_path / "twice.pt")
    assert checkpoints.load(tmp_path / "twice.pt")["weights_of_sha256"] == read["weights_of_sha256"]


def test_a_small_checkpoint_resumes_with_rounded_moments_and_without_episodes(tmp_path):
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    adam = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.tensor([0.3, 1.7])
    adam.step()
    whole, small = tmp_path / "iteration_000007.pt", tmp_path / "small.pt"
    environment = {"level": torch.tensor([3, 1]), "body.friction": torch.ones(2, 1)}
    algorithm = {"actor_state_dict": torch.arange(5.0), "optimizer_state_dict": adam.state_dict()}
    more = {"environment": environment, "rollouts": {"big": torch.zeros(9)}, "ranks": [{}]}
    checkpoints.save(whole, payload(7, algorithm=algorithm, **more))
    checkpoints.save_small(whole, small)
    read = checkpoints.load_to_resume(small)
    assert read["environment"].keys() == {"level"}
    assert (read["rollouts"], read["ranks"], read["iteration"]) == (None, [], 7)
    assert torch.equal(read["algorithm"]["actor_state_dict"], torch.arange(5.0))
    other = torch.optim.Adam([weight], lr=0.5)
    other.load_state_dict(read["algorithm"]["optimizer_state_dict"])
    assert other.param_groups[0]["lr"] == 0.1
    moments = other.state[weight]
    assert moments["exp_avg"].dtype == torch.float32
    # A tenth of the gradient after one step, to the 8 bits of bfloat16.
    assert moments["exp_avg"].tolist() == pytest.approx([0.03, 0.17], rel=2**-8)
    assert float(moments["step"]) == 1.0


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ({}, "teacher"),
        ({"encoder_state_dict": {}, "teacher": {}}, "distilled student"),
        ({"encoder_state_dict": {}}, "fine-tuned student"),
    ],
)
def test_a_checkpoint_that_does_not_name_its_kind_is_known_by_its_networks(algorithm, kind):
    assert checkpoints.kind_of(payload(1) | {"algorithm": algorithm}) == kind
    named = payload(1) | {"algorithm": algorithm, "kind": "teacher"}
    assert checkpoints.kind_of(named) == "teacher"


def test_another_kind_than_the_use_needs_is_refused_with_task_and_iteration(tmp_path):
    given = payload(7) | {"kind": "fine-tuned student", "config": {"task": "student"}}
    students = ["distilled student", "fine-tuned student"]
    checkpoints.require_kind(given, tmp_path, students, "run.init of task=student")
    with pytest.raises(CheckpointError) as refused:
        checkpoints.require_kind(given, tmp_path, ["teacher"], "run.init of task=distill")
    assert str(refused.value) == (
        f"{tmp_path} is a fine-tuned student's checkpoint (task=student, iteration 7); "
        "run.init of task=distill needs a teacher's"
    )


def test_other_observation_terms_than_this_versions_are_refused(tmp_path):
    path = tmp_path / checkpoints.checkpoint_name(1)
    checkpoints.save(path, payload(1) | {"observations": described()})
    assert checkpoints.load(path)["iteration"] == 1
    other = described() | {"velocity": {"base_lin_vel": 2}}
    checkpoints.save(path, payload(1) | {"observations": other})
    with pytest.raises(CheckpointError, match=r"velocity observations {'base_lin_vel': 2}"):
        checkpoints.load(path)


def test_a_run_does_not_go_on_from_weights_alone(tmp_path):
    (whole,) = write(tmp_path, 7)
    checkpoints.save_weights(whole, tmp_path / "slim.pt")
    assert checkpoints.load_to_resume(whole)["iteration"] == 7
    with pytest.raises(CheckpointError, match=r"no optimisers .* run\.init=.*slim\.pt"):
        checkpoints.load_to_resume(tmp_path / "slim.pt")


@pytest.mark.parametrize("moment", ["write", "sync", "replace"])
def test_crash_while_saving_leaves_the_one_before(tmp_path, monkeypatch, moment):
    (path,) = write(tmp_path, 5)

    def crash(*_, **__):
        raise OSError(28, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(checkpoints.Path, "open", crash)
    elif moment == "sync":
        monkeypatch.setattr(os, "fsync", crash)
    else:
        monkeypatch.setattr(checkpoints.Path, "replace", crash)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.save(path, payload(6))
    monkeypatch.undo()
    assert checkpoints.load(path)["iteration"] == 5
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty])
@pytest.mark.parametrize("with_sum", [True, False])
def test_damage_is_found_and_the_newest_intact_one_named(tmp_path, damage, with_sum):
    first, second = write(tmp_path, 1, 2)
    damage(second)
    if not with_sum:
        (tmp_path / (second.name + ".sha256")).unlink()
    with pytest.raises(CheckpointDamaged, match=first.name) as caught:
        checkpoints.load(second)
    assert str(second) in str(caught.value)
    assert checkpoints.newest_intact(tmp_path) == first


def test_only_one_damaged_leaves_nothing_to_name(tmp_path):
    (path,) = write(tmp_path, 1)
    cut(path)
    with pytest.raises(CheckpointDamaged, match="no intact one"):
        checkpoints.load(path)
    assert checkpoints.newest_intact(tmp_path) is None


def test_file_with_code_in_it_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    path = tmp_path / "iteration_000001.pt"
    torch.save(payload(algorithm=Evil()), path)
    with pytest.raises(CheckpointError, match="more than tensors"):
        checkpoints.load(path)
    assert not ran.exists()


def test_any_other_file_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError):
        checkpoints.load(path)


def test_missing_file_says_what_there_is(tmp_path):
    write(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"iteration_000003\.pt"):
        checkpoints.load(tmp_path / "iteration_000009.pt")


@pytest.mark.parametrize(
    ("change", "says"), [({"format": 2}, "format 2"), ({"algorithm": None}, "algorithm")]
)
def test_other_versions_and_missing_parts_are_refused(tmp_path, change, says):
    path = tmp_path / "iteration_000001.pt"
    whole = {"format": checkpoints.FORMAT, **payload(), **change}
    torch.save({key: value for key, value in whole.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match=says):
        checkpoints.load(path)


def test_a_payload_without_a_part_is_not_written(tmp_path):
    whole = payload()
    del whole["random"]
    with pytest.raises(CheckpointError, match="random"):
        checkpoints.save(tmp_path / "iteration_000001.pt", whole)
    assert not any(tmp_path.iterdir())


def test_prune_keeps_the_newest_and_milestones(tmp_path):
    write(tmp_path, 10, 20, 30, 45, 60)
    checkpoints.prune(tmp_path, keep=2, keep_every=30)
    left = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".pt")
    assert left == [checkpoints.checkpoint_name(n) for n in (30, 45, 60)]
    assert len(list(tmp_path.iterdir())) == 6


def test_later_checkpoints_are_set_aside_when_an_earlier_one_goes_on(tmp_path):
    write(tmp_path / "checkpoints", 10, 20, 30)
    moved = checkpoints.set_aside(tmp_path, beyond=10)
    assert [path.name for path in moved] == [checkpoints.checkpoint_name(n) for n in (20, 30)]
    assert checkpoints.newest_intact(tmp_path).name == checkpoints.checkpoint_name(10)
    assert checkpoints.load(moved[1])["iteration"] == 30


def test_random_numbers_go_on_where_they_were():
    state = checkpoints.random_state()
    drawn = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002
    checkpoints.restore_random_state(state)
    again = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002
    assert torch.equal(drawn[0], again[0])
    assert (drawn[1] == again[1]).all()
    assert drawn[2] == again[2]
