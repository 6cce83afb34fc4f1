"""The tensors that an object and its parts hold, for a checkpoint; and back in the same memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

__all__ = ["restore", "tensors"]


def tensors(root: Any, *, without: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Every tensor below `root` by its path, as it is in memory.

    Attributes of this package's objects are followed, and members of dictionaries, lists and
    tuples; networks are not.

    Args:
        root: Where to begin.
        without: Names of attributes that are left out.
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()

    def walk(value: Any, path: str) -> None:
        if id(value) in seen or isinstance(value, torch.nn.Module):
            return
        if isinstance(value, torch.Tensor):
            seen.add(id(value))
            found[path] = value
            return
        if isinstance(value, dict):
            parts = {str(key): each for key, each in value.items()}
        elif isinstance(value, list | tuple):
            parts = {str(i): each for i, each in enumerate(value)}
        elif type(value).__module__.startswith("krabby_trainer"):
            parts = getattr(value, "__dict__", {})
        else:
            return
        seen.add(id(value))
        for name, each in parts.items():
            if name not in without:
                walk(each, f"{path}.{name}" if path else name)

    walk(root, "")
    return found


def restore(into: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> bool:
    """Copy what was saved into the tensors of the same paths; nothing if they do not fit.

    Returns:
        Whether all paths, shapes and types are the same.
    """
    fits = into.keys() == saved.keys() and all(
        value.shape == saved[path].shape and value.dtype == saved[path].dtype
        for path, value in into.items()
    )
    if fits:
        with torch.inference_mode():
            for path, value in into.items():
                value.copy_(saved[path])
    return fits
