"""Environments whose episodes are written down beforehand, to be checked against a plain loop."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.singles import SingleVectorEnv, find_kind


class Scripted(gymnasium.Env):
    """Episode e of environment i has a scripted length and end; obs is (i, e, steps so far), perhaps in one buffer.

    The action mask allows action 0 at an episode's start and action 1 later. A seed begins with episode 0 again.
    """

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1, 1000, (3,), np.float64)
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, index, reuse_buffer=False):
        self.index, self.episode, self.buffer = index, -1, np.zeros(3)
        self.reuse_buffer = reuse_buffer

    def _obs(self):
        self.buffer[:] = self.index, self.episode, self.steps
        return self.buffer if self.reuse_buffer else self.buffer.copy()

    def reset(self, *, seed=None, options=None):
        self.episode, self.steps = 0 if seed is not None else self.episode + 1, 0
        return self._obs(), {"action_mask": np.array([1, 0], np.int8)}

    def step(self, action):
        self.steps += 1
        length = 1 + (self.index * 3 + self.episode * 5) % 4
        ended = self.steps >= length
        kind = (self.index + self.episode) % 3  # 0 terminated, 1 truncated, 2 both
        info = {"action_mask": np.array([0, 1], np.int8)}
        return self._obs(), 10.0 * self.episode + self.steps, ended and kind != 1, ended and kind != 0, info


def scripted(mode, n=5, reuse_buffer=False):
    """Gymnasium's vector in that mode, or with mode None our own."""
    makers = [lambda i=i: Scripted(i, reuse_buffer) for i in range(n)]
    if mode is None:
        envs = SingleVectorEnv(makers, find_kind(makers[0]))
    else:
        envs = SyncVectorEnv(makers, autoreset_mode=mode, copy=False)
    return HostVectorEnv(envs, "cpu", "sync", "Scripted")
