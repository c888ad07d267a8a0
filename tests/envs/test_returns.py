"""Returns and lengths of episodes are exact in every backend and autoreset mode."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from scripted_envs import scripted

from ppo_fast.algorithm.episodes import episode_stats
from ppo_fast.envs import make
from ppo_fast.envs.host import HostVectorEnv

STEPS, ROLLOUT = 400, 50


class Loop:
    """The episodes of N environments, counted row by row."""

    def __init__(self, num_envs):
        self.returns, self.lengths, self.ended = [0.0] * num_envs, [0] * num_envs, []

    def add(self, reward, done, valid):
        for i in np.flatnonzero(valid):
            self.returns[i] += float(reward[i])
            self.lengths[i] += 1
            if done[i]:
                self.ended.append((int(i), self.returns[i], self.lengths[i]))
                self.returns[i], self.lengths[i] = 0.0, 0


def episodes(env, act):
    """(environment, return, length) of each episode that ended, by `episode_stats` over rollouts of ROLLOUT steps and
    by a plain loop over the rows."""
    env.reset(seed=3)
    carry = (torch.zeros(env.num_envs, dtype=torch.float64), torch.zeros(env.num_envs).long())
    summed, count, loop = torch.zeros(2, dtype=torch.float64), 0, Loop(env.num_envs)
    for _ in range(STEPS // ROLLOUT):
        rows = []
        for _ in range(ROLLOUT):
            _, reward, terminated, truncated, info = env.step(act(env))
            rows.append((reward, terminated | truncated, info["valid"]))
            loop.add(*rows[-1])
        rewards, done, valid = (torch.stack(column) for column in zip(*rows, strict=True))
        stats = episode_stats(rewards, done, valid, *carry)
        carry = (stats.carry_return, stats.carry_length)
        summed, count = summed + torch.stack([stats.return_sum, stats.length_sum]), count + int(stats.count)
    env.close()
    assert count == len(loop.ended) > env.num_envs
    torch.testing.assert_close(summed, torch.tensor([row[1:] for row in loop.ended], dtype=torch.float64).sum(0))
    return loop.ended


@pytest.mark.parametrize("mode", [*AutoresetMode, None])
def test_scripted_episodes_have_the_returns_they_were_given(mode):
    """Reward 10·e + t at step t of episode e, so a return is known in closed form."""
    seen = episodes(scripted(mode), lambda env: torch.zeros(5).long())
    for i in range(5):
        mine = [row[1:] for row in seen if row[0] == i]
        lengths = [1 + (i * 3 + e * 5) % 4 for e in range(len(mine))]
        assert mine == [(10.0 * e * n + n * (n + 1) / 2, n) for e, n in enumerate(lengths)]


def random_actions(seed):
    rng = np.random.default_rng(seed)

    def act(env):
        space = env.single_action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return torch.as_tensor(rng.integers(space.n, size=env.num_envs))
        return torch.as_tensor(rng.uniform(-1, 1, env.action_space.shape))

    return act


@pytest.mark.parametrize("backend", ["tensor", "entry_point", "sync", "async", "envpool"])
def test_cartpole_returns_are_lengths(backend):
    for _, total, length in episodes(make("CartPole-v1", 5, "cpu", backend, max_episode_steps=30), random_actions(0)):
        assert total == length <= 30


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_all_modes_of_gymnasiums_vectors_agree(mode, vectorization):
    """The same episodes in the same environments, whatever the mode: those of single environments, one by one."""

    def balance(env):  # needs no random numbers, which the modes would use up differently
        return (env.last[:, 2] + 0.4 * env.last[:, 3] > 0.05).long()

    class Remembers(HostVectorEnv):
        def reset(self, **kwargs):
            self.last, info = super().reset(**kwargs)
            return self.last, info

        def step(self, actions):
            self.last, *rest = super().step(actions)
            return self.last, *rest

    options = {"autoreset_mode": mode}
    vector = gymnasium.make_vec("CartPole-v1", 3, vectorization, vector_kwargs=options, max_episode_steps=40)
    env: Any = Remembers(vector, "cpu", vectorization)
    seeds, seen = env.spread(3), episodes(env, balance)
    for i in range(3):
        mine, single = [row[1:] for row in seen if row[0] == i], gymnasium.make("CartPole-v1", max_episode_steps=40)
        obs, _ = single.reset(seed=seeds[i])
        for wanted in mine:
            total, length, ended = 0.0, 0, False
            while not ended:
                obs, reward, terminated, truncated, _ = single.step(int(obs[2] + np.float32(0.4) * obs[3] > 0.05))
                total, length, ended = total + float(reward), length + 1, terminated or truncated
            assert wanted == (total, length)
            obs, _ = single.reset()


def test_hopper_through_envpool():
    """Rewards that are no whole numbers, episodes of many lengths."""
    assert len({length for *_, length in episodes(make("Hopper-v4", 8, "cpu", "envpool"), random_actions(1))}) > 5
