"""ppo_fast.engine.program: what a function did, as data, and which functions can't be told in that way."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recording import numbers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast.engine.backends import quickest
from ppo_fast.engine.program import Program, Tape, Unfit, program
from ppo_fast.engine.recorded import Recorded

pytestmark = pytest.mark.usefixtures("no_gradients")


def program_of(function: Callable[..., Any], *args: Any) -> Program:
    with Tape() as tape:
        result = function(*args)
    return program(tape, args, result)


class Listening(TorchDispatchMode):
    """The operations that are run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(str(func).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


def replayed(function: Callable[..., Any], *args: Any) -> list[str]:
    """The operations of a function's replay, by name, in order."""
    replay = quickest(program_of(function, *args))
    with Listening() as listening:
        replay(*args)
    return listening.names


# ---------------------------------------------------------------- less to do


def test_constants_are_made_once_and_views_of_the_whole_are_no_operations() -> None:
    def function(x: Tensor) -> Tensor:
        base = (torch.ones_like(x) + torch.arange(3)) * 2.0
        return torch.where(x[0:2].detach().view(2, 3) > 0, base, 0.5)

    assert replayed(function, numbers(0, 2, 3)) == ["gt.Tensor", "where.self"]


def test_numbers_are_tensors_from_the_start() -> None:
    assert "rsub.Scalar" not in replayed(lambda x: 1 - x, numbers(0, 4))


def test_a_view_of_a_part_is_an_operation() -> None:
    assert replayed(lambda x: x[1:] * x.t()[:, 1:].t(), numbers(0, 3, 3)).count("mul.Tensor") == 1
    for cut in (slice(0, 2), slice(1, 3), slice(None, None, 2)):
        replay = quickest(program_of(lambda x, cut=cut: (x[cut] + 1, x.t()), numbers(0, 3, 3)))
        for call in range(4):
            x = numbers(call, 3, 3)
            part, turned = replay(x)
            assert torch.equal(part, x[cut] + 1) and torch.equal(turned, x.t())


def test_what_is_filled_and_changed_is_no_constant() -> None:
    """Memory of a recording that a replay wrote to would keep what it holds for the next one."""

    def counted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = torch.zeros(4)
        total = torch.zeros(4)
        total[1:3].add_(x)  # through a view
        return kept, total, torch.ones(2)

    recorded = Recorded(counted)
    for call in range(5):
        x = numbers(call, 2)
        kept, total, ones = recorded(x)
        assert torch.equal(total[1:3], x) and not kept.any() and torch.equal(ones, torch.ones(2))
        kept.fill_(7.0)  # the caller may do as he likes with what he was given
        ones.fill_(7.0)
    assert not recorded.unfit


TYPES = [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool]
OPERATIONS = ["add", "sub", "rsub", "mul", "true_divide", "eq", "ge", "lt"]


@pytest.mark.parametrize("number", [2, -3, 0.1, 1e300, True, 2**40, float("nan")])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_numbers_have_the_type_that_torch_gives_them(dtype: torch.dtype, number: float) -> None:
    """Recorded as tensors or not: values and types of the result are those of the function."""
    x = (numbers(0, 5, 3) * 4).to(dtype)
    for name in OPERATIONS:

        def function(x: Tensor, name: str = name) -> tuple[Tensor, Tensor]:
            return getattr(torch, name)(x, number), getattr(torch, name)(x[0, 0], number)

        try:
            wanted = function(x)
        except RuntimeError:  # bool has no difference, and a byte no 2**40
            continue
        recorded = Recorded(function)
        for _ in range(4):
            for got, one in zip(recorded(x), wanted, strict=True):
                assert got.dtype == one.dtype, name
                torch.testing.assert_close(got, one, rtol=0, atol=0, equal_nan=True)
        assert not recorded.unfit, name


def test_numbers_beside_a_factor() -> None:
    """x + factor · number and number - factor · x, and in place."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        changed = x.clone().add_(0.3, alpha=2).sub_(1.5, alpha=0.1).mul_(1.1).div_(3)
        return torch.add(x, 0.7, alpha=3), torch.sub(x, 2, alpha=0.5), torch.rsub(x, 0.7, alpha=3), 1 - x, changed

    replay = quickest(program_of(function, numbers(0, 4)))
    for call in range(4):
        x = numbers(call, 4)
        assert all(torch.equal(a, b) for a, b in zip(replay(x), function(x), strict=True))


# ---------------------------------------------------------------- what can't be told


def a_tensor_of_its_own(x: Tensor) -> Tensor:
    return KEPT.add_(x)


def a_view_of_its_own(x: Tensor) -> None:
    KEPT[1:].add_(x[1:])


def a_result_of_its_own(x: Tensor) -> None:
    torch.add(KEPT, x, out=KEPT)


@dataclass
class Held:
    """Not a tuple."""

    x: Tensor


def an_operation_with_effects(x: Tensor) -> Tensor:
    torch.ops.higher_order.print("seen")
    return x + 1


KEPT = torch.zeros(6)
UNFIT = {
    "a look at a number": (lambda x: x * (2.0 if x.sum() > 0 else -1.0), "depends on more than shapes"),
    "a shape that depends on numbers": (lambda x: x[x > 0].sum(), "depends on more than shapes"),
    "item": (lambda x: x * float(x.max()), "depends on more than shapes"),
    "random numbers": (lambda x: x + torch.rand(6), "rand.default, which draws random numbers"),
    "a generator": (lambda x: x + torch.rand(6, generator=torch.Generator()), "draws random numbers"),
    "dropout": (lambda x: F.dropout(x, 0.5), "draws random numbers"),
    "a tensor of its own": (a_tensor_of_its_own, "changes a tensor that it was not given, by aten::add_"),
    "a view of its own": (a_view_of_its_own, "changes a tensor that it was not given"),
    "a result of its own": (a_result_of_its_own, "changes a tensor that it was not given"),
    "an operation with effects": (an_operation_with_effects, "calls print, which is no single operation"),
    "a result that hides tensors": (Held, "returns a Held, in which tensors are not seen"),
    "an array": (lambda x: [x, np.zeros(3)], "returns a ndarray"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_program_can_tell_is_refused_with_its_reason(name: str) -> None:
    function, reason = UNFIT[name]
    with pytest.raises(Unfit, match=reason):
        program_of(function, torch.ones(6))
    # And it is called as it is.
    calls = itertools.count()
    recorded = Recorded(lambda x: [next(calls), function(x)])
    seen = [recorded(numbers(call, 6)) for call in range(4)]
    assert [count for count, _ in seen] == [0, 1, 2, 3] and reason in recorded.unfit


def test_an_index_by_numbers_is_no_mask() -> None:
    assert replayed(lambda x, order: x[order], numbers(0, 4), torch.tensor([2, 0])) == ["index.Tensor"]


def test_what_might_be_random_but_draws_nothing_is_told() -> None:
    """Attention calls its kernels random for the sake of dropout."""

    def attention(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    replay = quickest(program_of(attention, numbers(0, 1, 3, 4)))
    assert torch.equal(replay(numbers(1, 1, 3, 4))[0], attention(numbers(1, 1, 3, 4)))


def test_gradients_are_on_where_they_were() -> None:
    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            weight = nn.Parameter(torch.ones(3))
            return torch.autograd.grad((x * weight).sum(), weight)[0]

    assert program_of(gradient, torch.ones(3)).gradients
    assert not program_of(lambda x: x + 1, torch.ones(3)).gradients
