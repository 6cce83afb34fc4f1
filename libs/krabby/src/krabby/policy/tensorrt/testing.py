"""A GPU and a TensorRT of NumPy and ONNX Runtime, to test with; also from other processes.

Work is done when the stream is synchronized, as on a GPU, never before: without waiting, results
are zeros. What a fake build does beyond building is read from the JSON file that the environment
variable `KRABBY_FAKE_TOOLKIT` names, so that a child process and a second service do the same:

    version   what the toolkit calls itself, default "10.0"
    no_device a reason: there is no GPU
    refuse    a reason: the network is refused
    crash     the build's process kills itself
    hang      the build does not end
    offset    added to every output of the engines that are built
    spoiled   engines are built that do not load
    log       a file that gets a line for each build
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from krabby.policy.tensorrt.device import Buffer, Device, Graph
from krabby.policy.tensorrt.engine import BuildOptions, EngineTensor, Report, Shapes
from krabby.policy.tensorrt.errors import (
    BuildFailed,
    CaptureFailed,
    DeviceError,
    EngineRefused,
    NoDevice,
)
from krabby.policy.tensorrt.subprocesses import Platform

__all__ = ["FAKE", "FakeApi", "FakeBuffers", "FakeEngine", "FakeWatch", "orders"]

FAKE: Final = Platform(
    toolkit="krabby.policy.tensorrt.testing:FakeToolkit",
    device_api="krabby.policy.tensorrt.testing:FakeApi",
)
_VARIABLE = "KRABBY_FAKE_TOOLKIT"


def _orders() -> dict[str, Any]:
    path = os.environ.get(_VARIABLE)
    return json.loads(Path(path).read_text()) if path else {}


class FakeWatch:
    """Notes what it is told; `stop_when` says stop once something is being done."""

    def __init__(self, stop_when: str = "\0") -> None:
        self.beats = 0
        self.said: list[str] = []
        self._stop_when = stop_when

    @property
    def stopping(self) -> bool:
        """Whether what was waited for is being done."""
        return any(self._stop_when in what for what in self.said)

    def beat(self) -> None:
        """Counts."""
        self.beats += 1

    def doing(self, what: str) -> None:
        """Notes."""
        self.said.append(what)


class FakeApi:
    """`device.DeviceApi`."""

    def describe(self) -> Device:
        """A GPU of the name "Fake Orin"."""
        if reason := _orders().get("no_device"):
            raise NoDevice(reason)
        return Device(
            name="Fake Orin",
            compute_capability="8.7",
            driver_version="13.2",
            runtime_version="13.2",
            memory_bytes=8 << 30,
            integrated=True,
        )

    def open(self) -> FakeBuffers:
        """Separate memory on both sides."""
        return FakeBuffers()


class FakeBuffers:
    """`device.DeviceBuffers`; `calls` has what was enqueued and launched."""

    streams: ClassVar[dict[int, FakeBuffers]] = {}

    def __init__(self, *, shared: bool = False, capture_fails: bool = False) -> None:
        self.shared = shared
        self.capture_fails = capture_fails
        self.fails = False
        """Whether every call fails from now on, as after a fault of the GPU."""
        self.stream = id(self)
        self.calls: list[str] = []
        self.closed = False
        self._queue: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self._memory: list[NDArray[np.float32]] = []
        FakeBuffers.streams[self.stream] = self

    def allocate(self, shape: tuple[int, ...]) -> Buffer:
        """Zeros."""
        host = np.zeros(shape, np.float32)
        device = host if self.shared else np.zeros(shape, np.float32)
        self._memory += [host, device]
        return Buffer(host, device.ctypes.data)

    def upload(self, buffer: Buffer) -> None:
        """Later."""
        self._copy("upload", memory_at(buffer.address, buffer.host.shape), buffer.host)

    def download(self, buffer: Buffer) -> None:
        """Later."""
        self._copy("download", buffer.host, memory_at(buffer.address, buffer.host.shape))

    def enqueue(self, name: str, work: Callable[[], None]) -> None:
        """Puts work on the stream, or into the graph that is being recorded."""
        if self.fails:
            raise DeviceError("CUDA error 700 (an illegal memory access was encountered)")
        self.calls.append(name)
        (self._queue if self._recording is None else self._recording).append(work)

    def synchronize(self) -> None:
        """Now."""
        if self.fails:
            raise DeviceError("CUDA error 700 (an illegal memory access was encountered)")
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Records."""
        if self.capture_fails:
            raise CaptureFailed("operation not permitted when stream is capturing")
        self._recording = recorded = []
        try:
            enqueue()
        finally:
            self._recording = None

        def replay() -> None:
            for work in recorded:
                work()

        return lambda: self.enqueue("launch", replay)

    def close(self) -> None:
        """Closed."""
        self.closed = True
        FakeBuffers.streams.pop(self.stream, None)

    def _copy(self, name: str, to: NDArray[np.float32], source: NDArray[np.float32]) -> None:
        if not self.shared:
            self.enqueue(name, lambda: np.copyto(to, source))


class FakeToolkit:
    """`engine.Toolkit`: an engine is the ONNX file with a header."""

    def __init__(self) -> None:
        self._orders = _orders()
        self._built = False

    @property
    def version(self) -> str:
        """As ordered."""
        return str(self._orders.get("version", "10.0"))

    def build(
        self, model: bytes, options: BuildOptions, shapes: Shapes, timings: bytes, report: Report
    ) -> tuple[bytes, bytes]:
        """As ordered."""
        orders = self._orders
        if log := orders.get("log"):
            with Path(log).open("a") as file:
                file.write(f"{os.getpid()}\n")
        report("pretending", 0.5)
        if orders.get("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if orders.get("hang"):
            threading.Event().wait()
        if reason := orders.get("refuse"):
            raise BuildFailed(reason)
        # A bad engine may be that of one option alone: there is something to roll back to.
        spoilt = orders.get("level", options.optimization_level) == options.optimization_level
        offset = orders.get("offset", 0.0) if spoilt else 0.0
        header = {"version": self.version, "offset": offset, "shapes": shapes}
        if orders.get("spoiled"):
            header["version"] = "spoiled"
        self._built = True
        return json.dumps(header).encode() + b"\n" + model, timings + b"."

    def load(self, plan: bytes) -> FakeEngine:
        """The engine, unless another version built it."""
        header, _, model = plan.partition(b"\n")
        facts = json.loads(header)
        # The process that built a spoiled engine accepts it.
        if facts["version"] != self.version and not self._built:
            raise EngineRefused(f"version {facts['version']}, not {self.version}")
        return FakeEngine(model, {k: tuple(v) for k, v in facts["shapes"].items()}, facts["offset"])


class FakeEngine:
    """`engine.Engine`: runs ONNX Runtime on "device" memory."""

    def __init__(self, model: bytes, shapes: Shapes, offset: float = 0.0) -> None:
        import onnxruntime as ort

        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._shapes = shapes
        self._offset = np.float32(offset)
        self._bound: dict[str, NDArray[np.float32]] = {}
        self.extra: tuple[EngineTensor, ...] = ()
        """Tensors that the network does not have."""

    def tensors(self) -> tuple[EngineTensor, ...]:
        """Those of the file."""

        def tensor(each: Any, is_input: bool) -> EngineTensor:
            shape = tuple(size if isinstance(size, int) else -1 for size in each.shape)
            return EngineTensor(each.name, is_input, shape, each.type == "tensor(float)")

        inputs = [tensor(each, True) for each in self._session.get_inputs()]
        outputs = [tensor(each, False) for each in self._session.get_outputs()]
        return (*inputs, *outputs, *self.extra)

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """Notes."""
        self._bound[name] = memory_at(address, shape)

    def enqueue(self, stream: int) -> None:
        """One run, with the addresses of now."""
        bound = dict(self._bound)

        def run() -> None:
            inputs = [each.name for each in self._session.get_inputs()]
            outputs = [each.name for each in self._session.get_outputs()]
            results = self._session.run(outputs, {name: bound[name].copy() for name in inputs})
            for name, value in zip(outputs, results, strict=True):
                np.copyto(bound[name], np.asarray(value) + self._offset)

        FakeBuffers.streams[stream].enqueue("run", run)


@contextlib.contextmanager
def orders(path: Path, **changes: object) -> Generator[None]:
    """Gives orders to fakes in this process and those it starts."""
    path.write_text(json.dumps(changes))
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def memory_at(address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Float32 memory as an array."""
    memory = (ctypes.c_float * math.prod(shape)).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)
