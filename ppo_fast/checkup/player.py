"""Random actions, of those that an environment allows."""

from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.actions import LARGEST_BOUND
from ppo_fast.envs.masks import allowed_actions, maskable

EXTREME = 0.1  # of the Box actions lie in a corner: that is where simulators break


class Player:
    """Draws actions as a run would give them to an environment.

    Args:
        space: Discrete, MultiDiscrete, or a Box of floats.
        seed: of the draws.
    """

    def __init__(self, space: spaces.Space, seed: int) -> None:
        self.space = space
        self._rng = np.random.default_rng(seed)
        self._sizes = maskable(space)

    def draw(self, mask: np.ndarray | None = None) -> Any:
        """An action. `mask` (n,) says which are allowed; one that allows nothing counts as none, as in training."""
        space = self.space
        if isinstance(space, spaces.Box):
            return self._draw_box(space)
        allowed = None if mask is None else allowed_actions(np.asarray(mask).reshape(-1) != 0, self._sizes)
        choices: list[int] = []
        first = 0
        for size in self._sizes:
            part = np.arange(size) if allowed is None else np.flatnonzero(allowed[first : first + size])
            choices.append(int(self._rng.choice(part)))
            first += size
        assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        if isinstance(space, spaces.Discrete):
            return space.dtype.type(choices[0]) + space.start
        return np.reshape(choices, space.shape).astype(space.dtype) + space.start

    def forbidden(self, mask: np.ndarray) -> Any:
        """An action that a mask forbids; None where it forbids none."""
        flat = np.asarray(mask).reshape(-1) != 0
        if not isinstance(self.space, spaces.Discrete) or flat.all() or not flat.any():
            return None
        return self.space.dtype.type(int(np.flatnonzero(~flat)[0])) + self.space.start

    def _draw_box(self, space: spaces.Box) -> np.ndarray:
        """Anywhere within the bounds; where a bound is none, about 0 as a policy begins."""
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = (np.abs(low) <= LARGEST_BOUND) & (np.abs(high) <= LARGEST_BOUND)
        inside = self._rng.uniform(np.where(bounded, low, 0), np.where(bounded, high, 1))
        if self._rng.random() < EXTREME:
            inside = np.where(self._rng.random(low.shape) < 0.5, low, high)
        free = np.clip(self._rng.normal(size=low.shape), low, high)
        return np.clip(np.where(bounded, inside, free).astype(space.dtype), space.low, space.high)
