"""Setting up drives: probing, what each must know before it is switched on, and what is refused."""

import math
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.can.calibration import Mounting
from krabby.drivers.can.codec import Kind, Parameter
from krabby.drivers.can.faults import fault_names, remedy
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.types import DriveFault, DriveMode, DriveReadings
from krabby.drivers.can.wire import BusCfg, Wire
from krabby.drivers.errors import DriveError
from krabby.robot.description import RobotDescription

__all__ = ["DriveSetup", "find_turns"]

_TURN: Final = 2.0 * math.pi


class DriveSetup:
    """Requests to drives that wait for their answers."""

    def __init__(self, hardware: HardwareDescription, wire: Wire, cfg: BusCfg) -> None:
        """The buses are opened by `wire`."""
        self._hardware, self._wire, self._cfg = hardware, wire, cfg
        self.poll = [wire.request(joint, Kind.DISABLE) for joint in range(len(hardware.drives))]
        """Requests that a drive which is off answers with its state."""
        self.beat: Callable[[], None] = lambda: None
        """Called at every request, for who watches that this thread is not stuck."""

    def configure(self, joint: int, torque_limit: float) -> None:
        """Write what a drive must know before it is switched on, and read back what is critical.

        `torque_limit` is at the shaft [N·m]; it is not written where the make has none.
        """
        hardware, model = self._hardware, self._hardware.drives[joint].model
        known = self._wire.bus_of[joint].codec.parameters
        self.ask(joint, Kind.CLEAR_FAULTS)
        self.ask(joint, Kind.WRITE, Parameter.RUN_MODE, 0.0)
        self.ask(joint, Kind.WRITE, Parameter.CAN_TIMEOUT, hardware.can_timeout_s)
        if Parameter.TORQUE_LIMIT in known:
            self.ask(joint, Kind.WRITE, Parameter.TORQUE_LIMIT, torque_limit)
        for parameter, wanted in (
            (Parameter.CAN_TIMEOUT, hardware.can_timeout_s),
            (Parameter.POSITION_RANGE, model.position_range),
            (Parameter.VELOCITY_RANGE, model.velocity_range),
            (Parameter.TORQUE_RANGE, model.torque_range),
        ):
            if parameter not in known:
                continue
            found = self.ask(joint, Kind.READ, parameter)
            if not math.isclose(found, wanted, rel_tol=1e-3):
                raise DriveError(
                    f"{hardware.drives[joint]} has {parameter.name.lower()} {found:g}, "
                    f"expected {wanted:g}; set it with the maker's tool or update its firmware"
                )

    def ask(
        self, joint: int, kind: Kind, parameter: Parameter = Parameter.OTHER, value: float = 0.0
    ) -> float:
        """Send until it is answered; the value of a reply, NaN where the answer is a feedback.

        Raises:
            DriveError: The drive does not answer.
        """
        wire = self._wire
        wants_reply = kind == Kind.READ or (
            kind == Kind.WRITE and not wire.bus_of[joint].codec.write_answers_with_feedback
        )

        def waits() -> bool:
            return (joint, parameter) not in wire.answers if wants_reply else not wire.fresh[joint]

        message = wire.request(joint, kind, parameter, value)
        for _ in range(self._cfg.tries):
            self.beat()
            wire.give_up(joint)
            wire.begin_cycle()
            wire.send(joint, message, answers=not wants_reply)
            wire.read(wire.bus_of[joint], waits, wire.cycle_ns + round(self._cfg.answer_s * 1e9))
            if not waits():
                return wire.answers.get((joint, parameter), math.nan)
        what = "" if parameter == Parameter.OTHER else f" of {parameter.name.lower()}"
        raise DriveError(
            f"{self._hardware.drives[joint]} does not answer {kind.name.lower()}{what}; "
            f"{remedy(DriveFault.NO_REPLY)}"
        )

    def ask_state(self, joints: Iterable[int], answer_s: float) -> list[int]:
        """Tell drives to be off, which they answer with their state; returns the unheard."""
        wire, unheard = self._wire, list(joints)
        for _ in range(self._cfg.tries):
            self.beat()
            wire.begin_cycle()
            for joint in unheard:
                # Each try waits for as long as an answer may take: what is owed is lost.
                wire.give_up(joint)
                wire.send(joint, self.poll[joint])
            wire.gather(wire.cycle_ns + round(answer_s * 1e9))
            unheard = [joint for joint in unheard if not wire.fresh[joint]]
            if not unheard:
                break
        return unheard

    def find_drives(self, now_ns: Callable[[], int]) -> str:
        """Ask every drive, and for conflicts of ids; returns what is wrong besides, as an error."""
        cfg, wire, drives = self._cfg, self._wire, self._hardware.drives
        missing = self.ask_state(range(len(drives)), cfg.probe_s)
        present = [joint for joint in range(len(drives)) if joint not in missing]
        for number in range(cfg.id_rounds_more):
            wire.listen(cfg.surplus_s)
            if number >= cfg.id_rounds and not wire.ids.suspects(now_ns()):
                break
            self.ask_state(present, cfg.answer_s)
        if missing:
            names = ", ".join(str(drives[joint]) for joint in missing)
            silent = f"no answer from {names}; {remedy(DriveFault.NO_REPLY)}"
            return ("" if wire.ids.conflicts else self._exchanged_buses(missing)) or silent
        crossed = "" if wire.ids.conflicts else self._crossed_answers()
        if not crossed:
            self._ask_identities()
        return crossed

    def _exchanged_buses(self, missing: list[int]) -> str:
        """Whether drives that do not answer do so on the wires of another bus."""
        wire, drives = self._wire, self._hardware.drives
        silent = [
            bus for bus in wire.buses.values() if all(joint in missing for joint in bus.joints)
        ]
        found = []
        for bus in silent:
            for other in wire.buses.values():
                if other is bus or other.codec is not bus.codec:
                    continue
                ids = [drives[joint].can_id for joint in bus.joints]
                answering = wire.who_answers(other, ids, self._cfg.answer_s)
                if answering.issuperset(ids):
                    found.append(
                        f"the drives of bus {bus.spec.name} answer on {other.spec.channel}, where "
                        f"those of {other.spec.name} belong"
                    )
        wire.ids.reset()  # those that were asked under ids that the bus does not have
        if not found:
            return ""
        return (
            f"{'; '.join(found)}: the adapters or their plugs are exchanged; exchange the plugs, "
            "or name the adapters anew: krabby drives adapters"
        )

    def _crossed_answers(self) -> str:
        """Whether a drive answers under another one's id: each is asked alone."""
        wire, drives = self._wire, self._hardware.drives
        crossed = []
        for joint, drive in enumerate(drives):
            if wire.bus_of[joint].codec.answers_under_own_id:
                continue
            others = {self._who_answers_for(joint) for _ in range(self._cfg.tries)}
            if len(others) == 1 and "" not in others:
                crossed.append(f"{drive} is asked and {others.pop()} answers")
        if not crossed:
            return ""
        return (
            f"{'; '.join(crossed)}: they have each other's id of answers (Damiao: MST_ID, which is "
            "0x100 + the drive's own id); set it with the maker's tool"
        )

    def _who_answers_for(self, joint: int) -> str:
        """The joint whose drive answers when this one's is asked; empty when its own does.

        What drives still owed is dropped before, so that no late answer is taken for another's.
        """
        wire, bus = self._wire, self._wire.bus_of[joint]
        self.beat()
        wire.forget()
        wire.begin_cycle()
        wire.send(joint, self.poll[joint])
        deadline_ns = wire.cycle_ns + round(self._cfg.probe_s * 1e9)
        wire.read(bus, lambda: self._unanswered(joint), deadline_ns)
        others = self._others(joint)
        return others[0] if others and not wire.fresh[joint] else ""

    def _others(self, joint: int) -> list[str]:
        """Joints of the same bus whose drives said something that was not asked of them."""
        wire, drives = self._wire, self._hardware.drives
        by_id = wire.bus_of[joint].by_id
        others = (by_id.get(can_id, joint) for _, can_id in wire.surplus)
        return [drives[other].joint for other in others if other != joint]

    def _unanswered(self, joint: int) -> bool:
        return not (self._wire.fresh[joint] or self._others(joint))

    def _ask_identities(self) -> None:
        """Ask what tells every drive from all others; one that does not say stays unknown."""
        wire = self._wire
        wire.identities[:] = [""] * len(wire.identities)
        for _ in range(self._cfg.identity_tries):
            unknown = [joint for joint, known in enumerate(wire.identities) if not known]
            if not unknown:
                return
            wire.begin_cycle()
            for joint in unknown:
                message = wire.request(joint, Kind.READ, Parameter.IDENTITY)
                wire.send(joint, message, answers=False)
            deadline_ns = wire.cycle_ns + round(self._cfg.answer_s * 1e9)
            for bus in wire.buses.values():
                wire.read(bus, lambda bus=bus: self._wants_identity(bus.joints), deadline_ns)

    def _wants_identity(self, joints: Iterable[int]) -> bool:
        return not all((joint, Parameter.IDENTITY) in self._wire.answers for joint in joints)

    def refuse_conflicts(self, besides: str = "") -> None:
        """Raise for ids that are not one drive's; `besides` is what else is wrong."""
        conflicts = self._wire.ids.conflicts
        if conflicts:
            texts = [f"{conflict}: {conflict.remedy}" for conflict in conflicts]
            raise DriveError("; ".join([*texts, besides] if besides else texts))

    def check_running(
        self, joints: Iterable[int], readings: DriveReadings, faults: NDArray[np.uint32]
    ) -> None:
        """Raise for a drive that was switched on and has a fault or is not running."""
        for joint in joints:
            drive, bits = self._hardware.drives[joint], int(faults[joint])
            if bits:
                raise DriveError(f"{drive} reports {fault_names(bits)}; {remedy(bits)}")
            if readings.mode[joint] != DriveMode.RUN:
                mode = DriveMode(int(readings.mode[joint])).name.lower()
                raise DriveError(
                    f"{drive} was switched on and reports {mode}; switch its power off and on"
                )


def find_turns(
    joint_pos: NDArray[np.float64], mounting: Mounting, desc: RobotDescription
) -> NDArray[np.float64]:
    """Whole turns of the shafts by which drives woke up away from their calibration [rad].

    With a gear, one turn of the shaft may still be within the joint's range: then the drive must
    keep count itself, and it is left as it is.
    """
    per_turn = _TURN / np.abs(mounting.ratio)
    middle = 0.5 * (desc.joint_lower + desc.joint_upper)
    certain = per_turn > desc.joint_upper - desc.joint_lower
    return np.where(certain, np.rint((middle - joint_pos) / per_turn) * per_turn, 0.0)
