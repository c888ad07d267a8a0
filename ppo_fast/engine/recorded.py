"""A function whose operations are recorded once for each set of shapes and then replayed without Python.

    fast = Recorded(function)    # some hundredths of a second to prepare, then up to twice as fast as eagerly

What is neither a tensor nor a number in its arguments has to stay as it is from call to call.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ppo_fast.engine import backends
from ppo_fast.engine.program import Program, Tape, program
from ppo_fast.engine.tree import map_tensors, tensors
from ppo_fast.names import first_line

# Between a function and its replay: no rounding differs, but a product may depend on where its numbers lie.
CLOSE = {"rtol": 1e-4, "atol": 1e-6, "equal_nan": True}
# Calls of one set of shapes at which a replay is compared with its function again; the second call is the first time.
COMPARED = (1_000, 10_000, 100_000)


def shapes(args: Iterable[Any]) -> tuple:
    """What decides which code is called: tensors' layout and type, numbers, what is None; not the objects besides."""
    key: list[Any] = []
    for x in args:
        if isinstance(x, Tensor):
            key.append((x.shape, x.stride(), x.dtype))
        elif isinstance(x, tuple | list):
            key.append(shapes(x))
        elif isinstance(x, dict):
            key.append((*x, *shapes(x.values())))
        elif x is None:
            key.append(None)
        elif isinstance(x, float | int):
            key.append((type(x), x))  # 1, 1.0 and True are equal, and make other types
    return tuple(key)


class Recorded:
    """A function of tensors that is replayed after its first calls.

    On a CPU an eager operation on a few rows costs more in Python, argument parsing and autograd than in its numbers.
    The same operations in the same order, backward pass included, run without that (program.py, backends.py). Nothing
    is fused or rewritten, so the numbers are the eager function's.

    The first call runs the function and records, the second runs both and compares, the third replays; later calls
    compare again now and then. The function may change its tensors in place, but no others. One that can't be
    recorded, or whose replay gives other numbers than itself (because it reads a Python variable that has changed,
    say), is called as it is from then on, and `unfit` says why.

    Args:
        function: of tensors, numbers, nested tuples of them, and objects that stay as they are.
        backend: what makes a replay of a program; the quickest one unless given.

    Attributes:
        unfit: why it is called as it is, as the end of "it ..."; "" while it is replayed.
    """

    def __init__(self, function: Callable[..., Any], backend: backends.Backend | None = None) -> None:
        self.function = function
        self.unfit = ""
        self.lock = threading.RLock()
        self._backend = backend or backends.quickest
        self._ways: dict[tuple, Callable[..., Any]] = {}

    @property
    def used(self) -> bool:
        """Whether it was ever called."""
        return bool(self._ways)

    def __call__(self, *args: Any) -> Any:
        way = self._ways.get(shapes(args))
        return self._record(args) if way is None else way(*args)

    def _record(self, args: tuple) -> Any:
        """The first call with these shapes: run and record."""
        with self.lock:
            key = shapes(args)
            if key in self._ways:  # another thread was faster
                return self._ways[key](*args)
            # Under names of their own, so that what is given twice, or also read from elsewhere, counts as what it is.
            args = map_tensors(torch.detach, args)
            tape = Tape()
            with tape:
                result = self.function(*args)
            try:
                recorded = program(tape, args, result)
                self._ways[key] = _Replay(self, recorded, self._backend(recorded), key)
            except Exception as problem:  # whatever an operation of somebody's environment has against it
                self.give_up(key, first_line(problem))
            return result

    def alone(self, *args: Any) -> Any:
        """The function itself."""
        with self.lock:  # of several threads only one can have its gradient taken
            return self.function(*args)

    def give_up(self, key: tuple, reason: str) -> None:
        """Call the function itself for these shapes from now on."""
        self.unfit = reason
        self._ways[key] = self.alone


class _Replay:
    """What repeats a function for one set of shapes."""

    def __init__(self, owner: Recorded, recorded: Program, run: backends.Replay, key: tuple) -> None:
        self.owner = owner
        self.program = recorded
        self.run = run
        self.key = key
        self.calls = 1
        self.compared = False

    def __call__(self, *args: Any) -> Any:
        calls = self.calls + 1  # of its own: other threads count, too
        self.calls = calls
        if not self.compared or calls in COMPARED:
            return self._compare(*args)
        return self.program.filled(self.run(*tensors(args), *self.program.outside))

    def _compare(self, *args: Any) -> Any:
        """The replay, on copies, beside the function itself, whose result is returned."""
        with self.owner.lock:
            copies = map_tensors(torch.clone, args)
            problem = ""
            replayed = None
            try:
                replayed = self.program.filled(self.run(*tensors(copies), *self.program.outside))
            except Exception as error:  # what the interpreter notices only now
                problem = first_line(error)
            result = self.owner.alone(*args)
            if not problem and not _close((copies, replayed), (args, result)):
                problem = "gives other numbers when it is replayed: something that it reads has changed"
            self.compared = True
            if problem:
                self.owner.give_up(self.key, problem)
            return result


def _close(found: Any, wanted: Any) -> bool:
    """Whether two nests of tensors, and of whatever else stands in them, agree."""
    if isinstance(wanted, Tensor):
        return isinstance(found, Tensor) and _agree(found, wanted)
    if isinstance(wanted, dict):
        return _close(list(found.items()), list(wanted.items()))
    if isinstance(wanted, tuple | list):
        return len(found) == len(wanted) and all(_close(x, y) for x, y in zip(found, wanted, strict=True))
    return found is wanted or found == wanted


def _agree(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, **CLOSE)
