"""The mathematics of PPO: tensors in, tensors out, no state.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Pardo et al. 2018
(time limits, arXiv 1712.00378), Kingma & Ba 2015 (Adam, arXiv 1412.6980), Schulman 2020 (http://joschu.net/blog/kl-approx.html).
Letters: T steps, N envs, M minibatch, P parameters. Every mean takes an optional `valid` mask (M,), which keeps the
junk reset rows of a NEXT_STEP environment out of every loss and every statistic.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ppo_fast.algorithm.scan import linear_scan

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over the processes that train together

Rows = TypeVar("Rows", bound=NamedTuple)


def successor_values(value: Callable[..., Tensor], rows: Sequence[Tensor], cut: Tensor, next_value: Tensor) -> Tensor:
    """V of the true successor of each step (T, N): `next_value`, and value(*rows) where an episode was cut off.

    Args:
        value: V (M,) of observations (M, *S), and of what else it is to be given.
        rows: (T, N, ...) each: first the last observation of an episode, where it ended.
        cut: (T, N) bool, where a time limit ended an episode that would have gone on (Pardo et al. 2018).
        next_value: (T, N), V of the observation that follows in the rollout, which there is of another episode.
    """
    if next_value.is_cuda:  # to look how many there are would make the host wait, so all of them are evaluated
        return torch.where(cut, value(*rows), next_value)
    where = cut.nonzero(as_tuple=True)
    return next_value.index_put(where, value(*(x[where] for x in rows)))


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
    advantage = linear_scan(delta, carry, reverse=True)
    return advantage, advantage + value


def all_finite(*tensors: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Whether no number in any of them is NaN or infinite, () bool, on the device; with `reduce`, in any process."""
    finite = torch.stack([x.sum(dtype=torch.float64) for x in tensors]).isfinite().all()
    if reduce is None:
        return finite
    return reduce((~finite).double()) == 0


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


def normalize_advantage(
    advantage: Tensor, valid: Tensor | None = None, sums: Tensor | None = None, least_std: float = 0.0
) -> Tensor:
    """(A - mean) / (std + 1e-8) over each minibatch (..., M); a single row or equal rows give zeros, never NaN.

    Args:
        sums: `advantage_sums` of minibatches that are spread over processes, of which `advantage` are parts.
        least_std: the divisor where std is below it. Where nothing is rewarded, advantages are the value network's
            errors, which would become as large as any others (compare DreamerV3's scale of returns: Hafner et al. 2023,
            arXiv 2301.04104, which is at least 1).
    """
    if sums is not None:
        return _normalized_by_sums(advantage, sums, least_std)
    # One of the rows is taken off first. It changes no variance, and makes exact zeros of equal rows; less their mean
    # alone they would keep its rounding error, which looks like a variance.
    if valid is None:
        advantage = advantage - advantage[..., :1]
        mean = advantage.mean(-1, keepdim=True)
        squares = ((advantage - mean) ** 2).sum(-1, keepdim=True)
        # The sample variance of one row is undefined; the row itself is 0 by now.
        variance = squares / max(advantage.shape[-1] - 1, 1)
    else:
        first_valid = valid.long().argmax(-1, keepdim=True)
        advantage = advantage - advantage.gather(-1, first_valid)
        count = valid.sum(-1, keepdim=True)
        mean = torch.where(valid, advantage, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
        squares = torch.where(valid, (advantage - mean) ** 2, 0.0).sum(-1, keepdim=True)
        variance = squares / (count - 1).clamp(min=1)
    return (advantage - mean) / (variance.sqrt().clamp(min=least_std) + 1e-8)


def _normalized_by_sums(advantage: Tensor, sums: Tensor, least_std: float) -> Tensor:
    """The same, where mean and deviation come from the sums (..., 3) of all processes."""
    count, total, squares = (x[..., None] for x in sums.unbind(-1))
    mean = total / count.clamp(min=1)
    spread = squares - total * mean
    # Equal rows leave a rounding error here, 1e-16 of the square: less than 1e-12 of it is no variance.
    variance = torch.where(spread > 1e-12 * squares, spread, 0.0) / (count - 1).clamp(min=1)
    std = variance.sqrt().clamp(min=least_std)
    return torch.where(variance > 0, (advantage - mean) / (std + 1e-8), 0.0).float()


def normalize_minibatches(
    advantage: Tensor,
    num_minibatches: int,
    valid: Tensor | None = None,
    reduce: Reduce | None = None,
    least_std: float = 0.0,
) -> Tensor:
    """`normalize_advantage` of the minibatches that follow one another in advantage (B, ...), cut by `even_sizes`.

    Args:
        valid: (B, ...) bool.
        reduce: sums a tensor over the processes that each have a part of every minibatch; None for one process.
        least_std: as in `normalize_advantage`.
    """
    small, number_of_larger = divmod(len(advantage), num_minibatches)
    end_of_larger = number_of_larger * (small + 1)
    blocks = []  # minibatches of one size are the rows of a matrix: at most two of these
    for start, end, size in ((0, end_of_larger, small + 1), (end_of_larger, len(advantage), small)):
        if start < end:
            minibatches = (end - start) // size
            mask = None if valid is None else valid[start:end].reshape(minibatches, -1)
            blocks.append((advantage[start:end].reshape(minibatches, -1), mask))
    if reduce is None:
        normal = [normalize_advantage(rows, mask, least_std=least_std) for rows, mask in blocks]
    else:
        sums = reduce(torch.cat([advantage_sums(rows, mask) for rows, mask in blocks]))
        own = sums.split([len(rows) for rows, _ in blocks])
        normal = [_normalized_by_sums(rows, total, least_std) for (rows, _), total in zip(blocks, own, strict=True)]
    return torch.cat([x.flatten() for x in normal]).view_as(advantage)


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


def stacked(rows: Sequence[tuple[Tensor | None, ...]]) -> list[Any]:
    """The columns of T rows of tensors, each stacked to (T, ...); None where the rows have None."""
    return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]


def even_sizes(rows: int, parts: int) -> list[int]:
    """Sizes of so many parts of so many rows: they differ by at most one, the larger ones first."""
    small, number_of_larger = divmod(rows, parts)
    return [small + 1] * number_of_larger + [small] * (parts - number_of_larger)


def split(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    """A named tuple of columns (B, ...), None where there is no such column, cut into pieces of these sizes: views."""
    columns = [[None] * len(sizes) if x is None else x.split(list(sizes)) for x in rows]
    return [type(rows)._make(piece) for piece in zip(*columns, strict=True)]
