"""The process from outside: its command line, and what it says when it cannot start."""

import subprocess
import sys

import pytest


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "krabby_jetson_hal", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_every_key():
    done = run("--help")
    assert done.returncode == 0
    for key in (
        "rate_hz", "can.hardware", "can.calibration", "can.interface", "can.channels",
        "cycle.reply_s", "imu.port", "contacts.on_n", "estop.chip", "endpoints.raw",
    ):  # fmt: skip
        assert f"  {key}  " in done.stdout


def test_a_good_configuration_is_told_so_without_touching_hardware():
    done = run("--check")
    assert done.returncode == 0
    assert "configuration is usable" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["robot=absent.toml"], "cannot read absent.toml"),
        (["can.hardware=absent.toml"], "cannot read absent.toml"),
        (["can.calibration=absent.toml"], "calibrate this robot first"),
        (["can.interface=telegraph"], "choose one of socketcan, udp_multicast, virtual"),
        (['can.channels=["can0"]'], "hardware.toml has 3 buses"),
        (["rate_hz=150"], "a whole multiple"),
        (["rate_hz=1000"], "lower rate_hz"),
        (["estop.chip=/dev/gpiochip0"], "gpioinfo"),
        (["contacts.off_n=30"], "above 0 to on_n"),
        (["imu.prot=x"], "did you mean imu.port?"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_line_and_status_two(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_imu_that_is_not_there_is_named_with_its_port_and_status_one():
    done = run("metrics_port=0", "imu.port=/dev/none-such", "can.interface=virtual")
    assert done.returncode == 1
    assert "/dev/none-such" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_gpio_chip_that_is_not_there_is_named_with_the_remedy():
    pytest.importorskip("gpiod")
    done = run("metrics_port=0", "estop.chip=/dev/gpiochip-none", "estop.line=5")
    assert done.returncode == 1
    assert "gpioinfo" in done.stderr
    assert done.stderr.count("\n") == 1
