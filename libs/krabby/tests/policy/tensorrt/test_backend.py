"""From a bundle's file to a network that runs, with all that may go wrong on the way."""

import itertools
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from krabby.policy.onnx_runtime import OnnxNetwork, OnnxRuntime
from krabby.policy.tensorrt.backend import EngineBackend, engine_platform, open_backend
from krabby.policy.tensorrt.cache import EngineCache
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.policy.tensorrt.engine import BuildOptions
from krabby.policy.tensorrt.errors import (
    BuildFailed,
    CacheError,
    EngineRefused,
    Interrupted,
    NoDevice,
    NotBuilt,
)
from krabby.policy.tensorrt.subprocesses import build_in_child, probe
from krabby.policy.tensorrt.testing import FAKE, FakeBuffers, FakeWatch, orders
from krabby.runtime.testing import captured_logs
from prometheus_client import REGISTRY


@pytest.fixture
def order(tmp_path):
    """Gives orders to the fake; the last ones count."""
    path = tmp_path / "orders.json"
    log = tmp_path / "builds"
    log.touch()
    with orders(path, log=str(log)):

        def give(**changes):
            path.write_text(json.dumps({"log": str(log), **changes}))

        give.builds = lambda: len(log.read_text().splitlines())
        yield give


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "engines"


def cfg(folder, **changes) -> InferenceCfg:
    values = {"backend": "tensorrt", "cache_dir": str(folder), "budget_s": 1.0}
    return InferenceCfg(**(values | changes))


def backend(folder, watch=None, **changes):
    return open_backend(cfg(folder, **changes), watch or FakeWatch(), platform=FAKE)


def step(network, *values):
    network.set_input("x", np.array([values], np.float32))
    return network.run()[0].tolist()


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


def test_onnxruntime_is_what_it_was(folder, double):
    chosen = backend(folder, backend="onnxruntime")
    assert isinstance(chosen, OnnxRuntime)
    assert isinstance(chosen.open(double()), OnnxNetwork)
    assert not folder.exists()


def test_the_first_start_builds_and_tests_the_second_finds(order, folder, double):
    watch = FakeWatch()
    network = backend(folder, watch).open(double())
    assert network.backend == "tensorrt"
    assert step(network, 1, 2, 3) == [2, 4, 6]
    assert order.builds() == 1
    assert watch.beats > 0
    assert watch.said[0] == "asking for a GPU"
    assert watch.said[-4:] == [
        "building: double/policy 50 %",
        "loading: double/policy",
        "testing: double/policy",
        "",
    ]
    (record,) = EngineCache(folder).records()
    assert record.good
    assert record.verdict.startswith("good: 64 made-up steps")
    assert value("krabby_inference_backend", network="double/policy", backend="tensorrt") == 1
    assert value("krabby_engine_selftest_seconds", network="double/policy", quantile="p99") > 0
    assert value("krabby_engine_selftest_error", network="double/policy") == 0
    assert backend(folder).open(double()).backend == "tensorrt"
    assert order.builds() == 1


def test_recurrent_networks_run_too(order, folder, depth_encoder):
    network = backend(folder).open(depth_encoder)
    assert network.backend == "tensorrt"
    reference = OnnxRuntime().open(depth_encoder)
    for name, shape in depth_encoder.inputs.items():
        for each in (network, reference):
            each.set_input(name, np.full(shape, 0.25, np.float32))
    for _ in range(3):
        assert network.run().tolist() == reference.run().tolist()


def test_another_version_of_tensorrt_builds_again(order, folder, double):
    order(version="10.3.0")
    backend(folder).open(double())
    order(version="10.16.1")
    assert backend(folder).open(double()).backend == "tensorrt"
    assert order.builds() == 2


def test_kernel_timings_of_a_build_go_into_the_next(order, folder, double):
    backend(folder).open(double())
    backend(folder).open(double(name="triple", gain=3.0))
    (timings,) = folder.glob("*.timing")
    assert timings.read_bytes() == b".."


# No GPU


def test_auto_without_a_gpu_says_why_once_and_goes_on(order, folder, double, counter):
    order(no_device="no driver; install one")
    chosen = backend(folder, backend="auto", allow_fallback=False)
    with captured_logs() as logs:
        assert chosen.open(double()).backend == "onnxruntime"
        assert chosen.open(counter()).backend == "onnxruntime"
    (line,) = logs
    assert (line["log_level"], line["event"]) == ("info", "running on onnxruntime")
    assert line["reason"] == "no driver; install one"
    assert not folder.exists()


def test_tensorrt_without_a_gpu_is_a_warning_or_the_end(order, folder, double):
    order(no_device="no driver; install one")
    before = value("krabby_inference_fallbacks_total", reason="no_device")
    with captured_logs() as logs:
        assert backend(folder).open(double()).backend == "onnxruntime"
    assert logs[0]["log_level"] == "warning"
    assert value("krabby_inference_fallbacks_total", reason="no_device") == before + 1
    with pytest.raises(NoDevice, match="no driver; install one"):
        backend(folder, allow_fallback=False).open(double())


def test_this_machine_is_asked_without_harm(folder, double):
    """On any machine the answer is a device or a reason, and the process survives."""
    chosen = open_backend(cfg(folder, backend="auto"), FakeWatch())
    assert chosen.open(double()).backend in ("onnxruntime", "tensorrt")


def test_a_tensorrt_that_kills_does_not_kill_us(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n\n\nclass Deadly:\n    def __init__(self):\n"
        "        print('CUDA initialization failure')\n        os.kill(os.getpid(), 11)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    platform = type(FAKE)(toolkit="deadly:Deadly", device_api=FAKE.device_api)
    with pytest.raises(NoDevice, match=r"killed by SIGSEGV: …CUDA initialization failure"):
        probe(platform, FakeWatch())


# Builds that fail


@pytest.mark.parametrize(
    ("orders_given", "reason"),
    [
        ({"refuse": "node If_3: no such operator"}, "node If_3: no such operator"),
        ({"crash": True}, "was killed by SIGSEGV"),
        ({"hang": True}, "not done after 1 s, killed"),
    ],
)
def test_a_build_that_fails_leaves_the_network_to_the_processor(
    order, folder, double, orders_given, reason
):
    order(**orders_given)
    limit_s = 1.0 if "hang" in orders_given else 60.0
    failed = value("krabby_engine_builds_total", result="failed")
    with captured_logs() as logs:
        network = backend(folder, build_timeout_s=limit_s).open(double())
    assert network.backend == "onnxruntime"
    assert reason in logs[-1]["reason"]
    assert value("krabby_engine_builds_total", result="failed") == failed + 1
    assert value("krabby_engine_building") == 0
    assert EngineCache(folder).records() == []
    with pytest.raises(BuildFailed, match=reason):
        backend(folder, build_timeout_s=limit_s, allow_fallback=False).open(double())


def test_told_to_stop_the_build_is_killed_and_nothing_else_is_tried(order, folder, double):
    order(hang=True)
    network = backend(folder, FakeWatch(stop_when="50 %"), allow_fallback=False).open(double())
    assert network.backend == "onnxruntime"
    assert EngineCache(folder).records() == []


def test_the_child_dies_with_its_parent(order, folder, double, tmp_path):
    order(hang=True)
    model = tmp_path / "model.onnx"
    model.write_bytes(double().content)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from krabby.policy.tensorrt.subprocesses import build_in_child\n"
        "from krabby.policy.tensorrt.engine import BuildOptions\n"
        "from krabby.policy.tensorrt.testing import FAKE, FakeWatch\n"
        "build_in_child(FAKE, Path(sys.argv[1]).read_bytes(), BuildOptions(), {'x': (1, 3)},\n"
        "    timings=b'', timeout_s=60, watch=FakeWatch(),\n"
        "    report=lambda *_: print('on', flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(model)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"on\n"
    (pid,) = map(int, (tmp_path / "builds").read_text().split())
    gone = threading.Event()

    def wait():
        watched = os.pidfd_open(pid)
        select.select([watched], [], [])
        os.close(watched)
        gone.set()

    threading.Thread(target=wait, daemon=True).start()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone.wait(60)


def test_interrupting_a_build_is_told_apart(order, double):
    order(hang=True)
    watch = FakeWatch(stop_when="now")
    with pytest.raises(Interrupted):
        build_in_child(
            FAKE, double().content, BuildOptions(), {"x": (1, 3)}, timings=b"", timeout_s=60.0,
            watch=watch, report=lambda doing, share: watch.doing("now"),
        )  # fmt: skip


# Engines that are refused


def test_a_damaged_engine_is_built_again(order, folder, double):
    backend(folder).open(double())
    (plan,) = folder.glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    assert backend(folder).open(double()).backend == "tensorrt"
    assert order.builds() == 2
    assert backend(folder).open(double()).backend == "tensorrt"
    assert order.builds() == 2


def test_an_engine_of_other_tensors_is_built_again(order, folder, double, counter):
    backend(folder).open(double())
    (record,) = EngineCache(folder).records()
    # a whole engine, but of another network: its hash is right, its inputs are not
    wrong = backend(folder / "other").open(counter()) and next((folder / "other").glob("*.plan"))
    EngineCache(folder).store(record.recipe, "double/policy", wrong.read_bytes(), 1.0)
    assert step(backend(folder).open(double()), 1, 2, 3) == [2, 4, 6]
    assert order.builds() == 3


def test_an_engine_that_does_not_load_is_built_once_more_and_no_oftener(order, folder, double):
    order(spoiled=True)
    with captured_logs() as logs:
        assert backend(folder).open(double()).backend == "onnxruntime"
    assert order.builds() == 2
    assert "version spoiled" in logs[-1]["reason"]


def test_an_engine_that_is_wrong_is_refused_and_not_built_again(order, folder, double):
    order(offset=0.1)
    with captured_logs() as logs:
        assert backend(folder).open(double()).backend == "onnxruntime"
    assert "is off by 1.00e-01" in logs[-1]["reason"]
    (record,) = EngineCache(folder).records()
    assert not record.good
    assert record.verdict.startswith("refused: y at step")
    with pytest.raises(EngineRefused, match="is off by"):
        backend(folder, allow_fallback=False).open(double())
    assert order.builds() == 1


def test_an_engine_over_budget_is_refused(order, folder, double):
    with captured_logs() as logs:
        slow = EngineBackend(
            cfg(folder, budget_s=1e-5),
            FakeWatch(),
            FAKE,
            clock=itertools.count(0.0, 2e-5).__next__,  # between two looks at it pass 20 us
        )
        assert slow.open(double()).backend == "onnxruntime"
    assert "a step takes 0.02 ms (p99), the budget is 0.01 ms" in logs[-1]["reason"]
    assert backend(folder).open(double()).backend == "tensorrt"  # the engine is still there
    assert order.builds() == 1


def test_the_last_good_engine_of_the_same_network_is_rolled_back_to(order, folder, double):
    good = backend(folder, optimization_level=2).open(double())
    assert good.backend == "tensorrt"
    order(offset=0.1, level=4)  # built harder, it is wrong
    with captured_logs() as logs:
        network = backend(folder, optimization_level=4, allow_fallback=False).open(double())
    assert network.backend == "tensorrt"
    assert step(network, 1, 2, 3) == [2, 4, 6]
    assert "rolled back to the last good engine" in [line["event"] for line in logs]
    assert order.builds() == 2


def test_an_engine_of_another_network_is_never_rolled_back_to(order, folder, double):
    backend(folder).open(double(gain=2.0))
    order(offset=0.1)
    network = backend(folder).open(double(gain=3.0))
    assert network.backend == "onnxruntime"
    assert step(network, 1, 0, 0) == [3, 0, 0]


def test_no_gpu_memory_stays_behind_a_refused_engine(order, folder, double):
    before = set(FakeBuffers.streams)
    order(offset=0.1)
    backend(folder).open(double())
    order(spoiled=True, version="2")
    backend(folder).open(double())
    assert set(FakeBuffers.streams) == before


# The cache


def test_a_cache_that_cannot_be_written_leaves_the_network_to_the_processor(
    order, tmp_path, double
):
    (tmp_path / "file").write_text("")
    with captured_logs() as logs:
        assert backend(tmp_path / "file" / "engines").open(double()).backend == "onnxruntime"
    assert "mount a volume there" in logs[-1]["reason"]
    assert order.builds() == 0


def test_while_walking_nothing_is_built(order, folder, double):
    chosen = backend(folder)
    assert isinstance(chosen, EngineBackend)
    network = chosen.open(double())
    walking = chosen.without_building()
    assert walking.open(double()).backend == "tensorrt"
    with captured_logs() as logs:
        assert walking.open(double(name="new", gain=5.0)).backend == "onnxruntime"
    assert "build it with: python -m krabby.policy.tensorrt build new" in logs[-1]["reason"]
    strict = open_backend(cfg(folder, allow_fallback=False), FakeWatch(), platform=FAKE)
    assert isinstance(strict, EngineBackend)
    with pytest.raises(NotBuilt):
        strict.without_building().open(double(name="new", gain=5.0))
    assert order.builds() == 1
    network.close()


@pytest.mark.parametrize("failing", ["store", "judge", "used"])
def test_a_disk_that_is_full_does_not_stop_an_engine(order, folder, double, monkeypatch, failing):
    def full(*arguments, **keys):
        raise CacheError("no space left on device; free some")

    monkeypatch.setattr(EngineCache, failing, full)
    with captured_logs() as logs:
        assert backend(folder).open(double()).backend == "tensorrt"
    assert [line["reason"] for line in logs if line["log_level"] == "error"] == [
        "no space left on device; free some"
    ]


def test_without_room_for_temporary_files_nothing_is_built(order, folder, double, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with captured_logs() as logs:
        assert backend(folder).open(double()).backend == "onnxruntime"
    assert "No such file or directory" in logs[-1]["reason"]


def test_here_the_real_thing_builds_agrees_and_is_fast_enough(folder, depth_encoder):
    """Only where a GPU, TensorRT and cuda-bindings are: the robot."""
    try:
        probe(engine_platform(cfg(folder)), FakeWatch())
    except NoDevice as missing:
        pytest.skip(str(missing))
    chosen = open_backend(cfg(folder, allow_fallback=False, budget_s=0.01), FakeWatch())
    network = chosen.open(depth_encoder)
    assert network.backend == "tensorrt"
    assert network.graphed
    network.close()


TWIN = """
import sys
from pathlib import Path
from krabby.policy.tensorrt.backend import open_backend
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.policy.tensorrt.testing import FAKE, FakeWatch
from krabby.policy.network import NetworkSpec
spec = NetworkSpec(content=Path(sys.argv[1]).read_bytes(), source="double/policy.onnx",
                   inputs={"x": (1, 3)}, output=("y", (1, 3)))
cfg = InferenceCfg(backend="tensorrt", cache_dir=sys.argv[2], budget_s=1.0, allow_fallback=False)
print(open_backend(cfg, FakeWatch(), platform=FAKE).open(spec).backend)
"""


def test_two_processes_that_start_together_build_one_engine(order, folder, double, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(double().content)
    twins = [
        subprocess.Popen(
            [sys.executable, "-c", TWIN, str(model), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for twin in twins:
        out, errors = twin.communicate(timeout=60)
        assert out.splitlines()[-1] == "tensorrt", errors
    assert order.builds() == 1
