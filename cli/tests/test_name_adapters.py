"""`krabby drives adapters`: a folder of files in place of /sys, real buses for who answers."""

import itertools

import pytest
from krabby.drivers.can.adapters import Adapter, assign, buses_heard, find_adapters, rules
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import FakeDrives, free_multicast_channels
from krabby.drivers.errors import DriveError, HardwareError
from krabby.robot.description import RobotDescription
from krabby_cli.__main__ import main

WIRED = HardwareDescription.load(None, RobotDescription.load())
SERIALS = ("0042", "0017", "0099")


def machine(root, serials=SERIALS):
    """Three USB adapters that the kernel found in this order, and a loopback interface."""
    for number, serial in enumerate(serials):
        device = root / f"sys/devices/usb1/1-2.{number + 1}"
        interface = device / f"1-2.{number + 1}:1.0"
        net = root / f"sys/class/net/can{number}"
        interface.mkdir(parents=True)
        net.mkdir(parents=True)
        if serial:
            (device / "serial").write_text(f"{serial}\n")
        (net / "type").write_text("280\n")
        (net / "dev_port").write_text("0\n")
        (net / "device").symlink_to(interface)
    (root / "sys/class/net/lo").mkdir()
    (root / "sys/class/net/lo/type").write_text("772\n")
    return root


def test_adapters_are_found_with_port_and_serial_number(tmp_path):
    assert find_adapters(machine(tmp_path)) == [
        Adapter("can0", "1-2.1:1.0", "0042", 0),
        Adapter("can1", "1-2.2:1.0", "0017", 0),
        Adapter("can2", "1-2.3:1.0", "0099", 0),
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_in_every_order_of_plugging_each_bus_gets_its_name(order, tmp_path):
    """The names are none that the kernel gives away, so none is ever taken."""
    found = find_adapters(machine(tmp_path, [SERIALS[i] for i in order]))
    buses = {"0042": "front", "0017": "middle", "0099": "rear"}
    lines = rules({buses[adapter.serial]: adapter for adapter in found}).splitlines()[2:]
    assert sorted(lines) == [
        f'SUBSYSTEM=="net", ACTION=="add", ATTR{{type}}=="280", ATTRS{{serial}}=="{serial}", '
        f'ATTR{{dev_port}}=="0", NAME="can-{bus}"'
        for serial, bus in sorted(buses.items())
    ]


def test_adapters_with_one_serial_number_are_known_by_their_ports(tmp_path):
    found = find_adapters(machine(tmp_path, ("1", "1", "1")))
    adapters = dict(zip(("front", "middle", "rear"), found, strict=True))
    assert 'KERNELS=="1-2.1:1.0", ATTR{dev_port}=="0", NAME="can-front"' in rules(adapters)
    with pytest.raises(HardwareError, match="no serial numbers of their own; use --by port"):
        rules(adapters, "serial")


def test_channels_of_one_adapter_are_told_apart():
    adapters = {
        bus: Adapter(f"can{n}", "1-1:1.0", "7", n) for n, bus in enumerate(("front", "rear"))
    }
    text = rules(adapters)
    assert 'ATTR{dev_port}=="0", NAME="can-front"' in text
    assert 'ATTR{dev_port}=="1", NAME="can-rear"' in text


def test_the_command_writes_the_rules_it_was_told(tmp_path, capsys):
    path = tmp_path / "rules"
    words = ["front=can2", "middle=can1", "rear=can0", "--root", str(machine(tmp_path))]
    assert main(["drives", "adapters", *words, "--write", str(path)]) == 0
    assert f"{path} written" in capsys.readouterr().out
    assert 'ATTRS{serial}=="0099", ATTR{dev_port}=="0", NAME="can-front"' in path.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["front=can9"], "'front=can9' is not BUS=INTERFACE"),
        (["front=can0", "middle=can0", "rear=can1"], "a separate interface each"),
    ],
)
def test_a_wrong_assignment_is_one_line(tmp_path, capsys, words, says):
    assert main(["drives", "adapters", *words, "--root", str(machine(tmp_path))]) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_without_an_adapter_it_says_what_to_plug_in(tmp_path, capsys):
    (tmp_path / "sys/class/net").mkdir(parents=True)
    assert main(["drives", "adapters", "--root", str(tmp_path)]) == 1
    assert "no CAN interface; plug the adapters in" in capsys.readouterr().err


def test_a_bus_is_known_by_the_drives_that_answer():
    hardware = WIRED.with_interface("udp_multicast", free_multicast_channels(WIRED))
    with FakeDrives(hardware):
        assert [buses_heard(hardware, spec) for spec in hardware.buses] == [
            ("front",), ("middle",), ("rear",)
        ]  # fmt: skip


ADAPTERS = [Adapter(f"can{number}", f"1-{number}:1.0", "", 0) for number in range(3)]


def heard(**answers):
    return lambda hardware, spec: answers.get(spec.channel, ())


def test_adapters_in_another_order_are_assigned_by_who_answers():
    found = assign(WIRED, ADAPTERS, ask=heard(can0=("rear",), can1=("front",), can2=("middle",)))
    assert {bus: adapter.name for bus, adapter in found.items()} == {
        "rear": "can0", "front": "can1", "middle": "can2"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"can0": ("front",), "can1": ("middle",)}, "no drive of rear answers on any of can0"),
        ({"can0": ("front", "rear")}, "drives of front and rear answer on can0; two buses are"),
        ({"can0": ("front",), "can1": ("front",)}, "of front answer on can0 and on can1"),
    ],
)
def test_what_does_not_fit_is_named(answers, says):
    with pytest.raises(DriveError, match=says):
        assign(WIRED, ADAPTERS, ask=heard(**answers))
