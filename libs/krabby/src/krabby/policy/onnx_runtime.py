"""ONNX Runtime, set up once for a 100 Hz loop: one thread, no spinning, buffers bound for good."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krabby.policy.network import NetworkSpec, check_state, copy_input
from krabby.robot.errors import BundleError, BundleMismatch, MissingRuntime, PolicyOutputError

__all__ = ["OnnxNetwork", "OnnxRuntime"]


class OnnxRuntime:
    """`krabby.policy.network.Backend`: ONNX Runtime on the processor, in the calling thread."""

    def open(self, spec: NetworkSpec) -> OnnxNetwork:
        """A session, bound and run once."""
        return OnnxNetwork(spec)


class OnnxNetwork:
    """`krabby.policy.network.Network`: an ONNX Runtime session and its tensors."""

    backend = "onnxruntime"

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        source, in_shapes, out_shapes = spec.source, spec.input_shapes, spec.output_shapes
        self._session = _open_session(spec.content, source)
        _check_tensors(source, "input", in_shapes, self._session.get_inputs())
        for tensor in self._session.get_inputs():
            if tensor.name not in in_shapes:
                raise BundleMismatch(
                    f"{source} has an input {tensor.name!r} that the manifest does not describe, "
                    f"only {', '.join(in_shapes)}; list it under state or export without it"
                )
        _check_tensors(source, "output", out_shapes, self._session.get_outputs())
        self._inputs = {name: np.zeros(shape, np.float32) for name, shape in in_shapes.items()}
        self._outputs = {name: np.zeros(shape, np.float32) for name, shape in out_shapes.items()}
        self._output = self._outputs[spec.output[0]]
        self._binding = self._bind()
        self.reset()
        # The first run allocates inside the runtime, and shows what symbolic shapes hide.
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise BundleError(f"{source} does not run: {error}; export it again") from error

    def reset(self) -> None:
        """Puts every state back to its start."""
        for tensor in self.spec.state:
            np.copyto(self._inputs[tensor.input], tensor.initial)

    def set_input(self, name: str, value: NDArray[np.float32] | None) -> None:
        """Copies `value` to the input's buffer."""
        copy_input(self._inputs[name], value, name, self.spec.source)

    def run(self) -> NDArray[np.float32]:
        """The output, the network's own array until the next run; states are fed back."""
        self._session.run_with_iobinding(self._binding)
        state = self.spec.state
        try:
            check_state(
                ((each.output, self._outputs[each.output]) for each in state), self.spec.source
            )
        except PolicyOutputError:
            self.reset()
            raise
        for tensor in state:
            np.copyto(self._inputs[tensor.input], self._outputs[tensor.output])
        return self._output

    def state(self, name: str) -> NDArray[np.float32]:
        """What the next run will read as the state input `name`, a copy."""
        return self._inputs[name].copy()

    def close(self) -> None:
        """Nothing: the session goes with its last reference."""

    def _bind(self) -> Any:
        binding = self._session.io_binding()
        for name, array in self._inputs.items():
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding


def _open_session(content: bytes, source: str) -> Any:
    # ONNX Runtime reports to its maker unless told not to, before it is loaded. A robot does not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingRuntime(
            "running a policy needs ONNX Runtime; install it with: pip install krabby[policy]"
        ) from error
    options = ort.SessionOptions()
    # Two threads make the slowest of a hundred steps ten times slower than one; waiting threads
    # that spin take a core.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised; a write to stderr may wait
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"{source} cannot be loaded: {error}; export it again") from error


def _check_tensors(
    source: str, side: str, wanted: Mapping[str, tuple[int, ...]], found: Iterable[Any]
) -> None:
    """Refuses a network whose tensors are not those that the manifest describes."""
    tensors = {tensor.name: tensor for tensor in found}
    for name, shape in wanted.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise BundleMismatch(
                f"{source} has no {side} {name!r}, it has {', '.join(tensors)}; name its tensors "
                "as the manifest does"
            )
        # Symbolic dimensions, such as a batch size, fit anything.
        fits = len(tensor.shape) == len(shape) and all(
            not isinstance(theirs, int) or theirs == ours
            for theirs, ours in zip(tensor.shape, shape, strict=True)
        )
        if not fits or tensor.type != "tensor(float)":
            raise BundleMismatch(
                f"{source}: {side} {name!r} is {tensor.type} of shape {tensor.shape}, the manifest "
                f"makes it tensor(float) of shape {list(shape)}; export both together"
            )
