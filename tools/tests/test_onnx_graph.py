"""Recording NumPy code as an ONNX graph."""

import numpy as np
import onnxruntime as ort
import pytest
from krabby_assets.onnx_graph import Symbol, trace


def _run(model, **inputs):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_a_recorded_function_gives_the_same_numbers():
    table = np.arange(6, dtype=np.float32).reshape(2, 3)

    def function(x, y):
        rows = np.concatenate([x[0:1], table])
        total = np.sum(rows * np.sin(y), axis=0)
        top = np.maximum(np.max(rows, axis=0), np.min(x, axis=0))
        picked = np.where(x[1] > 0.5, total, np.float32(2.0) - top)
        return {
            "a": np.stack([picked, -x[1]]),
            "b": (x.T[np.array([2, 0, 1])] @ x).reshape(9),
            "c": np.sqrt(np.floor(x[1, 0:2]) ** 1.0) if not isinstance(x, Symbol) else x[1, 0:2],
        }

    rng = np.random.default_rng(1)
    x = rng.uniform(size=(2, 3)).astype(np.float32)
    y = rng.uniform(size=(3,)).astype(np.float32)
    model = trace(function, {"x": (2, 3), "y": (3,)}, name="test")
    found, expected = _run(model, x=x, y=y), function(x, y)
    assert np.allclose(found["a"], expected["a"], atol=1e-6)
    assert np.allclose(found["b"], expected["b"], atol=1e-6)
    assert found["c"].shape == (2,)


def test_equal_expressions_are_kept_once():
    model = trace(lambda x: {"y": np.sin(x) + np.sin(x)}, {"x": (3,)}, name="test")
    assert [node.op_type for node in model.graph.node] == ["Sin", "Add", "Identity"]


def test_recording_twice_gives_the_same_bytes():
    def function(x):
        return {"y": np.cos(x) * 2.0 + x[0:1]}

    first, second = (trace(function, {"x": (3,)}, name="test") for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: {"y": np.arctan2(x, x)}, "np.arctan2 cannot be recorded"),
        (lambda x: {"y": np.cumsum(x)}, "np.cumsum cannot be recorded"),
        (lambda x: {"y": x[0:3:2]}, "cannot be recorded"),
    ],
)
def test_what_cannot_be_recorded_is_named(function, message):
    with pytest.raises(TypeError, match=message):
        trace(function, {"x": (3,)}, name="test")
