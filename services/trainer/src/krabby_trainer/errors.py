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

import contextlib
from collections.abc import Generator

__all__ = [
    "UNFIT_RESUME",
    "CheckpointDamaged",
    "CheckpointError",
    "ConfigError",
    "EvaluationError",
    "ExportError",
    "MissingDependency",
    "TrainerError",
    "first_line",
    "unfit",
]


class TrainerError(Exception):
    """Base of the tree."""


class ConfigError(TrainerError, ValueError): ...


class MissingDependency(TrainerError): ...  # noqa: N818 - named for what happened


class CheckpointError(TrainerError): ...


class CheckpointDamaged(CheckpointError): ...  # noqa: N818 - named for what happened


class EvaluationError(TrainerError): ...


class ExportError(TrainerError): ...


def first_line(error: BaseException) -> str:
    """What an error says, as one line; its class where it says nothing."""
    return str(error).strip().partition("\n")[0].strip() or type(error).__name__


UNFIT_RESUME = (
    "the checkpoint does not fit this training ({reason}); resume with the configuration it was "
    "made with, or start a new run"
)


@contextlib.contextmanager
def unfit(message: str) -> Generator[None]:
    """Turns what a state of another shape raises into a `CheckpointError`.

    Args:
        message: What the error says; `{reason}` in it is replaced by the cause.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(message.replace("{reason}", first_line(error))) from error
