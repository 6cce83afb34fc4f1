"""What a controller decided is decided again from its records, bit for bit."""

import numpy as np
import pytest
from krabby.control.config import ControlCfg
from krabby.control.errors import TapeError
from krabby.control.policy_manager import load_runner
from krabby.control.replay import Replayer
from krabby.control.testing import RecordedLoop
from krabby_proto import TICKS, CommandStatus, NavTaken, SafetyState, TickReader

GAIT = ControlCfg(policy="gait", blind_policy="gait")


@pytest.fixture(scope="module")
def eventful(desc):
    """22 s: stand up, walk, sit, stand, an emergency stop, a lost lease, silence, a swap."""
    loop = RecordedLoop(GAIT, desc)
    loop.command = (0.3, 0.05, 0.2)
    loop.run(600)
    loop.controller.request("sit")
    loop.run(400)
    assert loop.controller.request("stand") is None
    loop.run(350)
    loop.gate.state = SafetyState.ESTOP
    loop.run(50)
    loop.gate.state = SafetyState.ACTIVE
    loop.run(300)
    loop.gate.status = CommandStatus.REJECTED_LEASE
    loop.run(30)
    loop.gate.status = CommandStatus.APPLIED
    loop.run(200)
    loop.gate.silent = True
    loop.run(30)
    loop.gate.silent = False
    loop.command = None
    loop.run(100)
    loop.swap = load_runner("gait", desc, 100.0)
    loop.run(140)
    return loop


def ticks_of(loop):
    reader = TickReader()
    return [reader.read(message) for message in loop.messages if message.stream is TICKS]


def replayed(replayer, ticks):
    return [found for tick in ticks if (found := replayer.step(tick)) is not None]


def test_all_that_can_happen_is_decided_again_bit_for_bit(desc, eventful):
    replayer = Replayer(desc)
    ticks = ticks_of(eventful)
    found = replayed(replayer, ticks)

    assert len(found) == len(ticks) == 2200
    assert {tick.mode for tick in ticks} >= {
        "passive",
        "stand_up",
        "policy",
        "sit_down",
        "no_lease",
    }
    assert [
        each.tick.tick for each in found if each.differing_bytes or each.mode != each.tick.mode
    ] == []
    assert (replayer.lost, replayer.differences) == ([], [])


def test_a_part_begins_at_its_first_snapshot(desc, eventful):
    replayer = Replayer(desc)
    found = replayed(replayer, ticks_of(eventful)[137:1300])

    # Records 200, 300, ... carry one: 137 to 199 cannot be decided.
    assert found[0].tick.tick == 200
    assert len(found) == 1300 - 200
    assert sum(each.differing_bytes for each in found) == 0
    assert replayer.lost == [
        "ticks 137 to 199: no snapshot of the controller since the recording began or a gap"
    ]


# In the stop and with the lease lost: a reply that stands before the snapshot must count once.
@pytest.mark.parametrize("begin", [1400, 1700, 1900, 2000])
def test_it_may_begin_in_the_middle_of_trouble(desc, eventful, begin):
    found = replayed(Replayer(desc), ticks_of(eventful)[begin:])
    assert len(found) == 2200 - begin
    assert sum(each.differing_bytes for each in found) == 0


def test_ticks_that_are_missing_are_named_and_the_rest_is_exact(desc, eventful):
    ticks = ticks_of(eventful)
    replayer = Replayer(desc)
    found = replayed(replayer, [*ticks[:520], *ticks[523:800]])

    assert sum(each.differing_bytes for each in found) == 0
    assert [each.tick.tick for each in found] == [*range(520), *range(600, 800)]
    assert replayer.lost[0] == "3 ticks missing before tick 523"
    assert replayer.lost[1].startswith("ticks 523 to 599: no snapshot")


def test_a_game_loop_that_restarted_is_followed(desc, eventful):
    first, second = ticks_of(eventful)[:250], ticks_of(eventful)[:250]
    for tick in second:
        object.__setattr__(tick, "instance_id", 99)
    replayer = Replayer(desc)
    found = replayed(replayer, [*first, *second])
    assert len(found) == 500
    assert sum(each.differing_bytes for each in found) == 0
    assert replayer.lost == []

    late = Replayer(desc)
    assert len(replayed(late, [*first, *second[150:]])) == 250 + 50
    assert late.lost[0] == "the game loop restarted and 150 ticks of it are missing"


def test_one_changed_bit_of_an_input_shows(desc, eventful):
    """The highest bit but one of the fraction of vx: 0.3 m/s becomes 0.2375 or 0.3625 m/s."""
    ticks = ticks_of(eventful)[:700]
    at = next(i for i, tick in enumerate(ticks) if i >= 500 and tick.navs)
    inputs = list(ticks[at].inputs)
    place = next(i for i, each in enumerate(inputs) if isinstance(each, NavTaken))
    nav = inputs[place].message
    payload = nav.payload.copy()
    payload.view(np.uint32)[0] ^= 1 << 21
    inputs[place] = inputs[place]._replace(message=nav._replace(payload=payload))
    object.__setattr__(ticks[at], "inputs", tuple(inputs))

    found = replayed(Replayer(desc), ticks)

    differing = [each.tick.tick for each in found if each.differing_bytes]
    assert ticks[at].mode == "policy"
    assert differing
    assert at <= differing[0] < at + 5


def test_another_policy_answers_otherwise_from_where_it_takes_over(desc, policies, eventful):
    replayer = Replayer(desc, policy=str(policies / "blind"))
    found = replayed(replayer, ticks_of(eventful)[:700])

    first = next(each for each in found if each.differing_bytes)
    assert first.tick.mode == "policy"
    assert first.policy == "blind"
    assert np.abs(first.difference).max() > 0.0
    assert all(each.mode == each.tick.mode for each in found)


def test_another_robot_and_damage_are_refused(desc, eventful):
    ticks = ticks_of(eventful)
    robot = dict(desc.identity, name="spider")
    other = type("Other", (), {"identity": robot})()
    with pytest.raises(TapeError, match="'crab_hex' and this one is 'spider'"):
        Replayer(other).step(ticks[0])

    object.__setattr__(ticks[0], "snapshot", ticks[0].snapshot[:-5])
    with pytest.raises(TapeError, match="cannot be read"):
        Replayer(desc).step(ticks[0])
