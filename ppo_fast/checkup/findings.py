"""What was found in an environment: how bad it is, where, what, and what to do about it."""

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeVar

from ppo_fast.envs.closing import call_within
from ppo_fast.envs.faults import OLD_GYM, is_of_environment
from ppo_fast.envs.fitting import Misfit
from ppo_fast.names import kind_and_line
from ppo_fast.stops import EnvironmentFault, is_of_code

T = TypeVar("T")
Tell = Callable[[str], None]

# error: results would be wrong, or there would be none; warning: likely not what is meant; note: good to know.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Whose code stands between the doctor and an environment's own.
BETWEEN = ("ppo_fast.", "gymnasium.wrappers", "gymnasium.core", "gymnasium.envs.registration")
FRAMES = 8  # of a traceback that are shown, the innermost


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    severity: Severity
    key: str
    """its kind, the same for the same fault of any environment, such as "time-limit" """
    where: str
    """what was looked at, and when: "single environment, step 12" """
    what: str
    """what is so, in a line"""
    advice: str
    """what to do, in a line; "" where there is nothing to do"""
    trace: str = ""
    """the environment's own lines, where it raised"""


class Findings:
    """Findings about one subject. Of each kind the first is kept: the others are likely to be of the same cause.

    Args:
        subject: what is looked at, in words: "single environment".
        tell: is told what is being done, for whoever is left when this process dies.

    Attributes:
        place: what is being done: "step 12".
    """

    def __init__(self, subject: str, tell: Tell | None = None) -> None:
        self.subject = subject
        self.place = ""
        self._tell = tell
        self.all: list[Finding] = []
        self.left_out: list[str] = []  # what was not looked at, and why

    def at(self, place: str) -> None:
        """Note what is being done from now on."""
        self.place = place
        if self._tell is not None:
            self._tell(f"{self.subject}, {place}")

    def has(self, *keys: str) -> bool:
        """Whether there is a finding of one of these kinds."""
        return any(finding.key in keys for finding in self.all)

    def add(self, severity: Severity, key: str, place: str, what: str, advice: str = "", trace: str = "") -> None:
        """Note a finding; `place` is when it was, "" for always."""
        if not self.has(key):
            where = f"{self.subject}, {place}" if place else self.subject
            self.all.append(Finding(severity, key, where, what, advice, trace))

    def error(self, key: str, place: str, what: str, advice: str = "") -> None:
        """Note what makes results wrong, or keeps a run from having any."""
        self.add("error", key, place, what, advice)

    def warn(self, key: str, place: str, what: str, advice: str = "") -> None:
        """Note what is likely not meant."""
        self.add("warning", key, place, what, advice)

    def note(self, key: str, place: str, what: str, advice: str = "") -> None:
        """Note what is good to know."""
        self.add("note", key, place, what, advice)

    def raised(self, problem: BaseException, place: str, key: str = "raises", severity: Severity = "error") -> None:
        """Note what the code of an environment raised. What a signal raised goes on its way."""
        if isinstance(problem, EnvironmentFault):
            what = re.sub(r"^gave at [^:]*: ", "gave ", problem.reason)  # `place` says it
            key = "misfit" if what.startswith("gave ") else key
            self.add(severity, key, place, what, "mend it: training would end here", problem.trace)
            return
        if not is_of_code(problem):
            raise problem
        if isinstance(problem, Misfit):
            self.add(severity, "misfit", place, f"gave {problem}", "mend it: training would end here")
            return
        what = f"raised {kind_and_line(problem)}"
        if OLD_GYM.search(str(problem)) and not is_of_environment(problem.__traceback__):
            what += "; reset(seed, options) has to give (observation, info), step(action) five values"
            key = "misfit"
        advice = "mend it: training would end here" if severity == "error" else "mend it"
        self.add(severity, key, place, what, advice, own_lines(problem))


def own_lines(problem: BaseException) -> str:
    """The end of an exception's traceback, from the environment's own code on."""
    trace: TracebackType | None = problem.__traceback__
    while trace is not None and _is_between(trace):
        trace = trace.tb_next
    lines = traceback.format_tb(trace)[-FRAMES:]
    return "".join([*lines, *traceback.format_exception_only(problem)]).rstrip()


def _is_between(trace: TracebackType) -> bool:
    return str(trace.tb_frame.f_globals.get("__name__")).startswith(BETWEEN)


def within(seconds: float, work: Callable[[], T], found: Findings, severity: Severity = "error") -> T | None:
    """What `work` returns; None, with a finding, where it raises or takes longer than so many seconds.

    Args:
        severity: of taking longer. Where it is many calls together, none of them need hang.
    """
    try:
        return call_within(seconds, work)
    except TimeoutError:
        what = f"did not come back within {seconds:.0f} s"
        found.add(severity, "hangs", found.place, what, "training would wait here, too")
    except BaseException as problem:
        found.raised(problem, found.place)
    return None
