"""The first operation that makes NaN or infinity out of sound numbers, found while a program runs.

with FirstBad() as watch:
    learn()
print(watch.found)    # the result (64,) of aten.log.default at ppo.py:90 in policy_loss: ratio = ...
"""

import linecache
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast.algorithm import ppo

PACKAGE = "ppo_fast"
# Functions in which NaN is an answer: returns that don't vary have no variance to explain.
MAY_BE_NAN = (ppo.explained_variance,)


class FirstBad(TorchDispatchMode):
    """Looks at every operation of the code inside the `with` block until one is found. Slow: each result is read.

    Args:
        program: name of the module whose lines count, besides those of this package.
        may_be_nan: functions that are not looked into.

    Attributes:
        found: the operation, the shape of its result and the line of the program; "" while there is none.
    """

    def __init__(self, program: str = PACKAGE, may_be_nan: Collection[Callable[..., Any]] = MAY_BE_NAN) -> None:
        super().__init__()
        self.found = ""
        self._program = program
        self._not_looked_into = {function.__code__ for function in may_be_nan}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and note it if it is the first bad one."""
        kwargs = kwargs or {}
        if self.found:
            return func(*args, **kwargs)
        sound = not _is_bad(args)  # asked before, as the function may write into them
        result = func(*args, **kwargs)
        if sound and (_is_bad(result) or _is_bad(args)):
            self._note(func, result)
        return result

    def _note(self, func: Any, result: Any) -> None:
        """Remember the operation and the innermost line of the program that called it."""
        frames = list(traceback.walk_stack(None))  # the innermost first
        if any(frame.f_code in self._not_looked_into for frame, _ in frames):
            return
        for frame, number in frames:
            if self._is_of_the_program(frame):
                shape = tuple(result.shape) if isinstance(result, Tensor) else ""
                self.found = f"the result {shape} of {func} at {_place(frame, number)}"
                return

    def _is_of_the_program(self, frame: FrameType) -> bool:
        module = frame.f_globals.get("__name__", "")
        if module == __name__:
            return False
        return module == self._program or module.partition(".")[0] == PACKAGE


def _place(frame: FrameType, number: int) -> str:
    """A line of a program as "ppo.py:90 in policy_loss: <the line>"."""
    path = frame.f_code.co_filename
    line = linecache.getline(path, number).strip()
    return f"{Path(path).name}:{number} in {frame.f_code.co_name}: {line}"


def _is_bad(value: Any) -> bool:
    """Whether a tensor, or one among several, holds NaN or infinity."""
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(value.isfinite().all())
    return isinstance(value, (tuple, list)) and any(_is_bad(item) for item in value)
