"""The seam to the GPU's memory and streams: `cuda_bindings`, `pycuda_buffers`, or a fake."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["DEVICE_APIS", "Buffer", "Device", "DeviceApi", "DeviceBuffers", "Graph", "resolve"]

DEVICE_APIS: Final = {
    "cuda-bindings": "krabby.policy.tensorrt.cuda:CudaBindings",
    "pycuda": "krabby.policy.tensorrt.pycuda:Pycuda",
}
"""By the name in the configuration, what `resolve` takes."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU and what drives it. An engine is good for exactly one of these."""

    name: str
    compute_capability: str
    """As in "8.7"."""
    driver_version: str
    """CUDA version of the driver, as in "13.2"."""
    runtime_version: str
    """Version of the CUDA runtime in use."""
    memory_bytes: int
    integrated: bool
    """Whether it shares its memory with the processor, as Orin does."""


@dataclass(frozen=True, eq=False)
class Buffer:
    """A float32 tensor at two places, or at one that both sides see."""

    host: NDArray[np.float32]
    """The processor's side, page-locked."""
    address: int
    """Of the GPU's side."""


Graph = Callable[[], object]
"""Recorded work: a call enqueues all of it on the stream it was recorded from."""


class DeviceBuffers(Protocol):
    """One stream, and memory that is used on it. Everything is freed by `close`.

    Failing calls raise `DeviceError`.
    """

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        ...

    @property
    def shared(self) -> bool:
        """Whether both sides see the same memory, so that nothing has to be copied."""
        ...

    def allocate(self, shape: tuple[int, ...]) -> Buffer:
        """A buffer of zeros."""
        ...

    def upload(self, buffer: Buffer) -> None:
        """Enqueue the copy from the processor to the GPU; nothing where memory is shared."""
        ...

    def download(self, buffer: Buffer) -> None:
        """Enqueue the copy back; nothing where memory is shared."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was enqueued is done."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """A graph of what `enqueue` enqueues; nothing of it is run.

        Raises:
            CaptureFailed: It cannot be recorded; the stream is usable as before.
        """
        ...

    def close(self) -> None:
        """Free stream, memory and graphs. Calling it again does nothing."""
        ...


class DeviceApi(Protocol):
    """A way to reach the GPU."""

    def describe(self) -> Device:
        """The GPU in use.

        Raises:
            NoDevice: There is none, or no driver, or the Python package is missing.
        """
        ...

    def open(self) -> DeviceBuffers:
        """A new stream with memory."""
        ...


def resolve(reference: str) -> Callable[[], object]:
    """The class that "package.module:Class" names; a process tells another what to use so."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
