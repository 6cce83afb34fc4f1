"""The drives this project knows: what their words mean and what they bear.

The ranges are those of the protocol, not ratings: a word of all ones means this much. A drive whose
own configuration differs answers in other units, so they are checked where the make allows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from krabby.drivers.errors import HardwareError

__all__ = ["MODELS", "DriveModel", "drive_model"]


@dataclass(frozen=True, kw_only=True)
class DriveModel:
    """One model of drive; SI units at its output shaft."""

    name: str
    make: Literal["robstride", "damiao"]
    position_range: float
    """[rad]; words run from minus to plus this."""
    velocity_range: float
    """[rad/s]; faster is reported as this."""
    torque_range: float
    """[N·m]; no command asks for more."""
    kp_range: float
    """[N·m/rad]; words run from 0."""
    kd_range: float
    """[N·m·s/rad]; words run from 0."""
    derate_from_c: float
    """Temperature at which the effort limit starts to fall."""
    derate_to_c: float
    """Temperature at which only enough is left to sink; below the drive's own shut-down."""
    supply_low_v: float
    supply_high_v: float
    """Supply the drive is made for."""
    source: str
    """Where the figures come from."""


_ROBSTRIDE_HEAT: Final = "over-temperature warning 135 °C, shut-down 145 °C by default"

MODELS: Final = {
    model.name: model
    for model in (
        DriveModel(
            name="robstride-rs04",
            make="robstride",
            position_range=4.0 * math.pi,
            velocity_range=15.0,
            torque_range=120.0,
            kp_range=5000.0,
            kd_range=100.0,
            derate_from_c=100.0,
            derate_to_c=130.0,
            supply_low_v=24.0,
            supply_high_v=60.0,
            source="RS04 User Manual, section 4.1.2 (communication types 1 and 2) and 4.1.10: "
            + _ROBSTRIDE_HEAT,
        ),
        DriveModel(
            name="robstride-rs03",
            make="robstride",
            position_range=4.0 * math.pi,
            # Some public libraries say 50; section 4.1.2 and the program sample say 20.
            velocity_range=20.0,
            torque_range=60.0,
            kp_range=5000.0,
            kd_range=100.0,
            derate_from_c=100.0,
            derate_to_c=130.0,
            supply_low_v=24.0,
            supply_high_v=60.0,
            source="RS03 User Manual, section 4.1.2 (communication types 1 and 2) and 4.1.10: "
            + _ROBSTRIDE_HEAT,
        ),
        DriveModel(
            name="damiao-j8009p",
            make="damiao",
            # Registers PMAX, VMAX, TMAX as delivered; the MIT gains' ranges are fixed.
            position_range=12.5,
            velocity_range=45.0,
            torque_range=54.0,
            kp_range=500.0,
            kd_range=5.0,
            derate_from_c=80.0,
            derate_to_c=100.0,
            supply_low_v=24.0,
            supply_high_v=48.0,
            source="DM-J8009P-2EC manual, MIT mode and feedback frame; PMAX, VMAX, TMAX as in the "
            "register table of the damiao-motor package",
        ),
    )
}
"""By the name used in `hardware.toml`."""


def drive_model(name: str) -> DriveModel:
    """The model of that name."""
    if name not in MODELS:
        raise HardwareError(f"no drive model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
