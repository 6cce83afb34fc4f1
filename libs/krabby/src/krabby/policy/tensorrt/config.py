"""Configuration of inference, the table `inference` of a service."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from krabby.runtime.config import check_range

__all__ = ["InferenceCfg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceCfg:
    """What runs the networks."""

    backend: Literal["onnxruntime", "tensorrt", "auto"] = "onnxruntime"
    """onnxruntime: on the processor. tensorrt: on the GPU. auto: on the GPU where a driver,
    TensorRT and cuda-bindings are there, else on the processor."""
    cache_dir: str = ""
    """Folder of built engines, on a volume that stays; empty for krabby/engines in the user's
    cache folder."""
    allow_fallback: bool = True
    """Run on the processor when the GPU cannot be used or its engine is refused; otherwise the
    service ends with the reason. With backend=auto a missing GPU is no reason to end."""
    budget_s: float = 0.002
    """An engine whose step takes longer than this at the 99th percentile is refused [s]."""
    tolerance: float = 1e-3
    """Largest difference to ONNX Runtime that an engine may show, in numbers up to 1 absolute,
    above relative."""
    build_timeout_s: float = 900.0
    """Building an engine is given up after this long [s]."""
    workspace_mib: int = 256
    """Device memory a layer may use for scratch [MiB]."""
    optimization_level: int = 3
    """How hard TensorRT tries, 0 to 5; higher builds longer."""
    tf32: bool = False
    """Let matrix products round to TF32; faster, and about a thousandth off."""
    cuda_graph: bool = True
    """Replay a captured CUDA graph at each step in place of single launches."""
    device_api: Literal["cuda-bindings", "pycuda"] = "cuda-bindings"
    """Python package that reaches CUDA."""
    keep_starts: int = 10
    """An engine that was not used in so many starts of its network is deleted."""

    def __post_init__(self) -> None:
        check_range(self, "budget_s", minimum=1e-5, maximum=1.0)
        check_range(self, "tolerance", minimum=1e-7, maximum=0.1)
        check_range(self, "build_timeout_s", minimum=1.0, maximum=7200.0)
        check_range(self, "workspace_mib", minimum=1, maximum=16384)
        check_range(self, "optimization_level", minimum=0, maximum=5)
        check_range(self, "keep_starts", minimum=1, maximum=1000)

    @property
    def cache_path(self) -> Path:
        """`cache_dir`, or the default of it."""
        if self.cache_dir:
            return Path(self.cache_dir)
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "krabby" / "engines"
