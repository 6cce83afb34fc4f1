"""Types of configuration values with their constraints; checked when a configuration is read."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from krabby.config import Count, NonNegative, Positive, Share
from msgspec import Meta

from krabby_trainer.errors import ConfigError

__all__ = ["Count", "NonNegative", "Pair", "Positive", "Share", "check", "check_ordered"]

Pair = Annotated[list[float], Meta(min_length=2, max_length=2)]

TINY: Final = 1e-300
"""As the least value of a pair: above 0."""


def check(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuse a value from `__post_init__`."""
    if not condition:
        raise ConfigError(f"{key}={value} is out of range, expected {expected}")


def check_ordered(
    cfg: Any, *keys: str, least: float = -math.inf, most: float = math.inf, of: str = ""
) -> None:
    """Refuse pairs that are not `least` <= low <= high <= `most`; `of` is that in words."""
    for key in keys:
        low, high = getattr(cfg, key)
        check(least <= low <= high <= most, key, [low, high], f"[low, high]{of}")
