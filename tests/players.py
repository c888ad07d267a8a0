"""Players whose games are known beforehand: for tests of playing and filming."""

from collections.abc import Iterable

import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_envs import Scripted

from ppo_fast.algorithm.heads import CategoricalHead
from ppo_fast.envs.host import HostVectorEnv


def rule(obs):
    """Push the cart to the side the pole leans to: episodes of some 40 steps, of many lengths."""
    return (obs[..., 2] > 0).long()


class Upright:
    """An agent that plays `rule` greedily and at random when it samples."""

    head = CategoricalHead(2)

    def act(self, obs, noise):
        action = rule(obs) if noise is None else self.head.sample(torch.zeros(len(obs), 2), noise)
        return action, torch.zeros(len(obs))


class Staircase(Scripted):
    """Every episode of environment i takes 1 + 10 i steps and gives 1, 2, 3, ... as rewards. Odd ones are truncated."""

    def step(self, action):
        self.steps += 1
        ended, odd = self.steps >= 1 + 10 * self.index, self.index % 2 == 1
        return self._obs(), float(self.steps), ended and not odd, ended and odd, {}


def staircase(mode=AutoresetMode.SAME_STEP, indices: Iterable[int] = range(6)):
    """Environments of these indices."""
    makers = [lambda i=i: Staircase(i) for i in indices]
    return HostVectorEnv(SyncVectorEnv(makers, autoreset_mode=mode, copy=False), "cpu", "sync", "Staircase")
