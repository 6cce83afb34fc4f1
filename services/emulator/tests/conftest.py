import dataclasses

import msgspec
import pytest
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.can_io import message_of, open_bus
from krabby.drivers.can.hardware import HardwareDescription
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock
from krabby_emulator.can import CanSide
from krabby_emulator.config import DriveCfg, SupplyCfg
from krabby_emulator.faults import FaultBoard
from krabby_emulator.motor import DriveBank

QUIET = DriveCfg(position_noise=0.0, velocity_noise=0.0, effort_noise=0.0, encoder_counts=1 << 30)


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def hardware(desc, request):
    """The robot's own buses, virtual and this test's alone."""
    described = HardwareDescription.load(None, desc)
    names = {bus.name: f"{request.node.name}-{bus.name}" for bus in described.buses}
    return described.with_interface("virtual", names)


class Rig:
    """Drives without physics on virtual buses, and a host's end of each."""

    def __init__(self, hardware, desc, clock, *, calibration=None):
        self.hardware = hardware
        self.clock = clock
        self.bank = DriveBank(desc, QUIET, SupplyCfg())
        names = [bus.name for bus in hardware.buses]
        bus_of = [names.index(drive.bus) for drive in hardware.drives]
        self.board = FaultBoard(desc.joint_names, names, bus_of)
        self.side = CanSide(
            hardware,
            calibration or Calibration.nominal(hardware),
            self.bank,
            self.board,
            clock_ns=clock,
        )
        self.side.open()
        self.hosts = {bus.name: open_bus(bus) for bus in hardware.buses}

    def send(self, bus, *frames):
        for frame in frames:
            self.hosts[bus].send(message_of(frame))

    def answers(self, bus="front"):
        """Let the drives take what is there; what they say on one bus."""
        while self.side.serve(self.clock.now_ns):
            pass
        return self.heard(bus)

    def heard(self, bus="front"):
        messages = []
        while (message := self.hosts[bus].recv(0.0)) is not None:
            messages.append(message)
        return messages

    def close(self):
        self.side.close()
        for host in self.hosts.values():
            host.shutdown()


@pytest.fixture
def rig(hardware, desc, clock):
    rig = Rig(hardware, desc, clock)
    yield rig
    rig.close()


@pytest.fixture
def mirrored(desc, clock, hardware):
    """A rig whose lf_hip_yaw turns the other way, is geared 2 to 1 and says 0 at 0.3 rad."""
    first = msgspec.structs.replace(hardware.drives[0], direction=-1, gear=2.0, offset=0.3)
    changed = dataclasses.replace(hardware, drives=(first, *hardware.drives[1:]))
    rig = Rig(changed, desc, clock)
    yield rig
    rig.close()
