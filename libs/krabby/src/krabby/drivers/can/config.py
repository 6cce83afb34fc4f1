"""Which hardware a process has: `hardware.toml`, and what its configuration puts in its place.

The HAL and the emulated robot read the same keys, so that one file serves both ends of a bus.
"""

from pathlib import Path

from krabby.config import Config
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.errors import HardwareError
from krabby.robot.description import RobotDescription

__all__ = ["CanCfg", "load_calibration", "load_hardware"]


class CanCfg(Config, frozen=True, kw_only=True):
    """The buses to the drives; what is on them is in hardware.toml."""

    hardware: str = ""
    """Path of hardware.toml; empty for the one in the assets folder."""
    calibration: str = ""
    """Path of this robot's calibration.toml; empty for the values that hardware.toml starts from,
    which are right for the emulated robot only."""
    interface: str = ""
    """python-can interface in place of hardware.toml's: udp_multicast, socketcan, virtual."""
    channels: tuple[str, ...] = ()
    """Channels in place of hardware.toml's, in its order of buses."""
    hops: int = 0
    """With interface=udp_multicast, networks that frames may pass: 0 stays on this host, 1 reaches
    another container."""


def load_hardware(cfg: CanCfg, desc: RobotDescription) -> HardwareDescription:
    """`hardware.toml` with the overrides of the configuration.

    Raises:
        HardwareError: The file or an override does not fit.
    """
    hardware = HardwareDescription.load(Path(cfg.hardware) if cfg.hardware else None, desc)
    if cfg.channels and len(cfg.channels) != len(hardware.buses):
        raise HardwareError(
            f"can.channels names {len(cfg.channels)} channels, hardware.toml has "
            f"{len(hardware.buses)} buses; give one for each in its order"
        )
    if not cfg.interface and not cfg.channels:
        return hardware
    names = [bus.name for bus in hardware.buses]
    channels = dict(zip(names, cfg.channels, strict=True)) if cfg.channels else None
    interface = cfg.interface or hardware.buses[0].interface
    return hardware.with_interface(interface, channels, hops=cfg.hops)


def load_calibration(cfg: CanCfg, hardware: HardwareDescription) -> Calibration:
    """How the drives sit: this robot's file, or the values that `hardware.toml` starts from."""
    if not cfg.calibration:
        return Calibration.nominal(hardware)
    return Calibration.load(Path(cfg.calibration), hardware)
