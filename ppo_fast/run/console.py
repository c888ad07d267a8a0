"""What a run says while it trains and when it has ended: a live panel in a terminal, plain lines anywhere else.

    with Console(total_steps, title="CartPole-v1, seed 1") as console:
        console.start(["environment  CartPole-v1 (tensor)", "device       cpu"])
        console.update(row, advice)            # as often as you like: it draws at most four times a second
        console.summary(result, advice, run_folder, next_commands)

How it is shown is chosen once, when the console is made: panel.py, or one of printers.py.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self, TextIO

from ppo_fast.run.figures import Figures, Row
from ppo_fast.run.health import Advice
from ppo_fast.run.printers import PlainLines, Printer, Quiet
from ppo_fast.run.streams import is_terminal
from ppo_fast.run.summary import Ending


class Console:
    """The voice of one run.

    Args:
        total_steps: environment steps of the whole run, all environments together.
        quiet: say nothing but warnings (to stderr) and one line at the end.
        title: what runs, shown above the panel's border.
        stream: where to write, stdout by default. It gets the live panel if it is a terminal that can show one.
        silent: say nothing at all, as every rank of a distributed run but the first.
    """

    def __init__(
        self,
        total_steps: int,
        quiet: bool = False,
        title: str = "ppo_fast",
        stream: TextIO | None = None,
        silent: bool = False,
    ) -> None:
        self.figures = Figures(total_steps)
        out = sys.stdout if stream is None else stream
        if silent:
            self.printer = Printer()
        elif quiet:
            self.printer = Quiet(out)
        elif out is not None and _can_draw(out):
            from ppo_fast.run.panel import LivePanel  # and rich, which nothing else of a run needs

            self.printer = LivePanel(self.figures, title, out)
        else:
            self.printer = PlainLines(self.figures, out)
        self._next_row = 0.0

    def start(self, lines: Sequence[str]) -> None:
        """Print the header and open the live panel."""
        self.printer.start(lines)

    def phase(self, name: str) -> None:
        """Say at once what goes on now ("compiling", "training", "evaluating")."""
        self.printer.phase(name)

    def update(self, row: Row, advice: Sequence[Advice] = (), draw: bool = True) -> None:
        """Take in the newest row of metrics, and `draw` it where it is time to; else this takes a microsecond."""
        self.figures.add(row, advice)
        if draw and time.perf_counter() >= self._next_row:
            self.printer.show_row()
            self._next_row = time.perf_counter() + self.printer.seconds_between_rows

    def message(self, text: str) -> None:
        """Print a line of its own, above the live panel. In quiet mode warnings alone come through, on stderr."""
        self.printer.message(text)

    def summary(
        self,
        result: Mapping[str, Any],
        advice: Sequence[Advice] = (),
        folder: str | os.PathLike[str] = "",
        commands: Sequence[str] = (),
        measured: Sequence[str] = (),
    ) -> None:
        """Close the live panel and print how the run ended.

        Args:
            result: what result.json holds; what is absent is left out.
            advice: what the diagnostics say of the run; none means that all is well.
            folder: of the run.
            commands: what the user may type next.
            measured: lines of the speed report.
        """
        self.printer.summary(Ending(result, advice, folder, commands, measured))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.printer.close(failed=kind is not None)


def _can_draw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that moves its cursor and shows the signs the panel is made of."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    return is_terminal(stream) and encoding.startswith("utf") and os.environ.get("TERM", "dumb") != "dumb"
