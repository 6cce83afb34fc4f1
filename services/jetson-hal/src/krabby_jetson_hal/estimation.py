"""From the readings of drives and IMU to the HAL's measurement."""

import numpy as np
from krabby.drivers.can import DriveReadings
from krabby.drivers.imu import ImuSample
from krabby.hal.measurement import Measurement
from krabby.robot.contact import ContactCfg, FootContacts
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray

__all__ = ["Estimator"]


class Estimator:
    """Fills one measurement; foot contact is estimated from the torques of a leg's drives."""

    def __init__(self, desc: RobotDescription, contacts: ContactCfg) -> None:
        """`contacts`: loads at which feet touch down and lift off."""
        self.measured = Measurement(len(desc.joint_names), len(desc.leg_names))
        self._contacts = FootContacts(desc, contacts)

    @property
    def foot_load_n(self) -> NDArray[np.float64]:
        """Load of every foot in the last complete measurement [N], shape (6,)."""
        return self._contacts.load_n

    def update(
        self, readings: DriveReadings, sample: ImuSample, capture_ns: int
    ) -> NDArray[np.bool_]:
        """Take in complete readings; returns which feet are down, shape (6,)."""
        measured = self.measured
        measured.base_quat_w[:] = sample.quat_wb
        measured.base_quat_w /= np.linalg.norm(sample.quat_wb)
        measured.base_ang_vel_b[:] = sample.ang_vel_b
        measured.base_lin_acc_b[:] = sample.lin_acc_b
        joints = readings.joint_pos, readings.joint_vel, readings.joint_effort
        measured.joint_pos[:], measured.joint_vel[:], measured.joint_effort[:] = joints
        down = self._contacts.update(
            measured.joint_pos,
            measured.joint_vel,
            measured.joint_effort,
            measured.base_quat_w,
            capture_ns,
        )
        measured.foot_contact[:] = down
        return down
