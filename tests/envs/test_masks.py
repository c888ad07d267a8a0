"""Action masks: wherever an environment says what it allows, it stands at the end of the observation."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_envs import scripted

from ppo_fast.envs import make
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.masks import mask_in_observation
from ppo_fast.envs.singles import SingleVectorEnv, find_kind


@pytest.mark.parametrize("mode", [*AutoresetMode, None])
def test_a_mask_makes_the_observation_wider(mode):
    env = scripted(mode)
    box: Any = env.single_observation_space
    assert env.mask_size == 2 and box.shape == (5,)
    assert box.low.tolist() == [-1, -1, -1, 0, 0] and box.high.tolist() == [1000, 1000, 1000, 1, 1]
    obs, info = env.reset(seed=0)
    assert info == {} and obs.shape == (5, 5) and obs[:, 3:].tolist() == [[1, 0]] * 5


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_taxi_says_which_moves_change_something(backend):
    env: Any = make("Taxi-v4", 3, "cpu", backend, max_episode_steps=15)
    assert env.mask_size == 6 and env.single_observation_space.shape == (506,)
    obs, _ = env.reset(seed=2)
    rng, forbidden = np.random.default_rng(0), 0
    for _ in range(100):
        state, mask = obs[:, :500], obs[:, 500:]
        assert ((mask == 0) | (mask == 1)).all() and mask.any(1).all()
        actions = torch.tensor(rng.integers(6, size=3))
        obs, _, _, _, info = env.step(actions)
        same = (info["final_obs"][:, :500] == state).all(1)
        refused = mask[torch.arange(3), actions] == 0
        assert torch.equal(refused, same), "a move is forbidden exactly where it leaves everything as it is"
        forbidden += int(refused.sum())
    assert forbidden > 30
    env.close()


class Masked(gymnasium.Env):
    """MultiBinary observations and three actions; the mask is what the test says, at steps and at resets."""

    action_space, observation_space = spaces.Discrete(3), spaces.MultiBinary((2, 2))
    masks: tuple[Any, Any] = (None, None)

    def reset(self, *, seed=None, options=None):
        return np.ones((2, 2), np.int8), self._info(0)

    def step(self, action):
        return np.zeros((2, 2), np.int8), 0.0, False, True, self._info(1)

    def _info(self, which):
        mask = self.masks[which]
        return {} if mask is None else {"action_mask": np.array(mask)}


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("at_reset", "at_step", "first", "last"),
    [
        ([1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]),
        ([True, False, False], [0.0, 0.0, 2.0], [1, 0, 0], [0, 0, 1]),
        ([1, 0, 0], None, [1, 0, 0], [1, 1, 1]),  # an observation without a mask allows everything
        ([1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]),  # so does one that would allow nothing
        ([1, 0], [1, 0], [], []),  # not a mask of three actions
        (None, [1, 0, 0], [], []),  # offered too late: whether there is one must be known from the start
    ],
)
def test_masks_in_every_form(ours, at_reset, at_step, first, last):
    makers: list[Any] = [type("Now", (Masked,), {"masks": (at_reset, at_step)})] * 2
    if ours:
        envs = SingleVectorEnv(makers, find_kind(makers[0]))
    else:
        envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    env: Any = HostVectorEnv(envs, "cpu", "sync")
    assert env.mask_size == len(first) and env.observation_space.shape == (2, 4 + len(first))
    assert env.reset(seed=0)[0].tolist() == [[1, 1, 1, 1, *first]] * 2
    obs, *_, info = env.step(torch.zeros(2).long())
    assert obs.tolist() == [[1, 1, 1, 1, *first]] * 2
    assert info["final_obs"].tolist() == [[0, 0, 0, 0, *last]] * 2


class MaskedDict(gymnasium.Env):
    """The mask stands in the observation: at a reset action 1 is forbidden, at the end everything but it."""

    action_space = spaces.Discrete(2)
    mask_space: spaces.Space = spaces.Box(0, 1, (2,), np.int8)

    def __init__(self):
        parts = {"action_mask": self.mask_space, "where": spaces.Discrete(2), "x": spaces.Box(-9, 9, (2,), np.float32)}
        self.observation_space = spaces.Dict(parts)

    def reset(self, *, seed=None, options=None):
        return {"x": np.array([1, 2], np.float32), "where": 0, "action_mask": np.array([1, 0], np.int8)}, {}

    def step(self, action):
        mask = np.array([0, 1], np.int8)
        return {"x": np.array([3, 4], np.float32), "where": 1, "action_mask": mask}, 0.0, False, True, {}


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("mask_space", [spaces.Box(0, 1, (2,), np.int8), spaces.MultiBinary(2)])
def test_a_mask_in_a_dict_observation(ours, mask_space):
    makers: list[Any] = [type("Now", (MaskedDict,), {"mask_space": mask_space})] * 3
    if ours:
        envs = SingleVectorEnv(makers, find_kind(makers[0]))
    else:
        envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    env: Any = HostVectorEnv(envs, "cpu", "sync")
    assert env.mask_size == 2 and env.single_observation_space.shape == (6,)
    assert env.reset(seed=0)[0].tolist() == [[1, 0, 1, 2, 1, 0]] * 3  # where, x, mask
    obs, *_, info = env.step(torch.zeros(3).long())
    assert obs.tolist() == [[1, 0, 1, 2, 1, 0]] * 3
    assert info["final_obs"].tolist() == [[0, 1, 3, 4, 0, 1]] * 3


def test_what_only_looks_like_a_mask_is_an_observation():
    makers: list[Any] = [type("Now", (MaskedDict,), {"mask_space": spaces.Box(0, 1, (3,), np.int8)})]
    assert mask_in_observation(makers[0]().observation_space, spaces.Discrete(2)) == 0
    for action_space in (spaces.MultiDiscrete([2, 2]), spaces.Box(-1, 1, (2,))):
        assert mask_in_observation(MaskedDict().observation_space, action_space) == 0
    alone = spaces.Dict({"action_mask": spaces.MultiBinary(2)})
    assert mask_in_observation(alone, spaces.Discrete(2)) == 0  # nothing would be left to see
    assert mask_in_observation(spaces.MultiBinary(2), spaces.Discrete(2)) == 0


@pytest.mark.parametrize("ours", [True, False])
def test_masks_of_only_some_environments(ours):
    """One gives a mask with its last observation, the other none: there everything is allowed."""
    masks = [([1, 0, 0], [0, 1, 0]), ([0, 0, 1], None)]
    makers: list[Any] = [type("Now", (Masked,), {"masks": pair}) for pair in masks]
    if ours:
        envs = SingleVectorEnv(makers, find_kind(makers[0]))
    else:
        envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    env: Any = HostVectorEnv(envs, "cpu", "sync")
    env.reset(seed=0)
    obs, *_, info = env.step(torch.zeros(2).long())
    assert obs[:, 4:].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert info["final_obs"][:, 4:].tolist() == [[0, 1, 0], [1, 1, 1]]
