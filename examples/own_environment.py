"""An environment of your own from Python: train on it, load what was learned, act with it.

    python examples/own_environment.py

Nothing is registered: `train(..., envs=Corridor)` takes the class. The same as a notebook: own_environment.ipynb.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

import ppo_fast
from ppo_fast.train import Args, train


class Corridor(gymnasium.Env):
    """A corridor; the way out is to the right, and every step costs a tenth."""

    action_space = spaces.Discrete(2)  # left, right
    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def __init__(self, length: int = 8) -> None:
        self.length = length
        self.cell = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """At one of the first four cells."""
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(4))
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """A cell to the left or to the right; out is 1."""
        self.cell = max(0, self.cell + (1 if action == 1 else -1))
        is_out = self.cell == self.length
        return self._seen(), 1.0 if is_out else -0.1, is_out, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.cell / self.length], np.float32)


def main() -> None:
    """Train for some seconds, then walk out."""
    kwargs = {"length": 10, "max_episode_steps": 50}
    result = train(Args(env_kwargs=kwargs, num_envs=8, num_steps=32, total_timesteps=8_192), envs=Corridor)
    print(f"mean return {result['eval/mean_return']:.2f}")

    policy = ppo_fast.load("latest")
    env = Corridor(length=10)
    obs, _ = env.reset(seed=1)
    is_out = False
    while not is_out:
        obs, _, is_out, _, _ = env.step(policy(obs))
        print(f"cell {env.cell}")


if __name__ == "__main__":
    main()
