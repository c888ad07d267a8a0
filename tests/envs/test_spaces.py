"""Spaces as a program sees them: encoded as gymnasium flattens them, with columns that have names; actions decoded."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs import make
from ppo_fast.envs.masks import Masks
from ppo_fast.envs.spaces import ActionDecoder, ObservationEncoder


def flattened(space: spaces.Space, value: Any) -> np.ndarray:
    """As gymnasium does it, in float32."""
    return np.asarray(spaces.flatten(space, value)).astype(np.float32)


OBSERVATION_SPACES = [
    spaces.Box(-1, 1, (3,), np.float64),
    spaces.Discrete(4, start=-2),
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 2)),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    spaces.MultiDiscrete([2, 3], start=[5, -1]),
    spaces.Dict(b=spaces.Box(0, 255, (2, 2), np.uint8), a=spaces.Discrete(3)),
    spaces.Tuple((spaces.Discrete(2), spaces.Dict(x=spaces.MultiDiscrete([2, 2]), y=spaces.Box(-5, 5, (1,))))),
]


@pytest.mark.parametrize("space", OBSERVATION_SPACES, ids=str)
def test_observations_are_encoded_as_gymnasium_flattens_them(space):
    encoder = ObservationEncoder(space)
    space.seed(0)
    rows = [space.sample() for _ in range(40)]
    batch = gymnasium.vector.utils.concatenate(space, rows, gymnasium.vector.utils.create_empty_array(space, 40))
    out = np.full((40, *encoder.space.shape), 99, dtype=np.float32)
    encoder.write(batch, out)
    wanted = np.stack([flattened(space, row) for row in rows])
    assert np.array_equal(out.reshape(40, -1), wanted)
    assert all(row in encoder.space for row in out)
    listed, one = np.full_like(out, 99), np.full_like(out, 99)
    encoder.write_list(rows, listed, [None] * 40)
    for row, place in zip(rows, one, strict=True):
        encoder.write_one(row, place)
    assert np.array_equal(listed, out) and np.array_equal(one, out)


def test_a_lone_box_keeps_its_shape_and_bounds():
    encoder = ObservationEncoder(spaces.Box(0, 255, (2, 5, 3), np.uint8))
    assert encoder.space == spaces.Box(0, 255, (2, 5, 3), np.float32)
    largest = np.finfo(np.float64).max
    assert ObservationEncoder(spaces.Box(-largest, largest, (1,), np.float64)).space.low[0] == -np.inf


UNSUPPORTED = [
    spaces.Text(5),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Discrete(2), None),
    spaces.Dict(fine=spaces.Discrete(2), mission=spaces.Text(5)),
]


@pytest.mark.parametrize("space", UNSUPPORTED, ids=lambda space: type(space).__name__)
def test_other_observations_are_refused_in_one_line(space):
    with pytest.raises(ValueError, match=r"--env-id: Some-v0 has \w+ observations; supported are Box") as refusal:
        ObservationEncoder(space, "Some-v0")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.MultiBinary(2), spaces.Box(0, 9, (2,), np.int64)], ids=str)
def test_other_actions_are_refused_in_one_line(space):
    with pytest.raises(ValueError, match=r"--env-id: Some-v0 has \w+ actions .*supported are Discrete") as refusal:
        ActionDecoder(space, 2, "Some-v0")
    assert "\n" not in str(refusal.value)


def test_actions_without_numbers_are_refused():
    with pytest.raises(ValueError, match=r"--env-id: Some-v0 has actions without numbers, of \(2, 0\)"):
        ActionDecoder(spaces.Box(0, 1, (2, 0)), 2, "Some-v0")


def test_actions_get_their_start_their_bounds_and_their_shape():
    def decode(space, actions):
        decoder = ActionDecoder(space, len(actions))
        decoded = decoder(torch.tensor(actions))
        assert decoded in batch_space(space, len(actions))
        return decoder, decoded.tolist()

    assert decode(spaces.Discrete(3, start=5), [0, 2])[1] == [5, 7]
    decoder, values = decode(spaces.MultiDiscrete(np.array([[2, 3]]), start=np.array([[1, -1]])), [[0, 2], [1, 0]])
    assert decoder.space == spaces.MultiDiscrete([2, 3]) and values == [[[1, 1]], [[2, -1]]]
    decoder, values = decode(spaces.Box(-1.0, np.array([[2.0], [0.5]]), (2, 1), np.float64), [[9.0, 9.0], [-9.0, 0.25]])
    assert decoder.space.shape == (2,) and values == [[[2.0], [0.5]], [[-1.0], [0.25]]]
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        ActionDecoder(spaces.Discrete(3), 2)(torch.zeros(3))


NAMED = {
    "plain": spaces.Dict(
        {"velocity": spaces.Box(-1, 1, (2,)), "camera": spaces.Box(0, 1, (2, 3)), "pose": spaces.Box(-9, 9, (4,))}
    ),
    "discrete": spaces.Dict(
        gear=spaces.Discrete(5, start=-1),
        lights=spaces.MultiBinary(3),
        dials=spaces.MultiDiscrete([2, 3], start=[1, 0]),
        x=spaces.Box(-1, 1, (1,)),
    ),
    "nested": spaces.Dict(
        policy=spaces.Dict(joints=spaces.Box(-3, 3, (3,)), foot=spaces.Discrete(2)),
        critic=spaces.Dict(deep=spaces.Dict(b=spaces.Box(-1, 1, (2,)), a=spaces.MultiBinary(2))),
        goal=spaces.Box(-1, 1, (2,)),
    ),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Dict(x=spaces.Box(-1, 1, (2,)), y=spaces.Discrete(2)))),
}


def parts_of(space: Any, value: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Every part inside a Dict or Tuple by its dotted name, flattened by gymnasium."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return {}
    found = {}
    inner: Any = space.spaces if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
    for key, part in inner.items():
        found[f"{prefix}{key}"] = flattened(part, value[key])
        found |= parts_of(part, value[key], f"{prefix}{key}.")
    return found


class Sampled(gymnasium.Env):
    """Observes what its space samples; with `masked` its info allows action 0 alone."""

    action_space = spaces.Discrete(2)

    def __init__(self, name: str, masked: bool = False) -> None:
        self.observation_space = copy.deepcopy(NAMED[name])
        self.info = {"action_mask": np.array([1, 0], np.int8)} if masked else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), self.info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, self.info


def sampled_vector(num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    """A vector entry point."""
    return SyncVectorEnv([lambda: Sampled(**kwargs)] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def sampled(backend: str, num_envs: int, **kwargs: Any) -> Any:
    ids = {"entry_point": "test_spaces:Sampled", "vector_entry_point": "test_spaces:sampled_vector"}
    gymnasium.register("Sampled-v0", **ids, kwargs=kwargs)  # pyright: ignore[reportArgumentType]
    try:
        return make("Sampled-v0", num_envs, "cpu", backend)
    finally:
        gymnasium.registry.pop("Sampled-v0")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["sync", "async", "entry_point"])
@pytest.mark.parametrize("name", NAMED)
def test_columns_are_where_gymnasium_puts_each_part(name: str, backend: str, masked: bool) -> None:
    env = sampled(backend, 3, name=name, masked=masked)
    obs, _ = env.reset(seed=5)
    seeds = range(5, 8) if backend == "entry_point" else env.spread(5)
    singles = [Sampled(name) for _ in seeds]
    values = [single.reset(seed=seed)[0] for single, seed in zip(singles, seeds, strict=True)]
    for _ in range(4):
        parts = [parts_of(NAMED[name], value) for value in values]
        for part in parts:
            part |= {"action_mask": np.array([1, 0])} if masked else {}
        assert env.columns.keys() == parts[0].keys()
        for key, columns in env.columns.items():
            assert np.array_equal(obs[..., columns], np.stack([part[key] for part in parts])), key
        obs, *_ = env.step(torch.zeros(3).long())
        values = [single.step(0)[0] for single in singles]
    env.close()


def test_columns_of_a_mask_inside_a_dict() -> None:
    space = spaces.Dict(action_mask=spaces.MultiBinary(2), where=spaces.Discrete(3), x=spaces.Box(-1, 1, (2,)))
    columns = ObservationEncoder(space, masks=Masks("observation", (2,))).columns
    assert columns == {"where": slice(0, 3), "x": slice(3, 5), "action_mask": slice(5, 7)}


def test_what_has_no_parts_has_no_columns() -> None:
    for space in (spaces.Box(-1, 1, (2, 3)), spaces.Discrete(4), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])):
        assert ObservationEncoder(space).columns == {}
    for backend in ("tensor", "sync", "entry_point"):
        assert make("CartPole-v1", 2, "cpu", backend).columns == {}
    assert ObservationEncoder(spaces.Box(-1, 1, (2, 3)), masks=Masks("info", (4,))).columns == {
        "action_mask": slice(6, 10)
    }


def test_an_outer_key_is_found_before_a_nested_one_of_the_same_name() -> None:
    space = spaces.Dict({"a": spaces.Dict(b=spaces.Discrete(2)), "a.b": spaces.Discrete(3)})
    assert ObservationEncoder(space).columns == {"a": slice(0, 2), "a.b": slice(2, 5)}
