"""The seam to TensorRT: what builds engines and runs them. `tensorrt_toolkit` is the real thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec

from krabby.policy.network import NetworkSpec
from krabby.policy.tensorrt.errors import EngineRefused

__all__ = ["BuildOptions", "Engine", "EngineTensor", "Shapes", "Toolkit", "check_signature"]

Shapes = dict[str, tuple[int, ...]]

Report = Callable[[str, float], None]
"""Takes what is being done, and the share of the work that is done, 0 to 1."""


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine depends on besides the network and the device. Part of its key."""

    workspace_mib: int = 256
    optimization_level: int = 3
    tf32: bool = False


class EngineTensor(NamedTuple):
    """An input or output of an engine."""

    name: str
    is_input: bool
    shape: tuple[int, ...]
    """-1 where it is left open."""
    is_float32: bool


class Engine(Protocol):
    """An engine with its context."""

    def tensors(self) -> tuple[EngineTensor, ...]:
        """All inputs and outputs."""
        ...

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """Where a tensor is from the next `enqueue` on, and its shape."""
        ...

    def enqueue(self, stream: int) -> None:
        """Put one run on a stream.

        Raises:
            DeviceError: It was not taken.
        """
        ...


class Toolkit(Protocol):
    """Something that makes engines out of ONNX files."""

    @property
    def version(self) -> str:
        """Of TensorRT; an engine runs on the one that built it."""
        ...

    def build(
        self,
        model: bytes,
        options: BuildOptions,
        shapes: Shapes,
        timings: bytes,
        report: Report,
    ) -> tuple[bytes, bytes]:
        """An engine, serialized; takes minutes, and may crash or hang: for a child process.

        Args:
            model: The ONNX file.
            options: How to build.
            shapes: Of all inputs by name; for those that the file leaves open.
            timings: Kernel timings that an earlier build on this device gave, or nothing.
            report: Told how far it is.

        Returns:
            The engine, and kernel timings for the next build, which may be empty.

        Raises:
            BuildFailed: TensorRT refuses the network.
        """
        ...

    def load(self, plan: bytes) -> Engine:
        """An engine ready to run.

        Raises:
            EngineRefused: It is not one for this device and this TensorRT.
        """
        ...


def check_signature(tensors: Iterable[EngineTensor], spec: NetworkSpec) -> None:
    """Refuses an engine whose inputs and outputs are not those of `spec`."""
    found = {tensor.name: tensor for tensor in tensors}
    wanted = {(name, True): shape for name, shape in spec.input_shapes.items()}
    wanted |= {(name, False): shape for name, shape in spec.output_shapes.items()}
    for (name, is_input), shape in wanted.items():
        tensor = found.pop(name, None)
        if tensor is None or tensor.is_input != is_input or not _fits(tensor, shape):
            side = "input" if is_input else "output"
            raise EngineRefused(
                f"the engine of {spec.source} has {tensor}, expected {side} {name!r} of shape "
                f"{shape}, float32; it is built again"
            )
    # An output more is no harm, but TensorRT needs an address for each tensor.
    if found:
        raise EngineRefused(
            f"the engine of {spec.source} has {', '.join(found)}, which its manifest does not "
            "describe; export the network without it"
        )


def _fits(tensor: EngineTensor, shape: tuple[int, ...]) -> bool:
    same = len(tensor.shape) == len(shape) and all(
        theirs in (-1, ours) for theirs, ours in zip(tensor.shape, shape, strict=True)
    )
    return same and tensor.is_float32
