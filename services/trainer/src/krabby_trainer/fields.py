"""Types of configuration values with their constraints; checked when a configuration is read."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from msgspec import Meta

from krabby_trainer.errors import ConfigError

__all__ = ["Count", "NonNegative", "Pair", "Positive", "Share", "check", "check_ordered"]

Count = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Pair = Annotated[list[float], Meta(min_length=2, max_length=2)]

TINY: Final = 1e-300
"""As the least value of a pair: above 0."""


def check(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuse a value from `__post_init__`."""
    if not condition:
        raise ConfigError(f"{key}={value} is out of range, expected {expected}")


def check_ordered(cfg: Any, *keys: str, least: float = -math.inf, of: str = "") -> None:
    """Refuse pairs that are not [low, high] with `least` <= low; `of` says so in words."""
    for key in keys:
        low, high = getattr(cfg, key)
        check(least <= low <= high, key, [low, high], f"[low, high]{of}")
