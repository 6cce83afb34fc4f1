"""Keys from a terminal and a status line on it; neither ever blocks the caller."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import textwrap
import threading
import tty
from collections.abc import Callable
from typing import Final

from krabby_cli.errors import CliError

__all__ = ["KeyDecoder", "Keyboard", "StatusLine", "columns_of"]

_ESC: Final = 0x1B
_ARROWS: Final = {ord("A"): "up", ord("B"): "down", ord("C"): "right", ord("D"): "left"}
_CONTROL_KEYS: Final = {0x03: "ctrl-c", 0x04: "ctrl-d"}
_STRINGS: Final = b"]P^_"
"""After Esc: OSC, DCS, PM, APC, a terminal's answers to an earlier program."""
_ESTOP_KEY: Final = b"xX"
_MAX_PARAMETERS: Final = 32
_MOUSE_BYTES: Final = 3
_CLOSE_S: Final = 0.2
_COLUMNS: Final = 80
"""Of a terminal that does not say how wide it is."""
_ROWS: Final = 5
"""Of a status, at most: few enough for a small terminal."""
_LINE_MODE: Final = termios.ICANON | termios.ECHO
_MARK_PASTES: Final = "\x1b[?2004h"
_LEAVE_PASTES: Final = "\x1b[?2004l"


def columns_of(fd: int) -> int:
    """Width of a terminal; 80 where it is unknown or `fd` is none."""
    try:
        return os.get_terminal_size(fd).columns or _COLUMNS
    except OSError:
        return _COLUMNS


class KeyDecoder:
    """Key names from what a terminal sends, one byte at a time.

    There is no timer: the same bytes give the same keys, at any split and delay. So the Esc key is
    not distinguished from the first byte of a sequence and has no meaning; no sequence begins with
    x, the e-stop key. An x within a sequence, such as the column of a mouse report or keypad 8, is
    not a key.

    In a sequence of unbounded length (a paste, a terminal's answer) an x is the e-stop key all the
    same: a missing end must not swallow it. After any bytes, the fourth x in a row is an e-stop.
    """

    def __init__(self) -> None:
        self._state: Callable[[int], str | None] = self._ground
        self._parameters = b""
        self._skipped = 0
        self._pasting = False

    def feed(self, data: bytes) -> list[str]:
        """The keys that these bytes complete; an incomplete sequence waits for more bytes."""
        return [key for byte in data if (key := self._state(byte)) is not None]

    def _ground(self, byte: int) -> str | None:
        self._state = self._ground
        if byte == _ESC:
            self._state = self._escape
            return None
        if byte in _CONTROL_KEYS:
            return _CONTROL_KEYS[byte]
        if not 0x20 <= byte < 0x7F or (self._pasting and byte not in _ESTOP_KEY):
            return None
        return chr(byte)

    def _escape(self, byte: int) -> str | None:
        if byte == ord("["):
            self._parameters = b""
            self._state = self._csi
        elif byte == ord("O"):
            self._state = self._ss3
        elif byte in _STRINGS and not self._pasting:
            self._state = self._string
        elif byte == ord("\\"):  # the end of a string
            self._state = self._ground
        else:  # Alt and a key, or Esc and then a key: that key
            return self._ground(byte)
        return None

    def _csi(self, byte: int) -> str | None:
        """Parameters, then a final byte: arrows, function keys, mouse, focus, paste."""
        is_rxvt_final = byte == ord("$") and self._parameters.isdigit()
        if 0x20 <= byte < 0x40 and not is_rxvt_final:
            self._parameters = (self._parameters + bytes([byte]))[:_MAX_PARAMETERS]
            return None
        if byte < 0x20 or byte > 0x7E:
            return self._ground(byte)
        self._state = self._ground
        if byte == ord("[") and not self._parameters:  # F1 to F5 of the Linux console
            return self._skip(1)
        if byte == ord("M") and not self._parameters:  # a mouse report in raw bytes
            return self._skip(_MOUSE_BYTES)
        if byte == ord("~") and self._parameters in (b"200", b"201"):
            self._pasting = self._parameters == b"200"
            return None
        return None if self._pasting else _ARROWS.get(byte)

    def _ss3(self, byte: int) -> str | None:
        """Application mode: a final byte, old terminals put modifiers before it."""
        if 0x30 <= byte < 0x40:
            return None
        if not 0x40 <= byte <= 0x7E:
            return self._ground(byte)
        self._state = self._ground
        return None if self._pasting else _ARROWS.get(byte)

    def _skip(self, count: int) -> None:
        self._skipped = count
        self._state = self._skipping

    def _skipping(self, byte: int) -> str | None:
        if byte < 0x20:
            return self._ground(byte)
        self._skipped -= 1
        if not self._skipped:
            self._state = self._ground
        return None

    def _string(self, byte: int) -> str | None:
        if byte < 0x20 or byte in _ESTOP_KEY:
            return self._ground(byte)
        return None


class Keyboard(contextlib.AbstractContextManager["Keyboard"]):
    """A terminal in cbreak mode: every key at once and no echo; restored when closed.

    Ctrl-C still interrupts, Ctrl-Z still stops. Nothing in here waits for output to be read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._decoder = KeyDecoder()
        self._before = termios.tcgetattr(fd)
        tty.setcbreak(fd, termios.TCSANOW)
        termios.tcflush(fd, termios.TCIFLUSH)  # keys of an earlier program

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[str]:
        """Keys pressed since the last call; never waits. Every call keeps the settings.

        Raises:
            CliError: The terminal is gone.
        """
        self._keep_settings()
        if not select.select([self._fd], (), (), 0)[0]:
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        if not data:
            raise CliError("the terminal is gone; the robot was told to stop")
        return self._decoder.feed(data)

    def _keep_settings(self) -> None:
        """Set them again after Ctrl-Z and fg, where a shell restores its own.

        The e-stop key would wait for Enter otherwise.
        """
        with contextlib.suppress(termios.error):  # the read says that it is gone
            if termios.tcgetattr(self._fd)[3] & _LINE_MODE and not self._is_in_background():
                tty.setcbreak(self._fd, termios.TCSANOW)

    def _is_in_background(self) -> bool:
        """Whether the shell has the terminal: a process that changes it then is stopped."""
        try:
            return os.tcgetpgrp(self._fd) != os.getpgrp()
        except OSError:  # not the terminal of this session
            return False

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs no settings
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)


class StatusLine(contextlib.AbstractContextManager["StatusLine"]):
    """The newest status on a terminal, below lines that stay; written by a thread.

    A terminal that is not read (a dead link, Ctrl-S) blocks that thread only; lines that were
    overtaken meanwhile are not written. Every line asks the terminal to mark pastes, since a shell
    resets that around Ctrl-Z and fg: pasted text must not move the robot (`KeyDecoder`).
    """

    def __init__(self, fd: int, above: str = "") -> None:
        self._fd = fd
        self._above = above
        self._newest: str | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="status line", daemon=True)
        self._thread.start()

    def show(self, text: str) -> None:
        """Put `text` in place of the one before; never waits for the terminal.

        Its first line is cut to the terminal's width, the others are wrapped, to `_ROWS` in all;
        a newline at the end leaves the cursor below. A row that the terminal wraps itself would
        remain above the next text.
        """
        width = columns_of(self._fd) - 1
        first, *others = text.splitlines() or [""]
        rows = [row for other in others for row in textwrap.wrap(other, width)][: _ROWS - 1]
        text = "\n".join([first[:width], *rows]) + "\n" * text.endswith("\n")
        with self._changed:
            self._newest = text
            self._changed.notify()

    def close(self) -> None:
        """Write the last line if the terminal takes it soon."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def _write_all(self) -> None:
        self._write(self._above)
        up = ""
        while (text := self._next()) is not None:
            self._write(f"\r{up}\x1b[J{_MARK_PASTES}{text}")
            below = text.count("\n")
            up = f"\x1b[{below}A" if below else ""
        self._write(_LEAVE_PASTES)

    def _write(self, text: str) -> None:
        data = text.encode()
        with contextlib.suppress(OSError):  # Keyboard reports a terminal that is gone
            while data:
                data = data[os.write(self._fd, data) :]

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._closed)
            text, self._newest = self._newest, None
            return text

    def __exit__(self, *_: object) -> None:
        self.close()
