"""Running mean and variance as tensors on the device: of observations, and of discounted returns to scale rewards.

    normalize_obs = Observations(D)
    x = normalize_obs(x)                       # (..., D), with the statistics as they stand
    normalize_obs.update_(rollout.obs, valid)  # (T, N, D): once an iteration, after its updates

The statistics stand still within an iteration: the policy that is updated is the one that acted, so that the ratio of
the first minibatch is 1. They are buffers in float64, merged batch by batch (Chan, Golub & LeVeque 1983), so a state
dict carries them and 1e8 samples lose nothing. Static shapes, no host sync: all of it may be captured in a CUDA graph.
Letters: T steps, N envs, D numbers of an observation.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppo_fast.algorithm.scan import linear_scan

CLIP = 10.0  # what is normalised is cut off at ±CLIP
TINY = 1e-8  # added to the variance, as gymnasium's NormalizeObservation and NormalizeReward do


class Moments(nn.Module):
    """Count, mean and sum of squared deviations of all rows seen: buffers (), *shape and *shape, float64."""

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(shape, dtype=torch.float64))

    @property
    def variance(self) -> Tensor:
        """Population variance, *shape; 1 before the first row."""
        return torch.where(self.count > 0, self.square / self.count.clamp(min=1), 1.0)

    def merge_(
        self,
        rows: Tensor,
        valid: Tensor | None = None,
        sound: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take in rows (R, *shape).

        Args:
            valid: (R,) bool, the rows that count; None for all.
            sound: () bool; where it is false nothing changes. None takes in everything, NaN too.
            reduce: sums a tensor over the processes that share these statistics; None for one.
        """
        rows = rows.double()
        weight = rows.new_ones(len(rows)) if valid is None else valid.double()
        column = weight.view(-1, *[1] * self.mean.ndim)
        # A junk row may hold anything, and NaN times 0 is NaN.
        rows = torch.where(column > 0, rows, 0.0)
        totals = torch.cat([weight.sum()[None], rows.sum(0).flatten()])
        if reduce is not None:
            totals = reduce(totals)
        count, mean = totals[0], totals[1:].view_as(self.mean) / totals[0].clamp(min=1)
        square = (column * (rows - mean) ** 2).sum(0)
        if reduce is not None:
            square = reduce(square)
        # Chan, Golub & LeVeque 1983: the moments of both sets of rows together.
        new_count = self.count + count
        step = mean - self.mean
        shift = step * (count / new_count.clamp(min=1))
        new_mean = self.mean + shift
        new_square = self.square + square + shift * step * self.count
        for old, new in ((self.count, new_count), (self.mean, new_mean), (self.square, new_square)):
            old.copy_(new if sound is None else torch.where(sound, new, old))


class Observations(nn.Module):
    """(x - mean) / sqrt(variance + 1e-8), within ±10: (..., D) -> (..., D). Changes nothing before the first update.

    Mirrors gymnasium.wrappers.vector.NormalizeObservation; evaluation never updates it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.moments = Moments(size)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.shift) * self.scale).clamp(-CLIP, CLIP)

    def update_(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        sound: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take in observations (T, N, D); the other arguments are those of `Moments.merge_`, valid (T, N)."""
        self.moments.merge_(x.flatten(0, 1), None if valid is None else valid.flatten(), sound, reduce)
        self.shift.copy_(self.moments.mean)
        self.scale.copy_((self.moments.variance + TINY).rsqrt())


class Rewards(nn.Module):
    """reward / sqrt(variance of the discounted returns + 1e-8), within ±10; the mean stays.

    The return so far, G_t = r_t + gamma · G_{t-1}, starts anew after every end of an episode, terminated or truncated.
    Mirrors gymnasium.wrappers.vector.NormalizeReward, with a whole rollout's returns taken in before it is scaled.

    Args:
        num_envs: N.
        gamma: discount.
    """

    carry: Tensor

    def __init__(self, num_envs: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.moments = Moments()
        # Of this run's environments, so no part of a saved policy.
        self.register_buffer("carry", torch.zeros(num_envs, dtype=torch.float64), persistent=False)

    def update_(
        self,
        reward: Tensor,
        done: Tensor,
        valid: Tensor | None = None,
        sound: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Take in rewards (T, N) and ends of episodes `done` (T, N) bool; returns the rewards scaled, (T, N) float32.

        A junk row (not valid) stands between two episodes, where nothing is carried, and adds nothing.
        """
        reward = reward if valid is None else torch.where(valid, reward, 0.0)
        returns, carry = discounted(reward.double(), done, self.carry, self.gamma)
        self.carry.copy_(carry if sound is None else torch.where(sound, carry, self.carry))
        self.moments.merge_(returns.flatten(), None if valid is None else valid.flatten(), sound, reduce)
        return (reward * (self.moments.variance + TINY).rsqrt()).clamp(-CLIP, CLIP).float()


def discounted(reward: Tensor, done: Tensor, carry: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """G_t = r_t + gamma · carry_t down the rows of reward (T, N); carry_{t+1} is G_t, or 0 where the episode ended.

    Args:
        done: (T, N) bool.
        carry: (N,), from the rollout before.

    Returns:
        G (T, N) and the carry (N,) after the last row.
    """
    goes_on = (~done).to(reward.dtype) * gamma
    first = reward[:1] + carry * gamma
    result = linear_scan(torch.cat([first, reward[1:]]), torch.cat([goes_on[:1], goes_on[:-1]]))
    return result, torch.where(done[-1], 0.0, result[-1])
