"""The mathematics of PPO: tensors in, tensors out, no state.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Pardo et al. 2018
(time limits, arXiv 1712.00378), Kingma & Ba 2015 (Adam, arXiv 1412.6980), Schulman 2020 (http://joschu.net/blog/kl-approx.html).
Letters: T steps, N envs, M minibatch, P parameters. Every mean takes an optional `valid` mask (M,), which keeps the
junk reset rows of a NEXT_STEP environment out of every loss and every statistic.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, vectorised over environments (Schulman et al. 2016, eq. 16).

    A truncated episode bootstraps from its true successor state, a terminated one from nothing; both cut the sum.

    Args:
        reward, value: (T, N) float, rewards and V(s_t).
        next_value: (T, N) float, V of the true successor of step t: the final observation where an episode ended.
        terminated, truncated: (T, N) bool.

    Returns:
        Advantages and returns (advantage + value), both (T, N), not normalised.
    """
    delta = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    carry = torch.where(terminated | truncated, 0.0, gamma * gae_lambda).to(delta.dtype)
    advantage = _reverse_sum(delta, carry)
    return advantage, advantage + value


def _reverse_sum(delta: Tensor, carry: Tensor) -> Tensor:
    """x_t = delta_t + carry_t · x_{t+1} down the rows of (T, N), each row after the one below it, x_T = delta_T."""
    if delta.device.type == "cpu" and not torch.compiler.is_compiling():
        # NumPy's calls on rows this short cost a third of torch's, and unrolling T of them for the compiler 20 seconds.
        result = delta.detach().clone()
        rows, factors = result.numpy(), carry.detach().numpy()
        with np.errstate(all="ignore"):  # NaN and infinity are looked for by the program
            for t in range(len(rows) - 2, -1, -1):
                rows[t] += factors[t] * rows[t + 1]
        return result
    rows = list(delta.unbind())
    for t in range(len(rows) - 2, -1, -1):
        rows[t] = torch.addcmul(rows[t], carry[t], rows[t + 1])
    return torch.stack(rows)


def masked_mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of x (M,) over the rows where valid (M,) is true; all rows without a mask. No valid row gives 0."""
    if valid is None:
        return x.mean()
    return torch.where(valid, x, 0.0).sum() / valid.sum().clamp(min=1)


def _shifted(x: Tensor, valid: Tensor | None) -> Tensor:
    """x less one of its valid rows, which changes no variance.

    Equal rows become exact zeros; less their mean they would keep its rounding error, which looks like a variance.
    """
    x = x.flatten()
    if valid is None:
        return x - x[:1]
    return x - x.gather(0, valid.flatten().long().argmax(0, keepdim=True))


def advantage_sums(advantage: Tensor, valid: Tensor | None = None) -> Tensor:
    """Count, sum and sum of squares (..., 3) float64 of the valid rows of minibatches (..., M): processes add it."""
    rows = advantage.double() if valid is None else torch.where(valid, advantage.double(), 0.0)
    count = torch.ones_like(rows) if valid is None else valid.double()
    return torch.stack([count.sum(-1), rows.sum(-1), (rows * rows).sum(-1)], -1)


def normalize_advantage(advantage: Tensor, valid: Tensor | None = None, sums: Tensor | None = None) -> Tensor:
    """(A - mean) / (std + 1e-8) over each minibatch (..., M); a single row or equal rows give zeros, never NaN.

    Args:
        sums: `advantage_sums` of minibatches that are spread over processes, of which `advantage` are parts.
    """
    if sums is not None:
        count, total, squares = (x[..., None] for x in sums.unbind(-1))
        mean = total / count.clamp(min=1)
        # Equal rows leave a rounding error here, 1e-16 of the square: less than 1e-12 of it is no variance.
        spread = squares - total * mean
        variance = torch.where(spread > 1e-12 * squares, spread, 0.0) / (count - 1).clamp(min=1)
        return torch.where(variance > 0, (advantage - mean) / (variance.sqrt() + 1e-8), 0.0).float()
    if valid is None:
        advantage = advantage - advantage[..., :1]  # equal rows become exact zeros, see _shifted
        mean, count = advantage.mean(-1, keepdim=True), advantage.shape[-1]
        total = ((advantage - mean) ** 2).sum(-1, keepdim=True)
        # max(count - 1, 1): the sample variance of one row is undefined; its centred value is 0 anyway.
        return (advantage - mean) / ((total / max(count - 1, 1)).sqrt() + 1e-8)
    advantage = advantage - advantage.gather(-1, valid.long().argmax(-1, keepdim=True))
    count = valid.sum(-1, keepdim=True)
    mean = torch.where(valid, advantage, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    total = torch.where(valid, (advantage - mean) ** 2, 0.0).sum(-1, keepdim=True)
    return (advantage - mean) / ((total / (count - 1).clamp(min=1)).sqrt() + 1e-8)


def normalize_minibatches(
    advantage: Tensor,
    num_minibatches: int,
    valid: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`normalize_advantage` of the minibatches that follow one another in advantage (B,), cut by `minibatch_sizes`.

    Args:
        valid: (B,) bool.
        reduce: sums a tensor over the processes that each have a part of every minibatch.
    """
    small, larger = divmod(len(advantage), num_minibatches)
    cut, blocks = larger * (small + 1), []
    for rows, size in ((slice(0, cut), small + 1), (slice(cut, len(advantage)), small)):
        if rows.start < rows.stop:  # minibatches of one size are the rows of a matrix
            blocks.append((advantage[rows].view(-1, size), None if valid is None else valid[rows].view(-1, size)))
    sums = [None] * len(blocks)
    if reduce is not None:
        sums = reduce(torch.cat([advantage_sums(x, mask) for x, mask in blocks])).split([len(x) for x, _ in blocks])
    normal = [normalize_advantage(x, mask, total) for (x, mask), total in zip(blocks, sums, strict=True)]
    return torch.cat([x.flatten() for x in normal])


def policy_loss(ratio: Tensor, advantage: Tensor, clip_coef: float, valid: Tensor | None = None) -> Tensor:
    """Clipped surrogate, the pessimistic minimum (Schulman et al. 2017, eq. 7), negated for descent; scalar."""
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    return -masked_mean(torch.min(ratio * advantage, clipped * advantage), valid)


def value_loss(
    value: Tensor, old_value: Tensor, returns: Tensor, clip_coef: float | None = None, valid: Tensor | None = None
) -> Tensor:
    """Half the mean squared error of V against the returns; with `clip_coef` the clipped form of OpenAI's baselines.

    Clipped: half the mean of max((V - R)², (V_old + clip(V - V_old, ±clip_coef) - R)²). All tensors (M,); scalar.
    """
    error = (value - returns) ** 2
    if clip_coef is not None:
        near = old_value + (value - old_value).clamp(-clip_coef, clip_coef)
        error = torch.max(error, (near - returns) ** 2)
    return 0.5 * masked_mean(error, valid)


def approx_kl(log_ratio: Tensor, estimator: str = "k3", valid: Tensor | None = None) -> Tensor:
    """Estimate KL(old ‖ new) from log π_new - log π_old of actions drawn from old (Schulman 2020); scalar.

    k1 = mean(-log r), unbiased, can be negative (CleanRL's old_approx_kl); k2 = ½ mean((log r)²); k3 = mean((r - 1) -
    log r), unbiased and never negative (CleanRL's approx_kl).
    """
    if estimator == "k1":
        return masked_mean(-log_ratio, valid)
    if estimator == "k2":
        return masked_mean(0.5 * log_ratio**2, valid)
    assert estimator == "k3", estimator
    return masked_mean(torch.expm1(log_ratio) - log_ratio, valid)


def clip_fraction(ratio: Tensor, clip_coef: float, valid: Tensor | None = None) -> Tensor:
    """Share of rows whose ratio (M,) lies outside 1 ± clip_coef; scalar."""
    return masked_mean(((ratio - 1.0).abs() > clip_coef).float(), valid)


def explained_variance(value: Tensor, returns: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - Var(returns - value) / Var(returns) over all rows (same shapes); NaN where the returns don't vary; scalar."""
    rows = None if valid is None else valid.flatten()

    def variance(x: Tensor) -> Tensor:
        x = _shifted(x, valid)
        return masked_mean((x - masked_mean(x, rows)) ** 2, rows)

    return_variance = variance(returns)
    ratio = variance(returns - value) / return_variance
    return torch.where(return_variance > 0, 1.0 - ratio, torch.nan)


def value_and_gradients(
    loss_fn: Callable[..., tuple[Tensor, Tensor]], parameters: dict[str, Tensor], *batch: Any
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients of `loss_fn(parameters, *batch) -> (loss, statistics)` by name, the loss, and the statistics.

    Inside torch.compile this is torch.func, which makes forward and backward one graph; outside it is plain autograd,
    which does the same in about 60 % of the time there.
    """
    if torch.compiler.is_compiling():
        gradients, (loss, statistics) = torch.func.grad_and_value(loss_fn, has_aux=True)(parameters, *batch)
        return gradients, loss, statistics
    leaves = list(parameters.values())
    try:
        for leaf in leaves:
            leaf.requires_grad_()
        with torch.enable_grad():
            loss, statistics = loss_fn(parameters, *batch)
            gradients = torch.autograd.grad(loss, leaves)
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
    return dict(zip(parameters, gradients, strict=True)), loss.detach(), statistics.detach()


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
    active: Tensor  # () bool: while false, `adam_` with `only_if_active` changes nothing
    sound: Tensor  # () bool: false once anything in this iteration was NaN or infinite


def new_learner(theta: Tensor, learning_rate: float) -> Learner:
    """The learner at the start of training; theta (P,) is taken, not copied."""
    scalars = (torch.zeros((), device=theta.device), torch.full((), learning_rate, device=theta.device))
    flags = (torch.ones((), dtype=torch.bool, device=theta.device) for _ in range(2))
    return Learner(theta, torch.zeros_like(theta), torch.zeros_like(theta), *scalars, *flags)


def adapt_(learning_rate: Tensor, kl: Tensor, desired_kl: float, low: float = 1e-5, high: float = 1e-2) -> None:
    """Move the learning rate () towards updates of the wanted size, in place and without the host looking.

    Divided by 1.5 where kl () is above twice desired_kl, multiplied by 1.5 where it is below half of it, within [low,
    high]: the rule of rsl_rl's and rl_games' trainers. NaN changes nothing.
    """
    factor = torch.where(kl > 2 * desired_kl, 1 / 1.5, torch.where(kl < desired_kl / 2, 1.5, 1.0))
    learning_rate.copy_(torch.where(factor == 1.0, learning_rate, (learning_rate * factor).clamp(low, high)))


def adam_(
    learner: Learner,
    gradient: Tensor,
    only_if_active: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-5,
) -> None:
    """One Adam step in place: Kingma & Ba 2015, algorithm 1, with the arithmetic of torch.optim.Adam.

    Args:
        gradient: (P,).
        only_if_active: look at `learner.active`, on the device: a KL stop then ends an epoch without the host looking.
    """
    beta1, beta2 = betas
    theta, moment1, moment2, step, learning_rate, active = learner[:6]
    count = step + 1
    first = torch.lerp(moment1, gradient, 1 - beta1)
    second = moment2 * beta2 + (1 - beta2) * gradient * gradient
    # 1 - beta**count as -expm1: float32 would lose three of its seven digits in 1 - 0.999.
    correction1, correction2 = (-torch.expm1(count * math.log(beta)) for beta in betas)
    denominator = second.sqrt() / correction2.sqrt() + eps
    moved = theta - learning_rate / correction1 * first / denominator
    for old, new in ((step, count), (moment1, first), (moment2, second), (theta, moved)):
        old.copy_(torch.where(active, new, old) if only_if_active else new)


def minibatch_sizes(batch_size: int, num_minibatches: int, parts: int = 1) -> Sequence[int]:
    """Sizes of the minibatches of one epoch: all rows are used, sizes differ by at most one, the larger ones first.

    With `parts`: of that many parts of each minibatch, cut in the same way, one minibatch after the other.
    """
    small, larger = divmod(batch_size, num_minibatches)
    sizes = [small + 1] * larger + [small] * (num_minibatches - larger)
    return sizes if parts == 1 else [part for size in sizes for part in minibatch_sizes(size, parts)]


def split(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """A named tuple of columns (B, ...), None where there is no such column, cut into pieces of these sizes: views."""
    columns = [[None] * len(sizes) if x is None else x.split(list(sizes)) for x in batch]
    return [type(batch)._make(piece) for piece in zip(*columns, strict=True)]


def shares(parts: Sequence[Any], world_size: int = 1, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> list[Any]:
    """What share of a minibatch's valid rows each of its parts has: the mean over all is the sum of share times mean.

    Args:
        parts: named tuples of columns (M, ...), `valid` (M,) bool or None among them.
        world_size: processes that each have as many rows of the minibatch.
        reduce: sums a tensor over them.

    Returns:
        Numbers or, where there is a mask, tensors ().
    """
    if parts[0].valid is None:
        total = world_size * sum(len(part[0]) for part in parts)
        return [len(part[0]) / total for part in parts]
    counts = torch.stack([part.valid.sum() for part in parts]).double()
    return list((counts / reduce(counts.sum()).clamp(min=1)).float().unbind())
