"""Why a network does not run on the GPU.

Every message names what was found and what to do about it, in one line.

    krabby.robot.errors.RobotError
    └── InferenceError         caught with the other errors of loading a policy
        ├── NoDevice           no driver, no GPU, no TensorRT, or no Python package for one of them
        ├── CacheError         the cache of engines cannot be used
        ├── BuildFailed        no engine came out: refused network, crash, time limit
        │   └── NotBuilt       there is none in the cache, and none may be built now
        ├── EngineRefused      an engine is damaged, of other tensors, wrong or too slow
        ├── DeviceError        a call to CUDA or TensorRT failed
        │   └── CaptureFailed  a CUDA graph could not be made; steps run without one
        └── Interrupted        the process was told to stop meanwhile
"""

from krabby.robot.errors import RobotError

__all__ = [
    "BuildFailed",
    "CacheError",
    "CaptureFailed",
    "DeviceError",
    "EngineRefused",
    "InferenceError",
    "Interrupted",
    "NoDevice",
    "NotBuilt",
]


class InferenceError(RobotError):
    """Base of every error this package raises on purpose."""


class NoDevice(InferenceError):  # noqa: N818 - the name says what is missing
    """No driver, no GPU, no TensorRT, or no Python package for one of them."""


class CacheError(InferenceError):
    """The cache of engines cannot be used."""


class BuildFailed(InferenceError):  # noqa: N818 - the name says what happened
    """No engine came out: a refused network, a crash, the time limit."""


class NotBuilt(BuildFailed):
    """There is no engine in the cache, and none may be built now."""


class EngineRefused(InferenceError):  # noqa: N818
    """An engine is damaged, has other tensors, gives wrong numbers or is too slow."""


class DeviceError(InferenceError):
    """A call to CUDA or TensorRT failed."""


class CaptureFailed(DeviceError):  # noqa: N818
    """A CUDA graph could not be made."""


class Interrupted(InferenceError):  # noqa: N818
    """The process was told to stop meanwhile."""
