"""The gradient of a loss: against finite differences, in one piece or in parts, in one process or in two, compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppo_fast.algorithm import ppo
from ppo_fast.engine.flat import flatten_parameters, shapes_of, views
from ppo_fast.engine.gradients import Gradient, LossModule, Part, part_gradient, shares


class Rows(NamedTuple):
    x: Tensor  # (M, 4)
    valid: Tensor | None


class Net(nn.Module):
    """A layer that is used and one that is not, as when a program's flag leaves out a part of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)


def toy_loss(net: Net, scale: float, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """A mean over the valid rows, and two more."""
    y = torch.sin(net.used(rows.x))
    loss = scale * ppo.masked_mean((y**2).sum(-1), rows.valid)
    return loss, {"loss": loss, "mean": ppo.masked_mean(y.detach()[:, 0], rows.valid)}


NAMES = ("loss", "mean")


def some_rows(count: int, masked: bool, seed: int = 1) -> Rows:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return Rows(x, torch.arange(count) % 3 != seed % 3 if masked else None)


def toy() -> tuple[LossModule, Net, Tensor]:
    """Its loss, the network itself, and the vector of its parameters."""
    net = Net()
    theta = flatten_parameters(net)
    return LossModule(toy_loss, net, 0.7), net, theta


# On some rows.


def test_against_finite_differences() -> None:
    module, net, theta = toy()
    rows = some_rows(20, masked=False)
    part = part_gradient(module, theta, rows, 1.0)
    found = views(part.sums[: len(theta)], shapes_of(module))
    weight, bias = (x.double().numpy() for x in (net.used.weight, net.used.bias))
    x = rows.x.double().numpy()

    def exact(w: np.ndarray, b: np.ndarray) -> Any:
        return 0.7 * (np.sin(x @ w.T + b) ** 2).sum(-1).mean()

    def differences(function: Callable[[np.ndarray], Any], at: np.ndarray) -> np.ndarray:
        gradient = np.zeros_like(at)
        for i in np.ndindex(at.shape):
            step = np.zeros_like(at)
            step[i] = 1e-6
            gradient[i] = (function(at + step) - function(at - step)) / 2e-6
        return gradient

    np.testing.assert_allclose(found["agent.used.weight"], differences(lambda w: exact(w, bias), weight), atol=1e-6)
    np.testing.assert_allclose(found["agent.used.bias"], differences(lambda b: exact(weight, b), bias), atol=1e-6)
    assert part.names == NAMES and part.sums[len(theta)].item() == pytest.approx(exact(weight, bias), abs=1e-6)


def test_parameters_that_the_loss_does_not_reach_have_the_gradient_zero() -> None:
    module, _, theta = toy()
    found = views(part_gradient(module, theta, some_rows(20, masked=False), 1.0).sums[: len(theta)], shapes_of(module))
    assert found["agent.used.weight"].all()
    assert not found["agent.unused.weight"].any() and not found["agent.unused.bias"].any()


@pytest.mark.parametrize("masked", [False, True])
def test_autograd_and_what_is_compiled_agree(masked: bool) -> None:
    """Compiled it is found by torch.func, from the vector instead of the parameters."""
    module, _, theta = toy()
    rows = some_rows(20, masked)
    eager = part_gradient(module, theta, rows, 0.25)
    compiled = torch.compile(part_gradient, backend="aot_eager", fullgraph=True, dynamic=False)
    found = compiled(module, theta, rows, 0.25)
    assert found.names == eager.names
    torch.testing.assert_close(found.sums, eager.sums, rtol=1e-6, atol=1e-7)


def test_it_leaves_no_trace_of_autograd() -> None:
    """Under no_grad, as the engine calls it, and after an error in the loss too."""
    module, net, theta = toy()
    with torch.no_grad():
        part = part_gradient(module, theta, some_rows(20, masked=False), 1.0)
    assert part.sums.any() and not part.sums.requires_grad

    def broken(*_: Any) -> Any:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        part_gradient(LossModule(broken, net, 0.7), theta, some_rows(20, masked=False), 1.0)
    assert not any(x.requires_grad for x in (theta, *module.parameters()))


# Shares.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [[64], [32, 32], [1, 40, 23]])
def test_a_mean_is_the_sum_of_shares_times_means(sizes: list[int], masked: bool) -> None:
    """In one process, and in two of which the other has another number of valid rows."""
    mine, theirs = some_rows(64, masked), some_rows(64, masked, seed=2)
    if theirs.valid is not None:
        theirs.valid[20:] = False

    def mean(parts: list[Rows], own: list[Any]) -> Tensor:
        means = [share * ppo.masked_mean(part.x[:, 0], part.valid) for share, part in zip(own, parts, strict=True)]
        return torch.stack(means).sum()

    parts = ppo.split(mine, sizes)
    wanted = ppo.masked_mean(mine.x[:, 0], mine.valid)
    torch.testing.assert_close(mean(parts, shares(parts, 1, None)), wanted, rtol=1e-5, atol=1e-7)

    def reduce(_: Tensor) -> Tensor:
        assert mine.valid is not None and theirs.valid is not None, "without a mask nobody needs to ask"
        return (mine.valid.sum() + theirs.valid.sum()).double()

    their_parts = ppo.split(theirs, sizes)
    found = mean(parts, shares(parts, 2, reduce)) + mean(their_parts, shares(their_parts, 2, reduce))
    valid = None
    if mine.valid is not None and theirs.valid is not None:
        valid = torch.cat([mine.valid, theirs.valid])
    wanted = ppo.masked_mean(torch.cat([mine.x[:, 0], theirs.x[:, 0]]), valid)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_shares_are_numbers_or_tensors_and_never_nan() -> None:
    x = torch.zeros(8, 4)
    plain = ppo.split(Rows(x, None), [5, 3])
    assert shares(plain, 1, None) == [5 / 8, 3 / 8]
    assert shares(plain, 2, None) == [5 / 16, 3 / 16]
    some_valid = shares(ppo.split(Rows(x, torch.arange(8) > 3), [5, 3]), 1, None)
    assert [float(share) for share in some_valid] == [0.25, 0.75]
    assert isinstance(some_valid[0], Tensor) and some_valid[0].dtype == torch.float32
    none_valid = shares(ppo.split(Rows(x, torch.zeros(8).bool()), [5, 3]), 1, None)
    assert [float(share) for share in none_valid] == [0.0, 0.0]


# Of a whole minibatch.


def whole_gradient(parts: int, world_size: int = 1, reduce: Callable[[Tensor], Tensor] | None = None) -> Gradient:
    module, _, theta = toy()

    def each(calls: list[tuple[Tensor, Rows, float | Tensor]]) -> list[Part]:
        return [part_gradient(module, *call) for call in calls]

    return Gradient(each, theta, parts, world_size, reduce)


@pytest.mark.parametrize("masked", [False, True])
def test_a_minibatch_in_parts_has_the_gradient_of_the_whole(masked: bool) -> None:
    rows = some_rows(65, masked)
    wanted, wanted_numbers = whole_gradient(1)(rows)
    assert len(wanted) == len(toy()[2]) and wanted_numbers.names == NAMES
    for parts in (2, 3, 65):
        found, numbers = whole_gradient(parts)(rows)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(numbers.numbers, wanted_numbers.numbers, rtol=1e-5, atol=1e-6)
        assert torch.equal(numbers["mean"], numbers.numbers[1])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_two_processes_have_the_gradient_of_all_their_rows(masked: bool, parts: int) -> None:
    """What each adds up is first asked of both, as two processes would do at the same time."""
    halves = some_rows(30, masked), some_rows(30, masked, seed=2)
    valid = None
    if halves[0].valid is not None and halves[1].valid is not None:
        valid = torch.cat([halves[0].valid, halves[1].valid])
        assert halves[0].valid.sum() == halves[1].valid.sum() == 20
        halves[1].valid[:15] = valid[30:45] = False  # another number in each
    wanted, wanted_numbers = whole_gradient(1)(Rows(torch.cat([halves[0].x, halves[1].x]), valid))
    totals: list[Tensor] = []  # of each thing that is added up, in order
    if valid is not None:
        totals.append(valid.sum().double())

    def collecting(own: list[Tensor]) -> Callable[[Tensor], Tensor]:
        def reduce(x: Tensor) -> Tensor:
            own.append(x.clone())
            return totals[len(own) - 1] if len(own) <= len(totals) else x

        return reduce

    first: list[Tensor] = []
    second: list[Tensor] = []
    whole_gradient(parts, 2, collecting(first))(halves[0])
    whole_gradient(parts, 2, collecting(second))(halves[1])
    assert len(first) == len(second) == (2 if masked else 1)
    totals.append(first[-1] + second[-1])
    for half in halves:
        found, numbers = whole_gradient(parts, 2, collecting([]))(half)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(numbers.numbers, wanted_numbers.numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.zeros(3), 0.5], ids=["not a number", "no tensor"])
def test_a_logged_number_that_is_none_is_named(wrong):
    """The mistake of somebody who adds a term to the loss: a line that says which entry."""
    agent = nn.Linear(3, 1)
    theta = flatten_parameters(agent)

    def loss(agent, args, rows):
        value = agent(rows[0]).square().mean()
        return value, {"fine": value.detach(), "penalty": wrong}

    module = LossModule(loss, agent, None)
    with pytest.raises(ValueError, match="loss: 'penalty' of the logged numbers is no tensor"):
        part_gradient(module, theta, (torch.ones(4, 3),), 1.0)
