"""Networks against float64, in both spellings of every layer."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppo_fast.algorithm import mlp

INF = float("inf")

# torch.compile instantiates an autograd.Function for its own purposes, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubles(*tensors: Tensor) -> list[Tensor]:
    """Copies in float64 that gradients are found of."""
    return [x.detach().double().requires_grad_() for x in tensors]


@pytest.fixture(params=["eager", "fused"])
def spelling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the kernels of eager mode and with the form meant for the compiler, here not compiled."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "fused")
    return request.param


# Initialisation.


def test_initial_weights_are_orthogonal() -> None:
    """W Wᵀ = gain² I, or Wᵀ W where there are more outputs than inputs."""
    for outputs, inputs in [(64, 4), (64, 64), (2, 64), (1, 64), (17, 300)]:
        for gain in (math.sqrt(2), 0.01, 1.0):
            layer = mlp.layer_init(nn.Linear(inputs, outputs), gain, generator())
            weight = layer.weight.detach().double()
            square = weight @ weight.T if outputs <= inputs else weight.T @ weight
            identity = torch.eye(len(square)).double()
            torch.testing.assert_close(square, gain**2 * identity, rtol=0, atol=1e-5)
            # The part that atol cannot see for a gain of 0.01.
            torch.testing.assert_close(square.diagonal(), gain**2 * identity.diagonal(), rtol=1e-5, atol=0)
            assert not layer.bias.any()


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> list[Tensor]:
        return list(mlp.MLP([4, 8, 2], 1.0, generator(seed)).parameters())

    assert all(torch.equal(x, y) for x, y in zip(weights(1), weights(1), strict=True))
    assert not torch.equal(weights(1)[0], weights(2)[0])


# Linear layers.


def test_linear_against_float64(spelling: str) -> None:
    draw = generator()
    sizes = (1, 2, 4, 8, 9, 64)
    for leading, inputs, outputs in itertools.product([(), (50,), (3, 5)], sizes, sizes):
        x = torch.randn(*leading, inputs, generator=draw, requires_grad=True)
        weight = torch.randn(outputs, inputs, generator=draw, requires_grad=True)
        bias = torch.randn(outputs, generator=draw, requires_grad=True)
        cotangent = torch.randn(*leading, outputs, generator=draw)
        result = mlp.linear(x, weight, bias)
        assert result.shape == (*leading, outputs)
        exact = doubles(x, weight, bias)
        wanted = F.linear(*exact)
        torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad((result * cotangent).sum(), (x, weight, bias))
        wanted_gradients = torch.autograd.grad((wanted * cotangent).sum(), exact)
        for ours, theirs in zip(gradients, wanted_gradients, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [4, 64])
def test_linear_with_inputs_rounded_to_bf16(spelling: str, size: int) -> None:
    """bf16 keeps 8 bits: the error of a sum of `size` products of numbers around 1 is some 2**-8 of its size. The
    result, the gradients and the bias stay float32. Thin products are not rounded in the compiler's spelling."""
    x = torch.randn(50, size, generator=generator(50)).requires_grad_()
    weight = torch.randn(64, size, generator=generator(64)).requires_grad_()
    bias = torch.full((64,), 1 + 2**-20, requires_grad=True)
    result = mlp.linear(x, weight, bias, torch.bfloat16)
    gradients = torch.autograd.grad(result.sum(), (x, weight, bias))
    exact = doubles(x, weight, bias)
    wanted = F.linear(*exact)
    assert all(tensor.dtype == torch.float32 for tensor in (result, *gradients))
    assert (result.double() - wanted).abs().max() < 2**-5 * math.sqrt(size)
    assert torch.equal(result, mlp.linear(x, weight, bias)) == (spelling == "fused" and size == 4)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted.sum(), exact), strict=True):
        assert (ours.double() - theirs).abs().max() < 2**-6 * math.sqrt(64)
    zero = mlp.linear(torch.zeros(1, size), weight, bias, torch.bfloat16)
    assert torch.equal(zero[0], bias)


def test_a_network_hands_its_dtype_to_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype | None] = []

    def seeing(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        seen.append(dtype)
        return F.linear(x, weight, bias)

    monkeypatch.setattr(mlp, "linear", seeing)
    mlp.MLP([3, 8, 8, 2], 1.0, dtype=torch.bfloat16)(torch.ones(1, 3))
    mlp.MLP([3, 8, 2], 1.0)(torch.ones(1, 3))
    assert seen == [torch.bfloat16] * 3 + [None] * 2


def test_thin_products_are_written_as_sums_only_when_compiling(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above do compare two spellings."""
    calls: list[Any] = []
    monkeypatch.setattr(mlp.F, "linear", lambda *args: calls.append(args))
    for inputs, outputs in ((4, 64), (64, 2), (64, 64)):
        mlp.linear(torch.ones(5, inputs), torch.ones(outputs, inputs), torch.ones(outputs))
    assert len(calls) == (1 if spelling == "fused" else 3)


# tanh.


def test_tanh_against_float64(spelling: str) -> None:
    """Dense where it bends, sparse to the ends of float32; both signs, zero, and the smallest numbers."""
    positive = torch.cat([torch.linspace(0, 12, 400_001), torch.logspace(-45, 38, 10_000), torch.tensor([3.4e38])])
    x = torch.cat([positive, -positive])
    y = mlp.tanh(x)
    assert (y.double() - x.double().tanh()).abs().max() <= 4e-7
    assert (y.abs() <= 1).all()
    # Small numbers keep their digits too, where there are few: tanh(x) is x there.
    tiny = x[(x.abs() < 1e-3) & (x.abs() > 1e-35)]
    assert len(tiny) < mlp.MANY <= len(x)
    torch.testing.assert_close(mlp.tanh(tiny).double(), tiny.double().tanh(), rtol=1e-6, atol=0)
    assert torch.equal(mlp.tanh(-tiny), -mlp.tanh(tiny))
    for size in (1, mlp.MANY):
        assert mlp.tanh(torch.full((size,), INF)).unique().tolist() == [1.0]
        assert mlp.tanh(torch.full((size,), -INF)).unique().tolist() == [-1.0]
        assert mlp.tanh(torch.full((size,), torch.nan)).isnan().all()


def test_the_gradient_of_eager_tanh_of_few_numbers_and_of_many() -> None:
    for size in (5, 20_000):
        x = torch.linspace(-9, 9, size).requires_grad_()
        (gradient,) = torch.autograd.grad((mlp.tanh(x) * torch.arange(size)).sum(), x)
        wanted = (1 - x.double().tanh() ** 2) * torch.arange(size)
        torch.testing.assert_close(gradient.double(), wanted.detach(), rtol=1e-5, atol=1e-6 * size)
        with torch.no_grad():
            assert torch.equal(mlp.tanh(x), mlp.tanh(x.detach()))
        assert not mlp.tanh(x.detach()).requires_grad


def test_the_gradient_of_tanh(spelling: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([1e30, -1e30, INF, -INF])]).requires_grad_()
    cotangent = torch.randn(len(x), generator=generator())
    (gradient,) = torch.autograd.grad(mlp.tanh(x), x, cotangent)
    wanted = cotangent.double() * (1 - x.detach().double().tanh() ** 2)
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=4e-6)
    (gradient,) = torch.autograd.grad(mlp.tanh(x * torch.nan).sum(), x)
    assert gradient.isnan().all()


def test_fused_tanh_differs_from_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would compare a function with itself."""
    x = torch.linspace(-3, 3, 10_001)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not torch.equal(mlp.tanh(x), torch.tanh(x))


# Networks.


def test_the_network_and_its_gradients_are_the_same_in_a_compiled_graph() -> None:
    network = mlp.MLP([4, 64, 64, 2], 0.01, generator())
    exact = mlp.MLP([4, 64, 64, 2], 0.01, generator()).double()
    x = torch.randn(100, 4, generator=generator())
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    wanted = exact(x.double())
    wanted_gradients = torch.autograd.grad(wanted.pow(2).sum(), list(exact.parameters()))
    for function in (network, compiled):
        result = function(x)
        torch.testing.assert_close(result.double(), wanted, rtol=1e-4, atol=1e-7)
        gradients = torch.autograd.grad(result.pow(2).sum(), list(network.parameters()))
        for ours, theirs in zip(gradients, wanted_gradients, strict=True):
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-6)


def test_activation_after_the_last_layer() -> None:
    plain = mlp.MLP([4, 8, 3], 1.0, generator())
    active = mlp.MLP([4, 8, 3], 1.0, generator(), activate_last=True)
    x = torch.randn(5, 4, generator=generator())
    torch.testing.assert_close(active(x), torch.tanh(plain(x)))
