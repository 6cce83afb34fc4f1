"""An engine as a `krabby.policy.network.Network`: buffers bound once, states in pairs, graphs.

A recurrent state has two buffers on the GPU: a step reads one and writes the other, the next step
the other way round, so that nothing is copied from output to input. What is bound where is part of
a CUDA graph, hence two graphs for a network with states and one without.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from krabby.policy.network import Network, NetworkSpec, StateTensor, check_state, copy_input
from krabby.policy.tensorrt.device import Buffer, DeviceBuffers, Graph
from krabby.policy.tensorrt.engine import Engine, check_signature
from krabby.policy.tensorrt.errors import CaptureFailed, DeviceError
from krabby.robot.errors import PolicyOutputError

__all__ = ["EngineNetwork"]

log = structlog.get_logger(__name__)


class _State(NamedTuple):
    """A recurrent state: in phase p a step reads `pair[p]` and writes `pair[1 - p]`."""

    tensor: StateTensor
    pair: tuple[Buffer, Buffer]


class EngineNetwork:
    """A network on the GPU.

    Args:
        spec: What it is to be.
        engine: Runs it; must have the same inputs and outputs.
        buffers: Stream and memory, this network's own; closed with it.
        graphs: Whether to replay CUDA graphs; where they cannot be made, steps run without.
        standby: Takes over, with the state there is, when the GPU fails; None: such a step then
            raises `PolicyOutputError` like one that gives NaN.
        on_failure: Called once when the GPU failed.

    Raises:
        EngineRefused: The engine has other tensors.
        DeviceError: It does not run.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        engine: Engine,
        buffers: DeviceBuffers,
        *,
        graphs: bool = True,
        standby: Network | None = None,
        on_failure: Callable[[DeviceError], None] | None = None,
    ) -> None:
        self.spec = spec
        self.backend = "tensorrt"
        check_signature(engine.tensors(), spec)
        self._engine = engine
        self._buffers = buffers
        self._standby = standby
        self._on_failure = on_failure
        self._given_up = False
        # The memory goes with the network also when a swap just drops it.
        self._finalizer = weakref.finalize(self, _release, buffers)
        self._inputs = {name: buffers.allocate(shape) for name, shape in spec.inputs.items()}
        self._output = buffers.allocate(spec.output[1])
        self._states = [
            _State(
                each, (buffers.allocate(each.initial.shape), buffers.allocate(each.initial.shape))
            )
            for each in spec.state
        ]
        self._phases = 2 if self._states else 1
        self._phase = 0
        self._start_over()
        self._graphs = self._prepare(graphs)
        self._start_over()
        buffers.synchronize()

    @property
    def graphed(self) -> bool:
        """Whether steps replay a CUDA graph."""
        return bool(self._graphs)

    def reset(self) -> None:
        """Puts every state back to its start."""
        if not self._given_up:
            try:
                self._start_over()
            except DeviceError as error:
                self._give_up(error)
        if self._given_up and self._standby is not None:
            self._standby.reset()

    def set_input(self, name: str, value: NDArray[np.float32] | None) -> None:
        """Copies `value` to the input's buffer; it travels with the next run.

        The input of a state is what the next run reads in place of the last run's output.
        """
        if self._given_up and self._standby is not None:
            self._standby.set_input(name, value)
            return
        for state in self._states:
            if state.tensor.input == name:
                self._set_state(state.pair[self._phase], value, name)
                return
        copy_input(self._inputs[name].host, value, name, self.spec.source)

    def _set_state(self, buffer: Buffer, value: NDArray[np.float32] | None, name: str) -> None:
        copy_input(buffer.host, value, name, self.spec.source)
        try:
            self._buffers.upload(buffer)
        except DeviceError as error:
            self._give_up(error)

    def run(self) -> NDArray[np.float32]:
        """The output, the network's own array until the next run."""
        if self._given_up:
            return self._run_elsewhere()
        try:
            self._step()
        except DeviceError as error:
            self._give_up(error)
            return self._run_elsewhere()
        after = 1 - self._phase
        try:
            check_state(
                ((state.tensor.output, state.pair[after].host) for state in self._states),
                self.spec.source,
            )
        except PolicyOutputError:
            self.reset()
            raise
        if self._states:
            self._phase = after
        return self._output.host

    def state(self, name: str) -> NDArray[np.float32]:
        """What the next run will read as the state input `name`, a copy."""
        if self._given_up and self._standby is not None:
            return self._standby.state(name)
        pair = next(state.pair for state in self._states if state.tensor.input == name)
        return pair[self._phase].host.copy()

    def close(self) -> None:
        """Frees the GPU's memory and the stream."""
        self._graphs = []
        self._finalizer()

    def _start_over(self) -> None:
        for tensor, pair in self._states:
            buffer = pair[self._phase]
            np.copyto(buffer.host, tensor.initial)
            self._buffers.upload(buffer)

    def _step(self) -> None:
        if self._graphs:
            self._graphs[self._phase]()
        else:
            if self._states:
                self._bind(self._phase)
            self._enqueue(self._phase)
        self._buffers.synchronize()

    def _prepare(self, graphs: bool) -> list[Graph]:
        """Runs each phase once, for what TensorRT does lazily, and records it."""
        recorded: list[Graph] = []
        for phase in range(self._phases):
            self._bind(phase)
            self._enqueue(phase)
            self._buffers.synchronize()
            if not graphs:
                continue
            try:
                recorded.append(self._buffers.capture(lambda phase=phase: self._enqueue(phase)))
            except CaptureFailed as error:
                log.warning(
                    "no CUDA graph, launching step by step",
                    network=self.spec.source,
                    reason=str(error),
                )
                graphs, recorded = False, []
        self._bind(0)
        return recorded

    def _bind(self, phase: int) -> None:
        shapes = self.spec.input_shapes | self.spec.output_shapes
        for name, buffer in self._tensors(phase).items():
            self._engine.bind(name, buffer.address, shapes[name])

    def _tensors(self, phase: int) -> dict[str, Buffer]:
        tensors = {**self._inputs, self.spec.output[0]: self._output}
        for tensor, pair in self._states:
            tensors |= {tensor.input: pair[phase], tensor.output: pair[1 - phase]}
        return tensors

    def _enqueue(self, phase: int) -> None:
        buffers = self._buffers
        for buffer in self._inputs.values():
            buffers.upload(buffer)
        self._engine.enqueue(buffers.stream)
        buffers.download(self._output)
        for _, pair in self._states:  # to be looked at, and for the standby
            buffers.download(pair[1 - phase])

    def _give_up(self, error: DeviceError) -> None:
        """The GPU has failed: no call to it from now on."""
        log.error(
            "the GPU failed" + ("" if self._standby is None else ", going on with the processor"),
            network=self.spec.source,
            reason=str(error),
        )
        self._given_up = True
        if self._standby is not None:
            self.backend = self._standby.backend
            for name, buffer in self._inputs.items():
                self._standby.set_input(name, buffer.host)
            for tensor, pair in self._states:
                self._standby.set_input(tensor.input, pair[self._phase].host)
        if self._on_failure is not None:
            self._on_failure(error)

    def _run_elsewhere(self) -> NDArray[np.float32]:
        if self._standby is None:
            raise PolicyOutputError(
                f"{self.spec.source}: the GPU failed, and inference.allow_fallback is false; "
                "restart the service"
            )
        return self._standby.run()


def _release(buffers: DeviceBuffers) -> None:
    with contextlib.suppress(DeviceError):  # a GPU that failed fails at this too
        buffers.close()
