"""What the drivable teacher's rewards prefer: hand-made ways of moving, compared in pairs.

`pytest -s` prints the table. Each way is a sequence of moments of one robot of 46.9 kg; a moment is
so many seconds of one value of everything that rewards read. Returns are discounted as in training.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from krabby_trainer.run.config import compose
from krabby_trainer.task.config import CommandCfg
from krabby_trainer.task.progress import Goal
from krabby_trainer.task.rewards import REWARDS, Step, enough, ground_direction

PRESETS = ["terrain=wild", "motion=upright", "commands=drive"]
DT = 0.01
WEIGHT_N = 460.0


@dataclass
class Moment:
    """What differs from a robot that is level on flat ground and commanded to walk at 0.5 m/s."""

    seconds: float
    vx: float = 0.0
    vy: float = 0.0
    yaw_rate: float = 0.0
    pitch: float = 0.0
    """Nose up [rad]."""
    slope: float = 0.0
    """Of the ground ahead, upwards [rad]."""
    load: float = 1.0
    """Of walking: 1 as measured on crab_hex_rs at 0.5 m/s, 0 standing."""
    torque: tuple[float, float, float] = (16.0, 16.0, 16.0)
    """Of the hip yaws, hip pitches and knees of the legs that carry [N·m]."""
    held_up: int = 0
    """Feet that hang 0.12 m above the ground; their legs carry nothing."""
    edge_feet: int = 0
    pit_feet: int = 0
    trunk: bool = False
    fails: bool = False
    barred: bool = False
    approaches: bool = False
    free: tuple[float, float, float] | None = None
    """Velocity command of a free robot."""
    more: dict[str, Any] = field(default_factory=dict)


def step_of(m: Moment, cfg: CommandCfg) -> Step:
    vx, still = torch.tensor([[m.vx, m.vy, 0.0]]), torch.zeros(1, 18)
    free = m.free is not None
    speed = 0.0 if m.barred or free else 0.5
    contact = torch.arange(6)[None] >= m.held_up
    foot_force = torch.zeros(1, 6, 3)
    foot_force[..., 2] = contact * WEIGHT_N / (6 - m.held_up)
    soles = torch.zeros(1, 6, 3)
    soles[..., 2] = 0.12 * ~contact
    torque = torch.tensor([m.torque]) * torch.where(contact, 1.0, 0.3)[0, :, None]
    torque = torque.reshape(1, 18)
    landed = torch.zeros(1, 6)
    landed[0, 0] = 0.17 * m.load  # 17 touchdowns a second of all feet
    ahead = 0.5 * math.tan(m.slope)
    slopes = [ground_direction(torch.tensor([z]), torch.tensor([-z])) for z in (ahead, 0.0)]
    force = torch.zeros(1, 1, 3)
    force[..., 2] = 100.0 * m.trunk
    asked = m.vx if m.approaches else speed
    hurried = max(0.5 + cfg.hurry_margin, cfg.hurry_speed)
    values: dict[str, Any] = {
        "dt": DT,
        "base_pos_w": torch.tensor([[0.0, 0.0, 0.42]]),
        "base_lin_vel_w": vx,
        "base_lin_vel_b": vx,
        "base_ang_vel_b": torch.tensor([[0.15 * m.load, 0.15 * m.load, m.yaw_rate]]),
        "joint_pos": still + 0.12 * m.load,
        "joint_vel": still + 1.4 * m.load,
        "torque": torque,
        "foot_force_w": foot_force,
        "leg_force_w": torch.zeros(1, 18, 3),
        "base_force_w": force,
        "weight_n": torch.tensor([WEIGHT_N]),
        "gravity_b": torch.tensor([[-math.sin(m.pitch), 0.0, -math.cos(m.pitch)]]),
        "soles_w": soles,
        "previous_joint_vel": still,
        "action": still + 0.03 * m.load,
        "previous_action": still,
        "mean_square": torque.square(),
        "default_joint_pos": still,
        "target_lower": still - 1.0,
        "target_upper": still + 1.0,
        "command": torch.tensor([m.free or (0.0, 0.0, 0.0)]),
        "free_height_m": 0.48,
        "stand_height_m": 0.42,
        "foot_contact": contact,
        "landed": landed,
        "rise_m": torch.full((1, 6), 0.04),
        "air_s": torch.where(contact, 0.0, 9.0),
        "foot_ground_w": torch.zeros(1, 6),
        "on_edge": torch.arange(6)[None] < m.edge_feet,
        "in_pit": torch.arange(6)[None] < m.pit_feet,
        "failed": torch.tensor([m.fails]),
        "free": torch.tensor([free]),
        "goal": Goal(torch.tensor([[1.0, 0.0]]), torch.ones(1), torch.zeros(1), torch.zeros(1)),
        "speed": enough(torch.tensor([speed]), cfg.slack),
        "approaches": torch.tensor([m.approaches]),
        "onward_speed": enough(torch.tensor([0.5]), cfg.slack),
        "allowed_speed": torch.tensor([max(hurried, asked) if asked else 0.0]),
        "ground_b": torch.stack(slopes, dim=-1),
        "rated_torque": still[0] + 40.0,
        "fold_start": 0.8,
    }
    return Step(**(values | m.more))


def stands(seconds, **what):
    return Moment(seconds, load=0.0, **what)


def walks(seconds, **what):
    return Moment(seconds, vx=0.5, **what)


def falls(**what):
    """Half a second of tilting, then the end of the episode."""
    return [Moment(0.5, vx=0.3, pitch=0.7, pit_feet=2, **what), Moment(DT, fails=True)]


@functools.cache
def composed(*typed):
    return compose([*PRESETS, *typed])


def earned(way, *typed) -> float:
    """Discounted return of a way: moments one after another; nothing after the last."""
    cfg = composed(*typed)
    gamma, total, tick = cfg.agent.algorithm.gamma, 0.0, 0
    for moment in way:
        step = step_of(moment, cfg.env.command)
        rate = sum(
            getattr(cfg.env.reward, reward.name) * float(reward.of(step)) for reward in REWARDS
        )
        ticks = round(moment.seconds / DT)
        total += DT * rate * gamma**tick * (1.0 - gamma**ticks) / (1.0 - gamma)
        tick += ticks
    return total


def sways(seconds, mean, by=0.04):
    """Walks at `mean` on average, faster and slower by `by` in turns."""
    return [Moment(0.1, vx=mean + sign * by) for _ in range(round(5 * seconds)) for sign in (1, -1)]


TURNS = (0.0, 0.0, 0.6)
# On level ground at 0.3 m/s in Isaac Lab: six legs of the gait, and four of stage 4, the front ones
# held up; then the same standing. Torque RMS of hip yaw, hip pitch and knee [N·m].
SIX, FOUR = {"torque": (8.5, 26.5, 21.5)}, {"torque": (16.0, 49.0, 22.0), "held_up": 2}
SIX_STAND, FOUR_STAND = {"torque": (0.4, 22.0, 9.0)}, {"torque": (6.0, 54.0, 9.0), "held_up": 2}
PAIRS = {
    "level ground: level, not nose up by 0.45 rad": ([walks(10)], [walks(10, pitch=0.45)]),
    "level ground: walk, not stand": ([walks(10)], [stands(10)]),
    "level ground: on six legs, not on four": ([walks(10, **SIX)], [walks(10, **FOUR)]),
    "level ground: walk on six legs, not stand on them": (
        [walks(10, **SIX)],
        [stands(10, **SIX_STAND)],
    ),
    "level ground: stand on six legs, not on four": (
        [stands(10, free=(0.0, 0.0, 0.0), **SIX_STAND)],
        [stands(10, free=(0.0, 0.0, 0.0), **FOUR_STAND)],
    ),
    "gap: cross with two feet over it for 1.5 s, not stop before it": (
        [walks(1), walks(1.5, **FOUR), walks(7.5)],
        [walks(1), stands(9)],
    ),
    "level ground: as fast as commanded, not twice": ([walks(10)], [Moment(10, vx=1.0)]),
    "30 degrees up: walk parallel to the ground, not stand": (
        [walks(10, pitch=0.52, slope=0.52)],
        [stands(10, slope=0.52)],
    ),
    "gap: cross upright with a foot on an edge, not stop before it": (
        [walks(1), walks(2, edge_feet=1), walks(7)],
        [walks(1), stands(9)],
    ),
    "gap: stop before it, not fall into it": (
        [walks(1), stands(9)],
        [walks(1), *falls()],
    ),
    "stones: walk with a foot in two on an edge, not stop": (
        [walks(1), walks(9, edge_feet=1)],
        [walks(1), stands(9)],
    ),
    "wall: stand before it, not push into it": (
        [stands(10, barred=True)],
        [Moment(10, pitch=0.3, trunk=True, barred=True)],
    ),
    "wall: stand before it level, not rear up": (
        [stands(10, barred=True)],
        [stands(10, barred=True, pitch=0.5)],
    ),
    "cliff: stand at it, not walk over it": (
        [stands(10, barred=True)],
        [walks(1, barred=True), *falls(barred=True)],
    ),
    "cliff: stand at it, not walk about": ([stands(10, barred=True)], [walks(10, barred=True)]),
    "turn in place as commanded, not stand": (
        [Moment(10, yaw_rate=0.6, free=TURNS)],
        [stands(10, free=TURNS)],
    ),
    "turn in place, not in an arc": (
        [Moment(10, yaw_rate=0.6, free=TURNS)],
        [Moment(10, vx=0.3, yaw_rate=0.6, free=TURNS)],
    ),
    # The slope from standing to turning, and from an arc to the spot.
    "turn in place too slowly, swaying, not stand": (
        [Moment(0.2, vx=side * 0.04, yaw_rate=0.15, load=0.5, free=TURNS) for side in (1, -1) * 25],
        [stands(10, free=TURNS)],
    ),
    "turn in an arc of 0.2 m/s, not of 0.35": (
        [Moment(10, vx=0.2, yaw_rate=0.6, free=TURNS)],
        [Moment(10, vx=0.35, yaw_rate=0.6, free=TURNS)],
    ),
    "side-step, not drift forwards at 0.15 m/s as well": (
        [Moment(10, vy=0.4, free=(0.0, 0.4, 0.0))],
        [Moment(10, vx=0.15, vy=0.4, free=(0.0, 0.4, 0.0))],
    ),
    "walk backwards as commanded, not stand": (
        [Moment(10, vx=-0.4, free=(-0.4, 0.0, 0.0))],
        [stands(10, free=(-0.4, 0.0, 0.0))],
    ),
    "zero command: stand, not step in place": (
        [stands(10, free=(0.0, 0.0, 0.0))],
        [Moment(10, free=(0.0, 0.0, 0.0))],
    ),
    "zero command: stand, not creep at 5 cm/s": (
        [stands(10, free=(0.0, 0.0, 0.0))],
        [Moment(10, vx=0.05, load=0.3, free=(0.0, 0.0, 0.0))],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_better_way_earns_more(name):
    better, worse = (earned(way) for way in PAIRS[name])
    sys.stdout.write(f"\n{better:7.2f} > {worse:7.2f}  {name}")
    assert better > worse + 0.1


def test_approaching_something_impassable_earns_as_much_as_standing_and_no_more():
    approach = Moment(1, vx=0.5, load=0.0, barred=True, approaches=True)
    assert earned([approach]) == pytest.approx(earned([stands(1, barred=True)]), abs=0.01)
    slow = Moment(1, vx=0.2, load=0.0, barred=True, approaches=True)
    assert earned([slow]) < earned([approach])


@pytest.mark.parametrize(
    ("pair", "typed"),
    [
        # Why an edge costs a third on this terrain: before, feet on edges outweighed the way.
        ("stones: walk with a foot in two on an edge, not stop", "env.reward.edge=-6"),
        # Why slopes count: a level base was asked for where legs cannot give one.
        ("level ground: level, not nose up by 0.45 rad", "env.reward.tilt=0"),
    ],
)
def test_without_the_change_the_margin_is_smaller(pair, typed):
    better, worse = PAIRS[pair]
    now = earned(better) - earned(worse)
    before = earned(better, typed) - earned(worse, typed)
    assert before < 0.5 * now


def break_even(way, fallen, instead, *typed):
    """Share of falls at which trying is worth as much as not trying."""
    good, bad, none = (earned(each, *typed) for each in (way, fallen, instead))
    return (good - none) / (good - bad)


STRICT = ["env.command.hurry_speed=0.1", "env.command.hurry_margin=0.02", "env.reward.overspeed=-4"]


def test_a_mean_speed_above_the_command_does_not_pay_although_the_speed_sways():
    good, fast = sways(1, 0.5), sways(1, 0.54)
    assert earned(good) > earned(fast) - 1e-6
    # What the recipe adds once the courses are learned makes it cost.
    assert earned(good, *STRICT) > earned(fast, *STRICT) + 0.05
    # Where all is earned at the commanded speed and not below it, the faster mean took more.
    assert earned(fast, "env.command.slack=[0,0]") > earned(good, "env.command.slack=[0,0]") + 0.05


def test_a_gap_is_worth_trying_while_every_third_try_fails():
    tried = [walks(1), walks(2, edge_feet=1), walks(7)]
    fallen, instead = [walks(1), walks(1, edge_feet=1), *falls()], [walks(1), stands(9)]
    strict = break_even(tried, fallen, instead)
    loose = break_even(tried, fallen, instead, "env.reward.fall=-200")
    sys.stdout.write(f"\nbreak-even share of falls: {strict:.2f}, at a fall of -200: {loose:.2f}")
    assert loose > strict > 0.2
