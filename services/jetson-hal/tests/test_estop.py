"""The emergency stop's input against a fake libgpiod that has the real one's shape."""

import dataclasses
import enum
import inspect
import sys
import types

import pytest
from krabby.config import ConfigError
from krabby.drivers.errors import DeviceError
from krabby.runtime.testing import captured_logs
from krabby_jetson_hal.config import EstopCfg
from krabby_jetson_hal.estop import GpioEstop


class Value(enum.Enum):
    INACTIVE = 0
    ACTIVE = 1


class Direction(enum.Enum):
    AS_IS = 1
    INPUT = 2
    OUTPUT = 3


class Bias(enum.Enum):
    AS_IS = 1
    PULL_UP = 4


@dataclasses.dataclass
class LineSettings:
    direction: Direction = Direction.AS_IS
    bias: Bias = Bias.AS_IS


class LineRequest:
    def __init__(self, config):
        self.config = config
        self.value = Value.INACTIVE
        self.error = None
        self.released = False

    def get_value(self, line):
        assert line in self.config
        if self.error is not None:
            raise self.error
        return self.value

    def release(self):
        self.released = True


@pytest.fixture
def gpiod(monkeypatch):
    """A chip that has any requested line."""
    module, line = types.ModuleType("gpiod"), types.ModuleType("gpiod.line")
    line.Value, line.Direction, line.Bias = Value, Direction, Bias
    module.line, module.LineSettings, module.requests = line, LineSettings, []
    module.refuse = None

    def request_lines(path, config, consumer=None, event_buffer_size=None, output_values=None):
        if module.refuse is not None:
            raise module.refuse
        request = LineRequest(config)
        module.requests.append((path, request))
        return request

    module.request_lines = request_lines
    monkeypatch.setitem(sys.modules, "gpiod", module)
    monkeypatch.setitem(sys.modules, "gpiod.line", line)
    return module


CFG = EstopCfg(chip="/dev/gpiochip0", line="PQ.06")


def test_the_fake_has_the_shape_of_the_real_library():
    real = pytest.importorskip("gpiod")
    real_line = pytest.importorskip("gpiod.line")
    taken = inspect.signature(real.request_lines).parameters
    assert list(taken) == ["path", "config", "consumer", "event_buffer_size", "output_values"]
    assert list(inspect.signature(real.LineRequest.get_value).parameters) == ["self", "line"]
    assert "self" in inspect.signature(real.LineRequest.release).parameters
    assert {field.name for field in dataclasses.fields(LineSettings)} <= {
        field.name for field in dataclasses.fields(real.LineSettings)
    }
    for ours, theirs in ((Value, real_line.Value), (Direction, real_line.Direction),
                         (Bias, real_line.Bias)):  # fmt: skip
        assert set(ours.__members__) <= set(theirs.__members__)


def test_the_real_library_names_a_chip_that_is_not_there():
    pytest.importorskip("gpiod")
    with pytest.raises(DeviceError, match="No such file or directory") as error:
        GpioEstop(EstopCfg(chip="/dev/gpiochip-none", line="5"))
    assert "line 5 of /dev/gpiochip-none" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_line_is_an_input_with_a_pull_up(gpiod):
    GpioEstop(CFG)
    ((path, request),) = gpiod.requests
    assert path == "/dev/gpiochip0"
    assert request.config == {"PQ.06": LineSettings(Direction.INPUT, Bias.PULL_UP)}


def test_a_number_is_a_number_and_the_bias_can_be_left_to_the_board(gpiod):
    GpioEstop(EstopCfg(chip="/dev/gpiochip1", line="85", bias="as_is"))
    ((_, request),) = gpiod.requests
    assert request.config == {85: LineSettings(Direction.INPUT, Bias.AS_IS)}


def test_closed_is_well_and_open_is_pressed_in_the_second_reading(gpiod):
    estop = GpioEstop(CFG)
    ((_, request),) = gpiod.requests
    assert not estop.pressed()
    request.value = Value.ACTIVE  # pressed, cut or unplugged: the resistor pulls it up
    assert [estop.pressed() for _ in range(3)] == [False, True, True]
    request.value = Value.INACTIVE
    assert not estop.pressed()


def test_a_line_that_cannot_be_read_any_more_counts_as_pressed_and_is_logged_once(gpiod):
    estop = GpioEstop(CFG)
    ((_, request),) = gpiod.requests
    request.error = OSError(19, "No such device")
    with captured_logs() as events:
        assert [estop.pressed() for _ in range(3)] == [True] * 3
    assert len(events) == 1


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file"),
        (PermissionError(13, "Permission denied"), "give this process the device"),
        (OSError(16, "Device or resource busy"), "busy"),
        (ValueError("unknown line: PQ.06"), "unknown line"),
    ],
)
def test_a_line_that_cannot_be_had_is_one_line_with_the_remedy(gpiod, refusal, words):
    gpiod.refuse = refusal
    with pytest.raises(DeviceError) as error:
        GpioEstop(CFG)
    assert words in str(error.value)
    assert "gpioinfo" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(DeviceError, match="install the package gpiod"):
        GpioEstop(CFG)


def test_libgpiod_1_is_told_apart(monkeypatch):
    old = types.ModuleType("gpiod")
    monkeypatch.setitem(sys.modules, "gpiod", old)
    monkeypatch.setitem(sys.modules, "gpiod.line", types.ModuleType("gpiod.line"))
    with pytest.raises(DeviceError, match="libgpiod 1"):
        GpioEstop(CFG)


def test_closing_releases_the_line(gpiod):
    estop = GpioEstop(CFG)
    estop.close()
    assert gpiod.requests[0][1].released


def test_a_chip_needs_a_line():
    with pytest.raises(ConfigError, match="gpioinfo"):
        EstopCfg(chip="/dev/gpiochip0")
