"""The live panel of a run in a terminal: progress, figures, the curve of the return, and a light for each diagnostic.

Lines, such as the header and messages, stay above it, and the summary takes its place.
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, TextIO

from rich.console import Console as Screen
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ppo_fast import names
from ppo_fast.run.figures import LOSSES, Figures, duration, number, show
from ppo_fast.run.printers import LABEL_WIDTH, PlainLines
from ppo_fast.run.sparkline import Curve, sparkline
from ppo_fast.run.streams import printable_lines
from ppo_fast.run.summary import Ending, Line, lines_of

DRAWS_PER_SECOND = 4.0  # a drawing costs about 1 ms in the training thread; rich's tables would double that
PANEL_WIDTH = 100
NAME_WIDTH = 15  # of a figure
HEADER_INDENT = 14
# Readable on light and on dark terminals and apart from each other without colour vision; the sign says it once more.
COLOURS = {"ok": "#0a84c6", "warn": "#d55e00", "stop": "bold #d55e00"}
SIGNS = {"ok": "●", "warn": "▲", "stop": "✖"}
LIGHTS = {  # the advice that has a light, and its name in the panel
    "clip_fraction": "clip fraction",
    "approx_kl": "approx KL",
    "explained_variance": "explained variance",
    "entropy": "entropy",
}


SHOW_CURSOR = "\x1b[?25h"  # as rich writes it


class Drawn(NamedTuple):
    """The size of the panel as it was last drawn."""

    columns: int
    rows: int


class LivePanel(PlainLines):
    """The panel and the lines above and below it.

    Args:
        title: what runs, shown in the panel's border.
        stream: a terminal.
    """

    seconds_between_rows = 1.0 / DRAWS_PER_SECOND

    def __init__(self, figures: Figures, title: str, stream: TextIO) -> None:
        super().__init__(figures, stream)
        self.screen = Screen(file=stream)
        self._title = names.printable(title)
        self._live: Live | None = None  # from `start` to `close`
        self._phase = "starting"
        self._returns = Curve()
        self._drawn = Drawn(0, 0)

    def start(self, lines: Sequence[str]) -> None:
        for line in lines:
            for part in self._wrapped(line, 0, HEADER_INDENT):
                self._print(part)
        # Drawn by show_row alone: a second thread would take the interpreter lock in the middle of an iteration.
        live = Live(self._panel(), console=self.screen, auto_refresh=False, transient=True)
        self._live = live  # before the cursor is hidden, so that an interrupt in between finds what is to be closed
        self._try(lambda: live.start(refresh=True))

    def phase(self, name: str) -> None:
        if self._live is None:
            super().phase(name)
        else:
            self._phase = name
            self._redraw(self._live)

    def show_row(self) -> None:
        if self._live is None:
            super().show_row()
        else:
            self._rows_shown = self.figures.rows_seen
            self._phase = "training"  # what rows come from
            self._redraw(self._live)

    def message(self, text: str) -> None:
        if self._reader_is_gone:
            self.close()  # while a panel is open, rich takes what goes to stderr to the terminal that has gone
        super().message(text)

    def summary(self, ending: Ending) -> None:
        self.close()
        self._print("")
        for line in lines_of(ending):
            self._print_line(line)

    def close(self, failed: bool = False) -> None:
        if self._live is None:
            return
        try:
            with suppress(OSError):
                self._live.stop()
        finally:
            self._live = None
            self._show_cursor()
        if failed and self.figures.row:
            self._print(self.figures.plain_line())  # the panel is gone: say where the run stood

    def _show_cursor(self) -> None:
        """rich does so, unless a second Ctrl-C ends it halfway; called again it would do nothing."""
        assert self._stream is not None, "a panel is drawn on a terminal"
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(SHOW_CURSOR)
            self._stream.flush()

    def _print_line(self, line: Line) -> None:
        """A line of the summary. Advice is wrapped; commands and paths are not, so that they can be copied."""
        style, parts = "", [names.printable(line.text)]
        if line.severity:
            style = COLOURS[line.severity]
            parts = self._wrapped(f"{SIGNS[line.severity]} {names.printable(line.text)}")
        label = line.label
        for part in parts:
            self._print_text(Text.assemble((f"{label:<{LABEL_WIDTH}}", "bold"), (part, style)))
            label = ""

    def _print(self, text: str) -> None:
        self._print_text(Text(printable_lines(text)))

    def _print_text(self, text: Text) -> None:
        """Text in one line of its own, however long."""
        self._try(lambda: self.screen.print(text, soft_wrap=True))

    def _redraw(self, live: Live) -> None:
        self._try(self._unwrap)
        self._try(lambda: live.update(self._panel(), refresh=True))

    def _unwrap(self) -> None:
        """Erase what a terminal that became narrower has wrapped into more lines than rich would erase."""
        rows = self._drawn.rows
        lines = rows * -(-self._drawn.columns // self.screen.width)  # rounded up
        assert self._stream is not None, "a panel is drawn on a terminal"
        if lines > rows:  # and end up where rich takes the panel's end to be
            self._stream.write(f"\r\x1b[{lines - 1}A\x1b[J" + "\n" * (rows - 1))

    def _wrapped(self, text: str, beside: int = LABEL_WIDTH, indent: int = 2) -> list[str]:
        """`text` in the lines that fit beside a label in this terminal."""
        width = max(20, min(PANEL_WIDTH, self.screen.width) - beside)
        wrapper = textwrap.TextWrapper(width, "", " " * indent, break_on_hyphens=False, break_long_words=False)
        return wrapper.wrap(text)

    def _panel(self) -> Panel:
        """The panel for the newest row."""
        self._returns.add(self.figures.recent_return)
        # Three columns stay free: the terminal's own "^C" would otherwise begin a line that nothing erases.
        width = max(20, min(PANEL_WIDTH, self.screen.width - 3) - 4)
        body = Text(no_wrap=True, overflow="ellipsis")
        self._add_progress(body, width)
        self._add_figures(body, width)
        self._add_speed(body, width)
        body.append(f"{'return so far':<{NAME_WIDTH}}", "dim")
        body.append(sparkline(self._returns.points, width - NAME_WIDTH) + "\n", COLOURS["ok"])
        self._add_lights(body, width)
        self._add_advice(body)
        self._drawn = Drawn(width + 4, min(body.plain.count("\n") + 3, self.screen.height))
        return Panel(body, title=Text(self._title), title_align="left", border_style="dim", width=width + 4)

    def _add_progress(self, body: Text, width: int) -> None:
        """The bar, and beside it how much is done and how long the rest takes."""
        percent = self.figures.percent
        label = f" {percent:3.0f} %   {duration(self.figures.seconds_left)} left"
        length = max(0, width - len(label))
        done = round(length * percent / 100)
        body.append("━" * done, COLOURS["ok"])
        body.append("━" * (length - done), "dim")
        body.append(label + "\n\n")

    def _add_figures(self, body: Text, width: int) -> None:
        """Names and values in three columns, in two or in one."""
        columns = 3 if width >= 75 else 2 if width >= 50 else 1
        pairs = self._pairs()
        for start in range(0, len(pairs), columns):
            for name, value in pairs[start : start + columns]:
                body.append(f"{name:<{NAME_WIDTH}}", "dim")
                body.append(value.ljust(width // columns - NAME_WIDTH), "bold")
            body.append("\n")

    def _pairs(self) -> list[tuple[str, str]]:
        """The name and the value of every figure of the panel."""
        figures = self.figures
        pairs = [
            ("step", f"{figures.step:,}"),
            ("of", f"{figures.total_steps:,}"),
            ("phase", self._phase),
            ("return", show(figures.recent_return, ".2f")),
            ("length", show(figures.recent_length, ".1f")),
            ("training for", duration(number(figures.row.get(names.ELAPSED)))),
            ("learning rate", show(figures.row.get(names.LEARNING_RATE), ".2e")),
            ("memory", memory_in_use()),
        ]
        return pairs + [(loss.title, show(figures.row.get(loss.column), loss.form)) for loss in LOSSES]

    def _add_speed(self, body: Text, width: int) -> None:
        """Steps per second and what the time goes to, in one line where that fits."""
        speed = show(self.figures.steps_per_second, ",.0f")
        shares = " · ".join(f"{name} {share} %" for name, share in self.figures.shares().items())
        gap = "   "
        if NAME_WIDTH + len(speed + gap + shares) > width:
            gap = "\n" + " " * max(0, min(NAME_WIDTH, width - len(shares)))
        body.append(f"{'steps/s':<{NAME_WIDTH}}", "dim")
        body.append(speed, "bold")
        body.append(gap + shares + "\n")

    def _add_lights(self, body: Text, width: int) -> None:
        """A light for each condition that is watched."""
        severities = {item.key: item.severity for item in self.figures.advice}
        columns = 4 if width >= 75 else 2 if width >= 50 else 1
        lights = list(LIGHTS.items())
        for start in range(0, len(lights), columns):
            body.append("\n")
            for key, name in lights[start : start + columns]:
                severity = severities.get(key, "ok")
                body.append(SIGNS[severity], COLOURS[severity])
                body.append(f" {name}".ljust(width // columns - 1))

    def _add_advice(self, body: Text) -> None:
        """What is wrong, in words."""
        for item in self.figures.advice:
            for line in self._wrapped(f"{SIGNS[item.severity]} {item.text}", 7):
                body.append("\n" + line, COLOURS[item.severity])


def memory_in_use() -> str:
    """What this process holds, on the host and, where CUDA is in use, on the GPU; "-" where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return "-"
    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.memory_reserved() if torch is not None and torch.cuda.is_initialized() else 0
    return f"{held / 1e9:.2f} GB" + (f" + {on_gpu / 1e9:.2f} GPU" if on_gpu else "")
