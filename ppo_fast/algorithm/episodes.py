"""Exact returns and lengths of the episodes that end in a rollout, without a loop over its steps.

An episode's return is a difference of two running sums: the sum up to its last step, less the sum up to the last step
of the episode before it. In float64 that is exact for integer rewards (while the sums stay below 2**53) and right to
about 1e-16 of the largest sum for others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EpisodeStats(NamedTuple):
    """What `episode_stats` finds. All tensors stay on the rollout's device."""

    return_sum: Tensor  # () f64, over the episodes that ended in this rollout
    length_sum: Tensor  # () f64
    count: Tensor  # () i64, how many ended
    returns: Tensor  # (T, N) f64, an episode's return at its last step; elsewhere its return so far
    carry_return: Tensor  # (N,) f64, return so far of the episodes that go on
    carry_length: Tensor  # (N,) i64


def episode_stats(
    reward: Tensor, done: Tensor, valid: Tensor | None, carry_return: Tensor, carry_length: Tensor
) -> EpisodeStats:
    """Returns and lengths of all episodes that end in a rollout of T steps in N environments.

    Static shapes and no host sync: it may be compiled, or captured in a CUDA graph.

    Args:
        reward: (T, N) f32.
        done: (T, N) bool, terminated or truncated at this step.
        valid: (T, N) bool, False for the junk reset rows of a NEXT_STEP environment, which add neither reward nor
            length and end nothing; None if every row is valid.
        carry_return: (N,) f64, from the rollout before; zeros at the start.
        carry_length: (N,) i64, likewise.

    A NaN or infinite reward makes every later return of its environment NaN, and its carry too.
    """
    reward = reward.double()
    step = torch.ones_like(done, dtype=torch.int64)
    if valid is not None:
        reward = torch.where(valid, reward, 0.0)
        step, done = valid.long(), done & valid
    # Row t is the sum before step t, row t + 1 the sum after it: (T + 1, N).
    return_before = torch.cat([torch.zeros_like(carry_return)[None], reward.cumsum(0) + carry_return])
    length_before = torch.cat([torch.zeros_like(carry_length)[None], step.cumsum(0) + carry_length])

    # (T + 1, N): the row at which the episode that runs at step t began. Row 0 if that was before this rollout: the
    # carry is part of every sum.
    time = torch.arange(1, len(done) + 1, device=done.device)[:, None]
    ended = torch.where(done, time, 0)
    start = torch.cat([torch.zeros_like(ended[:1]), ended.cummax(0).values])

    returns = return_before[1:] - return_before.gather(0, start[:-1])
    lengths = length_before[1:] - length_before.gather(0, start[:-1])
    return EpisodeStats(
        return_sum=torch.where(done, returns, 0.0).sum(),
        length_sum=torch.where(done, lengths, 0).sum().double(),
        count=done.sum(),
        returns=returns,
        carry_return=return_before[-1] - return_before.gather(0, start[-1:])[0],
        carry_length=length_before[-1] - length_before.gather(0, start[-1:])[0],
    )
