"""TensorRT: the only module that touches its interface.

Everything it uses is there in TensorRT 10.3 (JetPack 6.2), 10.16 (JetPack 7.2) and 11.4, with the
same meaning; a test holds it to lists read off those versions' bindings. So networks are strongly
typed: precision is what the ONNX file says, never a builder flag (11 has none). TensorRT-RTX has
the same interface under another module name.

Never enter this without a driver: TensorRT then ends the process (`probe` asks first).
"""

from __future__ import annotations

import importlib
from typing import Any

import structlog

from krabby.policy.tensorrt.engine import BuildOptions, EngineTensor, Report, Shapes
from krabby.policy.tensorrt.errors import BuildFailed, DeviceError, EngineRefused, NoDevice

__all__ = ["TENSORRT", "TensorRt", "TensorRtRtx"]

log = structlog.get_logger(__name__)

TENSORRT = "krabby.policy.tensorrt.toolkit:TensorRt"
TENSORRT_RTX = "krabby.policy.tensorrt.toolkit:TensorRtRtx"
"""What `device.resolve` takes."""

_ERROR, _WARNING = 1, 2
"""Values of TensorRT's severities."""
_SAID: list[str] = []
"""Errors that TensorRT reported since a load began; a process has one logger, the first given."""
_MAX_SAID = 300


class TensorRt:
    """`krabby.policy.tensorrt.engine.Toolkit`."""

    module = "tensorrt"
    keeps_timings = True

    def __init__(self) -> None:
        try:
            trt: Any = importlib.import_module(self.module)
        except ImportError as error:
            raise NoDevice(
                f"{self.module} cannot be imported ({error}); it comes with JetPack or the base "
                "image, for that image's own Python"
            ) from error
        self._trt = trt
        self._logger = _logger(trt)  # TensorRT does not keep it alive

    @property
    def version(self) -> str:
        """As in "10.16.1.11"."""
        trt = self._trt
        return trt.__version__

    def parse(self, model: bytes) -> tuple[EngineTensor, ...]:
        """Inputs and outputs of a network, as the parser sees them; for checks without a GPU."""
        trt = self._trt
        _, network, _parser = self._parse(model)
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        return tuple(
            EngineTensor(tensor.name, side, tuple(tensor.shape), tensor.dtype == trt.DataType.FLOAT)
            for side, tensors in ((True, inputs), (False, outputs))
            for tensor in tensors
        )

    def build(
        self, model: bytes, options: BuildOptions, shapes: Shapes, timings: bytes, report: Report
    ) -> tuple[bytes, bytes]:
        """An engine, serialized."""
        trt = self._trt
        builder, network, _parser = self._parse(model)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        config.builder_optimization_level = options.optimization_level
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        if _set_shapes(network, profile, shapes):
            config.add_optimization_profile(profile)
        if self.keeps_timings:
            config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
        monitor = _monitor(trt, report)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildFailed(
                "TensorRT built no engine; what it said stands above. Run on onnxruntime, or "
                "export the network with other operators"
            )
        cache = config.get_timing_cache() if self.keeps_timings else None
        return bytes(plan), b"" if cache is None else bytes(cache.serialize())

    def load(self, plan: bytes) -> TensorRtEngine:
        """An engine with its own context."""
        trt = self._trt
        _SAID.clear()
        runtime = trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = _SAID[0] if _SAID else "it is damaged, or another TensorRT or GPU made it"
            raise EngineRefused(f"TensorRT {self.version} does not take the engine: {why}")
        return TensorRtEngine(trt, runtime, engine)

    def _parse(self, model: bytes) -> tuple[Any, Any, Any]:
        """Builder, network and parser, which owns the weights: keep all three until built."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # in 11 it always is
        )
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(model):
            problems = [parser.get_error(i) for i in range(parser.num_errors)]
            raise BuildFailed(
                "TensorRT cannot read the network: "
                + "; ".join(f"node {each.node()}: {each.desc()}" for each in problems)
                + ". Run on onnxruntime, or export it with other operators"
            )
        return builder, network, parser


class TensorRtRtx(TensorRt):
    """TensorRT for RTX: builds without a GPU, so that networks are checked where there is none.

    Its engines run on neither Orin nor Hopper: on an H200 it builds them and refuses to load them.
    """

    module = "tensorrt_rtx"
    keeps_timings = False  # any use of them asks for a GPU


class TensorRtEngine:
    """`krabby.policy.tensorrt.engine.Engine`."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        context = engine.create_execution_context()
        if context is None:
            raise EngineRefused("TensorRT cannot run the engine: most likely out of GPU memory")
        self._trt = trt
        self._runtime = runtime  # has to outlive the engine
        self._engine = engine
        self._context = context
        self._open = {each.name for each in self.tensors() if each.is_input and -1 in each.shape}

    def tensors(self) -> tuple[EngineTensor, ...]:
        """All inputs and outputs."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return tuple(
            EngineTensor(
                name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_dtype(name) == trt.DataType.FLOAT,
            )
            for name in names
        )

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """Where a tensor is."""
        context = self._context
        if name in self._open and not context.set_input_shape(name, shape):
            raise DeviceError(f"TensorRT refuses shape {shape} for {name!r}; export it fixed")
        if not context.set_tensor_address(name, address):
            raise DeviceError(f"TensorRT refuses the address of {name!r}")

    def enqueue(self, stream: int) -> None:
        """Put one run on a stream."""
        context = self._context
        if not context.execute_async_v3(stream):
            raise DeviceError("TensorRT could not enqueue the network; what it said stands above")


def _set_shapes(network: Any, profile: Any, shapes: Shapes) -> bool:
    """Fixes the inputs that the network leaves open; whether there was one."""
    found = False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            shape = shapes[tensor.name]
            profile.set_shape(tensor.name, shape, shape, shape)
            found = True
    return found


def _logger(trt: Any) -> Any:
    """Hands TensorRT's warnings and errors to our log."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if level <= _WARNING:
                say = log.error if level <= _ERROR else log.warning
                say("TensorRT says", detail=message)
            if level <= _ERROR:
                _SAID.append(message.strip()[:_MAX_SAID])

    return Logger()


def _monitor(trt: Any, report: Report) -> Any:
    """Turns TensorRT's nested phases into one share of work done."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self.phases.start(phase, num_steps)
            report(phase, self.phases.share)

        def step_complete(self, phase: str, step: int) -> bool:
            self.phases.step(phase, step)
            report(phase, self.phases.share)
            return True  # False would end the build

        def phase_finish(self, phase: str) -> None:
            self.phases.finish(phase)

    return Monitor()


class Phases:
    """Nested phases with steps, as one share from 0 to 1 that never falls."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int]] = {}  # phase: (steps done, steps), outermost first
        self.share = 0.0

    def start(self, phase: str, steps: int) -> None:
        """A phase begins, inside those that are open."""
        self._open[phase] = (0, max(steps, 1))

    def step(self, phase: str, step: int) -> None:
        """Step `step`, counted from 0, is done."""
        if phase in self._open:
            steps = self._open[phase][1]
            self._open[phase] = (min(step + 1, steps), steps)
            self._update()

    def finish(self, phase: str) -> None:
        """A phase ends."""
        self._open.pop(phase, None)

    def _update(self) -> None:
        share, width = 0.0, 1.0
        for done, steps in self._open.values():
            share += width * done / steps
            width /= steps
        self.share = min(max(self.share, share), 1.0)
