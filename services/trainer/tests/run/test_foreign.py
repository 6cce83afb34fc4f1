"""Files that are no checkpoints of this trainer are named for what they are."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import torch
from krabby.robot.assets import assets_dir
from krabby_trainer.errors import CheckpointDamaged, CheckpointError
from krabby_trainer.run import checkpoints


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a")


def _tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())


def _onnx(path):
    graph = onnx.helper.make_graph([], "g", [], [])
    path.write_bytes(onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString())


def _safetensors(path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


_FILES = {
    "rsl-rl's own runner": lambda path: torch.save(
        {"model_state_dict": {"actor.0.weight": torch.zeros(2)}, "iter": 5, "infos": None}, path
    ),
    "weights of a network alone": lambda path: torch.save({"a.weight": torch.zeros(2)}, path),
    "a single tensor": lambda path: torch.save(torch.zeros(2), path),
    "a list written by torch": lambda path: torch.save([1], path),
    "TorchScript": lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
    "a zip archive": _zip,
    "a tar archive": _tar,
    "a gzip archive": lambda path: path.write_bytes(gzip.compress(b"a")),
    "a text file": lambda path: path.write_text("Krabbe läuft\n"),
    "a JSON file": lambda path: path.write_text(json.dumps({"a": 1})),
    "an empty file": lambda path: path.write_bytes(b""),
    "an ONNX network": _onnx,
    "a NumPy archive": lambda path: np.savez(path.open("wb"), a=np.zeros(2)),
    "a NumPy array": lambda path: np.save(path.open("wb"), np.zeros(2)),
    "a safetensors file": _safetensors,
    "a pickle of Python objects": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
    "an MCAP recording": lambda path: path.write_bytes(b"\x89MCAP0\r\n"),
    "an unknown kind": lambda path: path.write_bytes(bytes(range(256))),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", _FILES)
def test_a_foreign_file_is_named(tmp_path, kind):
    path = tmp_path / "model_5.pt"
    _FILES[kind](path)
    with pytest.raises(CheckpointError) as refused:
        checkpoints.load(path)
    assert not isinstance(refused.value, CheckpointDamaged)
    assert f"{path} is not a checkpoint of this trainer but " in str(refused.value)
    assert kind in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_bundles_folder_names_the_checkpoint_it_came_from():
    folder = assets_dir() / "policies" / "teacher"
    with pytest.raises(CheckpointError) as refused:
        checkpoints.load(folder)
    assert "the folder of a policy bundle" in str(refused.value)
    named = str(refused.value).partition("exported from ")[2].partition(";")[0]
    assert checkpoints.load(type(folder)(named))["config"]["task"] == "teacher"


def test_half_of_an_archive_is_damaged_not_foreign(tmp_path):
    path = tmp_path / "kept.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CheckpointDamaged):
        checkpoints.load(path)
