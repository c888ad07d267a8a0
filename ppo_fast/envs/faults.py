"""EnvironmentFault: an environment that died, hung or raised, and which one of a vector it was."""

from typing import NoReturn

from ppo_fast.names import kind_and_line
from ppo_fast.stops import is_of_code


class EnvironmentFault(RuntimeError):
    """An environment died, hung or raised; nothing can be done with its vector but `restart` or `close`.

    Attributes:
        index: of the environment in its vector; None where only the whole vector is known.
        reason: what happened, e.g. "died (exit code -9)", "gave no answer for 60 s", "raised ValueError: ...".
    """

    def __init__(self, index: int | None, reason: str) -> None:
        super().__init__(index, reason)  # the arguments themselves: it travels between processes
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        who = "the vector environment" if self.index is None else f"environment {self.index}"
        return f"{who} {self.reason}"


def blame(index: int | None, problem: BaseException) -> NoReturn:
    """Raise what an environment's code raised as its fault: `sys.exit()` too, but nothing that a signal raised there.

    Args:
        index: see EnvironmentFault.
        problem: which is being handled.

    Raises:
        EnvironmentFault: from `problem`; one that is a fault already, and a stop by a signal, as they are.
    """
    if isinstance(problem, EnvironmentFault) or not is_of_code(problem):
        raise problem
    raise EnvironmentFault(index, f"raised {kind_and_line(problem)}") from problem
