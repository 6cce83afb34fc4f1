"""CUDA through NVIDIA's `cuda-bindings`: memory, one stream, graphs.

Only the runtime interface is used: without a driver its calls answer with an error code, where the
driver interface raises and TensorRT ends the process. Call order of a capture and the mapped
memory of integrated GPUs as in the CUDA C++ Programming Guide, "CUDA Graphs" and "Mapped Memory".
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krabby.policy.tensorrt.device import Buffer, Device, Graph
from krabby.policy.tensorrt.errors import CaptureFailed, DeviceError, NoDevice

__all__ = ["CudaBindings"]

_FLOAT_BYTES = 4


class CudaBindings:
    """`krabby.policy.tensorrt.device.DeviceApi`."""

    def __init__(self) -> None:
        try:
            self._rt: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise NoDevice(
                f"cuda-bindings cannot be imported ({error}); install it with: pip install "
                "krabby[tensorrt]"
            ) from error

    def describe(self) -> Device:
        """The first GPU."""
        rt = self._rt
        error, count = rt.cudaGetDeviceCount()
        if error != rt.cudaError_t.cudaSuccess or not count:
            raise NoDevice(
                f"no GPU: CUDA says {_text(rt, error) if count is None else 'there is none'}; "
                "install the driver, or start the container with runtime: nvidia"
            )
        properties = _check(rt, rt.cudaGetDeviceProperties(0))
        return Device(
            name=properties.name.decode(errors="replace").rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver_version=_version(_check(rt, rt.cudaDriverGetVersion())),
            runtime_version=_version(_check(rt, rt.cudaRuntimeGetVersion())),
            memory_bytes=int(properties.totalGlobalMem),
            integrated=bool(properties.integrated),
        )

    def open(self) -> CudaBuffers:
        """A new stream on the first GPU."""
        rt = self._rt
        _check(rt, rt.cudaSetDevice(0))
        attributes = rt.cudaDeviceAttr
        integrated, mappable = (
            _check(rt, rt.cudaDeviceGetAttribute(attribute, 0))
            for attribute in (
                attributes.cudaDevAttrIntegrated,
                attributes.cudaDevAttrCanMapHostMemory,
            )
        )
        return CudaBuffers(rt, shared=bool(integrated and mappable))


class CudaBuffers:
    """`krabby.policy.tensorrt.device.DeviceBuffers`."""

    def __init__(self, rt: Any, *, shared: bool) -> None:
        self._rt = rt
        self.shared = shared
        self._release = contextlib.ExitStack()
        # Not the default stream: that one waits for all others, and cannot be captured.
        handle = _check(rt, rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking))
        self._handle = handle
        self.stream = int(handle)
        self._release.callback(rt.cudaStreamDestroy, handle)

    def allocate(self, shape: tuple[int, ...]) -> Buffer:
        """Page-locked memory, and as much on the GPU unless the two are one."""
        rt, size = self._rt, math.prod(shape) * _FLOAT_BYTES
        flags = rt.cudaHostAllocMapped if self.shared else rt.cudaHostAllocDefault
        pinned = int(_check(rt, rt.cudaHostAlloc(size, flags)))
        self._release.callback(rt.cudaFreeHost, pinned)
        host = _as_array(pinned, shape)
        host[...] = 0.0
        if self.shared:
            return Buffer(host, int(_check(rt, rt.cudaHostGetDevicePointer(pinned, 0))))
        address = int(_check(rt, rt.cudaMalloc(size)))
        self._release.callback(rt.cudaFree, address)
        buffer = Buffer(host, address)
        self.upload(buffer)
        return buffer

    def upload(self, buffer: Buffer) -> None:
        """Host to device."""
        if not self.shared:
            kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._copy(buffer.address, buffer.host.ctypes.data, buffer.host.nbytes, kind)

    def download(self, buffer: Buffer) -> None:
        """Device to host."""
        if not self.shared:
            kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._copy(buffer.host.ctypes.data, buffer.address, buffer.host.nbytes, kind)

    def synchronize(self) -> None:
        """Wait for the stream."""
        _check(self._rt, self._rt.cudaStreamSynchronize(self._handle))

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record; another thread's calls do not disturb it."""
        rt = self._rt
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            _check(rt, rt.cudaStreamBeginCapture(self._handle, mode))
        except DeviceError as error:
            raise CaptureFailed(f"a CUDA graph could not be begun: {error}") from error
        problem: DeviceError | None = None
        try:
            enqueue()
        except DeviceError as error:
            problem = error
        # Also after a failure: a stream that is left capturing cannot be used for anything else.
        code, graph = rt.cudaStreamEndCapture(self._handle)
        if problem is not None or code != rt.cudaError_t.cudaSuccess:
            rt.cudaGetLastError()  # not an error of the next call
            raise CaptureFailed(f"a CUDA graph could not be recorded: {problem or _text(rt, code)}")
        try:
            launchable = _check(rt, rt.cudaGraphInstantiate(graph, 0))
        except DeviceError as error:
            raise CaptureFailed(f"a CUDA graph could not be made: {error}") from error
        finally:
            rt.cudaGraphDestroy(graph)
        self._release.callback(rt.cudaGraphExecDestroy, launchable)
        return lambda: _check(rt, rt.cudaGraphLaunch(launchable, self._handle))

    def close(self) -> None:
        """Free everything, newest first."""
        self._release.close()

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        _check(self._rt, self._rt.cudaMemcpyAsync(to, source, size, kind, self._handle))


def _check(rt: Any, answer: tuple[Any, ...]) -> Any:
    """The one result of a call, or None; its error code first."""
    code, *results = answer
    if code != rt.cudaError_t.cudaSuccess:
        raise DeviceError(f"CUDA error {int(code)} ({_text(rt, code)}); see dmesg and nvidia-smi")
    return results[0] if results else None


def _text(rt: Any, code: Any) -> str:
    return rt.cudaGetErrorString(code)[1].decode()


def _version(number: int) -> str:
    """13020 is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _as_array(address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    memory = (ctypes.c_float * math.prod(shape)).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)
