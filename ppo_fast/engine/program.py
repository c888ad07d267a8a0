"""What a recorded function did, as data.

A `Tape` notes every operation that reaches the device, the backward pass included. `program` turns that into a list of
calls whose tensors are numbered places, and leaves out what repeats nothing but a constant or the same view. How such a
program is run stands in backends.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast.engine.tree import leaves, map_tensors, tensors

# What a recording can't hold: a look at numbers, and shapes that depend on numbers.
UNFIT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# What a function may return, in nested tuples, lists and dictionaries.
VISIBLE = (Tensor, bool, int, float, str, torch.dtype, torch.device, type(None))
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
        gradients: whether gradients were on in one of them.
        unfit: why this can't be replayed, as the end of "it ..."; "" if it can.
    """

    supports_higher_order_operators = True  # or torch would raise where there is one, such as torch.cond

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would first import it, which takes seconds

    def __init__(self) -> None:
        super().__init__()
        self.unfit = ""
        self.gradients = False
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            self.unfit = f"calls {func}, which is no single operation"
            return func(*args, **kwargs)
        draws = torch.Tag.nondeterministic_seeded in func.tags
        stream = torch.get_rng_state() if draws else None
        result = func(*args, **kwargs)
        if _looks(func, args):
            self.unfit = f"calls {func}, whose result depends on more than shapes"
        if stream is not None and _drew(stream, [*args, *kwargs.values()]):
            self.unfit = f"calls {func}, which draws random numbers"
        self.gradients |= torch.is_grad_enabled()
        self.calls.append(Call(func, args, kwargs, result))
        return result


def _looks(func: OpOverload, args: tuple) -> bool:
    """Whether the host reads numbers in this operation, or a shape depends on them."""
    # torch says so of every index, but only a mask does.
    if func is torch.ops.aten.index.Tensor and all(x.dtype is not torch.bool for x in tensors(args[1])):
        return False
    return not UNFIT.isdisjoint(func.tags)


def _drew(stream: Tensor, args: list[Any]) -> bool:
    """Whether an operation that may draw random numbers did; one with dropout, say, does not where that is 0.

    Args:
        stream: the state of torch's own generator before.
    """
    return any(isinstance(x, torch.Generator) for x in args) or not torch.equal(stream, torch.get_rng_state())


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
    gradients: bool  # whether they were on in one of the calls: a few operations, an LSTM's say, do more then

    def answers(self) -> list[Place]:
        """The places that are part of the result, in order."""
        return list(places_in(self.result))

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
    _see_through(result)
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
            fixed.update(places_in(made))
        calls.append(Call(call.func, words, named, made))
    answer = map_tensors(place, result)
    inputs = [places[id(x)] for x in (*given, *outside)]
    return Program(given, outside, inputs, calls, answer, tape.gradients)


def _see_through(result: Any) -> None:
    """Raise Unfit where a result may hold tensors that are not seen, which would be those of the recording for ever."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, tuple | list):
        for item in result:
            _see_through(item)
    elif not isinstance(result, VISIBLE):
        raise Unfit(f"returns a {type(result).__name__}, in which tensors are not seen")


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
        if name not in MEETS_NUMBER or not isinstance(call.args[0], Tensor) or not _fits(call.args[0], call.args[1]):
            return call
        x, number, *rest = call.args
        constant = torch.tensor(number, dtype=x.dtype)
        self.constants[id(constant)] = constant
        if name == "rsub":  # number - factor * x
            factor = {"alpha": rest[0]} if rest else call.kwargs
            return Call(torch.ops.aten.sub.Tensor, (constant, x), factor, call.result)
        return Call(call.func.overloadpacket.Tensor, (x, constant, *rest), call.kwargs, call.result)


def _fits(x: Tensor, number: Any) -> bool:
    """Whether a number has the same value in this tensor's type, and makes no other type of a result."""
    if x.dtype is torch.float32:
        return type(number) in (int, float)
    if x.dtype in (torch.int32, torch.int64):
        return type(number) is int and abs(number) < 2**31
    return x.dtype is torch.bool and type(number) is bool


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
        if argument.alias_info is not None and fixed.intersection(places_in(given.get(argument.name))):
            return argument.alias_info.is_write or not func._schema.is_mutable
    return False


def places_in(nest: Any) -> Iterator[Place]:
    """The places in nested tuples, lists and dictionaries, in order."""
    return leaves(nest, Place)


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
