"""Engines on disk: found by all they depend on, whole or not there, and not for ever."""

import json
import os
import subprocess
import sys
import threading

import msgspec
import pytest
from krabby.policy.tensorrt.cache import EngineCache, Recipe
from krabby.policy.tensorrt.device import Device
from krabby.policy.tensorrt.engine import BuildOptions
from krabby.policy.tensorrt.errors import CacheError, EngineRefused
from krabby.policy.tensorrt.testing import FakeApi

ORIN = FakeApi().describe()
SHAPES = {"obs": (1, 3)}
TENSORRT = ("tensorrt", "10.16.1.11")


def recipe(model=b"onnx", shapes=None, options=None, device=ORIN, toolkit=TENSORRT) -> Recipe:
    return Recipe.of(model, shapes or SHAPES, options or BuildOptions(), device, toolkit)


@pytest.fixture
def cache(tmp_path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def other(**changes) -> Device:
    return msgspec.structs.replace(ORIN, **changes)


@pytest.mark.parametrize(
    "change",
    [
        {"model": b"onny"},
        {"shapes": {"obs": (1, 4)}},
        {"options": BuildOptions(workspace_mib=512)},
        {"options": BuildOptions(optimization_level=4)},
        {"options": BuildOptions(tf32=True)},
        {"device": other(name="Orin NX")},
        {"device": other(compute_capability="8.6")},
        {"device": other(runtime_version="12.6")},
        {"toolkit": ("tensorrt", "11.4.0")},
        {"toolkit": ("tensorrt_rtx", "10.16.1.11")},
    ],
)
def test_whatever_an_engine_depends_on_changes_its_key(change):
    assert recipe(**change).key != recipe().key


def test_what_it_does_not_depend_on_does_not():
    same = other(driver_version="13.3", memory_bytes=1, integrated=False)
    assert recipe(device=same).key == recipe().key


def test_a_key_is_the_same_in_every_process_and_for_ever():
    """Hand-made: SHA-256 of the sorted, compact JSON of everything above."""
    text = (
        '{"compute_capability":"8.7","cuda_runtime":"13.2","device":"Fake Orin","format":1,'
        '"model_sha256":"%s","options":{"optimization_level":3,"tf32":false,"workspace_mib":256},'
        '"shapes":{"obs":[1,3]},"toolkit":"tensorrt","toolkit_version":"10.16.1.11"}'
    )
    sha256 = subprocess.run(
        ["sha256sum"], input=b"onnx", capture_output=True, check=True
    ).stdout.split()[0].decode()  # fmt: skip
    key = subprocess.run(
        ["sha256sum"], input=(text % sha256).encode(), capture_output=True, check=True
    ).stdout.split()[0].decode()  # fmt: skip
    assert recipe().key == key


def test_what_was_stored_is_found_and_described(cache):
    record = cache.store(recipe(), "gait/policy", b"engine", 12.3456)
    assert cache.plan(recipe().key) == b"engine"
    assert cache.plan(recipe(model=b"other").key) is None
    assert (record.plan_bytes, record.build_s, record.good) == (6, 12.346, False)
    beside = json.loads((cache.folder / f"{recipe().key}.json").read_text())
    assert beside["recipe"]["toolkit_version"] == "10.16.1.11"
    assert beside["source"] == "gait/policy"
    assert not list(cache.folder.glob("*.part"))


@pytest.mark.parametrize("spoil", ["flip", "cut", "empty", "no record", "bad record", "no plan"])
def test_a_damaged_engine_is_deleted_and_said(cache, spoil):
    key = recipe().key
    cache.store(recipe(), "gait/policy", b"engine", 1.0)
    plan, record = cache.folder / f"{key}.plan", cache.folder / f"{key}.json"
    match spoil:
        case "flip":
            plan.write_bytes(b"engjne")
        case "cut":
            plan.write_bytes(b"eng")
        case "empty":
            plan.write_bytes(b"")
        case "no record":
            record.unlink()
        case "bad record":
            record.write_text("{")
        case "no plan":
            plan.unlink()
    with pytest.raises(EngineRefused, match="is damaged; it was deleted"):
        cache.plan(key)
    assert cache.plan(key) is None
    assert not list(cache.folder.glob(f"{key}.*"))


def test_a_folder_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be written .*; mount a volume there, or set inf"):
        EngineCache(tmp_path / "file" / "engines")


def test_a_full_disk_leaves_what_was_there(cache, monkeypatch):
    cache.store(recipe(), "gait/policy", b"engine", 1.0)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match=r"No space left .*python -m krabby.policy.tensorrt prune"):
        cache.store(recipe(), "gait/policy", b"another", 1.0)
    assert cache.plan(recipe().key) == b"engine"
    assert not list(cache.folder.glob("*.part"))


def test_an_engine_whose_loading_ended_the_process_is_not_tried_again(cache):
    cache.store(recipe(), "gait/policy", b"engine", 1.0)
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from krabby.policy.tensorrt.cache import EngineCache\n"
        "with EngineCache(Path(sys.argv[1])).loading(sys.argv[2]):\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    key = recipe().key
    died = subprocess.run([sys.executable, "-c", program, str(cache.folder), key], check=False)
    assert died.returncode == -11
    with pytest.raises(EngineRefused, match="ended this process the last time"), cache.loading(key):
        raise AssertionError
    assert cache.plan(key) is None


def test_an_engine_is_loaded_again_after_an_error_and_by_two_at_once(cache):
    cache.store(recipe(), "gait/policy", b"engine", 1.0)
    key = recipe().key
    with pytest.raises(KeyError), cache.loading(key):
        raise KeyError
    with cache.loading(key), cache.loading(key):
        pass
    assert cache.plan(key) == b"engine"
    assert not list(cache.folder.glob("*.loading"))


HOLDER = """
import sys
from pathlib import Path
from krabby.policy.tensorrt.cache import EngineCache
with EngineCache(Path(sys.argv[1])).building(lambda: None):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["done", "killed"])
def test_one_process_builds_at_a_time_and_a_dead_one_does_not_block(cache, how):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    waited = threading.Event()
    granted = threading.Event()

    def build():
        with cache.building(waited.set):
            granted.set()

    thread = threading.Thread(target=build)
    thread.start()
    assert waited.wait(60)
    assert not granted.is_set()
    if how == "killed":
        holder.kill()
    holder.stdin.close()
    assert granted.wait(60)
    thread.join()
    holder.wait()
    holder.stdout.close()


def test_who_waits_to_build_may_give_up(cache):
    class StopError(Exception):
        pass

    def stop():
        raise StopError

    with cache.building(lambda: None), pytest.raises(StopError), cache.building(stop):
        raise AssertionError


# Tidying up


def test_an_engine_unused_in_ten_starts_of_its_network_is_deleted(cache):
    old, new, elsewhere = (recipe(model=model) for model in (b"old", b"new", b"elsewhere"))
    for each, source in ((old, "gait/policy"), (new, "gait/policy"), (elsewhere, "eye/policy")):
        cache.store(each, source, b"engine", 1.0)
    for _ in range(10):
        cache.used(new.key, "gait/policy", keep_starts=10)
    assert cache.record(old.key).unseen_starts == 10
    cache.used(new.key, "gait/policy", keep_starts=10)
    assert cache.plan(old.key) is None
    assert cache.plan(new.key) == b"engine"
    assert cache.record(elsewhere.key).unseen_starts == 0


def test_a_start_makes_an_engine_count_as_used_again(cache):
    old, new = recipe(model=b"old"), recipe(model=b"new")
    for each in (old, new):
        cache.store(each, "gait/policy", b"engine", 1.0)
    for _ in range(10):
        cache.used(new.key, "gait/policy", keep_starts=10)
    cache.used(old.key, "gait/policy", keep_starts=10)
    assert cache.record(old.key).unseen_starts == 0
    assert cache.record(new.key).unseen_starts == 1


def test_the_engine_to_roll_back_to_stays(cache):
    good = recipe(options=BuildOptions(optimization_level=2))
    cache.store(good, "gait/policy", b"good", 1.0)
    cache.judge(good.key, good=True, verdict="good")
    cache.store(recipe(), "gait/policy", b"engine", 1.0)
    for _ in range(20):
        cache.used(recipe().key, "gait/policy", keep_starts=3)
    assert cache.plan(good.key) == b"good"


def test_pruning_deletes_what_it_is_told_and_left_overs(cache):
    for model in (b"keep", b"drop"):
        cache.store(recipe(model=model), "gait/policy", b"engine", 1.0)
    (cache.folder / "tmpabc.part").write_bytes(b"12345")
    (cache.folder / f"{'0' * 64}.plan").write_bytes(b"half")
    dropped = recipe(model=b"drop").key
    size = (cache.folder / f"{dropped}.json").stat().st_size
    assert cache.prune(lambda record: record.key == dropped) == (1, size + 6 + 5 + 4)
    assert [record.key for record in cache.records()] == [recipe(model=b"keep").key]
    assert not list(cache.folder.glob("*.part"))


def test_pruning_leaves_half_written_files_alone_while_somebody_builds(cache):
    half = cache.folder / f"{'0' * 64}.plan"
    half.write_bytes(b"half")
    with cache.building(lambda: None):
        cache.prune(lambda record: False)
        assert half.exists()
    cache.prune(lambda record: False)
    assert not half.exists()


def test_timings_belong_to_the_device_and_not_to_the_network(cache):
    cache.store_timings(recipe(), b"timings")
    assert cache.timings(recipe(model=b"another", options=BuildOptions(tf32=True))) == b"timings"
    assert cache.timings(recipe(toolkit=("tensorrt", "11.4.0"))) == b""
    assert cache.timings(recipe(device=other(name="Orin NX"))) == b""
