"""The optimiser: what an update changes, gradient clipping, Adam, and a learning rate that follows the KL.

Everything is changed in place and decided on the device: a learning rate that is a tensor recompiles nothing, and a
flag that is a tensor stops updates without the host looking.
Sources: Kingma & Ba 2015 (Adam, arXiv 1412.6980). Letter: P parameters.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def clip_gradient(gradient: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """The flat gradient (P,) scaled to a 2-norm of at most max_norm, and its norm before (torch's clip_grad_norm_)."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm


class Learner(NamedTuple):
    """The parameters and Adam's state: everything that an update changes, in place."""

    theta: Tensor  # (P,) every parameter, flat
    moment1: Tensor  # (P,) Adam's first moment
    moment2: Tensor  # (P,) and second
    step: Tensor  # () float, updates so far
    learning_rate: Tensor  # () float: changed in place, so that annealing recompiles nothing
    active: Tensor  # () bool: while it is false no update changes anything
    sound: Tensor  # () bool: false once anything in this iteration was NaN or infinite


def new_learner(theta: Tensor, learning_rate: float) -> Learner:
    """The learner at the start of training; theta (P,) is taken, not copied."""
    return Learner(
        theta=theta,
        moment1=torch.zeros_like(theta),
        moment2=torch.zeros_like(theta),
        step=torch.zeros((), device=theta.device),
        learning_rate=torch.full((), learning_rate, device=theta.device),
        active=torch.ones((), dtype=torch.bool, device=theta.device),
        sound=torch.ones((), dtype=torch.bool, device=theta.device),
    )


def adam_(learner: Learner, gradient: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5) -> None:
    """One Adam step in place, while `learner.active`: Kingma & Ba 2015, algorithm 1, in the order of torch.optim.Adam.

    Whether it is active is decided on the device, so a stop of the epochs needs no look of the host.

    Args:
        gradient: (P,).
    """
    beta1, beta2 = betas
    step = learner.step + 1
    moment1 = torch.lerp(learner.moment1, gradient, 1 - beta1)
    moment2 = learner.moment2 * beta2 + (1 - beta2) * gradient * gradient
    # 1 - beta**step as -expm1: float32 would lose three of its seven digits in 1 - 0.999.
    correction1 = -torch.expm1(step * math.log(beta1))
    correction2 = -torch.expm1(step * math.log(beta2))
    denominator = moment2.sqrt() / correction2.sqrt() + eps
    theta = learner.theta - learner.learning_rate / correction1 * moment1 / denominator
    _move_(learner.step, step, learner.active)
    _move_(learner.moment1, moment1, learner.active)
    _move_(learner.moment2, moment2, learner.active)
    _move_(learner.theta, theta, learner.active)


def adapt_(learner: Learner, kl: Tensor, desired_kl: float, low: float = 1e-5, high: float = 1e-2) -> None:
    """Move the learning rate towards updates of the wanted size, in place, while `learner.active`.

    Divided by 1.5 where kl () is above twice desired_kl, multiplied by 1.5 where it is below half of it, within [low,
    high]: the rule of rsl_rl's and rl_games' trainers. NaN changes nothing.
    """
    rate = learner.learning_rate
    factor = torch.where(kl > 2 * desired_kl, 1 / 1.5, torch.where(kl < desired_kl / 2, 1.5, 1.0))
    # A rate that is to stay does so even where it is outside of the limits.
    adapted = torch.where(factor == 1.0, rate, (rate * factor).clamp(low, high))
    _move_(rate, adapted, learner.active)


def _move_(old: Tensor, new: Tensor, active: Tensor) -> None:
    old.copy_(torch.where(active, new, old))
