"""CUDA's calls: their order, arguments and results, with and without a GPU.

Where there is no driver, every call goes to the real cuda-bindings first, which checks its
arguments and answers "insufficient driver"; a simulation then gives the result that a GPU would.
Where there is a GPU, the last tests run on it, with pycuda too where it was compiled.
"""

import ctypes
import importlib.util
import itertools
import sys
import types

import numpy as np
import pytest
from cuda.bindings import runtime as real
from krabby.policy.tensorrt.cuda import CudaBindings, CudaBuffers
from krabby.policy.tensorrt.device import Buffer
from krabby.policy.tensorrt.engine import EngineTensor
from krabby.policy.tensorrt.errors import CaptureFailed, DeviceError, NoDevice
from krabby.policy.tensorrt.network import EngineNetwork
from krabby.policy.tensorrt.pycuda import Pycuda

SUCCESS = real.cudaError_t.cudaSuccess
GPU = real.cudaGetDeviceCount()[0] == SUCCESS
without_gpu = pytest.mark.skipif(GPU, reason="this machine has a GPU")
with_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
with_pycuda = pytest.mark.skipif(
    not GPU or importlib.util.find_spec("pycuda") is None,
    reason="needs a GPU and pycuda: pip install krabby[pycuda] where nvcc is",
)


class Simulated:
    """A runtime of NumPy behind the real one's argument checks."""

    def __init__(self, integrated=False, fails=()):
        self.calls = []
        self.memory = {}
        self.queue = []
        self.recording = None
        self.graphs = {}
        self.integrated = integrated
        self.fails = set(fails)
        self._handles = itertools.count(0x1000, 0x10)

    def __getattr__(self, name):
        attribute = getattr(real, name)
        if not callable(attribute) or not name.startswith("cuda") or isinstance(attribute, type):
            return attribute

        def call(*arguments):
            answer = attribute(*arguments)  # a TypeError shows a wrong argument
            self.calls.append(name)
            if name in self.fails:
                return (real.cudaError_t.cudaErrorInvalidValue, *(None for _ in answer[1:]))
            if name == "cudaGetErrorString":
                return answer
            result = getattr(self, f"_{name}", lambda *_: None)(*arguments)
            results = () if len(answer) == 1 else (result,)
            assert len(answer) == 1 + len(results)
            return (SUCCESS, *results)

        return call

    def new(self, size):
        memory = np.full(size, 0xFF, np.uint8)
        self.memory[memory.ctypes.data] = memory
        return memory.ctypes.data

    def do(self, work):
        (self.queue if self.recording is None else self.recording).append(work)

    def _cudaGetDeviceCount(self):
        return 1

    def _cudaGetDeviceProperties(self, device):
        found = real.cudaDeviceProp()
        found.name, found.major, found.minor = b"Orin".ljust(256, b"\0"), 8, 7
        found.totalGlobalMem, found.integrated = 8 << 30, int(self.integrated)
        return found

    def _cudaDriverGetVersion(self):
        return 13020

    def _cudaRuntimeGetVersion(self):
        return 12060

    def _cudaDeviceGetAttribute(self, attribute, device):
        return int(self.integrated or attribute != real.cudaDeviceAttr.cudaDevAttrIntegrated)

    def _cudaStreamCreateWithFlags(self, flags):
        assert flags == real.cudaStreamNonBlocking
        return real.cudaStream_t(next(self._handles))

    def _cudaHostAlloc(self, size, flags):
        assert flags == (real.cudaHostAllocMapped if self.integrated else 0)
        return self.new(size)

    def _cudaMalloc(self, size):
        return self.new(size)

    def _cudaHostGetDevicePointer(self, pointer, flags):
        return pointer

    def _cudaFree(self, pointer):
        del self.memory[pointer]

    def _cudaFreeHost(self, pointer):
        del self.memory[pointer]

    def _cudaMemcpyAsync(self, to, source, size, kind, stream):
        self.do(lambda: ctypes.memmove(to, source, size))

    def _cudaStreamSynchronize(self, stream):
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def _cudaStreamBeginCapture(self, stream, mode):
        self.recording = []

    def _cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        handle = next(self._handles)
        self.graphs[handle] = recorded
        return real.cudaGraph_t(handle)

    def _cudaGraphInstantiate(self, graph, flags):
        handle = next(self._handles)
        self.graphs[handle] = self.graphs[int(graph)]
        return real.cudaGraphExec_t(handle)

    def _cudaGraphLaunch(self, graph, stream):
        for work in self.graphs[int(graph)]:
            self.do(work)


@pytest.fixture
def simulated(monkeypatch):
    def make(**kind):
        api = CudaBindings()
        api._rt = Simulated(**kind)
        return api, api._rt

    return make


@without_gpu
def test_without_a_driver_there_is_a_reason_and_a_remedy():
    with pytest.raises(NoDevice, match=r"driver version is insufficient.*install the driver"):
        CudaBindings().describe()
    with pytest.raises(DeviceError, match="CUDA error 35"):
        CudaBindings().open()


def test_without_the_package_there_is_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(NoDevice, match=r"pip install krabby\[tensorrt\]"):
        CudaBindings()


@without_gpu
def test_a_device_is_described_by_what_engines_depend_on(simulated):
    api, _ = simulated(integrated=True)
    device = api.describe()
    assert (device.name, device.compute_capability) == ("Orin", "8.7")
    assert (device.driver_version, device.runtime_version) == ("13.2", "12.6")
    assert (device.memory_bytes, device.integrated) == (8 << 30, True)


@without_gpu
@pytest.mark.parametrize("integrated", [False, True])
def test_memory_goes_up_and_comes_down_and_all_of_it_is_freed(simulated, integrated):
    api, rt = simulated(integrated=integrated)
    buffers = api.open()
    assert isinstance(buffers, CudaBuffers)
    assert buffers.shared == integrated
    assert isinstance(buffers.stream, int)
    buffer = buffers.allocate((2, 3))
    buffers.synchronize()
    assert not buffer.host.any()
    buffer.host[...] = np.arange(6).reshape(2, 3)
    buffers.upload(buffer)
    buffers.synchronize()
    device = np.ctypeslib.as_array((ctypes.c_float * 6).from_address(buffer.address))
    assert device.tolist() == [0, 1, 2, 3, 4, 5]
    device[...] = 7.0
    buffers.download(buffer)
    buffers.synchronize()
    assert (buffer.host == 7.0).all()
    assert ("cudaMemcpyAsync" in rt.calls) == (not integrated)
    assert len(rt.memory) == (1 if integrated else 2)
    buffers.close()
    buffers.close()
    assert rt.memory == {}
    assert rt.calls.count("cudaStreamDestroy") == 1


@without_gpu
def test_a_graph_repeats_what_was_recorded_with_the_memory_of_then(simulated):
    api, rt = simulated()
    buffers = api.open()
    buffer = buffers.allocate((3,))
    buffers.synchronize()

    def work():
        buffers.upload(buffer)
        buffers.download(buffer)

    graph = buffers.capture(work)
    for value in (1.0, 2.0):
        buffer.host[...] = value
        graph()
        buffers.synchronize()
        device = np.ctypeslib.as_array((ctypes.c_float * 3).from_address(buffer.address))
        assert (device == value).all()
    buffers.close()
    assert {"cudaGraphDestroy", "cudaGraphExecDestroy"} <= set(rt.calls)


@without_gpu
@pytest.mark.parametrize(
    "failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_a_capture_that_fails_leaves_the_stream_usable(simulated, failing):
    api, rt = simulated()
    buffers = api.open()
    buffer = buffers.allocate((3,))
    rt.fails.add(failing)
    with pytest.raises(CaptureFailed):
        buffers.capture(lambda: buffers.upload(buffer))
    rt.fails.clear()
    rt.recording = None
    buffers.upload(buffer)
    buffers.synchronize()


@without_gpu
def test_an_error_while_recording_ends_the_recording(simulated):
    api, rt = simulated()
    buffers = api.open()

    def work():
        raise DeviceError("TensorRT could not enqueue")

    with pytest.raises(CaptureFailed, match="TensorRT could not enqueue"):
        buffers.capture(work)
    assert "cudaStreamEndCapture" in rt.calls
    assert rt.recording is None


@with_gpu
def test_on_this_gpu_memory_and_graphs_work():
    buffers = CudaBindings().open()
    first, second = buffers.allocate((64,)), buffers.allocate((64,))

    def work():
        buffers.upload(first)
        if not buffers.shared:
            kind = real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            size = first.host.nbytes
            buffers._copy(second.address, first.address, size, kind)
            buffers.download(second)

    work()
    buffers.synchronize()
    graph = buffers.capture(work)
    for value in range(5):
        first.host[...] = value
        graph()
        buffers.synchronize()
        assert buffers.shared or (second.host == value).all()
    buffers.close()


@with_gpu
def test_this_gpu_is_described():
    device = CudaBindings().describe()
    assert device.name
    assert float(device.compute_capability) >= 5.0
    assert device.memory_bytes > 1 << 30


class CopyEngine:
    """y = x on the GPU: a copy on the network's stream, in the context that TensorRT uses too."""

    def __init__(self):
        self.bound = {}

    def tensors(self):
        return (EngineTensor("x", True, (1, 3), True), EngineTensor("y", False, (1, 3), True))

    def bind(self, name, address, shape):
        self.bound[name] = address

    def enqueue(self, stream):
        kind = real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        to, source = self.bound["y"], self.bound["x"]
        (status,) = real.cudaMemcpyAsync(to, source, 12, kind, stream)
        assert status == SUCCESS


@pytest.mark.parametrize(
    ("api", "graphed"),
    [
        pytest.param(CudaBindings, True, marks=with_gpu),
        pytest.param(Pycuda, False, marks=with_pycuda),
    ],
)
def test_on_this_gpu_a_network_runs(api, graphed, double):
    network = EngineNetwork(double(gain=1.0), CopyEngine(), api().open())
    assert network.graphed == graphed
    for value in range(5):
        network.set_input("x", np.full((1, 3), value, np.float32))
        assert network.run().tolist() == [[value] * 3]
    network.close()


@with_pycuda
def test_pycuda_on_this_gpu_copies_there_and_back():
    buffers = Pycuda().open()
    first, second = buffers.allocate((64,)), buffers.allocate((64,))
    for value in range(5):
        first.host[...] = value
        buffers.upload(first)
        buffers.download(Buffer(second.host, first.address))
        buffers.synchronize()
        assert (second.host == value).all()
    with pytest.raises(CaptureFailed, match="cuda-bindings does"):
        buffers.capture(lambda: None)
    buffers.close()


@with_pycuda
def test_pycuda_describes_the_gpu_that_cuda_bindings_describe():
    found, wanted = Pycuda().describe(), CudaBindings().describe()
    assert (found.name, found.compute_capability) == (wanted.name, wanted.compute_capability)
    assert (found.memory_bytes, found.integrated) == (wanted.memory_bytes, wanted.integrated)
    assert found.driver_version == wanted.driver_version


# pycuda


class FakePycuda(types.ModuleType):
    """The part of pycuda.driver that is used, in NumPy."""

    class Error(Exception):
        pass

    def __init__(self, integrated=False, count=1):
        super().__init__("pycuda.driver")
        self.integrated, self.count, self.depth = integrated, count, 0
        self.device_attribute = types.SimpleNamespace(INTEGRATED=0, CAN_MAP_HOST_MEMORY=1)
        self.host_alloc_flags = types.SimpleNamespace(DEVICEMAP=2)
        fake = self

        class Context:
            def push(self):
                fake.depth += 1

            def pop(self):
                fake.depth -= 1

        class Device:
            def __init__(self, number):
                if number >= fake.count:
                    raise fake.Error("cuDeviceGet failed: invalid device ordinal")

            name = staticmethod(lambda: "Orin")
            compute_capability = staticmethod(lambda: (8, 7))
            total_memory = staticmethod(lambda: 8 << 30)
            retain_primary_context = staticmethod(Context)

            def get_attribute(self, attribute):
                return int(fake.integrated)

        class Stream:
            handle = 0x10

            def synchronize(self):
                assert fake.depth == 1

        self.Device, self.Stream = Device, Stream

    def init(self):
        pass

    def get_version(self):
        return (13, 2, 0)

    def get_driver_version(self):
        return 13020

    def pagelocked_empty(self, shape, dtype, mem_flags=0):
        assert self.depth == 1
        memory = np.empty(shape, dtype)
        if not mem_flags:
            return memory

        class Allocation:
            """What such an array's `base` is."""

            __array_interface__ = memory.__array_interface__

            def get_device_pointer(self):
                return memory.ctypes.data

        return np.asarray(Allocation())

    def mem_alloc(self, size):
        self.device_memory = np.empty(size, np.uint8)
        return self.device_memory.ctypes.data

    def memcpy_htod_async(self, to, source, stream):
        ctypes.memmove(to, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, to, source, stream):
        ctypes.memmove(to.ctypes.data, source, to.nbytes)


@pytest.fixture
def pycuda(monkeypatch):
    def install(**kind):
        module = FakePycuda(**kind)
        package = types.ModuleType("pycuda")
        package.driver = module
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", module)
        return module

    return install


def test_pycuda_is_the_alternative(pycuda):
    module = pycuda()
    api = Pycuda()
    assert api.describe().compute_capability == "8.7"
    assert api.describe().driver_version == "13.2"
    buffers = api.open()
    buffer = buffers.allocate((3,))
    buffer.host[...] = 5.0
    buffers.upload(buffer)
    buffer.host[...] = 0.0
    buffers.download(buffer)
    buffers.synchronize()
    assert buffer.host.tolist() == [5, 5, 5]
    with pytest.raises(CaptureFailed, match="cuda-bindings does"):
        buffers.capture(lambda: None)
    buffers.close()
    assert module.depth == 0


def test_pycuda_maps_memory_where_it_is_shared(pycuda):
    pycuda(integrated=True)
    buffers = Pycuda().open()
    buffer = buffers.allocate((3,))
    assert buffers.shared
    assert buffer.address == buffer.host.ctypes.data


def test_pycuda_without_a_gpu_or_not_installed_says_so(pycuda, monkeypatch):
    pycuda(count=0)
    with pytest.raises(NoDevice, match="invalid device ordinal; install the driver"):
        Pycuda().describe()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(NoDevice, match=r"pip install krabby\[pycuda\]"):
        Pycuda()
