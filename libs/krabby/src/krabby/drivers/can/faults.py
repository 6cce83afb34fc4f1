"""Every fault a joint can have: what it means, how it is noticed, what happens, what to do.

Data, so that documents are made from it: `python -m krabby.drivers.can.faults` prints the table.
"""

import sys
from typing import Final, NamedTuple

from krabby.drivers.can.types import DriveFault

__all__ = ["FAULTS", "FaultInfo", "fault_names", "markdown", "remedy"]


class FaultInfo(NamedTuple):
    """One row of the table; plain sentences."""

    meaning: str
    detection: str
    safe_state: str
    remedy: str


_OFF: Final = "The drive switches itself off; all joints are damped."
_DAMPED: Final = "All joints are damped until they are armed again."

FAULTS: Final = {
    DriveFault.UNDERVOLTAGE: FaultInfo(
        "The drive sees too little supply voltage.",
        "Reported in every reply of the drive.",
        _OFF,
        "Charge or replace the battery; look for a loose power plug on this joint's chain.",
    ),
    DriveFault.OVERVOLTAGE: FaultInfo(
        "The drive sees too much supply voltage, as when braking energy has nowhere to go.",
        "Reported by the drive: Damiao in every reply, RobStride in its fault frame.",
        _OFF,
        "Check the supply and its brake resistor; a bench supply that cannot take current back "
        "needs one.",
    ),
    DriveFault.OVERCURRENT: FaultInfo(
        "A phase current passed the drive's limit, or its power stage reports a failure.",
        "Reported in every reply of the drive.",
        _OFF,
        "Turn the joint by hand with the power off; if it moves freely, clear the fault once. "
        "If it comes back, replace the drive.",
    ),
    DriveFault.OVER_TEMPERATURE: FaultInfo(
        "Power stage or winding is hotter than the drive allows.",
        "Reported in every reply of the drive.",
        _OFF,
        "Let it cool below 50 °C; look for a joint that holds load at rest.",
    ),
    DriveFault.OVERLOAD: FaultInfo(
        "The rotor is blocked, or carried too much for too long.",
        "Reported in every reply of the drive.",
        _OFF,
        "Free the leg; check that nothing is caught in it.",
    ),
    DriveFault.ENCODER: FaultInfo(
        "The drive cannot read its encoder.",
        "Reported in every reply of the drive.",
        _OFF,
        "Switch the power off and on; if it comes back, replace the drive.",
    ),
    DriveFault.UNCALIBRATED: FaultInfo(
        "The drive's encoder was never calibrated to its motor.",
        "Reported in every reply of the drive.",
        "The drive cannot be switched on.",
        "Calibrate it with the maker's tool, unloaded, before it is built in.",
    ),
    DriveFault.DRIVER: FaultInfo(
        "The driver chip of the power stage reports a failure.",
        "Reported in the RobStride fault frame.",
        _OFF,
        "Replace the drive.",
    ),
    DriveFault.CAN_TIMEOUT: FaultInfo(
        "The drive heard no command for its time-out and let go.",
        "Reported by Damiao drives; a RobStride drive shows it as dropped_out.",
        _OFF,
        "Find out why the host fell silent: its log, the bus load, the cable.",
    ),
    DriveFault.NO_REPLY: FaultInfo(
        "The drive has not answered for 40 ms.",
        "No reply to any command in that time, whatever the reason.",
        _DAMPED + " A drive that hears nothing lets go by itself after 100 ms.",
        "Check power, plug and CAN id of this drive; if all of a bus are silent, its cable, "
        "terminators and bit rate.",
    ),
    DriveFault.BUS_OFF: FaultInfo(
        "The CAN controller left the bus after too many errors, or the interface went down.",
        "The kernel reports it in an error frame, or refuses to send.",
        _DAMPED + " The drives of the bus let go by themselves after 100 ms.",
        "Check cable, terminators (60 ohms between the lines) and bit rate; with restart-ms set "
        "the controller comes back by itself.",
    ),
    DriveFault.DROPPED_OUT: FaultInfo(
        "A drive that was switched on is off: it was reset, lost power, or timed out.",
        "Its replies say that it is off.",
        _DAMPED + " This joint turns freely.",
        "Look for a loose power plug; restart the HAL, which switches the drive on again.",
    ),
    DriveFault.STUCK_ENCODER: FaultInfo(
        "The position stands still to the last bit although the joint must move.",
        "For 90 ms the position did not change at all, while the reported speed added up to "
        "0.1 rad, or the torque it was asked for changed by 12 N·m, in a leg that carries load by "
        "the rated torque.",
        _DAMPED,
        "Switch the power off and on; if it comes back, replace the drive.",
    ),
    DriveFault.POSITION_JUMP: FaultInfo(
        "The position moved farther from one reply to the next than the drive can turn.",
        "Distance against the drive's fastest speed, times 1.5, plus 0.1 rad.",
        _DAMPED,
        "Check the encoder's magnet and the gear for slip; calibrate again before arming.",
    ),
    DriveFault.TOO_HOT: FaultInfo(
        "The temperature is at the end of the derating range.",
        "Temperature in every reply, against the model's range.",
        "The effort limit has fallen to a quarter of rated; all joints are damped.",
        "Let it cool; walk slower, carry less, or rest more.",
    ),
    DriveFault.VOLTAGE_LOW: FaultInfo(
        "The supply is at the end of the derating range.",
        "Voltage read from every drive in turn, against [supply] in hardware.toml.",
        "The effort limit has fallen to a quarter of rated; all joints are damped.",
        "Charge the battery; if it is full, look at its cable and fuse.",
    ),
    DriveFault.VOLTAGE_HIGH: FaultInfo(
        "The supply is above what hardware.toml allows.",
        "Voltage read from every drive in turn.",
        _DAMPED,
        "Check the supply and its brake resistor.",
    ),
    DriveFault.SHARED_ID: FaultInfo(
        "Two drives answer to the CAN id of this joint, or another host asks it too.",
        "Answers that nothing asked for came 3 times within 1 s; those within 2 ms, as of a frame "
        "that CAN repeats, are one time, and the late answer to a request given up is none.",
        _DAMPED + " Neither a probe nor arming succeeds.",
        "Unplug one of the two and give it another id with the maker's tool; then reset.",
    ),
    DriveFault.UNKNOWN_ID: FaultInfo(
        "A drive answers on this bus under an id that hardware.toml does not have there.",
        "As shared_id, by bus and id; shown on all joints of the bus.",
        _DAMPED + " Neither a probe nor arming succeeds.",
        "Unplug it, enter it in hardware.toml, or give it back its bus; a Damiao drive that "
        "answers under id 0 needs its MST_ID. Then reset.",
    ),
}
"""By fault; every bit of `DriveFault` has a row."""


def fault_names(faults: int) -> str:
    """The faults that are set, by name, for logs and errors."""
    return ", ".join(fault.name.lower() for fault in FAULTS if faults & fault and fault.name)


def remedy(faults: int) -> str:
    """What to do about the first fault that is set."""
    return next((info.remedy for fault, info in FAULTS.items() if faults & fault), "")


def markdown() -> str:
    """The table."""
    lines = [
        "| fault | meaning | noticed by | what happens | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {fault_names(fault)} | {' | '.join(info)} |" for fault, info in FAULTS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
