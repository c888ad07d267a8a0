"""The ways to show a run where there is no live panel: not at all, quietly, or in plain lines.

Plain lines are ASCII `name=value` pairs, which `grep`, `awk` and log files can read.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from ppo_fast import names
from ppo_fast.run.figures import Figures
from ppo_fast.run.streams import complain, printable_lines, write_line
from ppo_fast.run.summary import Ending, Line, lines_of, one_line_of

LABEL_WIDTH = 12  # of the summary
PLAIN_SIGNS = {"": "", "ok": "", "warn": "! ", "stop": "!! "}  # by severity


class Printer:
    """What a console needs of the way in which it is shown. This one says nothing at all."""

    seconds_between_rows = math.inf

    def start(self, lines: Sequence[str]) -> None:
        """Show the header."""

    def phase(self, name: str) -> None:
        """Say what goes on now."""

    def show_row(self) -> None:
        """Show the newest row."""

    def message(self, text: str) -> None:
        """Show a line of its own."""

    def summary(self, ending: Ending) -> None:
        """Show how the run ended; nothing but messages comes after it."""

    def close(self, failed: bool = False) -> None:
        """Leave the terminal as it was; `failed` where an exception ends the run. May be called again."""


class Quiet(Printer):
    """Warnings, on stderr, and one line at the end."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def message(self, text: str) -> None:
        if text.startswith(("warning", "error")):
            complain(text)

    def summary(self, ending: Ending) -> None:
        with suppress(OSError):
            write_plain(self._stream, one_line_of(ending))


class PlainLines(Printer):
    """A line every two seconds, and all of the header, the messages and the summary."""

    seconds_between_rows = 2.0

    def __init__(self, figures: Figures, stream: TextIO | None) -> None:
        self.figures = figures
        self._stream = stream
        self._rows_shown = 0
        self._advice_said: set[str] = set()
        self._reader_is_gone = False

    def start(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._print(line)

    def phase(self, name: str) -> None:
        self._catch_up()
        self._print(f"{name} ...")

    def show_row(self) -> None:
        self._rows_shown = self.figures.rows_seen
        self._print(self.figures.plain_line())
        for item in self.figures.advice:
            if item.key not in self._advice_said:
                self._print(f"health: {item.text}")
        self._advice_said |= {item.key for item in self.figures.advice}

    def message(self, text: str) -> None:
        if self._reader_is_gone:
            Quiet(self._stream).message(text)
        else:
            self._print(text)

    def summary(self, ending: Ending) -> None:
        self._catch_up()
        self._print("")
        for line in lines_of(ending):
            self._print_line(line)

    def _catch_up(self) -> None:
        """Show the newest row where it was too early to."""
        if self._rows_shown != self.figures.rows_seen:
            self.show_row()

    def _print_line(self, line: Line) -> None:
        self._print(f"{line.label:<{LABEL_WIDTH}}{PLAIN_SIGNS[line.severity]}{names.printable(line.text)}")

    def _print(self, text: str) -> None:
        self._try(lambda: write_plain(self._stream, text))

    def _try(self, write: Callable[[], object]) -> None:
        """Write, but no more once the reader has gone (`| head`, a lost connection): the training has not."""
        if self._reader_is_gone:
            return
        try:
            write()
        except OSError:
            self._reader_is_gone = True


def write_plain(stream: TextIO | None, text: str) -> None:
    """Lines for a log file; raises OSError where nobody reads."""
    write_line(stream, printable_lines(text).replace("±", "+-"))
