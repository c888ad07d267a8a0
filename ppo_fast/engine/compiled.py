"""A function of tensors, compiled as one graph for each set of shapes.

    fast = Compiled(function)    # some ten seconds to prepare, then as fast as it gets

What is neither a tensor nor a number in its arguments has to stay as it is from call to call.
"""

import weakref
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch

from ppo_fast.engine import caches
from ppo_fast.engine.recorded import shapes
from ppo_fast.engine.tree import tensors

# For a CPU. Launches in C++; one thread, because a crew shares out whole functions (crew.py); what is costly and used
# twice, such as tanh, is computed once; multiplications and additions fuse; minibatch indices are not checked, they
# come from a permutation.
CPU_OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "cpp.threads": 1,
    "realize_opcount_threshold": 20,
    "cpp.enable_floating_point_contract_flag": "fast",
    "assert_indirect_indexing": False,
}


class Compiled:
    """A function, or a partial of one, as one graph for each set of shapes; a graph break is an error.

    torch.compile replaces the function's code object by one that calls its kernels. Before every call it checks whether
    anything has changed that it read while compiling, which takes as long as a small update. Here nothing of it changes
    within a run: numbers and shapes in the arguments make another key, and all other objects have to stay as they were.
    So the new code is kept by key, and called without those checks.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._constant: tuple = ()
        if isinstance(function, partial):
            self._constant = function.args
            function = function.func
        # torch.compile remembers by code object what it compiled, and another run's flags are not ours.
        self._function = _with_code(function, function.__code__.replace())
        self._compile: Callable[..., Any] | None = None
        self._direct: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        key = shapes(args)
        direct = self._direct.get(key)
        if direct is None:
            return self._first_call(key, args)
        return direct(*self._constant, *args)

    def _first_call(self, key: tuple, args: tuple) -> Any:
        """Compile for these shapes, and call."""
        from torch._dynamo.convert_frame import register_bytecode_hook  # seconds that an eager run does not spend

        if self._compile is None:
            weakref.finalize(self, _forget, self._function.__code__).atexit = False
            options = _options(next(tensors(args)).device)
            self._compile = torch.compile(self._function, fullgraph=True, dynamic=False, options=options)
        made: list[CodeType] = []

        def note(code: CodeType, new_code: CodeType) -> None:
            if code is self._function.__code__:
                made.append(new_code)

        hook = register_bytecode_hook(note)
        try:
            result = self._compile(*self._constant, *args)
        finally:
            hook.remove()
        if len(made) == 1:  # else torch.compile is asked again the next time: slower, but as good
            self._direct[key] = _with_code(self._function, made[0])
        return result

    @property
    def used(self) -> bool:
        """Whether it was ever called."""
        return self._compile is not None


def _options(device: torch.device) -> dict[str, Any] | None:
    """How torch.compile works for a device; None for its own way."""
    if device.type != "cpu":
        return None
    if caches.headers_can_be_kept():
        return CPU_OPTIONS
    return {**CPU_OPTIONS, "cpp_cache_precompile_headers": False}  # seconds more for each function


def _forget(code: CodeType) -> None:
    """Let torch.compile give back what it has made of a code object: its guards and the code hold on to each other."""
    from torch._C._dynamo.eval_frame import reset_code

    reset_code(code)


def _with_code(function: Any, code: CodeType) -> Any:
    """The same function with another code object, which takes the same arguments."""
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
