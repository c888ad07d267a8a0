"""Random numbers of environments that draw from elsewhere than their own generator: all different, and repeatable."""

import random
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from odd_envs import Shared

from ppo_fast.envs import make
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.singles import SingleVectorEnv, find_kind
from ppo_fast.envs.workers import WorkerVectorEnv

N, STEPS = 6, 10
ACTIONS = torch.zeros(N).long()


def vector(backend: str, maker: Any, workers: int = 2) -> HostVectorEnv:
    def remake() -> SingleVectorEnv:
        kind = find_kind(maker)
        if backend == "sync":
            return SingleVectorEnv([maker] * N, kind)
        return WorkerVectorEnv([maker] * N, kind, workers)

    return HostVectorEnv(remake(), "cpu", backend, "Odd-v0", remake)


def numbers(env: HostVectorEnv, seed: int | None) -> torch.Tensor:
    """What N environments show in a reset, STEPS steps, a restart, and STEPS more."""
    seen = [env.reset(seed=seed)[0]]
    for _ in range(STEPS):
        seen += [env.step(ACTIONS)[0]]
    seen += [env.restart()]
    for _ in range(STEPS):
        seen += [env.step(ACTIONS)[0]]
    env.close()
    return torch.stack(seen)


def seed_process(seed: int) -> None:
    """What a program does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Scattered(Shared):
    """Draws from its spaces and from an `np_random` that its reset does not seed."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(1_000_000)

    def draw(self) -> np.ndarray:
        sampled = [*self.observation_space.sample()[:2], self.action_space.sample() / 1e6, self.np_random.random()]
        return np.array(sampled, np.float32)


@pytest.mark.parametrize("maker", [Shared, Scattered])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_equal_seeds_repeat_every_number_and_no_two_environments_share_one(backend: str, maker: Any) -> None:
    seen = []
    for seed in (1, 1, 2):
        seed_process(seed)
        seen.append(numbers(vector(backend, maker), seed))
    assert torch.equal(seen[0], seen[1])
    every = torch.stack([seen[0], seen[2]])
    for column in every.flatten(0, 2).unbind(-1):
        assert len(column.unique()) > 0.999 * len(column)


def test_workers_without_a_seed_differ_from_the_start() -> None:
    """Also what an environment draws while it is made, in other groups, and where all environments have one seed."""
    env: Any = make("odd_envs:Shared-v0", N, "cpu", "async", num_workers=1, groups=2)
    obs, _ = env.reset()
    assert len(obs.unique()) == obs.numel()
    env.close()
    env = vector("async", Shared)
    obs, _ = env.reset(seed=[5] * N)
    assert len(obs.unique()) == obs.numel()
    env.close()


def test_made_in_a_worker_equal_seeds_make_equal_environments() -> None:
    maps = []
    for seed in (1, 1, 2):
        seed_process(seed)
        env = vector("async", Map)
        maps.append(env.reset(seed=0)[0])
        env.close()
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    assert len(maps[0].unique()) == maps[0].numel()


class Map(gymnasium.Env):
    """Shows what it drew while it was made."""

    observation_space, action_space = spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self) -> None:
        self.map = np.array([random.random(), np.random.random(), float(torch.rand(()))], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return self.map, {}


def test_an_environment_with_an_np_random_of_its_own_keeps_it() -> None:
    class Own(Shared):
        @property
        def np_random(self) -> str:
            return "mine"

    env = vector("sync", Own)
    env.reset(seed=0)
    env.close()
