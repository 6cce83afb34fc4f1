"""NumPy code to an ONNX graph: run a function once on symbols and keep its operations.

A `Symbol` answers NumPy's dispatch protocols, so the very function that computes on arrays also
records itself, and a test can hold the two to each other:

    def double(x): return {"y": 2.0 * np.sin(x)}
    model = trace(double, {"x": (6,)}, name="double")

Shapes are fixed and everything is float32 except the results of comparisons. Only what the gait
generator needs is known; anything else is a `TypeError` while tracing. Needs the extra `assets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.lib.mixins import NDArrayOperatorsMixin
from onnx import helper, numpy_helper

__all__ = ["OPSET", "Symbol", "trace"]

OPSET: Final = 18
"""Old enough for the ONNX Runtime of any board in use."""
_IR_VERSION: Final = 9

_UFUNCS: Final = {
    np.add: "Add",
    np.subtract: "Sub",
    np.multiply: "Mul",
    np.matmul: "MatMul",
    np.divide: "Div",
    np.negative: "Neg",
    np.minimum: "Min",
    np.maximum: "Max",
    np.sin: "Sin",
    np.cos: "Cos",
    np.arctan: "Atan",
    np.arccos: "Acos",
    np.sqrt: "Sqrt",
    np.floor: "Floor",
    np.less: "Less",
    np.less_equal: "LessOrEqual",
    np.greater: "Greater",
    np.logical_and: "And",
    np.logical_or: "Or",
}


class _Graph:
    """Nodes and constants so far; equal ones are kept once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        if array.dtype.kind == "f" or not isinstance(value, np.ndarray):
            array = array.astype(np.float32)
        return self._keep(array)

    def integers(self, values: Sequence[int]) -> str:
        return self._keep(np.asarray(values, dtype=np.int64))

    def integer(self, value: int) -> str:
        return self._keep(np.asarray(value, dtype=np.int64))

    def _keep(self, array: np.ndarray[Any, Any]) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[key].name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        key = (operator, *inputs, *sorted(attributes.items()))
        if key not in self._known:
            output = f"n{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
            self._known[key] = output
        return self._known[key]


class Symbol(NDArrayOperatorsMixin):
    """A tensor of the graph being recorded."""

    def __init__(self, graph: _Graph, name: str, shape: tuple[int, ...]) -> None:
        self._graph = graph
        self.name = name
        self.shape = shape

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Symbol:
        """Records one elementwise operation."""
        operator = _UFUNCS.get(ufunc)
        if operator is None or method != "__call__" or kwargs:
            raise TypeError(f"np.{ufunc.__name__} cannot be recorded; add it to onnx_graph.py")
        shapes = [np.shape(x) for x in inputs]
        if ufunc is np.matmul:
            (rows, _), (_, columns) = shapes
            shape = (rows, columns)
        else:
            shape = np.broadcast_shapes(*shapes)
        return self._new(operator, [self._name(x) for x in inputs], shape)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        """Records one of the few other functions."""
        if function is np.shape:
            return self.shape
        recorder = _FUNCTIONS.get(function)
        if recorder is None:
            raise TypeError(f"np.{function.__name__} cannot be recorded; add it to onnx_graph.py")
        return recorder(self, *args, **kwargs)

    def __getitem__(self, key: Any) -> Symbol:
        """Rows by an array, or leading axes by integers, which drop their axis, then slices."""
        if isinstance(key, np.ndarray):
            rows = self._graph.integers(key.tolist())
            return self._new("Gather", [self.name, rows], (key.size, *self.shape[1:]), axis=0)
        keys = key if isinstance(key, tuple) else (key,)
        if isinstance(keys[0], int):
            index = self._graph.integer(keys[0])
            row = self._new("Gather", [self.name, index], self.shape[1:], axis=0)
            return row[keys[1:]] if keys[1:] else row
        starts, stops = [], []
        for size, k in zip(self.shape, keys, strict=False):
            start, stop, step = k.indices(size) if isinstance(k, slice) else (0, 0, 0)
            if step != 1 or not 0 <= start < stop <= size:
                raise TypeError(f"index {key!r} of shape {self.shape} cannot be recorded")
            starts.append(start)
            stops.append(stop)
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        ints = self._graph.integers
        inputs = [self.name, ints(starts), ints(stops), ints(range(len(starts)))]
        return self._new("Slice", inputs, (*sizes, *self.shape[len(keys) :]))

    def reshape(self, *shape: int) -> Symbol:
        """The same numbers in another shape; all sizes given."""
        return self._new("Reshape", [self.name, self._graph.integers(shape)], shape)

    @property
    def T(self) -> Symbol:  # noqa: N802 - NumPy's name
        """Axes in reverse order."""
        return self._new("Transpose", [self.name], self.shape[::-1])

    def _name(self, value: Any) -> str:
        return value.name if isinstance(value, Symbol) else self._graph.constant(value)

    def _new(
        self, operator: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: int
    ) -> Symbol:
        return Symbol(self._graph, self._graph.node(operator, inputs, **attributes), shape)

    def _where(self, condition: Any, a: Any, b: Any) -> Symbol:
        shape = np.broadcast_shapes(*(np.shape(x) for x in (condition, a, b)))
        return self._new("Where", [self._name(x) for x in (condition, a, b)], shape)

    def _sum(self, value: Symbol, axis: int) -> Symbol:
        return self._reduce("ReduceSum", value, axis)

    def _max(self, value: Symbol, axis: int) -> Symbol:
        return self._reduce("ReduceMax", value, axis)

    def _min(self, value: Symbol, axis: int) -> Symbol:
        return self._reduce("ReduceMin", value, axis)

    def _reduce(self, operator: str, value: Symbol, axis: int) -> Symbol:
        axis %= len(value.shape)
        shape = value.shape[:axis] + value.shape[axis + 1 :]
        axes = self._graph.integers([axis])
        return self._new(operator, [value.name, axes], shape, keepdims=0)

    def _concatenate(self, values: Sequence[Any]) -> Symbol:
        shape = (sum(np.shape(v)[0] for v in values), *np.shape(values[0])[1:])
        return self._new("Concat", [self._name(v) for v in values], shape, axis=0)

    def _stack(self, values: Sequence[Any]) -> Symbol:
        shape = np.shape(values[0])
        flat = self._concatenate([_as_vector(v) for v in values])
        return flat.reshape(len(values), *shape)


def _as_vector(value: Any) -> Any:
    return value if len(np.shape(value)) == 1 else value.reshape(int(np.prod(np.shape(value))))


_FUNCTIONS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    np.where: Symbol._where,
    np.sum: Symbol._sum,
    np.max: Symbol._max,
    np.min: Symbol._min,
    np.stack: Symbol._stack,
    np.concatenate: Symbol._concatenate,
}


def trace(
    function: Callable[..., Mapping[str, Any]], inputs: Mapping[str, tuple[int, ...]], *, name: str
) -> onnx.ModelProto:
    """The ONNX model of `function`, checked by ONNX itself.

    Args:
        function: Called once with a `Symbol` per input, by name; returns outputs by name.
        inputs: Shapes by name; they become the model's inputs, in this order.
        name: The graph's name.
    """
    graph = _Graph()
    outputs = function(**{key: Symbol(graph, key, shape) for key, shape in inputs.items()})
    for key, symbol in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [symbol.name], [key]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [_float_tensor(key, shape) for key, shape in inputs.items()],
            [_float_tensor(key, symbol.shape) for key, symbol in outputs.items()],
            list(graph.constants.values()),
        ),
        producer_name="krabby",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _float_tensor(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
