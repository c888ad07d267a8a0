"""A terminal for tests of what is shown, and a run to show."""

import io
import re

from ppo_fast.run.health import Advice

ROW = {
    "global_step": 250_000,
    "charts/SPS": 231042.4,
    "charts/episodic_return": 212.345,
    "charts/episodic_length": 212.0,
    "losses/policy_loss": -0.0123,
    "losses/value_loss": 12.5,
    "losses/entropy": 0.512,
    "losses/approx_kl": 0.0081,
    "losses/clipfrac": 0.114,
    "losses/explained_variance": 0.93,
    "time/elapsed": 2.0,
    "time/collect": 0.76,
    "time/learn": 1.14,
}
RESULT = {
    "eval/mean_return": 499.5,
    "eval/std_return": 1.25,
    "eval/episodes": 100,
    "eval/sampled_mean_return": 480.0,
    "eval/sampled_std_return": 9.0,
    "global_step": 500_000,
    "sps": 231042.0,
    "seconds": {"startup": 1.0, "compile": 4.0, "train": 2.5, "eval": 0.5},
}
WARNING = Advice("clip_fraction", "warn", "clip fraction 0.37 (> 0.2): lower --clip-coef")
CLEAR_LINE = "\x1b[2K"
SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


class Terminal(io.StringIO):
    """A terminal that can show everything; its width is that of the environment variable COLUMNS."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def clear(self) -> None:
        """Forget what was written."""
        self.seek(0)
        self.truncate()


class Rows:
    """The rows of a terminal that wraps what is written when it becomes narrower, as most of them do."""

    def __init__(self) -> None:
        self.rows = [""]
        self.at = 0
        self.column = 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.at, self.column = self.at + 1, 0
                self.rows += [""] * (self.at == len(self.rows))
            elif part.endswith("A"):
                self.at = max(0, self.at - int(part[2:-1]))
            elif part == "\x1b[J":
                self.rows[self.at :] = [self.rows[self.at][: self.column]]
            elif part == CLEAR_LINE:
                self.rows[self.at] = ""
            elif not part.startswith("\x1b"):
                row = self.rows[self.at].ljust(self.column)
                self.rows[self.at] = row[: self.column] + part + row[self.column + len(part) :]
                self.column += len(part)

    def narrow(self, columns: int) -> None:
        """What a terminal does with its rows when it gets this width."""
        wrapped = [[row[i : i + columns] for i in range(0, max(1, len(row)), columns)] for row in self.rows]
        self.at = sum(map(len, wrapped[: self.at + 1])) - 1
        self.column = 0
        self.rows = [row for rows in wrapped for row in rows]


def without_colour(text: str) -> str:
    """Text without what moves the cursor and sets colours."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
