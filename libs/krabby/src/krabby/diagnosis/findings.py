"""What a diagnosis finds, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REMEDIES", "Finding"]

REMEDIES: Final[Mapping[str, str]] = {
    "joint-sign": "turn the joint's `direction` in hardware.toml round, then "
    "`krabby drives calibrate`; in another HAL look for the sign where angles are decoded",
    "joints-swapped": "exchange the CAN ids or the plugs of the two drives; `krabby drives watch` "
    "shows which joint moves by hand",
    "degrees": "convert to radians where the driver decodes it (factor pi/180)",
    "sensor-scale": "correct the factor where the driver decodes it",
    "sensor-sign": "turn the sign round where the driver decodes it",
    "imu-rotated": "correct mount_quat of the IMU in hardware.toml, or turn the device",
    "gravity-flipped": "let the accelerometer give specific force, +9.81 on z at rest, and the "
    "quaternion take base to world: proto/README.md, stream state",
    "attitude-frame": "the quaternion must take base to world, x y z w; conjugate or reorder it "
    "where the driver decodes it",
    "delay": "look for a queue between game loop and drives (`krabby dump` shows ages, the "
    "dashboard Timing the parts); a CAN bus at its limit delays too",
    "gain": "compare kp and kd in robot.toml with what the drives are sent and how the make scales "
    "them (libs/krabby/src/krabby/drivers/can)",
    "saturation": "look at load, supply voltage and temperature, and at the torque limit that the "
    "drives are sent; a policy that asks for more than there is needs training with that limit",
    "joint-range": "calibrate the zero: `krabby drives calibrate`",
    "camera-pitch": "correct the mount, or mount_pitch_rad in robot.toml; a policy is trained for "
    "one angle, so prefer the mount",
    "camera-mirrored": "turn off the flip in the camera's settings; image column 0 is on the left",
    "contact-stale": "look where foot contacts are computed or received; they have to change at "
    "every step",
    "contact-wrong": "look where foot contacts are computed: order of the legs, sign, threshold",
    "rate": "the HAL must publish 100 states a second: look at the load, `krabby doctor`",
    "late-ticks": "look at the load of the host that the game loop runs on, and give the loops "
    "priority: `krabby doctor`",
    "camera-rate": "look at exposure time, USB bandwidth (`krabby doctor`) and load",
    "noise": "look for vibration of the mount, a loose connector, a filter that is off",
    "statistics": "the policy sees what it was not trained on; look at the term's sensor, or "
    "train with it",
}
"""By kind."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    """A key of `REMEDIES`."""
    where: tuple[str, ...] = ()
    """Joints, legs or axes; empty when it is about all of it."""
    term: str = ""
    """Field of the stream `state`, `camera`, `command`, or a term of the policy's observation."""
    score: float
    """How far beyond the limit of what a sound robot shows: over 1; infinite for a contradiction
    of definitions."""
    evidence: str
    """What was measured, with values and units."""

    @property
    def remedy(self) -> str:
        """What to do."""
        return REMEDIES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "where": list(self.where),
            "term": self.term,
            "score": round(min(self.score, 1e6), 3),
            "evidence": self.evidence,
            "remedy": self.remedy,
        }
