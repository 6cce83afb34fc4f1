"""The makes and models of drives: one row for each make."""

from typing import Final

from krabby.drivers.can.codec import Codec, DriveModel
from krabby.drivers.can.damiao import DamiaoCodec
from krabby.drivers.can.robstride import RobStrideCodec
from krabby.drivers.errors import HardwareError

__all__ = ["MAKES", "MODELS", "drive_model"]

MAKES: Final[dict[str, Codec]] = {codec.name: codec for codec in (RobStrideCodec(), DamiaoCodec())}
"""Codec, models and limits of every make; add a new make here."""
MODELS: Final = {model.name: model for make in MAKES.values() for model in make.models}
"""By the name used in `hardware.toml`."""


def drive_model(name: str) -> DriveModel:
    """The model of that name."""
    if name not in MODELS:
        raise HardwareError(f"no drive model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
