"""Two ways of running a program: in TorchScript's interpreter, and in Python. Both write it as source text first.

    replay = quickest(program)
    answers = replay(*inputs)    # the tensors of program.inputs, in this order

Either does the same operations in the same order as the function that was recorded, so the numbers are the same, bit
for bit. `script_of` and `source_of` show the texts.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppo_fast.engine.program import Call, Place, Program, places_in

Replay = Callable[..., Sequence[Tensor]]  # of the tensors of a program's inputs: those of its answers
Backend = Callable[[Program], Replay]


def quickest(program: Program) -> Replay:
    """The program `interpreted` or, where TorchScript can't do that, `flat`.

    Raises:
        Exception: whatever one of its operations has against being called again.
    """
    # TorchScript does not support Python 3.14, and takes an operation for useless that only writes into a list.
    if sys.version_info < (3, 14) and not any(_writes_into_a_list(call) for call in program.calls):
        with contextlib.suppress(Exception):  # Python takes what TorchScript has no words for
            return interpreted(program)
    return flat(program)


def interpreted(program: Program) -> Replay:
    """In TorchScript's interpreter, which holds no Python lock: threads run side by side.

    Raises:
        Exception: TorchScript can't run it.
    """
    text, constants = script_of(program)
    # A unit of its own, which goes with this function: a traced function would be kept for ever.
    function: Any = torch.jit.CompilationUnit(text).replay

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        # What is "optimized" there makes two operations of a product with a bias.
        with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
            return function(*inputs, *constants)

    replay = _below_autograd(run, program.gradients)
    replay(*_examples(program))
    return replay


def flat(program: Program) -> Replay:
    """As a Python function of one line a call. It needs nothing but torch's operations.

    Raises:
        Exception: whatever one of its operations has against being called again.
    """
    as_operations: set[int] = set()
    while True:
        text, names = source_of(program, as_operations)
        exec(compile(text, "<replay>", "exec"), names)  # our own text, made of operations' names
        replay = _below_autograd(names["replay"], program.gradients)
        try:
            replay(*_examples(program))
            return replay
        except TypeError as problem:
            # torch.<name> takes other arguments than the operation itself: in which call?
            number = _line_of(problem) - FIRST_CALL
            if number < 0 or number in as_operations:
                raise
            as_operations.add(number)


def _examples(program: Program) -> list[Tensor]:
    """Inputs that may be written into."""
    return [*(x.clone() for x in program.given), *program.outside]


def _below_autograd(run: Replay, gradients: bool) -> Replay:
    """The replay without what autograd adds to each operation.

    Args:
        gradients: whether operations see gradients on, which makes an LSTM keep what its backward pass needs.
    """
    guard = getattr(torch._C, "_AutoDispatchBelowAutograd", torch.no_grad)

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        with torch.set_grad_enabled(gradients), guard():
            return run(*inputs)

    return replay


def _writes_into_a_list(call: Call) -> bool:
    for argument in call.func._schema.arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and argument.type.kind() == "ListType":
            return True
    return False


# ---------------------------------------------------------------- as TorchScript


def script_of(program: Program) -> tuple[str, list[Tensor]]:
    """The program as TorchScript, and the constants that its function takes after the program's inputs."""
    words = _ScriptWords()
    lines = [f"    {_targets(call.result)} = {words.of_call(call)}" for call in program.calls]
    inputs = [_name(place) for place in program.inputs]
    parameters = ", ".join(f"{name}: Tensor" for name in (*inputs, *words.constants))
    answers = ", ".join(_name(place) for place in program.answers())
    head = f"def replay({parameters}) -> List[Tensor]:"
    end = f"    return torch.jit.annotate(List[Tensor], [{answers}])"
    return "\n".join([head, *lines, end, ""]), list(words.constants.values())


class _ScriptWords:
    """Calls in TorchScript's words, which depend on the types that an operation takes.

    Attributes:
        constants: the tensors that were met, by name.
    """

    def __init__(self) -> None:
        self.constants: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # of the constants, by id

    def of_call(self, call: Call) -> str:
        """The call, without what takes its result."""
        schema = call.func._schema
        types = {argument.name: argument.type for argument in schema.arguments}
        words = [self._word(x, kind) for x, kind in zip(call.args, types.values(), strict=False)]
        words += [f"{name}={self._word(x, types[name])}" for name, x in call.kwargs.items()]
        return f"torch.ops.{schema.name.replace('::', '.')}({', '.join(words)})"

    def _word(self, x: Any, kind: Any) -> str:
        """An argument of this type."""
        if kind.kind() == "OptionalType":
            kind = kind.getElementType()
        if isinstance(x, Place):
            return _name(x)
        if isinstance(x, Tensor):
            return self._constant(x)
        if isinstance(x, list | tuple):
            items = ", ".join(self._word(item, kind.getElementType()) for item in x)
            return f"torch.jit.annotate({kind.annotation_str}, [{items}])"
        if kind.kind() == "FloatType" and type(x) is int:
            return repr(float(x))
        if isinstance(x, float) and not abs(x) < float("inf"):
            return f'float("{x}")'
        if isinstance(x, torch.device):
            return f'torch.device("{x}")'
        return repr(x)  # a number, a word, None, or torch.float32 and the like

    def _constant(self, x: Tensor) -> str:
        name = self._names.setdefault(id(x), f"constant{len(self._names)}")
        self.constants[name] = x
        return name


# ---------------------------------------------------------------- as Python

FIRST_CALL = 2  # line of the source


def source_of(program: Program, as_operations: set[int] | None = None) -> tuple[str, dict[str, Any]]:
    """The program as Python source, and the objects that its names stand for.

    Args:
        as_operations: numbers of calls that the quicker torch.<name> does not take.
    """
    names: dict[str, Any] = {}
    last_use: dict[Place, int] = {}
    for index, call in enumerate(program.calls):
        last_use.update(dict.fromkeys(places_in([call.args, call.kwargs, call.result]), index))
    free_after: dict[int, list[Place]] = {}
    kept = {*program.answers(), *program.inputs}
    for place, index in last_use.items():
        if place not in kept:
            free_after.setdefault(index, []).append(place)
    lines = []
    for index, call in enumerate(program.calls):
        function = _function_of(call, names, as_operations is not None and index in as_operations)
        words = [_word(x, names) for x in call.args]
        words += [f"{key}={_word(x, names)}" for key, x in call.kwargs.items()]
        free = "".join(f"; {_name(place)} = None" for place in free_after.get(index, []))
        lines.append(f"    {_targets(call.result)} = {function}({', '.join(words)}){free}")
    arguments = ", ".join(_name(place) for place in program.inputs)
    answers = ", ".join(_name(place) for place in program.answers())
    return "\n".join([f"def replay({arguments}):", *lines, f"    return [{answers}]", ""]), names


def _function_of(call: Call, names: dict[str, Any], as_operation: bool) -> str:
    """The name of what does it: torch.<name> where there is one, which is called quicker than the operation."""
    base = call.func._schema.name.removeprefix("aten::")
    quick = None if as_operation else getattr(torch._VF, base, None)
    name = base if quick is not None else f"{base}_{call.func._overloadname}".replace("::", "_").replace(".", "_")
    names[name] = call.func._op if quick is None else quick
    return name


def _word(x: Any, names: dict[str, Any]) -> str:
    """An argument in Python's words; what has none gets a name."""
    if isinstance(x, Place):
        return _name(x)
    if isinstance(x, list | tuple):
        return "[" + ", ".join(_word(item, names) for item in x) + "]"
    if x is None or isinstance(x, bool | int | str) or (isinstance(x, float) and abs(x) < float("inf")):
        return repr(x)
    name = f"constant{len(names)}"
    names[name] = x
    return name


def _line_of(problem: Exception) -> int:
    """The line of the source in which it was raised; -1 if in none."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != "<replay>":
        trace = trace.tb_next
    return -1 if trace is None else trace.tb_lineno


# ---------------------------------------------------------------- in both


def _name(place: Place) -> str:
    return f"x{place.index}"


def _targets(result: Any) -> str:
    """What stands to the left of a call. Several results come as a tuple or list, some of them maybe None."""
    if isinstance(result, Place):
        return _name(result)
    if isinstance(result, tuple | list) and result:
        return ", ".join(_name(x) if isinstance(x, Place) else "_" for x in result) + ","
    return "_"
