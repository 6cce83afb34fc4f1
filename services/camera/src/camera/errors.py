"""What can go wrong in the camera service.

CameraError
├── ReplayError        a recording that cannot be played
└── EncoderError       a depth encoder that needs what this process cannot know
"""

__all__ = ["CameraError", "EncoderError", "ReplayError"]


class CameraError(Exception):
    """Base of the tree."""


class ReplayError(CameraError):
    """A recording that cannot be played."""


class EncoderError(CameraError):
    """A depth encoder that needs what this process cannot know."""
