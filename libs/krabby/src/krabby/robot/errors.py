"""What can go wrong with the robot's facts.

Every message names the value that is wrong and what to do about it, so that a command line can
print it as it is.

    RobotError
    ├── AssetError            the assets folder, or a file in it, is missing or cannot be read
    ├── DescriptionError      robot.toml does not say what it must say
    ├── ModelError            a simulation model does not fit the robot description
    ├── GateConfigError       limits that cannot keep a robot safe
    ├── DepthError            a depth image, or its camera, has the wrong shape
    ├── ObservationError      a layout names what does not exist, or inputs do not fit it
    ├── BundleError           a policy bundle cannot be used at all
    │   └── BundleMismatch    a policy bundle was made for another robot or another contract
    ├── MissingRuntime        ONNX Runtime is not installed
    ├── PolicyOutputError     a network gave NaN or infinity
    └── CourseError           a course cannot be built as asked
        └── UnknownCourse     no course has that name
"""

__all__ = [
    "AssetError",
    "BundleError",
    "BundleMismatch",
    "CourseError",
    "DepthError",
    "DescriptionError",
    "GateConfigError",
    "MissingRuntime",
    "ModelError",
    "ObservationError",
    "PolicyOutputError",
    "RobotError",
    "UnknownCourse",
]


class RobotError(Exception):
    """Base of every error this package raises on purpose."""


class AssetError(RobotError):
    """The assets folder, or a file in it, is missing or cannot be read."""


class DescriptionError(RobotError):
    """`robot.toml` does not say what it must say."""


class ModelError(RobotError):
    """A simulation model does not fit the robot description."""


class GateConfigError(RobotError):
    """The gate was given limits that cannot keep a robot safe."""


class DepthError(RobotError):
    """A depth image, or the camera it comes from, has the wrong shape."""


class ObservationError(RobotError):
    """A layout names what does not exist, or inputs do not fit it."""


class BundleError(RobotError):
    """A policy bundle cannot be used at all: a file is missing, damaged or malformed."""


class BundleMismatch(BundleError):  # noqa: N818 - the name says what happened
    """A policy bundle was made for another robot or contract; names the first difference."""


class MissingRuntime(RobotError):  # noqa: N818 - the name says what happened
    """ONNX Runtime is not installed."""


class PolicyOutputError(RobotError):
    """A network gave NaN or infinity; its recurrent state was reset."""


class CourseError(RobotError):
    """A course cannot be built as asked."""


class UnknownCourse(CourseError):  # noqa: N818 - the name says what happened
    """No course has that name; the message gives the nearest one."""
