"""Action masks: wherever an environment says what it allows, it stands at the end of the observation."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from scripted_envs import scripted

from ppo_fast.envs import EnvironmentFault, make
from ppo_fast.envs.fitting import Misfit
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.masks import find_masks, flat_mask, masks_in_observation
from ppo_fast.envs.singles import SingleVectorEnv, find_kind
from ppo_fast.envs.spaces import ObservationEncoder
from ppo_fast.envs.workers import WorkerVectorEnv


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
        ([[1, 0, 0]], [[0, 1, 0]], [1, 0, 0], [0, 1, 0]),  # (1, 3)
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


def test_where_nothing_can_be_masked_it_is_an_observation():
    assert masks_in_observation(MaskedDict().observation_space, spaces.Box(-1, 1, (2,))).size == 0
    assert masks_in_observation(spaces.MultiBinary(2), spaces.Discrete(2)).size == 0
    info = {"action_mask": np.ones(2)}
    assert find_masks(FreeActions(), info).size == 0


class FreeActions(Masked):
    action_space = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize("part", [spaces.Box(0, 1, (3,), np.int8), spaces.Discrete(2), spaces.Dict()], ids=str)
def test_a_part_of_that_name_which_is_no_mask_is_named(part):
    space = spaces.Dict(action_mask=part, x=spaces.Discrete(2))
    line = r"--env-id: Odd-v0 observes an 'action_mask' \w+.*, which is no mask of 2 actions; change it, or its name"
    with pytest.raises(ValueError, match=line) as told:
        masks_in_observation(space, spaces.Discrete(2), "Odd-v0")
    assert "\n" not in str(told.value)


def test_a_mask_that_is_all_there_is_to_see_is_seen_and_obeyed():
    space = spaces.Dict(action_mask=spaces.MultiBinary(3))
    encoder = ObservationEncoder(space, masks=masks_in_observation(space, spaces.Discrete(3)))
    out = np.empty((1, 6), np.float32)
    encoder.write_list([{"action_mask": np.array([0, 1, 1], np.int8)}], out, [None])
    assert out.tolist() == [[0, 1, 1, 0, 1, 1]] and encoder.mask_size == 3


# ---------------------------------------------------------------- sb3-contrib's conventions, and several dimensions


class Dials(gymnasium.Env):
    """Two dials of 2 and 3 positions; the mask goes with the observation: in turn one of `MASKS`."""

    action_space, observation_space = spaces.MultiDiscrete([2, 3]), spaces.Box(0, 9, (1,), np.float32)
    forms: Any = staticmethod(lambda mask: mask)
    method = False
    calls = 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self._seen()

    def step(self, action):
        self.time += 1
        obs, info = self._seen()
        return obs, 0.0, False, self.time == 3, info

    def _seen(self):
        obs = np.array([self.time], np.float32)
        return obs, {} if self.method else {"action_mask": self.forms(MASKS[self.time])}


class DialsByMethod(Dials):
    method = True

    def action_masks(self):
        return self.forms(MASKS[self.time])


class DialsThatEnd(DialsByMethod):
    def action_masks(self):
        assert self.time < 3, "nobody acts after the end"
        return super().action_masks()


MASKS = [[1, 0, 0, 1, 1], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
SEEN = [[1, 0, 0, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]  # a dimension that allows nothing allows everything
FORMS = {
    "flat": lambda mask: np.array(mask, np.int8),
    "list": lambda mask: mask,
    "bool (1, 5)": lambda mask: np.array([mask], bool),
    "one for each dimension": lambda mask: (np.array(mask[:2]), np.array(mask[2:])),
    "lists": lambda mask: [mask[:2], mask[2:]],
    "None for all": lambda mask: (None if all(mask[:2]) else mask[:2], mask[2:]),
}


def vector(maker: Any, kind: str) -> Any:
    if kind == "sync":
        return HostVectorEnv(SingleVectorEnv([maker] * 2, find_kind(maker)), "cpu", "sync")
    if kind == "async":
        return HostVectorEnv(WorkerVectorEnv([maker] * 2, find_kind(maker), 2), "cpu", "async")
    cls = AsyncVectorEnv if "Async" in kind else SyncVectorEnv
    return HostVectorEnv(cls([maker] * 2, autoreset_mode=AutoresetMode[kind.split()[-1]]), "cpu", "entry_point")


@pytest.mark.parametrize("by_method", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", ["sync", "SyncVectorEnv SAME_STEP", "SyncVectorEnv NEXT_STEP", "SyncVectorEnv DISABLED"]
)
def test_masks_of_several_dimensions(kind, form, by_method):
    if kind != "sync" and form in ("list", "lists") and not by_method:
        pytest.skip("Gymnasium's vectors put no lists together")
    by_this_method = DialsThatEnd if kind in ("sync", "SyncVectorEnv SAME_STEP") else DialsByMethod
    maker: Any = type("Now", (by_this_method if by_method else Dials,), {"forms": staticmethod(FORMS[form])})
    env = vector(maker, kind)
    assert env.mask_size == 5
    seen = [env.reset(seed=0)[0]]
    seen += [env.step(torch.zeros(2, 2).long())[0] for _ in range(6)]
    for obs in torch.cat(seen).tolist():
        if obs[0] < 3:  # after the end of a NEXT_STEP episode nobody acts
            assert obs[1:] == SEEN[int(obs[0])]
    env.close()


@pytest.mark.parametrize("kind", ["async", "AsyncVectorEnv SAME_STEP"])
def test_masks_of_workers(kind):
    env = vector(DialsByMethod, kind)
    obs = [env.reset(seed=0)[0], *(env.step(torch.zeros(2, 2).long())[0] for _ in range(4))]
    assert [row[0, 1:].tolist() for row in obs] == [SEEN[0], SEEN[1], SEEN[2], SEEN[0], SEEN[1]]
    env.close()


class ActionMasker(gymnasium.Wrapper):
    """As sb3-contrib has it: the wrapper has the method."""

    def action_masks(self):
        return [False, True, True]


def test_a_wrapper_may_have_the_method():
    env = vector(lambda: ActionMasker(Masked()), "sync")
    assert env.reset(seed=0)[0][0, 4:].tolist() == [0, 1, 1]


class OneVector(VectorEnv):
    """A vector environment with a method of its own."""

    num_envs, single_action_space, single_observation_space = 2, spaces.Discrete(3), spaces.Box(0, 1, (1,), np.float32)
    action_space, observation_space = spaces.MultiDiscrete([3, 3]), spaces.Box(0, 1, (2, 1), np.float32)
    metadata: Any = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1), np.float32), {}

    def step(self, actions):
        return np.zeros((2, 1), np.float32), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {}

    def action_masks(self):
        return np.array([[1, 0, 1], [0, 1, 0]])


def test_a_vector_may_have_the_method():
    env: Any = HostVectorEnv(OneVector(), "cpu")
    assert env.reset()[0][:, 1:].tolist() == [[1, 0, 1], [0, 1, 0]]
    assert env.step(torch.zeros(2).long())[0][:, 1:].tolist() == [[1, 0, 1], [0, 1, 0]]


WRONG = {
    "too short": (
        [1, 0],
        [1, 0],
        r"environment 0 gave at its first reset: the action mask \[1, 0\] of the shape \(2,\)",
    ),
    "text": (["a", "b", "c"], None, r"environment 0 gave at its first reset: the action mask \['a', 'b', 'c'\]"),
    "later": ([1, 0, 0], [1, 0], r"environment 0 gave at step 1: the action mask \[1, 0\] of the shape \(2,\)"),
    "late": (None, [1, 0, 0], r"environment 0 gave at step 1: an action_mask in its info, but none at its first reset"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_mask_is_named(wrong):
    at_reset, at_step, line = WRONG[wrong]
    maker: Any = type("Now", (Masked,), {"masks": (at_reset, at_step)})
    with pytest.raises(EnvironmentFault, match=f"^{line}") as told:
        env = vector(maker, "sync")
        env.reset(seed=0)
        env.step(torch.zeros(2).long())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_what_is_no_mask_is_named_of_vectors_too(mode):
    for maker in (
        type("Now", (Masked,), {"masks": ([1, 0], [1, 0])}),
        type("Now", (Masked,), {"masks": (None, [1, 0, 0])}),
    ):
        with pytest.raises(EnvironmentFault, match=r"gave at (its first reset|step 1): .*action.mask"):
            env = vector(maker, f"SyncVectorEnv {mode.name}")
            env.reset(seed=0)
            env.step(torch.zeros(2).long())


def test_dimensions_of_wrong_sizes_that_add_up_are_named():
    with pytest.raises(Misfit, match=r"none of 2 \+ 3 = 5 actions"):
        flat_mask(([1, 0, 1], [1, 0]), (2, 3))


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
