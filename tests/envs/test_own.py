"""What an environment itself observes and takes: known of every backend, and the same after a way through JSON."""

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ppo_fast.envs import make
from ppo_fast.envs.masks import Masks
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.envs.spaces_json import from_json, space_from_json, space_to_json, to_json

SPACES = [
    spaces.Box(-1.5, 2.0, (3,), np.float32),
    spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    spaces.Box(np.array([-np.inf, 0.1], np.float32), np.array([1.0, np.inf], np.float32)),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-(2**63), 2**63 - 2, (2,), np.int64),
    spaces.Box(0, 1, (), np.float16),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [0, -1]])),
    spaces.MultiDiscrete([2, 3], dtype=np.int32),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
    spaces.Tuple([spaces.Discrete(2), spaces.Dict(a=spaces.Box(0, 1, (1,)))]),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.MultiBinary(1))]),
    spaces.Dict({"b": spaces.Tuple([]), "a": spaces.Dict()}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back_as_it_was(space: spaces.Space) -> None:
    found = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert found == space and found.dtype == space.dtype and type(found) is type(space)
    if isinstance(space, spaces.Dict):
        assert isinstance(found, spaces.Dict) and list(found) == list(space)  # their order is that of the columns


def test_all_that_lies_between_comes_back() -> None:
    masks = Masks("method", (2, 3))
    own = OwnSpaces(spaces.Box(-1, 1, (5,)), spaces.MultiDiscrete([2, 3]), masks, 5, "rescale", (0, 4))
    assert from_json(json.loads(json.dumps(to_json(own)))) == own
    assert to_json(own._replace(observation=spaces.Text(3))) is None


STRANGE: list[Any] = [None, [], "x", 3, {}, {"observation": {}}]
WHOLE: Any = to_json(OwnSpaces(spaces.Box(-1, 1, (5,)), spaces.Discrete(2)))
STRANGE += [{**WHOLE, name: value} for name in WHOLE for value in (None, -1, 10**30, "x", [[]], {"type": "Box"})]
BOX = WHOLE["observation"]
STRANGE += [
    {**WHOLE, "observation": {**BOX, **more}}
    for more in (
        {"shape": [10**9]}, {"shape": [-1]}, {"shape": ["5"]}, {"low": [1, 2]}, {"low": "low"}, {"low": None},
        {"dtype": "object"}, {"dtype": "no"}, {"type": "Text"}, {"type": "Discrete", "n": 10**12, "start": 0},
        {"type": "Tuple", "spaces": 3}, {"type": "MultiDiscrete", "nvec": [[1], [2, 3]], "start": 0},
        {"type": "MultiBinary", "n": [10**6, 10**6]}, {"type": "Dict", "spaces": [["a"]]}, {"low": 3},
    )
]  # fmt: skip


@pytest.mark.parametrize("facts", STRANGE, ids=lambda facts: json.dumps(facts)[:80])
def test_anything_else_is_one_line(facts: Any) -> None:
    with pytest.raises(ValueError, match=r"\Aspaces: [^\n]+\Z"):
        from_json(facts)


class Nested(gymnasium.Env):
    """A Dict observation, and a mask in the info."""

    observation_space: spaces.Space = spaces.Dict(x=spaces.Box(-1, 1, (2,)), where=spaces.Discrete(3, start=1))
    action_space: spaces.Space = spaces.Discrete(2, start=4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return {"x": np.zeros(2, np.float32), "where": 1}, {"action_mask": np.ones(2)}


gymnasium.register("Nested-v0", entry_point=f"{__name__}:Nested")


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_hosts_know_their_environments_own_spaces(backend: str) -> None:
    envs = make("Nested-v0", 2, backend=backend, hide=(1,))
    assert envs.own_spaces == OwnSpaces(
        Nested.observation_space, Nested.action_space, Masks("info", (2,)), 2, "clip", (1,)
    )
    seen = envs.own_spaces.presented()
    assert seen.single_observation_space == envs.single_observation_space and seen.columns == envs.columns
    assert seen.single_action_space == envs.single_action_space
    envs.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "ppo_fast/MountainCarContinuousNoVel-v0"])
@pytest.mark.parametrize("hide", [(), (0,)])
def test_tensor_environments_know_those_of_gymnasiums(env_id: str, hide: tuple[int, ...]) -> None:
    if env_id.endswith("NoVel-v0"):
        hide = ()
    tensor, host = (make(env_id, 2, backend=name, action_bounds="rescale", hide=hide) for name in ("tensor", "sync"))
    assert tensor.own_spaces == host.own_spaces and tensor.own_spaces.hidden == hide
    for envs in (tensor, host):
        seen = envs.own_spaces.presented()
        assert seen.single_observation_space == envs.single_observation_space
        assert seen.single_action_space == envs.single_action_space and seen.columns == envs.columns
        envs.close()


def test_groups_and_envpool_know_them() -> None:
    envs = make("CartPole-v1", 2, backend="async", groups=2)
    assert envs.own_spaces == make("CartPole-v1", 1, backend="sync").own_spaces
    envs.close()
    pytest.importorskip("envpool")
    envs = make("CartPole-v1", 2, backend="envpool")
    assert envs.own_spaces.action == spaces.Discrete(2) and envs.own_spaces.observation.shape == (4,)
    envs.close()
