"""What a recorded function did, as data, and two ways of doing it again.

A `Tape` notes every operation that reaches the device, the backward pass included. `program` turns that into a list of
calls whose tensors are numbered places, and leaves out what repeats nothing but a constant or the same view.
`interpreted` runs such a program in TorchScript's interpreter, `flat` as a Python function of one line a call: the same
operations in the same order, so the same numbers, bit for bit.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast.engine.tree import map_tensors, tensors

# What a recording can't hold: a look at numbers, shapes that depend on numbers, random numbers.
UNFIT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
# What reads the shape of a tensor, but not its numbers.
FROM_SHAPES = {torch.ops.aten.ones_like.default, torch.ops.aten.zeros_like.default, torch.ops.aten.full_like.default}
# Operations that may meet a number. Each makes a tensor of it whenever it is called, and casts that to its own type:
# half of the time that it takes on a few rows.
MEETS_NUMBER = {"add", "sub", "rsub", "mul", "div", "add_", "sub_", "mul_", "div_", "eq", "ne", "ge", "gt", "le", "lt"}


class Unfit(Exception):
    """A recording can't stand for its function; the message says why, as the end of "it ..."."""


class Call(NamedTuple):
    """One operation. On a tape its arguments hold tensors, in a program places and constants."""

    func: OpOverload
    args: tuple
    kwargs: dict[str, Any]
    result: Any  # on a tape what it returned, in a program the same with places

    @property
    def changes_something(self) -> bool:
        """Whether it writes into one of its arguments."""
        return self.func._schema.is_mutable

    def reads(self) -> list[Tensor]:
        """The tensors among its arguments."""
        return list(tensors([self.args, self.kwargs]))


class Tape(TorchDispatchMode):
    """Notes everything that reaches the device while it is entered: below autograd, so the backward pass too.

    Attributes:
        calls: in order. They hold on to their tensors, so that no two of them share an id.
        unfit: why this can't be replayed, in words; "" if it can.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would first import it, which takes seconds

    def __init__(self) -> None:
        super().__init__()
        self.unfit = ""
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # torch says of every index that its shape may depend on numbers, but only that of a mask does.
        plain_index = func is torch.ops.aten.index.Tensor and all(x.dtype is not torch.bool for x in tensors(args[1]))
        if UNFIT.intersection(func.tags) and not plain_index:
            self.unfit = f"calls {func}, whose result depends on more than shapes"
        self.calls.append(Call(func, args, kwargs or {}, result))
        return result


@dataclass(frozen=True)
class Place:
    """Stands for a tensor in a program."""

    index: int


class Program(NamedTuple):
    """Calls on numbered places."""

    given: list[Tensor]  # the arguments' tensors when it was recorded
    outside: list[Tensor]  # what is read but was not given, such as an agent's parameters
    inputs: list[Place]  # which places these two fill, in this order
    calls: list[Call]
    result: Any  # what the function returned, with places and constants for its tensors

    def answers(self) -> list[Place]:
        """The places that are part of the result, in order."""
        return list(_places(self.result))

    def filled(self, answers: Sequence[Tensor]) -> Any:
        """The result with the tensors of these places. Constants are copied: the caller may write into them."""
        return _filled(self.result, iter(answers))


def program(tape: Tape, args: tuple, result: Any) -> Program:
    """What a function did with `args` that returned `result`, as its tape tells.

    Raises:
        Unfit: it can't be done again from its arguments alone.
    """
    if tape.unfit:
        raise Unfit(tape.unfit)
    lean = _Lean(tape.calls)
    given = list(tensors(args))
    outside: list[Tensor] = []
    places = {id(x): Place(index) for index, x in enumerate(given)}

    def place(x: Tensor) -> Place | Tensor:
        x = lean.same(x)
        if id(x) in lean.constants:
            return lean.constants[id(x)]
        if id(x) not in places:
            outside.append(x)
            places[id(x)] = Place(len(places))
        return places[id(x)]

    calls: list[Call] = []
    fixed: set[Place] = set()  # tensors outside and views of them, which may not be written to
    for call in lean.calls:
        words, named = map_tensors(place, (call.args, call.kwargs))
        fixed.update(places[id(x)] for x in outside)
        made = map_tensors(lambda x: places.setdefault(id(x), Place(len(places))), call.result)
        if _touches(call.func, words, named, fixed):
            if call.changes_something:
                raise Unfit(f"changes a tensor that it was not given, by {call.func._schema.name}")
            fixed.update(_places(made))
        calls.append(Call(call.func, words, named, made))
    answer = map_tensors(place, result)
    inputs = [places[id(x)] for x in (*given, *outside)]
    return Program(given, outside, inputs, calls, answer)


class _Lean:
    """Fewer calls that do the same.

    A view of all of a tensor is that tensor; what depends on shapes and constants alone, and is not written to, is a
    constant; numbers become tensors, once.

    Attributes:
        calls: those that are left.
        constants: by the id of the tensor that they stand for.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls: list[Call] = []
        self.constants: dict[int, Tensor] = {}
        self._views: dict[int, Tensor] = {}
        self._written = {_memory(x) for call in calls if call.changes_something for x in call.reads()}
        for call in calls:
            self._take(call)

    def same(self, x: Tensor) -> Tensor:
        """The tensor that this one is a view of, if it shows all of it."""
        return self._views.get(id(x), x)

    def _take(self, call: Call) -> None:
        words, named = map_tensors(self.same, (call.args, call.kwargs))
        call = Call(call.func, words, named, call.result)
        reads = call.reads()
        one_tensor = isinstance(call.result, Tensor)
        if one_tensor and self._is_constant(call, reads):
            # A copy: the caller may have got this one, and write into it.
            self.constants[id(call.result)] = call.result.clone()
        elif one_tensor and reads and not call.changes_something and _is(call.result, reads[0]):
            self._views[id(call.result)] = reads[0]
        else:
            self.calls.append(self._with_tensors(call))

    def _is_constant(self, call: Call, reads: list[Tensor]) -> bool:
        from_constants = call.func in FROM_SHAPES or all(id(x) in self.constants for x in reads)
        return from_constants and _memory(call.result) not in self._written

    def _with_tensors(self, call: Call) -> Call:
        """The call with its second argument, where that is a number, as a constant of the first one's type."""
        name = call.func._schema.name.removeprefix("aten::")
        if name not in MEETS_NUMBER or not isinstance(call.args[0], Tensor) or type(call.args[1]) not in (int, float):
            return call
        x, number, *rest = call.args
        fits = x.dtype in (torch.int32, torch.int64) and type(number) is int and abs(number) < 2**31
        if x.dtype is not torch.float32 and not fits:
            return call
        constant = torch.tensor(number, dtype=x.dtype)
        self.constants[id(constant)] = constant
        if name == "rsub":  # number - factor * x
            factor = {"alpha": rest[0]} if rest else call.kwargs
            return Call(torch.ops.aten.sub.Tensor, (constant, x), factor, call.result)
        return Call(call.func.overloadpacket.Tensor, (x, constant, *rest), call.kwargs, call.result)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _is(x: Tensor, other: Tensor) -> bool:
    """Whether they show the same numbers of one memory in the same way."""
    return x.dtype == other.dtype and x.is_set_to(other)


def _touches(func: OpOverload, args: tuple, kwargs: dict[str, Any], fixed: set[Place]) -> bool:
    """Whether a call writes to one of these places, or returns a view of one."""
    arguments = func._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    for argument in arguments:
        if argument.alias_info is not None and fixed.intersection(_places(given.get(argument.name))):
            return argument.alias_info.is_write or not func._schema.is_mutable
    return False


def _places(nest: Any) -> Iterator[Place]:
    if isinstance(nest, Place):
        yield nest
    elif isinstance(nest, tuple | list):
        for item in nest:
            yield from _places(item)
    elif isinstance(nest, dict):
        yield from _places(list(nest.values()))


def _filled(nest: Any, answers: Iterator[Tensor]) -> Any:
    if isinstance(nest, Place):
        return next(answers)
    if isinstance(nest, Tensor):
        return nest.clone()
    if isinstance(nest, dict):
        return {key: _filled(item, answers) for key, item in nest.items()}
    if isinstance(nest, tuple | list):
        items = [_filled(item, answers) for item in nest]
        return getattr(type(nest), "_make", type(nest))(items)
    return nest


def _map_places(function: Callable[[Place], Any], nest: Any) -> Any:
    if isinstance(nest, Place):
        return function(nest)
    if isinstance(nest, dict):
        return {key: _map_places(function, item) for key, item in nest.items()}
    if isinstance(nest, tuple | list):
        return type(nest)([_map_places(function, item) for item in nest])
    return nest


# ---------------------------------------------------------------- two ways to do it again

Replay = Callable[..., Sequence[Tensor]]  # of the tensors of a program's inputs: those of its answers


def interpreted(program: Program) -> Replay:
    """In TorchScript's interpreter, which holds no Python lock: threads run side by side.

    The graph lives in a compilation unit of its own, and goes with it: torch.jit.trace would keep it for ever.
    """

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(program.inputs, inputs, strict=True))
        for call in program.calls:
            words, named = _map_places(values.__getitem__, (call.args, call.kwargs))
            values.update(zip(_places(call.result), tensors(call.func(*words, **named)), strict=True))
        return tuple(values[place] for place in program.answers()) or inputs[:1]

    examples = (*(x.clone() for x in program.given), *program.outside)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather see everything compiled
        graph, _ = torch._C._create_graph_by_tracing(run, examples, lambda _: "", False, False, None, [])
    unit = torch._C.CompilationUnit()
    function: Any = unit.create_function("replay", graph, False)
    only = len(program.answers()) < 2  # one tensor comes alone

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        # What is "optimized" there makes two operations of a product with a bias.
        with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
            found = function(*inputs)
        assert unit is not None  # it owns the function
        return (found,) if only and isinstance(found, Tensor) else found

    return replay


def flat(program: Program) -> Replay:
    """As a Python function of one line a call, which `source_of` shows. Needs nothing but torch's public operations."""
    fallbacks: set[int] = set()
    while True:
        text, names = source_of(program, fallbacks)
        exec(compile(text, "<replay>", "exec"), names)  # our own text, made of operations' names
        replay = names["replay"]
        inputs = (*(x.clone() for x in program.given), *program.outside)
        try:
            replay(*inputs)
            return replay
        except TypeError as problem:
            # torch.<name> takes other arguments than the operation itself, in which line?
            trace = problem.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename != "<replay>":
                trace = trace.tb_next
            if trace is None or trace.tb_lineno - FIRST_CALL in fallbacks:
                raise
            fallbacks.add(trace.tb_lineno - FIRST_CALL)


FIRST_CALL = 3  # line of the source


def source_of(program: Program, fallbacks: set[int] | None = None) -> tuple[str, dict[str, Any]]:
    """The program as Python source, and the objects that its names stand for.

    Args:
        fallbacks: numbers of calls that the quicker torch.<name> does not take.
    """
    guard = getattr(torch._C, "_AutoDispatchBelowAutograd", torch.no_grad)
    names: dict[str, Any] = {"below_autograd": guard}
    last_use: dict[Place, int] = {}
    for index, call in enumerate(program.calls):
        last_use.update(dict.fromkeys(_places([call.args, call.kwargs, call.result]), index))
    kept = {*program.answers(), *program.inputs}
    lines = []
    for index, call in enumerate(program.calls):
        function = _function_of(call, names, index in (fallbacks or ()))
        words = [_word(x, names) for x in call.args] + [f"{key}={_word(x, names)}" for key, x in call.kwargs.items()]
        freed = [place for place, last in last_use.items() if last == index and place not in kept]
        free = "".join(f"; {_name(place)} = None" for place in freed)
        lines.append(f"        {_targets(call.result)} = {function}({', '.join(words)}){free}")
    arguments = ", ".join(_name(place) for place in program.inputs)
    answers = ", ".join(_name(place) for place in program.answers())
    body = "\n".join(lines) or "        pass"
    return f"def replay({arguments}):\n    with below_autograd():\n{body}\n    return [{answers}]\n", names


def _targets(result: Any) -> str:
    """What stands to the left of a call. Several results come as a tuple or list, some of them maybe None."""
    if isinstance(result, Place):
        return _name(result)
    if isinstance(result, tuple | list) and result:
        return ", ".join(_name(x) if isinstance(x, Place) else "_" for x in result) + ","
    return "_"


def _function_of(call: Call, names: dict[str, Any], as_operation: bool) -> str:
    """The name of what does it: torch.<name> where there is one, which is called quicker than the operation."""
    base = call.func._schema.name.removeprefix("aten::")
    quick = None if as_operation else getattr(torch._C._VariableFunctions, base, None)
    name = f"{base}_{call.func._overloadname}" if quick is None else base
    names[name] = call.func._op if quick is None else quick
    return name


def _name(place: Place) -> str:
    return f"x{place.index}"


def _word(x: Any, names: dict[str, Any]) -> str:
    """An argument in Python's words."""
    if isinstance(x, Place):
        return _name(x)
    if isinstance(x, list | tuple):
        return "[" + ", ".join(_word(item, names) for item in x) + "]"
    if x is None or isinstance(x, bool | int | str) or (isinstance(x, float) and abs(x) < float("inf")):
        return repr(x)
    name = f"constant{len(names)}"
    names[name] = x
    return name


def backend() -> Callable[[Program], Replay]:
    """The quicker one of this Python: TorchScript's interpreter before 3.14, which it does not support."""
    return interpreted if sys.version_info < (3, 14) else flat
