"""What can go wrong in the trainer.

TrainerError
├── ConfigError          a key, a value or an override that cannot be used
├── MissingDependency    another Python, or a package that is not installed
├── CheckpointError      a checkpoint that does not fit, or none where one is needed
│   └── CheckpointDamaged    a file that is not what was written
├── EvaluationError      a suite that cannot be run or measured
└── ExportError          a policy that cannot become a bundle

Every message is for the person at the keyboard: what happened, with which values, and what to do
next. The command line prints it and nothing else.
"""

__all__ = [
    "CheckpointDamaged",
    "CheckpointError",
    "ConfigError",
    "EvaluationError",
    "ExportError",
    "MissingDependency",
    "TrainerError",
]


class TrainerError(Exception):
    """Base of the tree."""


class ConfigError(TrainerError):
    """A key, a value or an override that cannot be used."""


class MissingDependency(TrainerError):  # noqa: N818 - named for what happened
    """Another Python, or a package that is not installed."""


class CheckpointError(TrainerError):
    """A checkpoint that does not fit, or none where one is needed."""


class CheckpointDamaged(CheckpointError):  # noqa: N818 - named for what happened
    """A file that is not what was written."""


class EvaluationError(TrainerError):
    """A suite that cannot be run or measured."""


class ExportError(TrainerError):
    """A policy that cannot become a bundle."""
