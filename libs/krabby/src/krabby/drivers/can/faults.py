"""Every fault of a joint: meaning, detection, safe state, remedy.

`python -m krabby.drivers.can.faults` prints the table.
"""

import sys
from typing import Final, NamedTuple

from krabby.drivers.can.types import DriveFault

__all__ = ["FAULTS", "FaultInfo", "fault_names", "markdown", "remedy"]

_DAMPED: Final = "All joints are damped until they are armed again."
_SHUT: Final = _DAMPED + " Neither a probe nor arming succeeds."
_FOLDED: Final = "The effort limit has fallen to a quarter of rated; all joints are damped."


class FaultInfo(NamedTuple):
    """One row of the table; plain sentences."""

    meaning: str
    remedy: str
    detection: str = "Reported in every reply of the drive."
    safe_state: str = "The drive switches itself off; all joints are damped."


FAULTS: Final = {
    DriveFault.UNDERVOLTAGE: FaultInfo(
        "The drive sees too little supply voltage.",
        "Charge or replace the battery; look for a loose power plug on this joint's chain.",
    ),
    DriveFault.OVERVOLTAGE: FaultInfo(
        "The drive sees too much supply voltage, as when braking energy has nowhere to go.",
        "Check the supply and its brake resistor; a bench supply that cannot take current back "
        "needs one.",
        "Reported by the drive: Damiao in every reply, RobStride in its fault frame.",
    ),
    DriveFault.OVERCURRENT: FaultInfo(
        "A phase current passed the drive's limit, or its power stage reports a failure.",
        "Turn the joint by hand with the power off; if it moves freely, clear the fault once. "
        "If it comes back, replace the drive.",
    ),
    DriveFault.OVER_TEMPERATURE: FaultInfo(
        "Power stage or winding is hotter than the drive allows.",
        "Let it cool below 50 °C; look for a joint that holds load at rest.",
    ),
    DriveFault.OVERLOAD: FaultInfo(
        "The rotor is blocked, or carried too much for too long.",
        "Free the leg; check that nothing is caught in it.",
    ),
    DriveFault.ENCODER: FaultInfo(
        "The drive cannot read its encoder.",
        "Switch the power off and on; if it comes back, replace the drive.",
    ),
    DriveFault.UNCALIBRATED: FaultInfo(
        "The drive's encoder was never calibrated to its motor.",
        "Calibrate it with the maker's tool, unloaded, before it is built in.",
        safe_state="The drive cannot be switched on.",
    ),
    DriveFault.DRIVER: FaultInfo(
        "The driver chip of the power stage reports a failure.",
        "Replace the drive.",
        "Reported in the RobStride fault frame.",
    ),
    DriveFault.CAN_TIMEOUT: FaultInfo(
        "The drive heard no command for its time-out and switched itself off.",
        "Find out why the host fell silent: its log, the bus load, the cable.",
        "Reported by Damiao drives; a RobStride drive shows it as dropped_out.",
    ),
    DriveFault.NO_REPLY: FaultInfo(
        "The drive has not answered for 40 ms.",
        "Check power, plug and CAN id of this drive; if all of a bus are silent, its cable, "
        "terminators and bit rate.",
        "No reply to any command in that time, for any reason.",
        _DAMPED + " A drive that hears nothing switches itself off after 100 ms.",
    ),
    DriveFault.BUS_OFF: FaultInfo(
        "The CAN controller left the bus after too many errors, or the interface went down.",
        "Check cable, terminators (60 ohms between the lines) and bit rate; with restart-ms set "
        "the controller comes back by itself.",
        "The kernel reports it in an error frame, or refuses to send.",
        _DAMPED + " The drives of the bus switch themselves off after 100 ms.",
    ),
    DriveFault.DROPPED_OUT: FaultInfo(
        "A drive that was switched on is off: it was reset, lost power, or timed out.",
        "Look for a loose power plug; krabby reset switches the drive on again.",
        "Its replies say that it is off.",
        _DAMPED + " This joint turns freely.",
    ),
    DriveFault.STUCK_ENCODER: FaultInfo(
        "The position stands still to the last bit although the joint must move.",
        "Switch the power off and on; if it comes back, replace the drive.",
        "For 90 ms the position did not change at all, while the reported speed added up to "
        "0.1 rad, or the torque it was asked for changed by 12 N·m, in a leg that carries load by "
        "the rated torque.",
        _DAMPED,
    ),
    DriveFault.POSITION_JUMP: FaultInfo(
        "The position moved farther from one reply to the next than the drive can turn.",
        "Check the encoder's magnet and the gear for slip; calibrate again before arming.",
        "Distance against the drive's fastest speed, times 1.5, plus 0.1 rad.",
        _DAMPED,
    ),
    DriveFault.TOO_HOT: FaultInfo(
        "The temperature is at the end of the derating range.",
        "Let it cool; walk slower, carry less, or rest more.",
        "Temperature in every reply, against the model's range.",
        _FOLDED,
    ),
    DriveFault.VOLTAGE_LOW: FaultInfo(
        "The supply is at the end of the derating range.",
        "Charge the battery; if it is full, look at its cable and fuse.",
        "Voltage read from every drive in turn, against [supply] in hardware.toml.",
        _FOLDED,
    ),
    DriveFault.VOLTAGE_HIGH: FaultInfo(
        "The supply is above what hardware.toml allows.",
        "Check the supply and its brake resistor.",
        "Voltage read from every drive in turn.",
        _DAMPED,
    ),
    DriveFault.SHARED_ID: FaultInfo(
        "Two drives answer to the CAN id of this joint, or another host asks it too.",
        "Unplug one of the two and give it another id with the maker's tool; then reset.",
        "Answers to no request came 3 times within 1 s; those within 2 ms, as of a frame that CAN "
        "repeats, are one time, and the late answer to a request given up is none.",
        _SHUT,
    ),
    DriveFault.UNKNOWN_ID: FaultInfo(
        "A drive answers on this bus under an id that hardware.toml does not have there.",
        "Unplug it, enter it in hardware.toml, or give it back its bus; a Damiao drive that "
        "answers under id 0 needs its MST_ID. Then reset.",
        "As shared_id, by bus and id; shown on all joints of the bus.",
        _SHUT,
    ),
    DriveFault.CROSSED: FaultInfo(
        "The joint moves when another one is commanded, and that one when this is.",
        "Exchange the plugs or ids of the two joints that are named, or their entries in "
        "hardware.toml; then krabby drives identify.",
        "For a quarter of a second both were over 0.15 rad from their own targets and within "
        "0.06 rad of each other's.",
        _DAMPED,
    ),
    DriveFault.WRONG_TORQUE: FaultInfo(
        "The drive does not give the torque that its commands ask for.",
        "If two joints are named, they obey each other's commands: exchange their plugs or entries "
        "in hardware.toml, then krabby drives identify. One joint: its torque range and limit with "
        "the maker's tool, a motor phase, a brake.",
        "Reported against commanded torque while it holds a position: over half of the peak, root "
        "mean square over a quarter of a second.",
        _DAMPED,
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
    rows = [
        f"| {fault_names(fault)} | {info.meaning} | {info.detection} | {info.safe_state} | "
        f"{info.remedy} |\n"
        for fault, info in FAULTS.items()
    ]
    head = "| fault | meaning | noticed by | what happens | what to do |\n"
    return "".join((head, "| --- | --- | --- | --- | --- |\n", *rows))


if __name__ == "__main__":
    sys.stdout.write(markdown())
