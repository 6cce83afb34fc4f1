"""Display of a run: a live table on a terminal, else a progress line now and then."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from krabby_proto import ControlClient, HalClient, ProtoError, RequestTimeout

from krabby_cli import scrape
from krabby_cli.logs import LogLine
from krabby_cli.scrape import LiveFigures, Scrape
from krabby_cli.text import LINES, printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Echo", "LiveDisplay", "PlainDisplay", "RunView"]

_HEADINGS: Final = (
    *("service", "process", "state", "loop Hz", "misses", "age p99 at most", "cores"),
)
_WORDS: Final = ("service", "process", "state")
_NARROW: Final = ("service", "state", "loop Hz", "cores")
"""Columns of a terminal narrower than `_WIDE`, such as a phone's."""
_WIDE: Final = 78
_RENDER_PERIOD_S: Final = 0.25
_ASK_PERIOD_S: Final = 1.0
_ANSWER_S: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class RunView:
    """State of a run at one moment."""

    title: str
    elapsed_s: float | None
    """Since all were ready; None while they start."""
    duration_s: float
    """0: no end."""
    progress: str
    states: Mapping[str, str]
    """Process state by service."""
    cores: Mapping[str, float] = field(default_factory=dict)

    @property
    def clock(self) -> str:
        if self.elapsed_s is None:
            return "starting"
        return f"{self.elapsed_s:.0f} s" + (f" of {self.duration_s:g} s" if self.duration_s else "")


class Echo:
    """Shows warnings of the services' logs, each event of a service once per period."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        period_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._period_s = period_s
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(self, name: str, line: LogLine) -> None:
        more = 0
        if line.event:
            key, now = (name, line.event), self._clock()
            said_s, more = self._said.get(key, (-math.inf, 0))
            if now - said_s < self._period_s:
                self._said[key] = (said_s, more + 1)
                return
            self._said[key] = (now, 0)
        self._say(f"{name}: {line.readable()}" + (f" ({more} more of these)" if more else ""))


class PlainDisplay:
    """Writes a progress line to stderr once per period; base of other displays."""

    def __init__(self, *, period_s: float = 5.0) -> None:
        self._period_s = period_s
        self._due_s = 0.0
        self.prefix = ""
        """Put before every line."""

    def update(self, view: RunView) -> None:
        now = time.monotonic()
        if now < self._due_s:
            return
        self._due_s = now + self._period_s
        load = sum(view.cores.values())
        self.say(f"{view.clock}: {view.progress}" + (f", {load:.2f} cores" if load else ""))

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{self.prefix}{printable(text, keep=LINES)}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing to undo."""


class LiveDisplay(PlainDisplay):
    """A table on the terminal: the services' metrics, and the states of HAL and game loop."""

    def __init__(self, endpoints: Mapping[str, str], metrics_ports: Mapping[str, int]) -> None:
        # Loaded only for a run on a terminal.
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._metrics_ports = metrics_ports
        self._hal = HalClient({"safety": endpoints["safety"]})
        self._loop = ControlClient(endpoints["control"])
        self._scrapes: dict[str, Scrape] = {}
        self._figures: dict[str, LiveFigures] = {}
        self._answers: dict[str, str] = {}
        self._ask_due_s = 0.0

    def update(self, view: RunView) -> None:
        """Ask once a second, draw four times a second."""
        now = time.monotonic()
        if now >= self._ask_due_s and view.elapsed_s is not None:
            self._ask_due_s = now + _ASK_PERIOD_S
            self._ask(now)
        if now >= self._due_s:
            self._due_s = now + _RENDER_PERIOD_S
            self._live.update(self._table(view), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(printable(text, keep=LINES), markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()
        self._hal.close()
        self._loop.close()

    def _ask(self, now_s: float) -> None:
        self._figures = {}
        for name, port in self._metrics_ports.items():
            found = scrape.fetch(port, now_s)
            if found is None:
                continue
            if name in self._scrapes:
                self._figures[name] = scrape.compare(self._scrapes[name], found)
            self._scrapes[name] = found
        self._answers = {"sim-hal": self._safety_state(), "gameloop": self._loop_state()}

    def _safety_state(self) -> str:
        try:
            answer = self._hal.safety("status", "krabby up", timeout_s=_ANSWER_S)
        except ProtoError:
            return "no answer"
        faults = ", ".join(map(str, answer.get("faults", ())))
        return printable(str(answer.get("state", "?")) + (f" ({faults})" if faults else ""))

    def _loop_state(self) -> str:
        try:
            answer = self._loop.request("status", timeout_s=_ANSWER_S)
        except RequestTimeout:
            return "no answer"
        blind = " (blind)" if answer.get("blind") else ""
        return printable(f"{answer.get('mode', '?')}, {answer.get('walking', '?')}{blind}")

    def _table(self, view: RunView) -> Table:
        from rich.table import Table

        table = Table(title=f"{view.title}\n{view.clock}: {view.progress}", title_justify="left")
        if narrow := self._console.width < _WIDE:
            table.box = None
        columns = [heading for heading in _HEADINGS if not narrow or heading in _NARROW]
        for heading in columns:
            justify = "left" if heading in _WORDS else "right"
            table.add_column(heading.removeprefix("loop ") if narrow else heading, justify=justify)
        for name, state in view.states.items():
            figures = self._figures.get(name)
            ages = figures.age_p99_ms.items() if figures else ()
            cells = {
                "service": name,
                "process": state,
                "state": self._answers.get(name, "") or (state if narrow else ""),
                "loop Hz": f"{figures.loop_hz:.1f}" if figures and figures.loop_hz > 0 else "",
                "misses": str(figures.deadline_misses) if figures else "",
                "age p99 at most": "\n".join(f"{stream} {age:g} ms" for stream, age in ages),
                "cores": f"{view.cores[name]:.2f}" if name in view.cores else "",
            }
            table.add_row(*(cells[heading] for heading in columns))
        return table
