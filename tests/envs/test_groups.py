"""ppo_fast.envs.groups: groups of environments step side by side, and nothing but the time that passes tells of it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from iterations import once, small
from odd_envs import Fragile

from ppo_fast import train
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.ranks import Ranks
from ppo_fast.envs import EnvironmentFault, Environments, HostGroups, Part, Step, envpool, make
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.singles import find_kind
from ppo_fast.envs.workers import WorkerVectorEnv

CPU = torch.device("cpu")
BACKENDS = ["async", *(["envpool"] if envpool.installed() else [])]


def actions(step: int, count: int) -> torch.Tensor:
    return torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(step))


def flat(result: tuple) -> list[torch.Tensor]:
    *columns, info = result
    return [*columns, info["final_obs"], info["_final_obs"], info["valid"]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("count", "sizes"), [(2, [4, 3]), (3, [3, 2, 2]), (7, [1] * 7)])
def test_groups_change_no_trajectory(backend: str, count: int, sizes: list[int]) -> None:
    one: Any = make("CartPole-v1", 7, CPU, backend, max_episode_steps=20)
    some: Any = make("CartPole-v1", 7, CPU, backend, groups=count, max_episode_steps=20)
    assert [part.num_envs for part in some.parts] == sizes and list(one.parts) == [one]
    assert torch.equal(one.reset(seed=5)[0], some.reset(seed=5)[0])
    for step in range(45):
        for a, b in zip(flat(one.step(actions(step, 7))), flat(some.step(actions(step, 7))), strict=True):
            assert torch.equal(a, b), step
    for name in ("num_envs", "device", "backend", "spec_id", "mask_size", "single_observation_space", "action_space"):
        assert getattr(one, name) == getattr(some, name), name
    one.close()
    some.close()


def test_a_reset_of_some_and_a_restart() -> None:
    env: Any = make("CartPole-v1", 5, CPU, "async", groups=2)
    obs = env.reset(seed=1)[0]
    mask = np.array([False, True, False, True, True])
    again = env.reset(options={"reset_mask": mask})[0]
    assert torch.equal((again != obs).any(-1), torch.from_numpy(mask))
    fresh = env.restart()
    assert fresh.shape == (5, 4) and len({tuple(row.tolist()) for row in torch.cat([obs, again[mask], fresh])}) == 13
    with pytest.raises(ValueError, match="--seed: must be 0 or more"):
        env.reset(seed=-1)
    env.close()


@pytest.mark.parametrize("flags", [{}, {"norm_obs": True, "norm_reward": True}, {"env_id": "Pendulum-v1"}], ids=str)
def test_training_is_the_same(flags: dict[str, Any]) -> None:
    ends = []
    for groups in (1, 2):
        args = small(num_steps=16, total_timesteps=8 * 16 * 4, backend="async", env_groups=groups, **flags)
        envs, agent, learner = train.setup(args, CPU)
        iteration = train.make_iteration(args, envs, agent, learner, Engine(args, Ranks(CPU), "eager", False))
        metrics = [torch.tensor(list(once(iteration).values())) for _ in range(4)]
        ends.append((learner.theta, torch.stack(metrics)))
        envs.close()
    for a, b in zip(*ends, strict=True):  # a product of 4 rows may be rounded unlike one of 8
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


class Asleep(Fragile):
    """A step takes a while, without a CPU."""

    def step(self, action: Any) -> Any:
        time.sleep(0.01)
        return super().step(action)


def collect(part: Part, act: Callable[[torch.Tensor], torch.Tensor], obs: torch.Tensor, steps: int) -> list[Step]:
    """What a program does with one part: it acts and steps by turns."""
    state, taken = part.state, []
    for noise in part.draw_noise(steps):
        state, step = part.advance(state, act(obs), noise)
        obs = step.obs
        taken.append(step)
    return taken


def collect_side_by_side(envs: Environments, act: Callable, obs: torch.Tensor, steps: int) -> list[list[Step]]:
    """All parts, each in a thread of its own: what each of them gave."""
    own_obs = obs.split([part.num_envs for part in envs.parts])
    with ThreadPoolExecutor(len(envs.parts)) as threads:
        running = [
            threads.submit(collect, part, act, rows, steps) for part, rows in zip(envs.parts, own_obs, strict=True)
        ]
        return [each.result() for each in running]


def balancing(obs: torch.Tensor) -> torch.Tensor:
    return (obs[:, 2] + 0.4 * obs[:, 3] > 0.05).long()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_in_threads_change_no_trajectory(backend: str) -> None:
    steps = {}
    for groups in (1, 3):
        envs = make("CartPole-v1", 7, CPU, backend, groups=groups, max_episode_steps=20)
        taken = collect_side_by_side(envs, balancing, envs.reset(seed=5)[0], 60)
        assert len(taken) == groups and all(step.valid is None for step in taken[0])
        columns = ("obs", "reward", "terminated", "truncated", "final_obs")
        steps[groups] = [
            torch.cat([torch.stack([getattr(step, name) for step in part]) for part in taken], dim=1)
            for name in columns
        ]
        envs.close()
    assert all(torch.equal(a, b) for a, b in zip(steps[1], steps[3], strict=True))
    assert steps[1][3].any(), "no episode was truncated"


def test_the_time_of_the_policy_hides_behind_that_of_the_steps() -> None:
    """A policy and steps that both wait, as for a GPU and a simulator: 20 times 20 ms and 20 ms, by turns or not."""
    kind, seconds, policy = find_kind(Asleep), [], threading.Lock()

    def act(obs: torch.Tensor) -> torch.Tensor:
        with policy:  # there is one
            time.sleep(0.005 * len(obs))
        return torch.zeros(len(obs), 2).long()

    for counts in ([4], [2, 2]):  # 2 environments to a worker: 20 ms for each group, whose workers are its own
        made = [HostVectorEnv(WorkerVectorEnv([Asleep] * n, kind, n // 2), CPU, "async") for n in counts]
        envs = HostGroups(made)
        obs = envs.reset(seed=0)[0]
        began = time.perf_counter()
        collect_side_by_side(envs, act, obs, 20)
        seconds.append(time.perf_counter() - began)
        envs.close()
    one, two = seconds
    assert one > 0.8  # 20 x (20 + 20 ms)
    assert two < 0.85 * one  # 20 x (20 + 10 ms), had it no cost of its own, would be 0.75


def test_a_fault_is_numbered_among_all() -> None:
    def group(bad: int | None) -> HostVectorEnv:
        makers = [Broken if i == bad else Fragile for i in range(3)]
        return HostVectorEnv(WorkerVectorEnv(makers, find_kind(Fragile), 2), CPU, "async")

    envs = HostGroups([group(None), group(1)])
    envs.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="environment 4 raised ValueError: broken") as caught:
        envs.step(torch.zeros(6, 2).long())
    assert caught.value.index == 4
    envs.close()


def test_a_fault_in_a_part_is_numbered_among_all() -> None:
    """Though the part itself knows only its own environments, and whoever steps it is another thread."""
    makers = {"good": [Fragile] * 3, "bad": [Fragile, Broken, Fragile]}
    kind = find_kind(Fragile)
    envs = HostGroups([HostVectorEnv(WorkerVectorEnv(makers[which], kind, 2), CPU, "async") for which in makers])
    obs = envs.reset(seed=0)[0]
    with pytest.raises(EnvironmentFault, match="environment 4 raised ValueError: broken") as caught:
        collect_side_by_side(envs, lambda obs: torch.zeros(len(obs), 2).long(), obs, 3)
    assert caught.value.index == 4
    envs.close()


class Broken(Fragile):
    def step(self, action: Any) -> Any:
        raise ValueError("broken")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"backend": "sync", "groups": 2}, "--env-groups: needs --backend async or envpool, .* not sync"),
        ({"backend": "auto", "groups": 2}, "--env-groups: needs --backend async or envpool, .* not auto"),
        ({"backend": "async", "groups": 9}, "--env-groups: 4 environments can't be parted into 9 groups"),
    ],
)
def test_what_cannot_be(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("CartPole-v1", 4, CPU, **how)
