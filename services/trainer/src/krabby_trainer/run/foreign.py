"""Names what a file or folder is that is no checkpoint of this trainer."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any, Final

__all__ = ["named"]

_MAGIC: Final = (
    (b"\x89MCAP0", "an MCAP recording"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "a picture"),
    (b"PXR-USDC", "a USD file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file"),
)


def named(path: Path) -> str:
    """What `path` is, with an article; empty when it may be a checkpoint, damaged or not."""
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        head = file.read(4096)
        size = file.seek(0, 2)
    if not head:
        return "an empty file"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if zipfile.is_zipfile(path):
        return _archive(path)
    if head.startswith(b"PK"):
        return ""  # the beginning of an archive: perhaps of a checkpoint
    if head[:1] == b"\x08" and (path.suffix == ".onnx" or b"onnx" in head or b"pytorch" in head):
        return "an ONNX network; an exported policy cannot be trained on"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "a safetensors file"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a pickle of Python objects"
    return _text(head) or "a file of an unknown kind"


def _folder(path: Path) -> str:
    if (path / "manifest.json").is_file():
        near = sorted((path / "training").glob("*.pt"))
        hint = f"; it was exported from {near[0]}" if near else ""
        return f"the folder of a policy bundle{hint}"
    return "a folder"


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except zipfile.BadZipFile:
        return ""
    if "constants.pkl" in names:
        return "a TorchScript program"
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (npz)"
    if "data.pkl" not in names:
        return "a zip archive"
    return _torch(path)


def _torch(path: Path) -> str:
    """What a file of `torch.save` holds, if not a checkpoint of this trainer."""
    import torch

    try:
        held: Any = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError:
        return ""  # told by the reader, with what was refused
    except Exception:
        return ""
    if isinstance(held, torch.Tensor):
        return "a single tensor"
    if not isinstance(held, dict):
        return f"a {type(held).__name__} written by torch"
    if "format" in held and "algorithm" in held:
        return ""
    if "iter" in held and {"model_state_dict", "actor_state_dict"} & held.keys():
        return "a checkpoint of rsl-rl's own runner"
    if {"policy", "optimizer"} <= held.keys() or "preprocessor" in str(list(held)):
        return "a checkpoint of another library (skrl)"
    if "state_dict" in held and "pytorch-lightning_version" in held:
        return "a checkpoint of PyTorch Lightning"
    if held and all(isinstance(value, torch.Tensor) for value in held.values()):
        return "the weights of a network alone (a state_dict)"
    if {"robot", "step"} <= held.keys():
        return "a dump of replaced robots"
    return ""


def _text(head: bytes) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return ""
        text = head[: error.start].decode("utf-8")
    if any(ord(each) < 32 and each not in "\t\r\n\f" for each in text):
        return ""
    try:
        json.loads(text)
    except ValueError:
        return "a text file"
    return "a JSON file"
