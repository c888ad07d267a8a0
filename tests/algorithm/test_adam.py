"""Clipping and Adam against torch's own, and a learning rate that follows the KL."""

import math

import pytest
import torch
from torch import Tensor

from ppo_fast.algorithm.adam import Learner, adam_, adapt_, clip_gradient, new_learner

INF = float("inf")


def some(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def copy_of(learner: Learner) -> list[Tensor]:
    return [x.clone() for x in learner]


def unchanged(learner: Learner, before: list[Tensor]) -> bool:
    """Whether every bit is what it was."""
    return all(torch.equal(x, y) for x, y in zip(learner, before, strict=True))


# Clipping.


def test_gradient_clipping_is_torchs() -> None:
    for size in (1e-8, 0.01, 0.4999, 0.5001, 1.0, 1e6):
        gradient = some(200)
        gradient *= size / gradient.norm()
        reference = torch.zeros(200, requires_grad=True)
        reference.grad = gradient.clone()
        wanted = torch.nn.utils.clip_grad_norm_([reference], 0.5)
        clipped, norm = clip_gradient(gradient, 0.5)
        torch.testing.assert_close(clipped, reference.grad, rtol=1e-6, atol=0)
        torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0)
        assert clipped.norm() <= 0.5 * (1 + 1e-6)
    assert not clip_gradient(torch.zeros(3), 0.5)[0].any()


# Adam.


def test_adam_is_torchs_adam() -> None:
    """200 steps of weights of a network's size, a changing learning rate, gradients over six orders of magnitude."""
    theta = 0.3 * some(300)
    reference = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([reference], lr=1e-2, eps=1e-5)
    learner = new_learner(theta, 1e-2)
    draw = torch.Generator().manual_seed(1)
    for i in range(200):
        rate = 1e-2 * (1 - i / 200)
        gradient = torch.randn(300, generator=draw) * 10.0 ** (i % 7 - 5)
        reference.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        learner.learning_rate.fill_(rate)
        adam_(learner, gradient)
        torch.testing.assert_close(theta, reference.detach(), rtol=0, atol=1e-6)
    state = optimizer.state[reference]
    torch.testing.assert_close(learner.moment1, state["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(learner.moment2, state["exp_avg_sq"], rtol=1e-5, atol=1e-7)
    assert learner.step.item() == 200 and learner.theta is theta


def by_loop(theta: Tensor, gradients: list[Tensor], rate: float) -> list[float]:
    """Kingma & Ba 2015, algorithm 1, number by number in Python's float64, with the betas and epsilon of PPO."""
    result = []
    for j, start in enumerate(theta.tolist()):
        x, first, second = start, 0.0, 0.0
        for i, gradient in enumerate(gradients):
            g = float(gradient[j])
            first = 0.9 * first + 0.1 * g
            second = 0.999 * second + 0.001 * g * g
            unbiased_first = first / (1 - 0.9 ** (i + 1))
            unbiased_second = second / (1 - 0.999 ** (i + 1))
            x -= rate * unbiased_first / (math.sqrt(unbiased_second) + 1e-5)
        result.append(x)
    return result


def test_adam_is_that_of_the_paper() -> None:
    theta = some(20)
    gradients = [some(20, seed=1 + i) * 10.0 ** (i % 4 - 2) for i in range(50)]
    wanted = by_loop(theta, gradients, 1e-2)
    learner = new_learner(theta, 1e-2)
    for gradient in gradients:
        adam_(learner, gradient)
    assert learner.theta.tolist() == pytest.approx(wanted, abs=2e-6)


def test_an_inactive_learner_stays_bit_for_bit_as_it_is() -> None:
    learner = new_learner(some(50), 0.1)
    adam_(learner, some(50, seed=1))
    assert learner.step.item() == 1
    learner.active.fill_(False)
    before = copy_of(learner)
    for gradient in (some(50, seed=2), torch.full((50,), math.nan), torch.full((50,), INF)):
        adam_(learner, gradient)
        adapt_(learner, torch.tensor(1.0), desired_kl=0.01)
    assert unchanged(learner, before)
    learner.active.fill_(True)
    adam_(learner, some(50, seed=2))
    assert learner.step.item() == 2 and not torch.equal(before[0], learner.theta)


def test_steps_are_taken_in_place() -> None:
    """Parameters are views of theta, and a captured graph knows nothing but these tensors."""
    learner = new_learner(some(5), 0.1)
    where = [x.data_ptr() for x in learner]
    adam_(learner, some(5, seed=1))
    adapt_(learner, torch.tensor(1.0), desired_kl=0.01)
    assert [x.data_ptr() for x in learner] == where
    assert learner.learning_rate.item() == pytest.approx(1e-2)  # 0.1 / 1.5 is above the highest


# A learning rate that follows the KL.


@pytest.mark.parametrize(
    ("kl", "before", "after"),
    [
        (0.03, 3e-4, 2e-4),  # above twice 0.01
        (0.004, 3e-4, 4.5e-4),  # below half of it
        (0.01, 3e-4, 3e-4),
        (0.019, 3e-4, 3e-4),
        (1.0, 1.2e-5, 1e-5),  # no lower than 1e-5
        (0.0, 9e-3, 1e-2),  # no higher than 1e-2
        (math.nan, 3e-4, 3e-4),
        (0.01, 0.5, 0.5),  # a rate the user chose outside the bounds stays until it is moved
    ],
)
def test_the_learning_rate_follows_the_kl(kl: float, before: float, after: float) -> None:
    learner = new_learner(some(3), before)
    adapt_(learner, torch.tensor(kl), 0.01)
    assert learner.learning_rate.item() == pytest.approx(after, rel=1e-6)
