"""Tasks of the learning suites that nobody publishes: actions of several parts, and actions under a mask.

python -m ppo_fast.train --env-id benchmarks.tasks:SteppedHopper-v0
python -m ppo_fast.train --env-id benchmarks.tasks:Walk-v0
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import DiscretizeAction

BOARD_SIZE = 5  # fields of a row and of a column of Walk's board; odd, see there
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


def stepped_hopper(**options: Any) -> gym.Env:
    """Hopper, whose three torques have five values each."""
    return DiscretizeAction(gym.make("Hopper-v5", **options), bins=5, multidiscrete=True)  # type: ignore[arg-type]


class Walk(gym.Env):
    """Walk over a board without stepping twice on a field: 1 for each new one, until there is none beside it.

    The walk begins on a random field of the corners' colour, from each of which one can visit all others: 24 is the
    best return. Observed are the fields that were walked on (25,) and the one stood on (25,); the mask allows the steps
    to new fields.
    """

    action_space = spaces.Discrete(len(STEPS))
    observation_space = spaces.Dict(
        fields=spaces.Box(0, 1, (2 * BOARD_SIZE * BOARD_SIZE,), np.float32),
        action_mask=spaces.Box(0, 1, (len(STEPS),), np.int8),
    )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        """Gymnasium's."""
        super().reset(seed=seed)
        self._walked = np.zeros((BOARD_SIZE, BOARD_SIZE), np.float32)
        starts = [(row, column) for row in range(BOARD_SIZE) for column in range(BOARD_SIZE) if (row + column) % 2 == 0]
        self._place = np.array(starts[self.np_random.integers(len(starts))])
        self._walked[tuple(self._place)] = 1
        return self._see(), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """Gymnasium's."""
        self._place = self._place + STEPS[action]
        self._walked[tuple(self._place)] = 1
        seen = self._see()
        return seen, 1.0, not seen["action_mask"].any(), False, {}

    def _see(self) -> dict[str, np.ndarray]:
        beside = self._place + STEPS
        free = [
            0 <= row < BOARD_SIZE and 0 <= column < BOARD_SIZE and self._walked[row, column] == 0
            for row, column in beside
        ]
        stood = np.zeros_like(self._walked)
        stood[tuple(self._place)] = 1
        fields = np.concatenate([self._walked.ravel(), stood.ravel()])
        return {"fields": fields, "action_mask": np.array(free, np.int8)}


gym.register("SteppedHopper-v0", "benchmarks.tasks:stepped_hopper", max_episode_steps=1000)
gym.register("Walk-v0", "benchmarks.tasks:Walk")
