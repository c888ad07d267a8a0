"""How the actions of a policy get into a Box: clipped to its bounds, or mapped to them from [-1, 1].

A Gaussian policy starts about 0 with a deviation about 1, whatever the bounds are. Clipped (gymnasium's ClipAction),
actions of [100, 200] are always 100, and nothing can be learned. Rescaled (gymnasium's RescaleAction), -1 is the lower
bound and 1 the upper one, and what is beyond is clipped. "auto" rescales to bounds that are far from a policy's range,
and clips to others, which learns better there (benchmarks/LOG.md). A policy's own action, and its log-probability, are
those before that. Letters: N envs, A action dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    import torch

# Action spaces as a program sees them: Discrete and MultiDiscrete from 0 on, MultiDiscrete and Box flat.
ActionSpace = spaces.Discrete | spaces.MultiDiscrete | spaces.Box

ActionBounds = Literal["auto", "rescale", "clip"]

# A policy saved with "auto" acts by these two: other values would be another way, with a name of its own.
# "auto" clips to bounds from -x to x where x is in between.
NARROW, WIDE = 1.0, 3.0

# Bounds beyond it stand for none, as some environments write infinity, and are not mapped to.
LARGEST_BOUND = 1e6

ArrayT = TypeVar("ArrayT", np.ndarray, "torch.Tensor")


class Rescaling(NamedTuple, Generic[ArrayT]):
    """What maps to the bounds of a Box, in arrays (A,) of one kind."""

    scale: ArrayT
    shift: ArrayT
    lowest: ArrayT  # the bounds, which rounding may miss
    highest: ArrayT


class BoxMap(NamedTuple, Generic[ArrayT]):
    """From a policy's actions (N, A) to those of a Box, in arrays (A,) of one kind."""

    low: ArrayT  # what a policy's actions are clipped to first
    high: ArrayT
    rescaling: Rescaling[ArrayT] | None = None  # None where that is all

    def __call__(self, actions: ArrayT) -> ArrayT:
        """Actions as the environment takes them."""
        actions = actions.clip(self.low, self.high)
        if self.rescaling is None:
            return actions
        scale, shift, lowest, highest = self.rescaling
        return (actions * scale + shift).clip(lowest, highest)

    def on(self, device: torch.device) -> BoxMap[torch.Tensor]:
        """The same in tensors."""
        import torch

        def tensor(x: np.ndarray | torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(x, device=device).clone()

        rescaling = None if self.rescaling is None else Rescaling(*map(tensor, self.rescaling))
        return BoxMap(tensor(self.low), tensor(self.high), rescaling)


def map_to(space: spaces.Box, bounds: ActionBounds) -> BoxMap[np.ndarray]:
    """The map to the actions of a Box, flat, in arrays of its type.

    Each dimension is mapped or clipped for itself. Bounds that are not both finite, and within LARGEST_BOUND, are
    clipped to. Bounds of -1 and 1 come out the same, bit for bit.
    """
    lowest, highest = space.low.ravel(), space.high.ravel()
    mapped = _is_mapped(lowest, highest, bounds)
    if not mapped.any():
        return BoxMap(lowest, highest)
    low = np.where(mapped, -1, lowest).astype(space.dtype)
    high = np.where(mapped, 1, highest).astype(space.dtype)
    # Where nothing is mapped, as if from -1 to 1: a scale of 1 and a shift of 0.
    start, end = np.where(mapped, lowest, -1), np.where(mapped, highest, 1)
    scale = ((end - start) / 2).astype(space.dtype)
    shift = ((end + start) / 2).astype(space.dtype)
    return BoxMap(low, high, Rescaling(scale, shift, lowest, highest))


def _is_mapped(lowest: np.ndarray, highest: np.ndarray, bounds: ActionBounds) -> np.ndarray:
    """Which dimensions (A,) are mapped; the others are clipped."""
    lowest, highest = lowest.astype(np.float64), highest.astype(np.float64)  # in a float16 LARGEST_BOUND is infinite
    is_bounded = (np.abs(lowest) <= LARGEST_BOUND) & (np.abs(highest) <= LARGEST_BOUND)
    is_symmetric = lowest == -highest
    if bounds == "clip":
        return np.zeros_like(is_bounded)
    if bounds == "rescale":
        return is_bounded & ~(is_symmetric & (highest == 1))
    return is_bounded & ~(is_symmetric & (highest >= NARROW) & (highest <= WIDE))
