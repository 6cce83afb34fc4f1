"""A controller made again from a snapshot continues as the one it was taken of."""

import msgspec
import numpy as np
import pytest
from krabby.control import snapshot
from krabby.control.config import ControlCfg
from krabby.control.controller import LocomotionController
from krabby.control.errors import TapeError
from krabby.control.policy_manager import PolicyManager
from krabby.safety.trajectories import rest_joint_pos
from krabby_proto import FLAG_OPERATOR, CommandReply, CommandStatus, SafetyState

MS = 1_000_000


def reply(now_ns):
    numbers = dict.fromkeys(
        ("fault_bits", "position_clamp_mask", "rate_clamp_mask", "request_sequence"), 0
    )
    frame = CommandReply.pack(
        CommandStatus.APPLIED, safety_state=int(SafetyState.ACTIVE), applied_sequence=1,
        applied_ns=now_ns, server_ns=now_ns, **numbers,
    )  # fmt: skip
    return CommandReply.unpack(frame)


class Loop:
    """A controller of a robot that goes where it is told, driven by a person at 0.3 m/s."""

    def __init__(self, cfg, desc, messages):
        self.state, self.nav = messages
        self.ms, self.pos = 0, rest_joint_pos(desc)
        self.controller = LocomotionController(
            cfg, desc, PolicyManager(cfg, desc), host_clock=lambda: self.ms * MS
        )
        self.controller.hal_checked = True

    def run(self, ticks):
        targets = []
        for _ in range(ticks):
            self.ms += 10
            now_ns, i = self.ms * MS, self.ms // 10
            state = self.state(now_ns, self.pos, sequence=i)
            self.controller.handle_state(state)
            if i % 5 == 0:
                said = self.nav(now_ns, (0.3, 0.0, 0.1), sequence=i, flags=FLAG_OPERATOR)
                self.controller.nav.receive(said, now_ns)
            sent = self.controller.tick(state, None, now_ns)
            self.controller.handle_reply(reply(now_ns))
            self.pos = sent.joint_pos
            targets.append(sent.joint_pos.tobytes())
        return targets


@pytest.fixture(scope="module")
def gait():
    return ControlCfg(policy="gait", blind_policy="gait")


# Standing up takes 3.2 s from rest: within it, at its end, in the hand-over of 0.3 s, and walking.
@pytest.mark.parametrize("ticks", [0, 1, 150, 330, 345, 500])
def test_it_goes_on_bit_for_bit(gait, desc, state, nav, ticks):
    first, second = (Loop(gait, desc, (state, nav)) for _ in range(2))
    first.run(ticks)
    second.ms, second.pos = first.ms, first.pos

    snapshot.restore(second.controller, snapshot.unpack(snapshot.pack(first.controller)).state)

    assert second.run(200) == first.run(200)
    assert second.controller.mode is first.controller.mode


def test_without_it_a_walk_goes_on_otherwise(gait, desc, state, nav):
    first, second = (Loop(gait, desc, (state, nav)) for _ in range(2))
    first.run(500)
    second.ms, second.pos = first.ms, first.pos
    assert second.run(50) != first.run(50)


def test_it_is_small_and_names_policy_robot_and_machine(gait, desc, state, nav):
    loop = Loop(gait, desc, (state, nav))
    loop.run(500)
    data = snapshot.pack(loop.controller)

    assert len(data) < 8192
    taken = snapshot.unpack(data)
    assert taken.chosen.name == taken.blind.name == "gait"
    files = {"policy.onnx", "manifest.json", "observation_statistics.json"}
    assert set(taken.chosen.hashes) == files
    assert taken.robot["hash"] == desc.content_hash
    assert taken.machine["numpy"] == np.__version__
    assert taken.config["policy"] == "gait"


def test_one_of_a_release_that_counted_no_arms_is_restored(gait, desc, state, nav):
    first, second = (Loop(gait, desc, (state, nav)) for _ in range(2))
    first.run(500)
    second.ms, second.pos = first.ms, first.pos
    fields = msgspec.msgpack.decode(snapshot.pack(first.controller))
    permit = fields["state"]["permit"]
    del permit["_arm_count"]
    permit["_arming_ns"] = None

    snapshot.restore(second.controller, snapshot.unpack(msgspec.msgpack.encode(fields)).state)

    assert second.run(200) == first.run(200)


def test_a_damaged_one_and_one_of_another_policy_are_refused(gait, cfg, desc, state, nav):
    loop = Loop(gait, desc, (state, nav))
    loop.run(500)
    data = snapshot.pack(loop.controller)
    with pytest.raises(TapeError, match="cannot be read"):
        snapshot.unpack(data[:-9])

    other = LocomotionController(cfg, desc, PolicyManager(cfg, desc))
    with pytest.raises(TapeError, match="name the policy of the run"):
        snapshot.restore(other, snapshot.unpack(data).state)
