"""The smallest HAL: a crab without physics, whose joints follow their targets with a lag.

python examples/toy_hal.py        # in another terminal: krabby check-hal
"""

import math
import sys

import msgspec
from krabby.hal.backend import HalBackend, Reading, Slot, limp
from krabby.hal.config import HalCfg
from krabby.hal.errors import HalError
from krabby.hal.loop import HalLoop
from krabby.hal.measurement import Measurement
from krabby.robot.description import RobotDescription
from krabby.runtime.app import main
from krabby.safety.gate import DriveCommand, DriveMode
from krabby_proto import ProtoError

LAG_S = 0.05
"""A joint goes 63 % of the way to its target in this time."""


class Toy(HalBackend):
    """Stands in mid-air, level and at rest, on six loaded feet."""

    name = "toy-hal"

    def __init__(self) -> None:
        self.desc = RobotDescription.load()
        self.drive = limp(self.desc)
        self.measured = Measurement(len(self.desc.joint_names), len(self.desc.leg_names))
        self.measured.joint_pos[:] = self.desc.default_joint_pos
        self.measured.base_lin_acc_b[2] = 9.81
        self.measured.foot_contact[:] = 1.0

    def read(self, slot: Slot) -> Reading:
        """Let the joints move for the slot, or stay where they are while they are limp."""
        measured, elapsed_s = self.measured, slot.slots / self.rate_hz
        holds = self.drive.mode is DriveMode.POSITION
        share = -math.expm1(-elapsed_s / LAG_S) if holds else 0.0
        moved = share * (self.drive.joint_pos - measured.joint_pos)
        measured.joint_pos += moved
        measured.joint_vel[:] = moved / elapsed_s
        return Reading(measured, slot.woke_ns)

    def write(self, drive: DriveCommand, now_ns: int) -> int:
        """Obey from now on."""
        self.drive = drive
        return now_ns


def build(cfg: HalCfg) -> HalLoop:
    """The service that `main` runs."""
    return HalLoop(Toy(), msgspec.structs.asdict(cfg.endpoints))


if __name__ == "__main__":
    sys.exit(main("toy-hal", HalCfg, build, errors=(HalError, ProtoError)))
