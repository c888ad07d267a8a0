"""A twin shows a run's rows somewhere else, in Weights & Biases or TensorBoard. It may fail; training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ppo_fast.names import first_line
from ppo_fast.run.rows import Row

Say = Callable[[str], None]  # shows a line of text to the user


class Twin:
    """A place that gets a run's rows as they are written. What a kind of place can't show, its class leaves out."""

    name: str  # as in the warning when it fails

    def log(self, row: Row) -> None:
        """Show one row, in JSON types."""

    def log_video(self, path: Path, global_step: int) -> None:
        """Show an mp4 file."""

    def finish(self, result: Row) -> None:
        """Show the final evaluation of a run that has come to its end, and the policy; `close` follows."""

    def close(self, exit_code: int) -> None:
        """End it; a non-zero `exit_code` marks a run that failed."""


class Guarded(Twin):
    """A twin whose first failure is said in one line, and ends this twin only: it is not asked for anything again."""

    def __init__(self, twin: Twin, say: Say) -> None:
        self.name = twin.name
        self._twin: Twin | None = twin
        self._say = say

    def log(self, row: Row) -> None:
        self._call(lambda twin: twin.log(row))

    def log_video(self, path: Path, global_step: int) -> None:
        self._call(lambda twin: twin.log_video(path, global_step))

    def finish(self, result: Row) -> None:
        self._call(lambda twin: twin.finish(result))

    def close(self, exit_code: int) -> None:
        """End the twin. A second call does nothing."""
        self._call(lambda twin: twin.close(exit_code))
        self._twin = None

    def _call(self, action: Callable[[Twin], None]) -> None:
        if self._twin is None:
            return
        try:
            action(self._twin)
        except Exception as error:
            self._twin = None
            self._say(f"warning: {self.name} failed ({first_line(error)}); the run folder stays complete")
