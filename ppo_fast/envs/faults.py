"""Faults of environments: what their code raised, or gave that is not as promised, as an EnvironmentFault."""

import re
import traceback
from types import TracebackType
from typing import NoReturn

from ppo_fast.envs.fitting import Misfit
from ppo_fast.names import kind_and_line
from ppo_fast.stops import EnvironmentFault, is_of_code

__all__ = ["EnvironmentFault", "blame", "is_of_environment", "outside"]

OURS = "ppo_fast.envs"  # whose code stands between a program and an environment
# What Python says where code of gym before 0.26 is called as gymnasium does it, or the other way round.
OLD_GYM = re.compile(r"values to unpack \(expected [25]|unexpected keyword argument '(seed|options)'")


def blame(index: int | None, problem: BaseException, when: str = "") -> NoReturn:
    """Raise what an environment's code raised as its fault: `sys.exit()` too, but nothing that a signal raised there.

    Args:
        index: see EnvironmentFault.
        problem: which is being handled: something that was raised, or a Misfit.
        when: "step 3", say.

    Raises:
        EnvironmentFault: from `problem`; one that is a fault already, and a stop by a signal, as they are.
    """
    if isinstance(problem, EnvironmentFault) or not is_of_code(problem):
        raise problem
    if isinstance(problem, Misfit):
        raise EnvironmentFault(index, f"gave {f'at {when}: ' if when else ''}{problem}") from problem
    where = outside(problem.__traceback__)
    reason = f"raised {kind_and_line(problem)}"
    if index is None and when:
        reason += f" at {when}"
    if OLD_GYM.search(str(problem)) and not is_of_environment(where):
        reason += (
            "; reset(seed, options) has to give (observation, info), step(action) five values: not as before gym 0.26"
        )
    trace = "".join(traceback.format_exception(type(problem), problem, where or problem.__traceback__))
    raise EnvironmentFault(index, reason, trace) from problem


def outside(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first line on that is none of this room."""
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(OURS):
        trace = trace.tb_next
    return trace


def is_of_environment(trace: TracebackType | None) -> bool:
    """Whether a traceback ends in an environment's code: neither in ours nor in Gymnasium's or NumPy's."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    room = str(trace.tb_frame.f_globals.get("__name__"))
    return not room.startswith((OURS, "gymnasium.core", "gymnasium.vector", "gymnasium.wrappers", "numpy"))
