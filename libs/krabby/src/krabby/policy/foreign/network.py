"""ONNX surgery: a network that takes and gives numbers in another order, put behind ours."""

# onnx's messages are generated at run time.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from krabby.robot.errors import BundleError, MissingRuntime

__all__ = ["ForeignNetwork", "InputMap", "open_network", "rewired"]

_STATES: Final = {"h_in": "h_out", "c_in": "c_out"}
"""Recurrent inputs as rsl-rl names them, and the outputs that feed them."""
_INNER: Final = "krabby_foreign_"


@dataclass(frozen=True, kw_only=True)
class ForeignNetwork:
    """An ONNX policy and its tensors."""

    model: Any
    source: str
    obs: tuple[str, int]
    """Name and numbers of the observation."""
    actions: tuple[str, int]
    state: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Input, output and shape of the recurrent states."""

    @property
    def metadata(self) -> dict[str, str]:
        """`metadata_props` of the file."""
        return {entry.key: entry.value for entry in self.model.metadata_props}


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMap:
    """How their observation follows from ours: clip(ours[index] + bias, low, high)."""

    size: int
    """Numbers in our observation."""
    index: NDArray[np.int64]
    """Shape (M,) for M numbers in theirs."""
    bias: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def open_network(path: Path) -> ForeignNetwork:
    """Load an ONNX policy, external data included.

    Raises:
        BundleError: It is no ONNX file, or no policy: names the tensor that has no place.
        MissingRuntime: The package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingRuntime(
            "importing a policy needs onnx; install it with: pip install krabby[import]"
        ) from error
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror or error}; give an ONNX file"
        ) from (error)
    except Exception as error:  # protobuf's and the checker's own
        problem = " ".join(str(error).split())[:200]
        raise BundleError(f"{path} is not an ONNX network: {problem}; export it again") from error
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = {each.name: each for each in model.graph.input if each.name not in constant}
    outputs = {each.name: each for each in model.graph.output}
    states = {name: _STATES[name] for name in inputs if name in _STATES}
    observed = [name for name in inputs if name not in states]
    if len(observed) != 1:
        raise BundleError(
            f"{path} has inputs {', '.join(inputs)}; expected one observation, and h_in and c_in "
            "of a recurrent network"
        )
    acted = "actions" if "actions" in outputs else next(iter(set(outputs) - set(states.values())))
    return ForeignNetwork(
        model=model,
        source=str(path),
        obs=(observed[0], _width(inputs[observed[0]], path)),
        actions=(acted, _width(outputs[acted], path)),
        state=tuple((name, out, _shape(inputs[name], path)) for name, out in states.items()),
    )


def rewired(network: ForeignNetwork, inputs: InputMap, action_index: NDArray[np.int64]) -> bytes:
    """The network with our tensors `obs` (1, N) and `actions` (1, 18), as an ONNX file."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    graph = model.graph
    _rename(graph, {network.obs[0]: f"{_INNER}obs", network.actions[0]: f"{_INNER}actions"})
    constants = {
        "index": inputs.index,
        "bias": inputs.bias.astype(np.float32)[None],
        "low": inputs.low.astype(np.float32)[None],
        "high": inputs.high.astype(np.float32)[None],
        "order": action_index,
    }
    steps = [("Gather", "index")]
    steps += [("Add", "bias")] if inputs.bias.any() else []
    limited = bool((np.isfinite(inputs.low) | np.isfinite(inputs.high)).any())
    steps += [("Max", "low"), ("Min", "high")] if limited else []
    nodes, value = [], "obs"
    for number, (operator, constant) in enumerate(steps, start=1):
        last = number == len(steps)
        result = f"{_INNER}obs" if last else f"{_INNER}obs_{number}"
        node = helper.make_node(operator, [value, _INNER + constant], [result])
        if operator == "Gather":
            node.attribute.append(helper.make_attribute("axis", 1))
        nodes.append(node)
        value = result
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    graph.node.append(
        helper.make_node("Gather", [f"{_INNER}actions", f"{_INNER}order"], ["actions"], axis=1)
    )
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(array, _INNER + name)
        for name, array in constants.items()
        if _INNER + name in used
    )
    del graph.value_info[:]
    del model.metadata_props[:]
    _redefine(graph.input, f"{_INNER}obs", "obs", inputs.size)
    _redefine(graph.output, f"{_INNER}actions", "actions", len(action_index))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        problem = " ".join(str(error).split())[:200]
        raise BundleError(f"{network.source} cannot be rewired: {problem}") from error
    return model.SerializeToString()


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename values in a graph and in the graphs of its nodes."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _redefine(values: Any, name: str, new: str, size: int) -> None:
    from onnx import TensorProto, helper

    for value in values:
        if value.name == name:
            value.CopyFrom(helper.make_tensor_value_info(new, TensorProto.FLOAT, [1, size]))


def _shape(value: Any, path: Path) -> tuple[int, ...]:
    """Sizes; a symbolic one, such as the batch, is 1."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise BundleError(f"{path}: {value.name!r} is {kind}; export it in float32")
    return tuple(size.dim_value or 1 for size in tensor.shape.dim)


def _width(value: Any, path: Path) -> int:
    shape = _shape(value, path)
    if len(shape) != 2 or shape[0] != 1:
        raise BundleError(f"{path}: {value.name!r} has shape {list(shape)}; expected [1, numbers]")
    return shape[1]
