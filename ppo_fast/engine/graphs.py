"""A function of tensors as a graph for each set of shapes: compiled, or recorded and replayed without Python.

    fast = Compiled(function)    # some ten seconds to prepare, then as fast as it gets
    fast = Recorded(function)    # some hundredths of a second, then up to twice as fast as eagerly

The functions themselves are written once, eagerly. What is neither a tensor nor a number in their arguments has to stay
as it is from call to call.
"""

import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.jit import optimized_execution  # pyright: ignore[reportPrivateImportUsage]
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# What a recording can't hold: a look at numbers, shapes that depend on numbers, random numbers.
UNFIT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
# What reads the shape of a tensor, but not its numbers.
FROM_SHAPES = {torch.ops.aten.ones_like.default, torch.ops.aten.zeros_like.default, torch.ops.aten.full_like.default}
# Operations that may meet a number. Each makes a tensor of it whenever it is called, and casts that to its own type:
# half of the time that it takes on a few rows.
MEETS_NUMBER = {"add", "sub", "rsub", "mul", "div", "add_", "sub_", "mul_", "div_", "eq", "ne", "ge", "gt", "le", "lt"}
# Between a function and its replay: no rounding differs, but a product may depend on where its numbers lie.
CLOSE = {"rtol": 1e-4, "atol": 1e-6, "equal_nan": True}


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is."""
    return function


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

    def _codes(self) -> list[types.CodeType]:
        """What dynamo has made of this function."""
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list  # seconds that an eager run does not spend

        return [entry.code for entry in _debug_get_cache_entry_list(self._own.__code__)]


def shapes(args: Iterable[Any]) -> tuple:
    """What decides which code is called: tensors' layout and type, numbers, what is None; not the objects besides."""
    key: list[Any] = []
    for x in args:
        if isinstance(x, Tensor):
            key.append((x.shape, x.stride(), x.dtype))
        elif isinstance(x, tuple | list):
            key.append(shapes(x))
        elif x is None or isinstance(x, float | int):
            key.append(x)
    return tuple(key)


class Recorded:
    """A function, or a partial of one, whose operations are recorded once for each set of shapes and then replayed.

    On a CPU an eager operation on a few rows costs more in Python, argument parsing and autograd than in its numbers.
    The same operations in the same order, backward pass included, run without that in TorchScript's interpreter.
    Nothing is fused or rewritten, so the numbers are the eager function's, bit for bit. The interpreter holds no Python
    lock either: a crew's threads run side by side (crew.py).

    The first call runs the function and records, the second runs both and compares, the third replays. The function may
    change its tensors in place, but no others. One that can't be recorded, or whose replay gives other numbers than
    itself (because it keeps something in Python's variables, say), is called as it is.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.lock = threading.RLock()
        self._replays: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        replay = self._replays.get(shapes(args))
        return self._prepare(args) if replay is None else replay(*args)

    def _prepare(self, args: tuple) -> Any:
        """The first two calls: record, then compare."""
        with self.lock:
            key = shapes(args)
            if key in self._replays:
                return self._replays[key](*args)
            tape = Tape()
            # Under names of their own, so that what is given twice, or also read from elsewhere, counts as what it is.
            args = pytree.tree_map_only(Tensor, torch.detach, args)
            with tape:
                result = self.function(*args)
            try:
                replay = tape.replay(args, result) if tape.unfit is None else None
            except Exception:  # whatever an operation of somebody's environment has against it
                replay = None
            self._replays[key] = self._alone if replay is None else partial(self._compare, key, replay)
        return result

    def _compare(self, key: tuple, replay: Callable[..., Any], *args: Any) -> Any:
        """The second call: the function itself beside the replay."""
        copies = pytree.tree_map_only(Tensor, torch.clone, args)
        try:
            replayed, ran = replay(*copies), True
        except Exception:  # what the interpreter notices only now
            replayed, ran = None, False
        result = self._alone(*args)
        found, wanted = list(tensors((copies, replayed))), list(tensors((args, result)))
        same = ran and len(found) == len(wanted) and all(map(partial(torch.allclose, **CLOSE), found, wanted))
        self._replays[key] = replay if same else self._alone
        return result

    def _alone(self, *args: Any) -> Any:
        with self.lock:  # of a crew's threads only one can have its gradient taken
            return self.function(*args)


class Tape(TorchDispatchMode):
    """Everything that reaches the device while this is entered: below autograd, so the backward pass too.

    Attributes:
        unfit: the name of an operation that can't be replayed, or None.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would first import it, which takes seconds

    def __init__(self) -> None:
        super().__init__()
        self.unfit: str | None = None
        self._calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # torch says of every index that its shape may depend on numbers, but only that of a mask does.
        whole = func is torch.ops.aten.index.Tensor and all(x.dtype is not torch.bool for x in tensors(args[1]))
        if UNFIT.intersection(func.tags) and not whole:
            self.unfit = str(func)
        self._calls.append((func, args, kwargs or {}, result))  # keeps the tensors, and with them their ids, alive
        return result

    def replay(self, args: tuple, result: Any) -> Callable[..., Any] | None:
        """What repeats the calls for other arguments like these, whose result was `result`; None if nothing can."""
        given = list(tensors(args))
        calls, constants, same = _lean(self._calls)
        places = {id(x): place for place, x in enumerate(given)}
        outside: list[Tensor] = []  # read but not given, such as an agent's parameters: handed in at each replay

        def place(x: Tensor) -> "_Place | Tensor":
            if id(x) in constants:
                return constants[id(x)]
            if id(x) not in places:
                outside.append(x)
            return _Place(places.setdefault(id(x), len(places)))

        steps, fixed = [], set[int]()
        for func, words, named, returned in calls:
            words, named = pytree.tree_map_only(Tensor, place, (words, named))
            fixed.update(places[id(x)] for x in outside)
            found = [places.setdefault(id(x), len(places)) for x in tensors(returned)]
            if _touches(func, words, named, fixed):
                if func._schema.is_mutable:
                    return None
                fixed.update(found)
            steps.append((func, words, named, found))
        leaves, structure = pytree.tree_flatten(pytree.tree_map_only(Tensor, same, result))
        rest = [constants.get(id(x), _Answer) if isinstance(x, Tensor) else x for x in leaves]
        ends = [place(x) for x, one in zip(leaves, rest, strict=True) if one is _Answer]
        starts = [*range(len(given)), *(places[id(x)] for x in outside)]
        call = _interpreted(lambda *inputs: _run(steps, starts, ends, inputs), [*map(torch.clone, given), *outside])

        def replay(*args: Any) -> Any:
            with optimized_execution(False):  # optimized, a product with a bias becomes two operations
                answers = iter(call(*tensors(args), *outside))
            own = [next(answers) if x is _Answer else x.clone() if isinstance(x, Tensor) else x for x in rest]
            return pytree.tree_unflatten(own, structure)

        return replay


class _Answer:
    """Stands for what the interpreter returns."""


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor in a recorded call."""

    index: int


def _lean(calls: list) -> tuple[list, dict[int, Tensor], Callable[[Tensor], Tensor]]:
    """Fewer calls that do the same: a view of all of a tensor is that tensor, what depends on shapes and numbers alone
    and is not written to is a constant, and numbers are tensors from the start.

    Returns:
        The calls, constants by id, and what tells which tensor one stands for.
    """
    changing = (tensors([words, *named.values()]) for func, words, named, _ in calls if func._schema.is_mutable)
    written = {_memory(x) for each in changing for x in each}
    constants, views, lean = dict[int, Tensor](), dict[int, Tensor](), []

    def same(x: Tensor) -> Tensor:
        return views.get(id(x), x)

    for func, words, named, returned in calls:
        words, named = pytree.tree_map_only(Tensor, same, (words, named))
        read, one = list(tensors([words, *named.values()])), isinstance(returned, Tensor)
        fixed = func in FROM_SHAPES or all(id(x) in constants for x in read)
        if one and fixed and _memory(returned) not in written:
            constants[id(returned)] = returned.clone()  # the caller may have got this one, and write to it
        elif one and read and not func._schema.is_mutable and _is(returned, read[0]):
            views[id(returned)] = read[0]
        else:
            lean.append((*_with_tensors(func, words, named, constants), returned))
    return lean, constants, same


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _is(x: Tensor, other: Tensor) -> bool:
    """Whether they show the same numbers of one memory in the same way."""
    return x.dtype == other.dtype and x.is_set_to(other)


def _with_tensors(func: Any, words: tuple, named: dict, constants: dict[int, Tensor]) -> tuple[Any, tuple, dict]:
    """The operation with a number, its second argument, as a constant of the first one's type; or as it is."""
    name = func._schema.name.removeprefix("aten::")
    if name not in MEETS_NUMBER or not isinstance(words[0], Tensor) or type(words[1]) not in (int, float):
        return func, words, named
    x, number, *rest = words
    whole = x.dtype in (torch.int32, torch.int64) and type(number) is int and abs(number) < 2**31
    if x.dtype is not torch.float32 and not whole:
        return func, words, named
    constant = torch.tensor(number, dtype=x.dtype)
    constants[id(constant)] = constant
    if name == "rsub":  # number - factor * x
        return torch.ops.aten.sub.Tensor, (constant, x), {"alpha": rest[0]} if rest else named
    return func.overloadpacket.Tensor, (x, constant, *rest), named


def _touches(func: Any, words: tuple, named: dict[str, Any], fixed: set[int]) -> bool:
    """Whether a call writes to one of these tensors, or returns a view of one."""
    arguments = func._schema.arguments
    given = dict(zip((argument.name for argument in arguments), words, strict=False)) | named
    for argument in (each for each in arguments if each.alias_info is not None):
        if any(x.index in fixed for x in _leaves(given.get(argument.name), _Place)):
            return argument.alias_info.is_write or not func._schema.is_mutable
    return False


def _run(steps: list, starts: list[int], ends: list, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Repeat the calls: what the interpreter's graph is made from."""
    values = dict(zip(starts, inputs, strict=True))
    for func, words, named, found in steps:
        words, named = pytree.tree_map_only(_Place, lambda x: values[x.index], (words, named))
        values.update(zip(found, tensors(func(*words, **named)), strict=True))
    return tuple(values[end.index] for end in ends) or inputs[:1]


def _interpreted(run: Callable[..., Any], inputs: list[Tensor]) -> Callable[..., Any]:
    """A function of tensors in TorchScript's interpreter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather see everything compiled
        return torch.jit.trace(run, inputs, check_trace=False)  # pyright: ignore[reportReturnType]


def _leaves(nest: Any, kind: type) -> Iterator[Any]:
    """What is of this kind in nested tuples and lists, in order."""
    if isinstance(nest, kind):
        yield nest
    elif isinstance(nest, tuple | list):
        for x in nest:
            yield from _leaves(x, kind)


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples and lists, in order."""
    return _leaves(nest, Tensor)
