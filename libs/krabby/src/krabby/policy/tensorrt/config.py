"""Configuration of inference, the table `inference` of a service."""

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from krabby.config import Config

__all__ = ["InferenceCfg"]


class InferenceCfg(Config, frozen=True, kw_only=True):
    """Back end of the networks."""

    backend: Literal["onnxruntime", "tensorrt", "auto"] = "onnxruntime"
    """onnxruntime: on the CPU. tensorrt: on the GPU. auto: on the GPU if a driver, TensorRT and
    cuda-bindings are installed, else on the CPU."""
    cache_dir: str = ""
    """Folder of built engines, on a persistent volume; empty for krabby/engines in the user's
    cache folder."""
    allow_fallback: bool = True
    """Run on the CPU when the GPU cannot be used or its engine is refused; otherwise the service
    ends with the reason. With backend=auto a missing GPU is not a reason to end."""
    budget_s: Annotated[float, Meta(ge=1e-5, le=1)] = 0.002
    """An engine whose step takes longer than this at the 99th percentile is refused [s]."""
    tolerance: Annotated[float, Meta(ge=1e-7, le=0.1)] = 1e-3
    """Largest difference to ONNX Runtime that an engine may show, in numbers up to 1 absolute,
    above relative."""
    build_timeout_s: Annotated[float, Meta(ge=1, le=7200)] = 900.0
    """Building an engine is given up after this long [s]."""
    workspace_mib: Annotated[int, Meta(ge=1, le=16384)] = 256
    """Device memory a layer may use for scratch [MiB]."""
    optimization_level: Annotated[int, Meta(ge=0, le=5)] = 3
    """Effort of TensorRT's builder, 0 to 5; higher builds longer."""
    tf32: bool = False
    """Let matrix products round to TF32; faster, with a relative error of about 1e-3."""
    cuda_graph: bool = True
    """Replay a captured CUDA graph at each step in place of single launches."""
    device_api: Literal["cuda-bindings", "pycuda"] = "cuda-bindings"
    """Python package that reaches CUDA."""
    keep_starts: Annotated[int, Meta(ge=1, le=1000)] = 10
    """An engine that was not used in this many starts of its network is deleted."""

    @property
    def cache_path(self) -> Path:
        """`cache_dir`, or its default."""
        if self.cache_dir:
            return Path(self.cache_dir)
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "krabby" / "engines"
