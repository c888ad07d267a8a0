"""A function of tensors, compiled as one graph for each set of shapes.

    fast = Compiled(function)    # some ten seconds to prepare, then as fast as it gets

What is neither a tensor nor a number in its arguments has to stay as it is from call to call.
"""

import types
from collections.abc import Callable
from typing import Any

import torch

from ppo_fast.engine.recorded import shapes
from ppo_fast.engine.tree import tensors

# For a CPU. Launches in C++; one thread, because a crew shares out whole functions (crew.py); what is costly and used
# twice, such as tanh, is computed once; multiplications and additions fuse; minibatch indices are not checked, they
# come from a permutation.
CPU_OPTIONS = {
    "cpp_wrapper": True,
    "cpp.threads": 1,
    "realize_opcount_threshold": 20,
    "cpp.enable_floating_point_contract_flag": "fast",
    "assert_indirect_indexing": False,
}


class Compiled:
    """A function, or a partial of one, as one graph for each set of shapes; a graph break is an error.

    A call of shapes that were there before goes straight to their code. torch.compile's own way there looks again at
    everything that was read while compiling, which takes as long as a small update. Here nothing of it changes within a
    run: numbers and shapes in the arguments make another key, and all other objects have to stay as they were.
    """

    def __init__(self, function: Any) -> None:
        self._first, function = getattr(function, "args", ()), getattr(function, "func", function)
        # Its own code object: dynamo keeps what it compiled per code object, and another run's flags are not ours.
        code, self._rest = function.__code__.replace(), (function.__name__, function.__defaults__, function.__closure__)
        self._own = types.FunctionType(code, function.__globals__, *self._rest)
        self._compile: Any = None
        self._direct: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        key = shapes(args)
        direct = self._direct.get(key)
        if direct is not None:
            return direct(*self._first, *args)
        if self._compile is None:
            options: Any = CPU_OPTIONS if next(tensors(args)).device.type == "cpu" else None
            self._compile = torch.compile(self._own, fullgraph=True, dynamic=False, options=options)
        before = self._codes()
        result = self._compile(*self._first, *args)
        new = [code for code in self._codes() if code not in before]
        if len(new) == 1:  # it takes the function's own arguments
            self._direct[key] = types.FunctionType(new[0], self._own.__globals__, *self._rest)
        return result

    @property
    def used(self) -> bool:
        """Whether it was ever called."""
        return self._compile is not None

    def _codes(self) -> list[types.CodeType]:
        """What dynamo has made of this function."""
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list  # seconds that an eager run does not spend

        return [entry.code for entry in _debug_get_cache_entry_list(self._own.__code__)]
