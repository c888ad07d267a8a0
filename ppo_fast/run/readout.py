"""An iteration's metrics on the host, over all the processes that train together: one look at the device."""

from typing import NamedTuple

import torch

from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine.ranks import Ranks


class Totals(NamedTuple):
    """What an iteration adds up over its environments, and over all processes."""

    returns: float  # of the episodes that ended
    lengths: float
    episodes: float
    steps: float
    broken: float  # processes in which something was NaN or infinite


class Readout(NamedTuple):
    """What an iteration says, and whether one of the processes wants to stop."""

    means: dict[str, float]
    totals: Totals
    stop: bool
    late: bool


def read(metrics: Metrics, ranks: Ranks, stop: bool, late: bool) -> Readout:
    """Look at the metrics of all processes. It waits for the device, and for the other processes.

    Args:
        metrics: of this process; its sums are those of `Totals`.
        ranks: the processes that train together.
        stop: whether this process was asked to stop.
        late: whether it is out of time.
    """
    means = torch.stack(list(metrics.means.values())).double()
    sums = torch.stack(list(metrics.sums.values())).double()
    if ranks.world_size > 1:  # a stop asked of one is a stop of all, at the same iteration
        wishes = sums.new_tensor([stop, late])
        shares = means / ranks.world_size
        *numbers, stops, lateness = ranks.sum_(torch.cat([shares, sums, wishes])).tolist()
        stop = stops > 0
        late = lateness > 0
    else:
        numbers = torch.cat([means, sums]).tolist()
    count = len(means)
    totals = dict(zip(metrics.sums, numbers[count:], strict=True))
    return Readout(dict(zip(metrics.means, numbers[:count], strict=True)), Totals(**totals), stop, late)
