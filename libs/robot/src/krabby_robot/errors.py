"""What can go wrong with the robot's facts.

Every message names the value that is wrong and what to do about it, so that a command line can
print it as it is.

    RobotError
    ├── AssetError            the assets folder, or a file in it, is missing or cannot be read
    ├── DescriptionError      robot.toml does not say what it must say
    ├── ModelError            a simulation model does not fit the robot description
    ├── BundleError           a policy bundle cannot be used at all
    │   └── BundleMismatch    a policy bundle was made for another robot or another contract
    └── CourseError           a course cannot be built as asked
        └── UnknownCourse     no course has that name
"""

__all__ = [
    "AssetError",
    "BundleError",
    "BundleMismatch",
    "CourseError",
    "DescriptionError",
    "ModelError",
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


class BundleError(RobotError):
    """A policy bundle cannot be used at all: a file is missing, damaged or malformed."""


class BundleMismatch(BundleError):  # noqa: N818 - the name says what happened
    """A policy bundle was made for another robot or contract; names the first difference."""


class CourseError(RobotError):
    """A course cannot be built as asked."""


class UnknownCourse(CourseError):  # noqa: N818 - the name says what happened
    """No course has that name; the message gives the nearest one."""
