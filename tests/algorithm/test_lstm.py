"""lstm.py beside its definition, step by step, in float64."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ppo_fast.algorithm import lstm
from ppo_fast.algorithm.lstm import LSTM


class Case(NamedTuple):
    """A layer and what it is given."""

    layer: LSTM
    x: Tensor  # (T, M, D)
    first: Tensor  # (T, M)
    hidden: Tensor  # (M, H)
    cell: Tensor  # (M, H)


def case(steps: int = 9, rows: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    draw = torch.Generator().manual_seed(seed)
    layer = LSTM(3, 5, draw).to(dtype)
    x = torch.randn(steps, rows, 3, generator=draw, dtype=dtype)
    first = torch.rand(steps, rows, generator=draw) < 0.3
    hidden = torch.rand(rows, 5, generator=draw, dtype=dtype) - 0.5
    cell = torch.randn(rows, 5, generator=draw, dtype=dtype)
    return Case(layer, x, first, hidden, cell)


def one_by_one(case: Case) -> Tensor:
    """The hiddens (T, M, H), each row for itself, by the equations of torch.nn.LSTM's documentation."""
    layer, size = case.layer, case.layer.size
    by_row = []
    for row in range(case.x.shape[1]):
        hidden, cell = case.hidden[row], case.cell[row]
        hiddens = []
        for t in range(len(case.x)):
            if case.first[t, row]:
                hidden, cell = torch.zeros_like(hidden), torch.zeros_like(cell)
            numbers = layer.input.weight @ case.x[t, row] + layer.input.bias + layer.recurrent.weight @ hidden
            o, i, f = (numbers[k * size : (k + 1) * size].sigmoid() for k in range(3))
            cell = f * cell + i * numbers[3 * size :].tanh()
            hidden = o * cell.tanh()
            hiddens.append(hidden)
        by_row.append(torch.stack(hiddens))
    return torch.stack(by_row, 1)


def gradients(case: Case, hiddens: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, hiddens.numel(), dtype=hiddens.dtype).view_as(hiddens)
    return list(torch.autograd.grad((hiddens * weights).sum(), [case.x, *case.layer.parameters()]))


@pytest.mark.parametrize(("steps", "rows"), [(9, 4), (1, 1), (1, 3), (6, 1)])
def test_a_sequence_is_its_steps_one_by_one(steps: int, rows: int) -> None:
    given = case(steps, rows)
    given.x.requires_grad_()
    found, wanted = given.layer(*given[1:]), one_by_one(given)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    for mine, theirs in zip(gradients(given, found), gradients(given, wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_a_step_is_a_sequence_of_one() -> None:
    given = case(1)
    forgets = given.first[0][:, None]
    hidden, _ = given.layer.step(given.x[0], given.hidden.masked_fill(forgets, 0), given.cell.masked_fill(forgets, 0))
    torch.testing.assert_close(given.layer(*given[1:])[0], hidden, rtol=1e-6, atol=1e-7)  # its tanh is float32's


def test_it_is_torchs_lstm_where_no_episode_begins() -> None:
    given = case(dtype=torch.float32)
    theirs: Any = torch.nn.LSTM(3, 5)
    order = torch.cat([torch.arange(k * 5, k * 5 + 5) for k in (1, 2, 3, 0)])  # theirs: input, forget, cell, output
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(given.layer.input.weight[order])
        theirs.weight_hh_l0.copy_(given.layer.recurrent.weight[order])
        theirs.bias_ih_l0.copy_(given.layer.input.bias[order])
        theirs.bias_hh_l0.zero_()
    wanted, _ = theirs(given.x, (given.hidden[None], given.cell[None]))
    found = given.layer(given.x, torch.zeros_like(given.first), given.hidden, given.cell)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_crosses_the_beginning_of_an_episode() -> None:
    given = case(6)
    first = torch.zeros_like(given.first)
    first[3] = True
    given.x.requires_grad_()
    after = given.layer(given.x, first, given.hidden, given.cell)[3:]
    (by_x,) = torch.autograd.grad(after.sum(), given.x)
    assert torch.all(by_x[:3] == 0) and torch.all(by_x[3:].abs().sum(-1) > 0)
    alone = given.layer(given.x[3:], first[3:], given.hidden, given.cell)
    assert torch.equal(after, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loops_are_the_same_in_torch_as_in_numpy(dtype: torch.dtype) -> None:
    # The tensors of a GPU take torch's way, with the same lines.
    given = case(dtype=dtype)
    inputs = given.layer.input(given.x).detach()
    weight = given.layer.recurrent.weight.detach()
    hiddens, cells, gates = lstm.forward_loop(inputs, weight, *given[2:])
    by_hidden = torch.randn_like(hiddens)
    found = [hiddens, cells, gates, lstm.backward_loop(by_hidden, weight, given.first, given.cell, cells, gates)]

    keep = (~given.first)[..., None].to(dtype)
    filled = [torch.empty_like(x) for x in (gates, hiddens, cells)]
    lstm._forward(torch, inputs, weight, keep, given.hidden, given.cell, *filled)
    before = keep * torch.cat([given.cell[None], cells[:-1]])
    slopes, to_cell, to_before = lstm._slopes(cells, before, gates, keep)
    lstm._backward(torch, by_hidden, weight, keep, to_cell, to_before, slopes)
    for mine, theirs in zip(found, [filled[1], filled[2], filled[0], slopes], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_what_it_is_given_is_not_changed() -> None:
    given = case()
    before = [x.clone() for x in given[1:]]
    parameters = [x.clone() for x in given.layer.parameters()]
    gradients(given._replace(x=given.x.requires_grad_()), given.layer(*given[1:]))
    assert all(torch.equal(x, y) for x, y in zip(given[1:], before, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(given.layer.parameters(), parameters, strict=True))


def test_huge_numbers_saturate_and_nan_stays() -> None:
    given = case(3)
    x = given.x.clone()
    x[1, 0] = 1e30
    x[1, 1] = float("nan")
    found = given.layer(x, torch.zeros_like(given.first), given.hidden, given.cell)
    assert torch.isfinite(found[:, 0]).all()
    assert torch.isnan(found[1:, 1]).all() and torch.isfinite(found[:, 2:]).all()


def test_it_remembers_at_the_start() -> None:
    layer = LSTM(3, 5, torch.Generator().manual_seed(0))
    size = layer.size
    assert torch.all(layer.input.bias[2 * size : 3 * size] == 1)
    assert torch.all(layer.input.bias[: 2 * size] == 0) and torch.all(layer.input.bias[3 * size :] == 0)
    for gate in layer.recurrent.weight.detach().split(size):
        torch.testing.assert_close(gate @ gate.T, torch.eye(size), rtol=0, atol=1e-5)
