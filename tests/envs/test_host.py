"""The host adapter: scripted episodes in every autoreset mode, exact replay, aliasing, missing final observations."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from odd_envs import NextStepVector
from scripted_envs import scripted

from ppo_fast.envs import make
from ppo_fast.envs.host import HostVectorEnv


def transitions(env, steps):
    """Per environment, its valid transitions: (obs, reward, terminated, truncated, true successor)."""
    obs, _ = env.reset(seed=0)
    seen = [[] for _ in range(env.num_envs)]
    for _ in range(steps):
        before = obs.clone()
        obs, reward, terminated, truncated, info = env.step(torch.zeros(env.num_envs).long())
        for i in range(env.num_envs):
            if info["valid"][i]:
                row = before[i].tolist(), reward[i].item(), terminated[i].item(), truncated[i].item()
                seen[i].append((*row, info["final_obs"][i].tolist()))
    env.close()
    return seen


def by_hand(index, count):
    """The transitions that Scripted defines, written out with a plain loop."""
    rows, episode = [], 0
    while len(rows) < count:
        length, kind = 1 + (index * 3 + episode * 5) % 4, (index + episode) % 3
        for step in range(1, length + 1):
            ended = step == length
            before = [float(index), float(episode), step - 1.0, float(step == 1), float(step != 1)]
            after = [float(index), float(episode), float(step), 0.0, 1.0]
            rows.append((before, 10.0 * episode + step, ended and kind != 1, ended and kind != 0, after))
        episode += 1
    return rows[:count]


@pytest.mark.parametrize("reuse_buffer", [False, True])
@pytest.mark.parametrize("mode", [*AutoresetMode, None])
def test_every_autoreset_mode_gives_the_same_transitions(mode, reuse_buffer):
    """Observations, action masks, rewards, ends and true successors, also of environments with one buffer."""
    if mode is AutoresetMode.SAME_STEP and reuse_buffer:
        mode = None  # Gymnasium's own loses final observations then: the next test
    seen = transitions(scripted(mode, reuse_buffer=reuse_buffer), 200)
    for index, rows in enumerate(seen):
        assert len(rows) > 100
        assert rows == by_hand(index, len(rows))


def test_gymnasiums_own_vector_loses_final_observations_of_reused_buffers():
    """So the test above can fail."""
    rows = transitions(scripted(AutoresetMode.SAME_STEP, reuse_buffer=True), 50)[0]
    assert rows != by_hand(0, len(rows))


def test_reset_rows_are_invalid_only_in_next_step_mode():
    for mode in AutoresetMode:
        env = scripted(mode)
        env.reset(seed=0)
        rows = [env.step(torch.zeros(5).long()) for _ in range(30)]
        for (_, _, terminated, truncated, _), (_, reward, *ends, info) in itertools.pairwise(rows):
            after_an_end = (terminated | truncated) if mode is AutoresetMode.NEXT_STEP else torch.zeros(5).bool()
            assert torch.equal(info["valid"], ~after_an_end)
            assert not reward[after_an_end].any() and not (ends[0] | ends[1])[after_an_end].any()


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Taxi-v4", "FrozenLake-v1", "Pendulum-v1"])
def test_exactly_the_single_environments(env_id, backend):
    """Bit for bit what N single environments with the same seeds give, stepped and reset by a plain loop."""
    n = 3
    env: Any = make(env_id, n, "cpu", backend, max_episode_steps=12)
    obs, _ = env.reset(seed=9)
    seeds = env.spread(9)
    singles = [gymnasium.make(env_id, max_episode_steps=12) for _ in range(n)]
    resets = [single.reset(seed=seed) for single, seed in zip(singles, seeds, strict=True)]
    current = [(row, info.get("action_mask")) for row, info in resets]
    space, rng, ends = singles[0].observation_space, np.random.default_rng(0), 0
    for _ in range(60):
        assert all(np.array_equal(encoded(space, *pair), obs[i]) for i, pair in enumerate(current))
        actions = sample_actions(env, rng)
        obs, reward, terminated, truncated, info = env.step(torch.as_tensor(actions))
        for i, single in enumerate(singles):
            row, wanted_reward, *wanted_ends, single_info = single.step(actions[i])
            current[i] = row, single_info.get("action_mask")
            assert np.array_equal(encoded(space, *current[i]), info["final_obs"][i])
            assert np.float32(wanted_reward) == reward[i].item()
            assert wanted_ends == [terminated[i].item(), truncated[i].item()]
            if any(wanted_ends):
                row, single_info = single.reset()
                ends, current[i] = ends + 1, (row, single_info.get("action_mask"))
    assert ends > n
    env.close()


def sample_actions(env, rng):
    space = env.single_action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=env.num_envs)
    return rng.uniform(-2, 2, (env.num_envs, 1)).astype(np.float32)


def encoded(space, row, mask=None):
    flat: Any = spaces.flatten(space, row)
    return np.concatenate([flat, [] if mask is None else mask]).astype(np.float32)


class Echo(gymnasium.Env):
    """Observes the action that it got; its bounds are neither symmetric nor one."""

    action_space = spaces.Box(np.array([[-3.0, 0.0]]), np.array([[0.5, 2.0]]), dtype=np.float64)
    observation_space = spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action.shape == (1, 2) and action.dtype == np.float64 and self.action_space.contains(action)
        return action[0].astype(np.float32), float(action.sum()), False, False, {}


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_box_bounds_are_kept(backend):
    gymnasium.register("Echo-v0", "test_host:Echo")
    try:
        env = make("Echo-v0", 3, "cpu", backend)
    finally:
        gymnasium.registry.pop("Echo-v0")
    env.reset(seed=0)
    obs, reward, *_ = env.step(torch.tensor([[-9.0, -9.0], [9.0, 9.0], [0.25, 1.5]]))
    assert obs.tolist() == [[-3, 0], [0.5, 2], [0.25, 1.5]] and reward.tolist() == [-3, 2.5, 1.75]
    env.close()


class Given(VectorEnv):
    """Lengths and ends of episodes are scripted; obs is (environment, episode, steps so far), perhaps in one buffer."""

    def __init__(self, style, mode: AutoresetMode | None = AutoresetMode.SAME_STEP):
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.num_envs, self.style, self.count = 2, style, 0
        self.single_observation_space = spaces.Box(-9, 999, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)
        self.obs, self.reward = np.zeros((2, 1), np.float32), np.zeros(2)
        self.terminated, self.truncated = np.zeros(2, bool), np.zeros(2, bool)

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        self.obs[:] = 0
        return self.obs, {}

    def step(self, actions):
        self.count += 1
        self.obs[:] = self.count
        self.reward[:] = self.count
        self.truncated[0] = self.count % 2 == 0
        info = {}
        if self.truncated[0]:
            final = np.array([[100.0 + self.count], [-1.0]], np.float32)
            objects = np.array([final[0], None], dtype=object)
            styles = {"dense": final, "tensor": torch.tensor(final), "object": objects, "old key": objects}
            if self.style in styles:
                info["final_observation" if self.style == "old key" else "final_obs"] = styles[self.style]
            self.obs[0] = -5
        return self.obs, self.reward, self.terminated, self.truncated, info


@pytest.mark.parametrize("style", ["dense", "tensor", "object", "old key"])
def test_final_obs_in_every_form_without_masks_from_reused_buffers(style):
    env: Any = HostVectorEnv(Given(style))
    first, _ = env.reset(seed=4)
    assert env.envs.seed == 4, "a vector entry point gets the seed itself"
    kept = [env.step(torch.zeros(2).long()) for _ in range(4)]
    assert first.flatten().tolist() == [0, 0]
    assert [obs.flatten().tolist() for obs, *_ in kept] == [[1, 1], [-5, 2], [3, 3], [-5, 4]]
    assert [info["final_obs"].flatten().tolist() for *_, info in kept] == [[1, 1], [102, 2], [3, 3], [104, 4]]
    assert [reward.tolist() for _, reward, *_ in kept] == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert [truncated[0].item() for _, _, _, truncated, _ in kept] == [False, True, False, True]


def test_missing_final_obs_warns_once_and_takes_the_observation_before():
    env: Any = HostVectorEnv(Given("none"), spec_id="Given-v0")
    env.reset(seed=0)
    env.step(torch.zeros(2).long())
    with pytest.warns(UserWarning, match="Given-v0 gives no final_obs"):
        *_, info = env.step(torch.zeros(2).long())
    assert info["final_obs"].flatten().tolist() == [1, 2]
    env.step(torch.zeros(2).long())
    env.step(torch.zeros(2).long())  # no second warning: it would be an error


def test_a_masked_reset_changes_no_other_row():
    """Given answers every reset with zeros in all rows; only the ended environment may take its zero."""
    env: Any = HostVectorEnv(Given("none", AutoresetMode.DISABLED))
    env.reset(seed=0)
    rows = [env.step(torch.zeros(2).long()) for _ in range(2)]
    assert [obs.flatten().tolist() for obs, *_ in rows] == [[1, 1], [0, 2]]
    assert rows[1][-1]["final_obs"].flatten().tolist() == [-5, 2]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_masked_reset_resets_only_these(backend):
    env: Any = make("CartPole-v1", 4, "cpu", backend)
    env.reset(seed=0)
    for _ in range(5):
        before, *_ = env.step(torch.ones(4).long())
    after, _ = env.reset(options={"reset_mask": np.array([True, False, False, True])})
    assert torch.equal(after[1:3], before[1:3]) and (after[[0, 3]].abs() <= 0.05).all()
    assert (before[[0, 3]].abs() > 0.05).any(1).all()
    env.close()


def test_nothing_of_a_reset_row_counts():
    """NextStepVector pays 1000 on it."""
    env: Any = HostVectorEnv(NextStepVector(4))
    env.reset(seed=0)
    for step in range(1, 20):
        _, reward, terminated, truncated, info = env.step(torch.ones(4).long())
        junk = step % 6 == 0
        assert info["valid"].tolist() == [not junk] * 4 and reward.tolist() == [float(not junk)] * 4
        assert (terminated | truncated).tolist() == [step % 6 == 5] * 4


def test_after_a_reset_every_row_is_valid_again():
    env = scripted(AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(torch.zeros(5).long())
    assert (terminated | truncated).any()
    env.reset(seed=0)
    *_, info = env.step(torch.zeros(5).long())
    assert info["valid"].all()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_make_keeps_final_observations_of_reused_buffers(backend):
    gymnasium.register("Reused-v0", "scripted_envs:Scripted", kwargs={"index": 3, "reuse_buffer": True})
    try:
        rows = transitions(make("Reused-v0", 1, "cpu", backend), 60)[0]
    finally:
        gymnasium.registry.pop("Reused-v0")
    # The probe and each vector make their own environments, so episode 0 is the first here too.
    assert rows == by_hand(3, len(rows))


def test_a_missing_autoreset_mode_warns():
    with pytest.warns(UserWarning, match="NEXT_STEP is assumed"):
        env = HostVectorEnv(Given("none", mode=None))
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_neighbouring_seeds_share_no_environment():
    env: Any = make("CartPole-v1", 16, "cpu", "sync")
    seeds = [set(env.spread(seed)) for seed in range(20)]
    assert len(set.union(*seeds)) == 20 * 16
    with pytest.raises(ValueError, match="--seed"):
        env.reset(seed=-1)
    env.close()


def test_close_survives_a_dead_worker():
    env: Any = make("CartPole-v1", 2, "cpu", "async")
    env.reset(seed=0)
    worker = env.envs.processes[0]
    worker.kill()
    worker.join()
    env.close()
    assert not any(process.is_alive() for process in env.envs.processes)


def test_rendering_through_sync():
    env: Any = make("CartPole-v1", 1, "cpu", render_mode="rgb_array")
    assert env.backend == "sync" and env.render_mode == "rgb_array"
    env.reset(seed=0)
    assert env.render()[0].shape == (400, 600, 3)
    env.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_as_on_the_cpu():
    rows = {}
    for device in ("cpu", "cuda"):
        env = make("CartPole-v1", 8, device, "sync")
        obs, _ = env.reset(seed=0)
        rows[device] = [obs.cpu()]
        for _ in range(100):
            obs, *_, info = env.step(torch.ones(8, device=device).long())
            assert obs.device.type == device
            rows[device] += [obs.cpu(), info["final_obs"].cpu(), info["valid"].cpu()]
        env.close()
    assert all(torch.equal(a, b) for a, b in zip(rows["cpu"], rows["cuda"], strict=True))
