"""ppo_fast.envs.groups: groups of environments step by turns, and nothing but the time that passes tells of it."""

import time
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from odd_envs import Fragile

from ppo_fast import train
from ppo_fast.engine import capture
from ppo_fast.envs import EnvironmentFault, HostGroups, envpool, make, take_turns
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.singles import find_kind
from ppo_fast.envs.workers import WorkerVectorEnv
from ppo_fast.train import Args

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
    some = make("CartPole-v1", 7, CPU, backend, groups=count, max_episode_steps=20)
    assert isinstance(some, HostGroups) and some.group_sizes == sizes and one.group_sizes == [7]
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
        sizes: dict[str, Any] = {"num_envs": 8, "num_steps": 16, "total_timesteps": 8 * 16 * 4, "cuda": False}
        args = Args(**(sizes | {"backend": "async", "env_groups": groups} | flags))
        envs, agent, learner = train.setup(args, CPU)
        iteration = train.make_iteration(args, envs, agent, learner, fast=False)
        metrics = [iteration().clone() for _ in range(4)]
        ends.append((learner.theta, iteration.state["rollout.obs"], torch.stack(metrics)))
        envs.close()
    for a, b in zip(*ends, strict=True):  # a product of 4 rows may be rounded unlike one of 8
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


class Diary(HostVectorEnv):
    """Writes down when a group begins and ends a step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.entries: list[str] = []

    def step_async(self, actions: Any, group: int = 0) -> None:
        self.entries.append("begins")
        super().step_async(actions)

    def step_wait(self, group: int = 0) -> Any:
        self.entries.append("is waited for")
        return super().step_wait()


def test_one_steps_while_the_policy_acts_for_another() -> None:
    made = [gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync") for n in (2, 3)]
    envs = HostGroups([Diary(each, CPU, "sync") for each in made])
    entries: list[str] = []
    for number, group in enumerate(envs.groups):
        group.entries = Tagged(entries, number)  # type: ignore[attr-defined]
    obs, agent = envs.reset(seed=0)[0], train.Agent(envs, Args(num_envs=5))

    def act(agent: train.Agent, obs: torch.Tensor, noise: torch.Tensor) -> Any:
        entries.append(f"act for {len(obs)}")
        return agent.act(obs, noise)

    def turn(group: int, obs: torch.Tensor, rows: list[torch.Tensor]) -> Any:
        return train.collect_from_host(act, agent, envs, group, obs, tuple(rows))

    rollout = train.new_rollout(Args(num_envs=5, num_steps=2), envs, agent)
    with torch.no_grad():
        take_turns(turn, envs, obs, (torch.rand(2, 5), *rollout))
    assert entries == [
        *("act for 2", "0 begins", "act for 3", "1 begins"),
        *("0 is waited for", "act for 2", "0 begins", "1 is waited for", "act for 3", "1 begins"),
        *("0 is waited for", "1 is waited for"),
    ]
    assert torch.equal(rollout.obs[1], rollout.final_obs[0]) and torch.equal(rollout.final_obs[1], obs)
    assert rollout.valid.all() and (rollout.log_prob < 0).all()
    envs.close()


class Tagged:
    """A list that writes who wrote."""

    def __init__(self, entries: list[str], number: int) -> None:
        self.entries, self.number = entries, number

    def append(self, text: str) -> None:
        self.entries.append(f"{self.number} {text}")


class Asleep(Fragile):
    """A step takes a while, without a CPU."""

    def step(self, action: Any) -> Any:
        time.sleep(0.01)
        return super().step(action)


def test_the_time_of_the_policy_hides_behind_that_of_the_steps() -> None:
    """A policy and steps that both wait, as for a GPU and a simulator: 20 times 20 ms and 20 ms, by turns or not."""
    kind, seconds = find_kind(Asleep), []
    for counts in ([4], [2, 2]):  # 2 environments to a worker: 20 ms for each group, whose workers are its own
        made = [HostVectorEnv(WorkerVectorEnv([Asleep] * n, kind, n // 2), CPU, "async") for n in counts]
        envs = HostGroups(made)
        agent, obs = train.Agent(envs, Args(num_envs=4)), envs.reset(seed=0)[0]

        def act(agent: train.Agent, obs: torch.Tensor, noise: torch.Tensor) -> Any:
            time.sleep(0.005 * len(obs))
            return agent.act(obs, noise)

        def turn(
            group: int, obs: torch.Tensor, rows: list, act: Any = act, agent: Any = agent, envs: Any = envs
        ) -> Any:
            return train.collect_from_host(act, agent, envs, group, obs, tuple(rows))

        rollout = train.new_rollout(Args(num_envs=4, num_steps=20), envs, agent)
        with torch.no_grad():
            noise = agent.head.draw_noise((20, 4), torch.Generator())
            began = time.perf_counter()
            capture.eager(take_turns, one_thread=True)(turn, envs, obs, (noise, *rollout))
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
