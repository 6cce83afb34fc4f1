"""Input of the emergency stop: a normally closed contact on a GPIO line.

The contact connects the line to ground, a resistor pulls it up: closed reads low, and a pressed
button, a broken wire and a pulled plug all read high. A line that cannot be read counts as pressed.

This input only informs the gate; the emergency stop itself cuts the drives' supply.
"""

import importlib
from typing import Any

import structlog
from krabby.drivers.errors import DeviceError

from krabby_jetson_hal.config import EstopCfg

__all__ = ["GpioEstop"]

log = structlog.get_logger(__name__)


class GpioEstop:
    """One line of a GPIO chip through libgpiod 2.

    Source of the calls: the documentation in the `gpiod` package, 2.5 (`request_lines`,
    `LineSettings`, `LineRequest.get_value`).
    """

    def __init__(self, cfg: EstopCfg) -> None:
        """Request the line as an input.

        Raises:
            DeviceError: no such chip or line, no permission, or gpiod is not installed.
        """
        gpiod = _import_gpiod()
        self._line: int | str = int(cfg.line) if cfg.line.isdigit() else cfg.line
        self._name = f"line {cfg.line} of {cfg.chip}"
        bias = gpiod.line.Bias.PULL_UP if cfg.bias == "pull_up" else gpiod.line.Bias.AS_IS
        settings = gpiod.LineSettings(direction=gpiod.line.Direction.INPUT, bias=bias)
        self._active = gpiod.line.Value.ACTIVE
        self._confirm = cfg.confirm
        self._open_for = 0
        self._failing = False
        try:
            self._request = gpiod.request_lines(
                cfg.chip, config={self._line: settings}, consumer="jetson-hal e-stop"
            )
            self._request.get_value(self._line)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"the emergency stop on {self._name} cannot be read ({_reason(error)}); check "
                "estop.chip and estop.line against gpioinfo, give this process the device, and "
                "use estop.bias=as_is with a resistor where the chip has no pull-up"
            ) from error

    def pressed(self) -> bool:
        """Whether the contact is open, in as many readings in a row as `confirm` asks for."""
        try:
            is_open = self._request.get_value(self._line) is self._active
        except Exception as error:  # the line cannot be read, for any reason
            if not self._failing:
                self._failing = True
                log.error("emergency stop cannot be read", line=self._name, reason=_reason(error))
            return True
        self._failing = False
        self._open_for = self._open_for + 1 if is_open else 0
        return self._open_for >= self._confirm

    def close(self) -> None:
        """Release the line."""
        self._request.release()


def _import_gpiod() -> Any:
    try:
        gpiod = importlib.import_module("gpiod")
        importlib.import_module("gpiod.line")
    except ImportError as error:
        raise DeviceError(
            f"estop.chip is set, but gpiod cannot be imported ({error}); install the "
            "package gpiod, or leave estop.chip empty to run without the input"
        ) from error
    if not hasattr(gpiod, "request_lines"):
        raise DeviceError(
            "the installed gpiod speaks libgpiod 1; install gpiod>=2.2, which has request_lines"
        )
    return gpiod


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
