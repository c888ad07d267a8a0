"""What the rows of a run say so far, for the screen: progress, recent episodes, how the time was spent.

    figures = Figures(total_steps=500_000)
    figures.add(row, advice)                       # the row of every logged iteration
    figures.percent, figures.recent_return         # 12.5, 87.3

Numbers become text by `show` and `duration`.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppo_fast import names
from ppo_fast.run.health import Advice

LINE_WIDTH = 100  # of a plain line, at most
RECENT_ROWS = 10  # return and length are means over the last ten rows in which an episode ended

Row = Mapping[str, Any]  # one row of metrics.jsonl; a figure that is missing is absent, None or NaN


class Loss(NamedTuple):
    """One of the figures of an update that are shown."""

    title: str  # its name in the panel
    column: str
    form: str  # a number format


LOSSES = (
    Loss("policy loss", names.POLICY_LOSS, ".4f"),
    Loss("value loss", names.VALUE_LOSS, ".4g"),
    Loss("entropy", names.ENTROPY, ".3f"),
    Loss("approx KL", names.APPROX_KL, ".4f"),
    Loss("clip fraction", names.CLIPFRAC, ".3f"),
    Loss("expl. variance", names.EXPLAINED_VARIANCE, ".3f"),
)


class Figures:
    """The newest row of a run, and what has to be kept of those before it.

    Args:
        total_steps: environment steps of the whole run, all environments together.

    Attributes:
        row: the newest one; empty before the first.
        advice: what the diagnostics say of it.
        rows_seen: how many rows were added.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.row: Row = {}
        self.advice: Sequence[Advice] = ()
        self.rows_seen = 0
        self._returns = deque[float](maxlen=RECENT_ROWS)
        self._lengths = deque[float](maxlen=RECENT_ROWS)
        self._collect_seconds = 0.0
        self._learn_seconds = 0.0
        self._seconds = 0.0  # in all, of the rows that say what collect and learn took

    def add(self, row: Row, advice: Sequence[Advice] = ()) -> None:
        """Take in the row of an iteration. Takes a microsecond."""
        if names.COLLECT_TIME in row:  # an older version's rows, which a resumed run goes on with, lack it
            self._collect_seconds += row[names.COLLECT_TIME]
            self._learn_seconds += row[names.LEARN_TIME]
            self._seconds += row[names.ELAPSED] - self.row.get(names.ELAPSED, 0.0)
        episodic_return = number(row.get(names.EPISODIC_RETURN))
        if not math.isnan(episodic_return):  # else no episode has ended
            self._returns.append(episodic_return)
            self._lengths.append(number(row.get(names.EPISODIC_LENGTH)))
        self.row = row
        self.advice = advice
        self.rows_seen += 1

    @property
    def step(self) -> int:
        """Environment steps so far."""
        return self.row.get(names.GLOBAL_STEP, 0)

    @property
    def percent(self) -> float:
        """How much of the run is done, up to 100."""
        return min(100.0, 100.0 * self.step / max(1, self.total_steps))

    @property
    def steps_per_second(self) -> float:
        """NaN where it is not known."""
        return number(self.row.get(names.SPS))

    @property
    def seconds_left(self) -> float:
        """At the present speed; NaN where that is not known."""
        sps = self.steps_per_second
        return (self.total_steps - self.step) / sps if sps > 0 else math.nan

    @property
    def recent_return(self) -> float:
        """Mean return of recent episodes; NaN before the first has ended."""
        return _mean(self._returns)

    @property
    def recent_length(self) -> float:
        """Mean length of recent episodes; NaN before the first has ended."""
        return _mean(self._lengths)

    def shares(self) -> dict[str, int]:
        """Percent of the time that steps/s counts, by what took it; empty where that is not known.

        Other: logging, checkpoints, waiting for a GPU.
        """
        if not self._seconds:
            return {}
        collect = round(100 * self._collect_seconds / self._seconds)
        both = round(100 * (self._collect_seconds + self._learn_seconds) / self._seconds)
        return {"collect": collect, "learn": both - collect, "other": 100 - both}

    def plain_line(self) -> str:
        """The newest row as `name=value` pairs, which `grep`, `awk` and log files can read: in LINE_WIDTH columns, so
        without most losses, which metrics.jsonl has."""
        pairs = [f"step={self.step}", f"percent={self.percent:.1f}", f"sps={show(self.steps_per_second, '.0f')}"]
        pairs += [f"left={duration(self.seconds_left)}"]
        pairs += [f"return={show(self.recent_return, '.2f')}", f"length={show(self.recent_length, '.1f')}"]
        pairs += [f"approx_kl={show(self.row.get(names.APPROX_KL), '.4f')}"]
        while len(" ".join(pairs)) > LINE_WIDTH:
            pairs.pop()
        return " ".join(pairs)


def number(value: Any) -> float:
    """A figure of a row; NaN where there is none."""
    return math.nan if value is None else float(value)


def show(value: Any, form: str) -> str:
    """`value` in the number format `form`, "-" where there is none."""
    known = number(value)
    return "-" if math.isnan(known) else format(known, form)


def duration(seconds: float) -> str:
    """Seconds as 0:04, 12:30 or 3:05:00; "-:--" when unknown."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _mean(values: Sequence[float] | deque[float]) -> float:
    return sum(values) / len(values) if values else math.nan
