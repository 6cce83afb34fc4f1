"""Operations that make the host wait for the device, counted while code runs.

A value read on the host stops the queue of kernels until the device has computed it, and cannot be
recorded as a CUDA graph. The count works on the CPU too, where such an operation costs nothing:
a test without a GPU notices it.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostReads"]

_READS: Final = frozenset(
    {
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
        *("nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique2", "bincount"),
    }
)
"""Their results, or the shapes of their results, depend on values."""
_COPIES: Final = frozenset({"_to_copy", "copy_"})
_FROM_NUMBERS: Final = frozenset({"tensor", "as_tensor"})
"""Tensors from Python numbers: on CUDA, a copy from pageable memory that waits for the queue."""
_METHODS: Final = frozenset({"cpu", "numpy", "tolist"})
"""Read by `_to_copy`, but where the tensor is on the CPU already without any operation."""


class HostReads:
    """Counts host reads within a `with` block, by operation and place in this package.

    Counted: scalars read (`item`, `float`, `if tensor`), shapes that depend on values (`nonzero`,
    boolean indices), copies between devices, and tensors made from Python numbers.
    """

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        """Host reads by "operation at file:line"."""
        self._stack = contextlib.ExitStack()

    @property
    def total(self) -> int:
        return self.places.total()

    def __enter__(self) -> Self:
        self._stack.enter_context(_Functions(self.places))
        self._stack.enter_context(_Operations(self.places))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class _Functions(TorchFunctionMode):
    """Counts what is no operation: reads of a CPU tensor, and tensors from Python numbers."""

    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        given = isinstance(first, Tensor)
        if name in (_METHODS if given else _FROM_NUMBERS) and (not given or first.is_cpu):
            self._places[f"{name} at {_place()}"] += 1
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Counts operations whose results the host waits for."""

    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if _is_read(name, args, kwargs or {}, result):
            self._places[f"{name} at {_place()}"] += 1
        return result


def _is_read(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    if name in _READS:
        return True
    if name in _COPIES:
        source = args[1] if name == "copy_" else args[0]
        return isinstance(result, Tensor) and source.device != result.device
    if name in ("index", "index_put", "index_put_"):
        masks = [i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]]
        # A Python number is filled in under a mask, and copied to the device for indices.
        is_number = name != "index" and args[2].dim() == 0
        return any(masks) != is_number
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name == "normal":  # checks that no deviation is negative
        return isinstance(args[1], Tensor)
    return False


_PACKAGE: Final = str(Path(__file__).parent)


def _place() -> str:
    """The innermost line of this package that runs, else the innermost outside of torch."""
    frame = sys._getframe(1)
    outside = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__:
            if file.startswith(_PACKAGE):
                return f"{file[len(_PACKAGE) + 1 :]}:{frame.f_lineno}"
            if not outside and "/torch/" not in file:
                outside = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return outside
