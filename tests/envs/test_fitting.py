"""What an environment gives and is not what it promised: named in one line, at the first step at which it is so."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from ppo_fast.envs import EnvironmentFault
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.singles import SingleVectorEnv, find_kind
from ppo_fast.envs.workers import WorkerVectorEnv

N, BAD, LENGTH = 3, 1, 5
BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
RIGHT = np.zeros(3, np.float32)
GRID = spaces.MultiDiscrete([2, 3], start=[0, 5])
BOTH = spaces.Dict(place=GRID, mood=spaces.Tuple([spaces.Discrete(2), BOX]))
CALM: Any = {"place": np.array([0, 5]), "mood": (0, RIGHT)}
SINGLE, WORKERS = "sync", "async"
VECTORS = [f"SyncVectorEnv {mode.name}" for mode in AutoresetMode]


class Made(gymnasium.Env):
    """Environment `index` of N, of which BAD gives `wrong` from step `at` on; 0 is the reset."""

    action_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space: spaces.Space = BOX
    right: Any = RIGHT
    wrong: dict[str, Any] = {}  # noqa: RUF012
    at = 2

    def __init__(self, index: int) -> None:
        self.is_bad = index == BAD
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.time = 0
        if "reset" in self._now():
            return self._now()["reset"]
        return self._now().get("obs", self.right), self._now().get("info", {})

    def step(self, action: Any) -> Any:
        self.time += 1
        given = {"obs": self.right, "reward": 0.0, "terminated": False, "truncated": self.time == LENGTH, "info": {}}
        given |= self._now()
        return given["step"] if "step" in given else tuple(given.values())

    def _now(self) -> dict[str, Any]:
        return self.wrong if self.is_bad and self.time >= self.at else {}


def vector(kind: str, **attributes: Any) -> HostVectorEnv:
    cls: Any = type("Now", (Made,), attributes)
    makers: Any = [lambda index=index: cls(index) for index in range(N)]
    if kind == SINGLE:
        return HostVectorEnv(SingleVectorEnv(makers, find_kind(makers[0])), "cpu", kind)
    if kind == WORKERS:
        return HostVectorEnv(WorkerVectorEnv(makers, find_kind(makers[0]), 2), "cpu", kind)
    vectors = AsyncVectorEnv if "Async" in kind else SyncVectorEnv
    return HostVectorEnv(vectors(makers, autoreset_mode=AutoresetMode[kind.split()[-1]]), "cpu")


def run(env: HostVectorEnv, steps: int = LENGTH) -> None:
    try:
        env.reset(seed=0)
        for _ in range(steps):
            env.step(torch.zeros(N, 1))
    finally:
        env.close()


def line_of(kind: str, **attributes: Any) -> str:
    """What is said of environments that give something wrong."""
    with pytest.raises(EnvironmentFault) as told:
        run(vector(kind, **attributes))
    text = str(told.value)
    assert "\n" not in text and len(text) < 400
    return text


# ---------------------------------------------------------------- observations

OBSERVATIONS: dict[str, tuple[spaces.Space, Any, Any, str]] = {
    "a number fewer": (BOX, RIGHT, np.zeros(1, np.float32), "of the shape (1,)"),
    "a dimension more": (BOX, RIGHT, np.zeros((1, 3), np.float32), "of the shape (1, 3)"),
    "a number": (BOX, RIGHT, 0.5, "0.5, of the shape ()"),
    "float64 of another shape": (BOX, RIGHT, np.zeros(1), "of the shape (1,)"),
    "a picture": (spaces.Box(0, 1, (2, 2)), np.zeros((2, 2), np.float32), np.zeros((2, 1), np.float32), "(2, 1)"),
    "text": (BOX, RIGHT, "north", "'north', of the type str"),
    "nothing": (BOX, RIGHT, None, "None, of the type NoneType"),
    "uneven lists": (BOX, RIGHT, [[0.0], [0.0, 1.0]], "which is no array"),
    "beyond Discrete": (spaces.Discrete(4), 3, 4, "its space Discrete(4): 4"),
    "below Discrete": (spaces.Discrete(4), 3, -1, "its space Discrete(4): -1"),
    "below its start": (spaces.Discrete(4, start=2), 3, 1, "its space Discrete(4, start=2): 1"),
    "between": (spaces.Discrete(4), 3, 1.5, "its space Discrete(4): 1.5"),
    "beyond MultiDiscrete": (GRID, np.array([0, 5]), np.array([0, 8]), ": [0, 8]"),
    "below MultiDiscrete": (GRID, np.array([0, 5]), np.array([0, 4]), ": [0, 4]"),
    "not binary": (spaces.MultiBinary(2), np.ones(2, np.int8), np.array([0, 2], np.int8), ": [0, 2]"),
    "a key fewer": (BOTH, CALM, {"place": np.array([0, 5])}, "without the key 'mood'"),
    "a key more": (BOTH, CALM, {**CALM, "time": 1}, "with the key 'time' besides"),
    "a part": (BOTH, CALM, {**CALM, "place": np.array([2, 5])}, "part 'place' is not in its space MultiDiscrete"),
    "a part of a part": (BOTH, CALM, {**CALM, "mood": (0, np.zeros(2))}, "part 'mood.1' is not in its space Box"),
    "a list": (BOTH, CALM, [1, 2], "[1, 2], a list"),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("at", [0, 2, LENGTH])
def test_an_observation_that_is_not_in_its_space(name: str, at: int) -> None:
    """At the first reset, at a step, and as the last one of an episode, which alone is final_obs."""
    space, right, wrong, words = OBSERVATIONS[name]
    when = f"step {at}" if at else "its first reset"
    text = line_of(SINGLE, observation_space=space, right=right, wrong={"obs": wrong}, at=at)
    assert text.startswith(f"environment {BAD} gave at {when}: an observation ") and words in text


@pytest.mark.parametrize("name", ["a number fewer", "beyond Discrete", "a part", "a key more"])
@pytest.mark.parametrize("kind", [WORKERS, *VECTORS])
def test_whatever_steps_them(kind: str, name: str) -> None:
    space, right, wrong, words = OBSERVATIONS[name]
    if name == "a key more" and kind in VECTORS:
        pytest.skip("Gymnasium's vectors leave it out")
    text = line_of(kind, observation_space=space, right=right, wrong={"obs": wrong})
    assert text.startswith(f"environment {BAD} gave at step 2: an observation ") and words in text


def test_a_reset_between_episodes() -> None:
    class LaterReset(Made):
        begun = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset()
            self.begun += 1
            return (RIGHT if self.begun < 2 else np.zeros(2, np.float32)), {}

    makers: Any = [lambda: LaterReset(0)] * N
    with pytest.raises(EnvironmentFault, match=r"^environment 0 gave at step 5: .*of the shape \(2,\)$"):
        run(HostVectorEnv(SingleVectorEnv(makers, find_kind(makers[0]))))


@pytest.mark.parametrize("kind", [SINGLE, *VECTORS])
def test_what_is_right_stays_right(kind: str) -> None:
    """A Box's bounds are no promise, nor is its type; a Discrete may come as an array or a float."""
    for space, right in (
        (BOX, np.array([9.0, -9.0, np.inf])),
        (BOX, np.array([1, 2, 3])),
        (spaces.Discrete(4), np.int64(3)),
        (spaces.Discrete(4, start=-2), np.array(-1)),
        (spaces.MultiBinary(2), np.array([True, False])),
        (BOTH, CALM),
    ):
        run(vector(kind, observation_space=space, right=right))


def test_lists_and_tensors_are_arrays() -> None:
    for right in ([0.0, 1.0, 2.0], torch.tensor([0.0, 1.0, 2.0]), (0, 1, 2)):
        env = vector(SINGLE, right=right)
        assert env.reset(seed=0)[0].tolist() == [[0, 1, 2]] * N
        assert env.step(torch.zeros(N, 1))[0].tolist() == [[0, 1, 2]] * N


def test_types_may_change_from_step_to_step() -> None:
    """What is copied as it is because the one before was, is looked at anew when it is of another type."""

    class Changing(Made):
        def step(self, action: Any) -> Any:
            given = super().step(action)
            kinds = (np.float32, np.float64, np.int64, np.float16)
            return np.full(3, self.time, kinds[self.time % 4]), *given[1:]

    makers: Any = [lambda: Changing(0)] * N
    env = HostVectorEnv(SingleVectorEnv(makers, find_kind(makers[0])))
    env.reset(seed=0)
    for time in (1, 2, 3, 4):
        assert env.step(torch.zeros(N, 1))[0].tolist() == [[time] * 3] * N


@pytest.mark.parametrize("kind", [SINGLE, WORKERS, *VECTORS])
def test_a_box_of_one_number_without_a_dimension(kind: str) -> None:
    space = spaces.Box(-1.0, 1.0, (), np.float32)
    env = vector(kind, observation_space=space, right=np.float32(0.5))
    assert env.single_observation_space.shape == (1,)
    seen = [env.reset(seed=0)[0], *(env.step(torch.zeros(N, 1))[0] for _ in range(LENGTH + 1))]
    assert all(obs.tolist() == [[0.5]] * N for obs in seen)
    env.close()


# ---------------------------------------------------------------- what else comes with a step or a reset

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a reward of two": ({"reward": np.ones(2)}, "[1., 1.] as reward, which has to be one number"),
    "no reward": ({"reward": None}, "None as reward"),
    "a reward in words": ({"reward": "1.5"}, "'1.5' as reward"),
    "an end of two": ({"terminated": np.zeros(2, bool)}, "[False, False] as terminated"),
    "an end of words": ({"truncated": "no"}, "'no' as truncated"),
    "four values": ({"step": (RIGHT, 0.0, False, {})}, "4 values, not 5"),
    "one value": ({"step": RIGHT}, "[0., 0., 0.], not (observation, reward, terminated, truncated, info)"),
    "nothing": ({"step": None}, "None, not (observation, reward"),
}
# Looked at in the first step alone: NumPy takes them for numbers.
AT_FIRST = ("no reward", "a reward in words", "an end of words")


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_a_step_that_gives_something_else(name: str, at: int) -> None:
    if at > 1 and name in AT_FIRST:
        pytest.skip("see AT_FIRST")
    wrong, words = OTHERS[name]
    assert f"environment {BAD} gave at step {at}: {words}" in line_of(SINGLE, wrong=wrong, at=at)


def test_an_info_that_is_none() -> None:
    assert "gave at its first reset: None as info" in line_of(SINGLE, wrong={"info": None}, at=0)
    text = line_of(SINGLE, wrong={"info": None}, at=1)
    assert text == f"environment {BAD} gave at step 1: None as info, which has to be a dictionary"
    assert "gave at step 5: None as info" in line_of(SINGLE, wrong={"info": None}, at=LENGTH)


@pytest.mark.parametrize("kind", [SINGLE, WORKERS])
@pytest.mark.parametrize("given", [RIGHT, None, (RIGHT,), [RIGHT, {}], (RIGHT, {}, 0)], ids=repr)
def test_a_reset_as_before_gym_026(kind: str, given: Any) -> None:
    text = line_of(kind, wrong={"reset": given}, at=0)
    assert text.startswith(f"environment {BAD} gave at its first reset: ")
    assert text.endswith("not (observation, info); before gym 0.26 a reset gave the observation alone")


def test_a_reset_as_before_gym_026_in_a_vector() -> None:
    text = line_of("SyncVectorEnv SAME_STEP", wrong={"reset": RIGHT}, at=0)
    assert "(observation, info)" in text and "gym 0.26" in text


@pytest.mark.parametrize("kind", [SINGLE, WORKERS])
def test_arrays_and_tensors_of_one_number_are_numbers(kind: str) -> None:
    cls: dict[str, Any] = {"reward": np.array([1.5]), "terminated": np.array([False]), "truncated": np.array([[True]])}
    env = vector(kind, wrong=cls, at=1)
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(torch.zeros(N, 1))
    assert reward.tolist() == [0, 1.5, 0] and truncated.tolist() == [False, True, False] and not terminated.any()
    env.close()
    run(vector(kind, wrong={"reward": torch.tensor([2.0])}))


class Columns(SyncVectorEnv):
    """A vector whose rewards are (N, 1)."""

    width = 1

    def step(self, actions: Any) -> Any:
        obs, reward, *rest = super().step(actions)
        return obs, np.repeat(reward[:, None], self.width, axis=1), *rest


@pytest.mark.parametrize("mode", AutoresetMode)
def test_rewards_of_a_vector(mode: AutoresetMode) -> None:
    makers: Any = [lambda: Made(0)] * N
    env: Any = HostVectorEnv(Columns(makers, autoreset_mode=mode))
    env.reset(seed=0)
    assert env.step(torch.zeros(N, 1))[1].shape == (N,)
    env.envs.width = 2
    with pytest.raises(EnvironmentFault, match=r"^the vector environment gave at step 2: .* as reward, of the shape"):
        env.step(torch.zeros(N, 1))
