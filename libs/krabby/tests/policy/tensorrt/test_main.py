"""`python -m krabby.policy.tensorrt`, with a fake TensorRT."""

import pytest
import structlog
from krabby.policy.tensorrt.__main__ import main
from krabby.policy.tensorrt.testing import FAKE, orders


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command configures logging for its process; later tests have their own."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def run(tmp_path, capsys):
    path = tmp_path / "orders.json"

    def call(*argv, **given):
        with orders(path, **given):
            folder = f"cache_dir={tmp_path / 'engines'}"
            status = main([folder, "budget_s=1", *argv], platform=FAKE)
        return status, capsys.readouterr()

    return call


def test_engines_are_built_ahead_shown_and_pruned(run):
    status, said = run("build", "gait")
    assert status == 0
    assert said.out.startswith("gait/policy: good: 64 made-up steps, off by 0.0e+00; p50 ")
    status, said = run("list")
    lines = said.out.splitlines()
    assert "gait/policy" in lines[0]
    assert "Fake Orin, TensorRT 10.0, level 3, 256 MiB" in lines[0]
    assert "good: 64 made-up steps" in lines[1]
    assert lines[-1].startswith("1 engines, 0.0 MB in ")
    assert run("prune")[1].out.startswith("0 engines deleted")
    # another TensorRT: none of them loads any more
    assert run("prune", version="11.4")[1].out.startswith("1 engines deleted")
    assert run("list")[1].out.startswith("0 engines")


def test_pruning_all_needs_no_gpu(run):
    run("build", "gait")
    assert run("prune", "--all", no_device="none")[1].out.startswith("1 engines deleted")


def test_an_engine_that_is_refused_is_a_failure(run):
    status, said = run("build", "gait", offset=0.5)
    assert status == 1
    assert "refused: " in said.out


def test_the_device_is_told_or_why_there_is_none(run):
    status, said = run("probe")
    assert status == 0
    assert said.out.splitlines() == [
        "Fake Orin, compute capability 8.7",
        "8.0 GiB of memory shared with the processor",
        "CUDA 13.2 (driver), 13.2 (runtime)",
        "TensorRT 10.0",
    ]
    status, said = run("probe", no_device="no driver; install one")
    assert status == 1
    assert said.err == "python -m krabby.policy.tensorrt: no driver; install one\n"


def test_what_cannot_be_done_is_said_in_one_line(run):
    status, said = run("build", "trot")
    assert status == 2
    assert said.err.startswith("python -m krabby.policy.tensorrt: no policy 'trot' in ")
    status, said = run("workspace_mb=1", "list")
    assert status == 2
    assert "did you mean workspace_mib?" in said.err
