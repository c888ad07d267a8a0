"""Sums along time against plain loops in Python's float64: with NumPy's loop, and with that for compilers and GPUs."""

import math
import random

import pytest
import torch
from torch import Tensor

from ppo_fast.algorithm.scan import linear_scan


@pytest.fixture(params=["eager on a CPU", "compiled or on a GPU"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the loop of NumPy, and with that of torch, here not compiled."""
    if request.param != "eager on a CPU":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


def by_loop(x: Tensor, factor: Tensor, reverse: bool) -> Tensor:
    """One environment and one step at a time."""
    steps = list(range(len(x)))
    if reverse:
        steps.reverse()
    result = torch.zeros(x.shape, dtype=torch.float64)
    for n in range(x.shape[1]):
        before = None
        for t in steps:
            y = float(x[t, n])
            if before is not None:
                y += float(factor[t, n]) * before
            result[t, n] = y
            before = y
    return result


@pytest.mark.parametrize("reverse", [False, True])
def test_against_a_float64_loop(loop: str, reverse: bool) -> None:
    rng = random.Random(0)
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, 1), (1, 5), (2, 1)] + [(rng.randint(1, 24), rng.randint(1, 30)) for _ in range(40)]
    for steps, envs in shapes:
        x = torch.randn(steps, envs, generator=draw)
        factor = torch.rand(steps, envs, generator=draw)
        factor[torch.rand(steps, envs, generator=draw) < 0.2] = 0.0  # where a sum begins anew
        wanted = by_loop(x, factor, reverse)
        result = linear_scan(x, factor, reverse)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)
        exact = linear_scan(x.double(), factor.double(), reverse)
        assert exact.dtype == torch.float64
        torch.testing.assert_close(exact, wanted, rtol=1e-14, atol=1e-14)


def test_by_hand(loop: str) -> None:
    """Binary fractions: the comparison is exact. The factor of the row that is first in order is not looked at."""
    x = torch.tensor([[1.0], [2.0], [4.0]])
    assert linear_scan(x, torch.tensor([[math.nan], [0.5], [0.25]])).flatten().tolist() == [1, 2.5, 4.625]
    assert linear_scan(x, torch.tensor([[0.5], [0.25], [math.nan]]), reverse=True).flatten().tolist() == [2.5, 3, 4]


@pytest.mark.parametrize("reverse", [False, True])
def test_its_inputs_are_left_alone_however_they_lie_in_memory(loop: str, reverse: bool) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    factor = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    before = x.clone(), factor.clone()
    result = linear_scan(x, factor, reverse)
    assert torch.equal(x, before[0]) and torch.equal(factor, before[1])
    assert torch.equal(linear_scan(x.T.contiguous().T, factor.T.contiguous().T, reverse), result)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_finite_spoils_its_own_environment_and_warns_nobody(loop: str, reverse: bool) -> None:
    x = torch.ones(5, 3)
    x[2, 1] = math.nan
    x[2, 2] = 3e38
    result = linear_scan(x, torch.full((5, 3), 2.0), reverse)
    sound = result[:, 0].tolist()
    assert sorted(sound) == [1, 3, 7, 15, 31]
    later = slice(0, 3) if reverse else slice(2, 5)
    assert result[later, 1].isnan().all() and int(result[:, 1].isnan().sum()) == 3
    assert int(result[:, 2].isinf().sum()) == 2


def test_it_is_one_graph_when_compiled() -> None:
    compiled = torch.compile(linear_scan, fullgraph=True, dynamic=False, backend="aot_eager")
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for reverse in (False, True):
        found = compiled(x, x.abs().clamp(max=1), reverse)
        torch.testing.assert_close(found, linear_scan(x, x.abs().clamp(max=1), reverse), rtol=1e-6, atol=1e-6)
