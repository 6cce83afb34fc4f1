"""What inference measures: which backend runs what, engines built, how their self-tests went."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from krabby.runtime.metrics import children

__all__ = ["BACKEND", "BUILDING", "BUILDS", "BUILD_SECONDS", "ERROR", "FALLBACKS", "STEP"]

BACKENDS = ("onnxruntime", "tensorrt")
QUANTILES = ("p50", "p99", "max")

BACKEND = Gauge(
    "krabby_inference_backend", "1 for what runs the network now", ["network", "backend"]
)
FALLBACKS = children(
    Counter(
        "krabby_inference_fallbacks_total",
        "Networks that went to the processor although the GPU was asked for",
        ["reason"],
    ),
    ("no_device", "cache", "build", "engine", "device"),
)
BUILDING = Gauge("krabby_engine_building", "1 while an engine is being built or waited for")
BUILDS = children(
    Counter("krabby_engine_builds_total", "Engines built, or not", ["result"]),
    ("built", "failed"),
)
BUILD_SECONDS = Gauge(
    "krabby_engine_build_seconds", "What building the engine in use took", ["network"]
)
STEP = Gauge(
    "krabby_engine_selftest_seconds",
    "One step at the start, in the engine's self-test",
    ["network", "quantile"],
)
ERROR = Gauge(
    "krabby_engine_selftest_error",
    "Largest difference to ONNX Runtime in the self-test, relative above 1",
    ["network"],
)
