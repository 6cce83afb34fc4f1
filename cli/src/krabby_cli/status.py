"""The state of a running robot in words: for `krabby status`, and faults for the cockpit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

__all__ = ["FAULT_WORDS", "fault_words", "gate_lines", "inability_words", "loop_lines"]

FAULT_WORDS: Final[Mapping[str, str]] = {
    "command_timeout": "no valid command for 150 ms: is the game loop running?",
    "state_stale": "no measurement for 100 ms",
    "state_nonfinite": "a measurement was not a number",
    "tilt": "the robot leans too far: has it fallen?",
    "effort_budget": "a drive was loaded above its rating for too long",
    "joint_range": "a joint is beyond its range",
    "estop": "emergency stop: reset, then arm",
    "hal": "the HAL failed: see its log",
    "drive": "a drive reports an error or does not answer",
    "over_temperature": "a drive is too hot: let it cool",
    "bus": "the bus to the drives failed",
    "imu": "the IMU failed",
    "clock": "the clock stepped back",
    "state_gap": "measurements were missing for 100 ms or more",
}

_GATES: Final = {
    "disarmed": "the robot is limp; arm it",
    "arming": "the drives stiffen",
    "active": "follows commands",
    "hold": "keeps its pose: commands or measurements are late",
    "damp": "the robot is limp after a fault; arm it",
    "estop": "the robot is limp after an emergency stop; reset, then arm",
}
_MODES: Final = {
    "silent": "commands nothing: measurements are missing or too old",
    "passive": "the robot rests until it is armed and asked to stand",
    "stand_up": "the robot stands up",
    "sit_down": "the robot sits down",
    "no_lease": "another game loop commands the robot",
}
_SIGHTS: Final = {"memory": "no image: walks on memory", "lost": "no image: stands"}
_SOURCES: Final = {"operator": "an operator", "mission": "a mission"}
_ABILITIES: Final = {
    "stands": "stand still",
    "reverses": "walk backward",
    "side_steps": "side-step",
    "turns_in_place": "turn in place",
}
_AXES: Final = (
    ("forward", "backward", "m/s"),
    ("to the left", "to the right", "m/s"),
    ("turning left", "turning right", "rad/s"),
)
_LEAST: Final = 0.005
"""Smallest command that is told of [m/s, rad/s]."""


def fault_words(names: Iterable[object]) -> list[str]:
    """Faults of a gate's answer as a person reads them; one without words by its name."""
    return [FAULT_WORDS.get(str(name), str(name)) for name in names]


def gate_lines(answer: Mapping[str, Any]) -> list[str]:
    """Lines about the safety gate, from its answer to `status`."""
    state = str(answer.get("state", "unknown"))
    faults = [str(name) for name in answer.get("faults", ()) if name != state]
    words = zip(faults, fault_words(faults), strict=True)
    return [
        f"safety gate: {_with(state, _GATES.get(state, ''))}",
        *(f"  fault    {_with(name, said if said != name else '')}" for name, said in words),
    ]


def loop_lines(answer: Mapping[str, Any]) -> list[str]:
    """Lines about the game loop, from its answer to `status`; what it does not tell is left out."""
    mode = str(answer.get("mode", "unknown"))
    nav = answer.get("nav") or ()
    walker = answer.get("walking", "the policy")
    walks = mode == "policy"
    doing = f"{walker} {'walks' if _command(nav) else 'stands'}" if walks else _MODES.get(mode, "")
    lines = [f"game loop: {_with(mode, doing)}"]
    if "policy" in answer:
        sight = _SIGHTS.get(str(answer.get("sight")), "")
        if answer.get("blind"):
            sight = f"{walker} walks blind in its place"
        lines.append(f"  policy   {_with(str(answer['policy']), sight if walks else '')}")
    if nav:
        source = _SOURCES.get(answer.get("nav_source", ""))
        lines.append(f"  command  {_command(nav) or 'zero'}{f', from {source}' if source else ''}")
    if answer.get("nav_clamped"):
        lines.append(f"  asked    {_command(answer.get('nav_asked', ()))}; the policy does less")
    if cannot := inability_words(answer):
        lines.append(f"  note     {cannot}")
    return lines


def inability_words(answer: Mapping[str, Any]) -> str:
    """What the policy that follows commands was measured not to do; empty where nothing is known.

    Args:
        answer: of the game loop to `status`.
    """
    walker = answer.get("walking", "the policy")
    policy = walker if answer.get("blind") else answer.get("policy", walker)
    abilities = answer.get("abilities") or {}
    # Mostly another policy stands in the place of one that creeps, and then it does not matter.
    creeps = walker == policy and not any(answer.get("nav") or ())
    cannot = [
        words
        for name, words in _ABILITIES.items()
        if abilities.get(name) is False and (name != "stands" or creeps)
    ]
    return f"{policy} cannot {', '.join(cannot)}" if cannot else ""


def _command(nav: Sequence[float]) -> str:
    """A walking command in words; empty for zero."""
    return ", ".join(
        f"{abs(value):.2f} {unit} {ahead if value > 0 else back}"
        for value, (ahead, back, unit) in zip(nav, _AXES, strict=False)
        if abs(value) >= _LEAST
    )


def _with(name: str, words: str) -> str:
    return f"{name}, {words}" if words else name
