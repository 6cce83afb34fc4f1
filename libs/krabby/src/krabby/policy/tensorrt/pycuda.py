"""CUDA through `pycuda`: the alternative where cuda-bindings has no wheel.

It is compiled on the robot, or in an image with CUDA's headers: pip install
krabby[pycuda]. It offers no capture of a stream, so steps are launched one by one.
Names as in the reference of PyCUDA's `driver` module.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from krabby.policy.tensorrt.device import Buffer, Device, Graph
from krabby.policy.tensorrt.errors import CaptureFailed, DeviceError, NoDevice

__all__ = ["Pycuda"]


class Pycuda:
    """`krabby.policy.tensorrt.device.DeviceApi`."""

    def __init__(self) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise NoDevice(
                f"pycuda cannot be imported ({error}); compile it where CUDA is, with: pip install "
                "krabby[pycuda], or set inference.device_api to cuda-bindings"
            ) from error

    def describe(self) -> Device:
        """The first GPU."""
        device = self._device()
        major, minor = device.compute_capability()
        driver = self._cuda.get_driver_version()
        return Device(
            name=device.name(),
            compute_capability=f"{major}.{minor}",
            driver_version=f"{driver // 1000}.{driver % 1000 // 10}",
            runtime_version=".".join(str(part) for part in self._cuda.get_version()[:2]),
            memory_bytes=device.total_memory(),
            integrated=self._attribute(device, "INTEGRATED"),
        )

    def open(self) -> PycudaBuffers:
        """A new stream in the context that TensorRT uses too."""
        device = self._device()
        shared = self._attribute(device, "INTEGRATED") and self._attribute(
            device, "CAN_MAP_HOST_MEMORY"
        )
        return PycudaBuffers(self._cuda, device.retain_primary_context(), shared=shared)

    def _device(self) -> Any:
        try:
            self._cuda.init()
            return self._cuda.Device(0)
        except self._cuda.Error as error:
            raise NoDevice(
                f"no GPU: {error}; install the driver, or start the container with runtime: nvidia"
            ) from error

    def _attribute(self, device: Any, name: str) -> bool:
        return bool(device.get_attribute(getattr(self._cuda.device_attribute, name)))


class PycudaBuffers:
    """`krabby.policy.tensorrt.device.DeviceBuffers`."""

    def __init__(self, cuda: Any, context: Any, *, shared: bool) -> None:
        self._cuda = cuda
        self._context = context
        self.shared = shared
        self._memory: list[Any] = []
        with self._current():
            self._stream: Any = cuda.Stream()
        self.stream = int(self._stream.handle)

    def allocate(self, shape: tuple[int, ...]) -> Buffer:
        """Page-locked memory, and as much on the GPU unless the two are one."""
        cuda = self._cuda
        with self._current():
            flags = cuda.host_alloc_flags.DEVICEMAP if self.shared else 0
            host = cuda.pagelocked_empty(shape, np.float32, mem_flags=flags)
            host[...] = 0.0
            mapped = host.base.get_device_pointer() if self.shared else None
            device = cuda.mem_alloc(host.nbytes) if mapped is None else mapped
            self._memory += [host, device]
        buffer = Buffer(host, int(device))
        self.upload(buffer)
        return buffer

    def upload(self, buffer: Buffer) -> None:
        """Host to device."""
        if not self.shared:
            with self._current():
                self._cuda.memcpy_htod_async(buffer.address, buffer.host, self._stream)

    def download(self, buffer: Buffer) -> None:
        """Device to host."""
        if not self.shared:
            with self._current():
                self._cuda.memcpy_dtoh_async(buffer.host, buffer.address, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        with self._current():
            self._stream.synchronize()

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Not here."""
        raise CaptureFailed("pycuda records no graphs; cuda-bindings does")

    def close(self) -> None:
        """Free everything."""
        with self._current():
            self._memory.clear()
            self._stream = None

    @contextlib.contextmanager
    def _current(self) -> Any:
        """PyCUDA's calls need a current context, and raise errors of their own."""
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            raise DeviceError(f"CUDA: {error}; see dmesg and nvidia-smi") from error
        finally:
            self._context.pop()
