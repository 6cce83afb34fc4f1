"""What runs a network: inputs bound once, the recurrent state kept inside, one call a step.

A `NetworkSpec` says what to run, a `Backend` makes a `Network` of it. `onnx_runtime` has one,
`krabby.policy.tensorrt` another, TensorRT. They are interchangeable: same tensors, same answers to
inputs that do not fit and to numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from krabby.robot.errors import ObservationError, PolicyOutputError

__all__ = ["Backend", "Network", "NetworkSpec", "StateTensor", "check_state", "copy_input"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StateTensor:
    """A recurrent state: what output `output` gives is input `input` of the next step."""

    input: str
    output: str
    initial: NDArray[np.float32]
    """Its value after a reset; the shape is the tensor's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkSpec:
    """An ONNX network and its tensors, all float32."""

    content: bytes
    """The ONNX file; one file, no external data."""
    source: str
    """What errors and logs call it."""
    inputs: Mapping[str, tuple[int, ...]]
    """Shapes by name, without the states."""
    output: tuple[str, tuple[int, ...]]
    """Name and shape of the output that `run` returns."""
    state: tuple[StateTensor, ...] = ()
    """Tensors fed back from one run to the next."""
    samples: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Recorded inputs by name, shape (steps, *shape of the input): consecutive steps, on which
    backends are compared. Empty when the bundle carries none."""

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all inputs by name, the states last."""
        return {**self.inputs, **{each.input: each.initial.shape for each in self.state}}

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all outputs by name, the states last."""
        name, shape = self.output
        return {name: shape, **{each.output: each.initial.shape for each in self.state}}


class Network(Protocol):
    """A network that can be run. Not for two threads at once."""

    @property
    def spec(self) -> NetworkSpec:
        """What it was made of."""
        ...

    @property
    def backend(self) -> str:
        """What runs it: "onnxruntime" or "tensorrt"."""
        ...

    def reset(self) -> None:
        """Puts every state back to its start."""
        ...

    def set_input(self, name: str, value: NDArray[np.float32] | None) -> None:
        """Copies `value` to the input's buffer.

        Raises:
            ObservationError: It is missing or has another shape.
        """
        ...

    def run(self) -> NDArray[np.float32]:
        """The output, the network's own array until the next run; states are fed back.

        Raises:
            PolicyOutputError: A state is not finite. All were reset.
        """
        ...

    def state(self, name: str) -> NDArray[np.float32]:
        """What the next run will read as the state input `name`, a copy."""
        ...

    def close(self) -> None:
        """Gives back what it holds outside the interpreter; it is not run again."""
        ...


class Backend(Protocol):
    """Makes networks."""

    def open(self, spec: NetworkSpec) -> Network:
        """A network ready to run, its first, slow run behind it.

        Raises:
            BundleError: It cannot be run, or is not the network that `spec` describes.
        """
        ...


def copy_input(
    buffer: NDArray[np.float32], value: NDArray[np.float32] | None, name: str, source: str
) -> None:
    """Copies `value` to `buffer`; raises `ObservationError` when it has another shape."""
    if value is None or value.shape != buffer.shape:
        found = "nothing" if value is None else f"shape {value.shape}"
        raise ObservationError(
            f"{source} takes {name!r} of shape {buffer.shape}, got {found}; build it "
            "from the bundle's own layout"
        )
    np.copyto(buffer, value)


def check_state(outputs: Iterable[tuple[str, NDArray[np.float32]]], source: str) -> None:
    """Raises `PolicyOutputError` when one of the new states, by name, is not finite."""
    for name, value in outputs:
        if not np.isfinite(value).all():
            raise PolicyOutputError(
                f"{source} gave a state {name!r} that is not finite; it was "
                "reset. Fall back to another policy"
            )
