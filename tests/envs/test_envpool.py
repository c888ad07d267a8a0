"""envpool behind the contract: seeds, truncation at the limit, spaces, mistakes."""

import warnings
from typing import Any

import envpool
import gymnasium
import numpy as np
import pytest
import torch
from env_checker import check_vector_env
from gymnasium import spaces

from ppo_fast.envs import available_backends, make
from ppo_fast.envs.cartpole import ANGLE_LIMIT, POSITION_LIMIT

N = 4


def fallen(obs):
    return (obs[:, 0].abs() > POSITION_LIMIT) | (obs[:, 2].abs() > ANGLE_LIMIT)


def pool(env_id, num_envs=N, **env_kwargs) -> Any:
    return make(env_id, num_envs, "cpu", "envpool", **env_kwargs)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {"limit": 15, "terminal": fallen}),
        ("Pendulum-v1", {"limit": 15}),
        ("HalfCheetah-v4", {"limit": 15}),
        ("Taxi-v3", {"limit": 15, "continuous": False}),
        ("FrozenLake-v1", {"limit": 15, "continuous": False, "fixed_start": True}),
    ],
)
def test_checker(env_id, options):
    check_vector_env(lambda: pool(env_id, max_episode_steps=15), **options)


def test_a_dict_of_observations_is_flattened():
    """dm_control's, beside a pool with the same seeds; and the limit is kept though the pool's own lies later."""
    env = pool("CartpoleBalance-v1", 2, max_episode_steps=7)
    obs, _ = env.reset(seed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = envpool.make_gymnasium("CartpoleBalance-v1", num_envs=2, seed=env.spread(4))
        wanted, _ = raw.reset()
    assert set(wanted) == {"position", "velocity"} and env.single_observation_space.shape == (5,)
    for step in range(1, 8):
        np.testing.assert_array_equal(obs, np.concatenate([wanted["position"], wanted["velocity"]], 1).astype("f4"))
        actions = np.full((2, 1), 0.1 * step)
        wanted, reward, *_ = raw.step(actions)
        obs, given, terminated, truncated, info = env.step(torch.as_tensor(actions))
        np.testing.assert_array_equal(given, reward.astype("f4"))
        assert truncated.tolist() == [step == 7] * 2 and not terminated.any() and info["valid"].all()
    last = np.concatenate([wanted["position"], wanted["velocity"]], 1).astype("f4")
    np.testing.assert_array_equal(info["final_obs"], last)
    assert not torch.equal(info["final_obs"], obs)


def run(env, steps, seed=None):
    """Actions that depend on nothing but the step: all that came back, in one row a step."""
    rng, space = np.random.default_rng(0), env.single_action_space
    rows = [env.reset(seed=seed)[0].flatten()]
    for _ in range(steps):
        discrete = isinstance(space, spaces.Discrete)
        actions = rng.integers(space.n, size=N) if discrete else rng.uniform(-1, 1, env.action_space.shape)
        obs, reward, terminated, truncated, info = env.step(torch.as_tensor(actions))
        rows.append(torch.cat([x.flatten().float() for x in (obs, reward, terminated, truncated, info["final_obs"])]))
    return torch.cat(rows)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_seeds(env_id):
    env = pool(env_id)
    first = run(env, 60, seed=5)
    assert torch.equal(run(env, 60, seed=5), first), "the same pool, seeded again"
    assert torch.equal(run(pool(env_id, num_threads=1), 60, seed=5), first), "another number of threads"
    assert not torch.equal(run(env, 60, seed=6), first)
    env.reset(seed=5)
    assert torch.equal(run(env, 60, seed=5), first), "seeded twice without a step between"
    starts = [env.reset()[0] for _ in range(3)]
    assert len(torch.unique(torch.cat(starts), dim=0)) == 3 * N, "without a seed episodes go on to be new"
    assert not torch.equal(pool(env_id).reset()[0], pool(env_id).reset()[0]), "and start from fresh entropy"


def test_termination_at_the_limit_stays_one():
    """Poles that fall at the very step of the limit: envpool itself calls them truncated only."""
    free, limited = pool("CartPole-v1", 64), pool("CartPole-v1", 64, max_episode_steps=9)
    for env in (free, limited):
        env.reset(seed=1)
    both = 0
    for step in range(1, 10):
        *_, terminated, _, info = free.step(torch.ones(64).long())
        *_, limited_terminated, truncated, limited_info = limited.step(torch.ones(64).long())
        running = limited_info["final_obs"] if step == 9 else None
        if running is not None:
            assert torch.equal(limited_terminated, fallen(running))
            both = int((limited_terminated & truncated).sum())
            assert torch.equal(limited_terminated, terminated) and torch.equal(running, info["final_obs"])
        assert not truncated.any() or step == 9
    assert both > 0


def test_as_gymnasium_has_it():
    """One step of CartPole in Gymnasium's class, from the same state: same physics, reward and end."""
    env, original = pool("CartPole-v1"), gymnasium.make("CartPole-v1")
    single: Any = original.unwrapped
    original.reset(seed=0)
    obs, _ = env.reset(seed=0)
    for step in range(60):
        actions = torch.tensor([0, 1, 1, step % 2])
        before, (obs, reward, terminated, truncated, info) = obs, env.step(actions)
        for i in range(N):
            single.state, single.steps_beyond_terminated = before[i].double().numpy(), None
            wanted, wanted_reward, wanted_end, *_ = single.step(int(actions[i]))
            np.testing.assert_allclose(info["final_obs"][i], wanted, atol=1e-6)
            assert (reward[i].item(), terminated[i].item()) == (wanted_reward, wanted_end)
        assert not truncated.any() and info["valid"].all()
    original.close()


def test_restart():
    env = pool("CartPole-v1")
    first = env.reset(seed=3)[0]
    second, third = env.restart(), env.restart()
    assert len(torch.unique(torch.cat([first, second, third]), dim=0)) == 3 * N
    again = pool("CartPole-v1")
    again.reset(seed=3)
    assert torch.equal(again.restart(), second)


def test_auto_takes_it_only_for_ids_that_gymnasium_lacks():
    assert make("CheetahRun-v1", 2).backend == "envpool"
    assert make("HalfCheetah-v5", 2).backend == "sync" and "envpool" in available_backends("HalfCheetah-v5")


def test_bounds_meant_to_be_open_are():
    space = pool("CheetahRun-v1", 1).single_observation_space
    assert np.isneginf(space.low).all() and np.isposinf(space.high).all() and space.shape == (17,)


def test_actions_are_clipped_to_bounds_other_than_one():
    """Pendulum's torque is limited to 2: more of it gives the same next state and reward."""
    results = []
    for torque in (2.0, 50.0):
        env = pool("Pendulum-v1")
        env.reset(seed=1)
        obs, reward, *_ = env.step(torch.full((N, 1), torque))
        results.append(torch.cat([obs.flatten(), reward]))
    assert torch.equal(*results)


def test_rendering():
    env = pool("CartPole-v1", 1, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert frames.shape[0] == 1 and frames.shape[3] == 3 and frames.dtype == np.uint8


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "words"),
    [
        ("CartPole-v1", {"gravity": 1}, "--env-kwargs: CartPole-v1 does not take gravity; it takes max_episode_steps"),
        ("ConnectFour-v1", {}, "--env-id: ConnectFour-v1 is for several players"),
        ("CheetahRan-v1", {}, "--env-id: no environment 'CheetahRan-v1'; did you mean CheetahRun-v1"),
    ],
)
def test_mistakes(env_id, env_kwargs, words):
    with pytest.raises(ValueError, match=words) as caught:
        pool(env_id, **env_kwargs)
    assert "\n" not in str(caught.value)
