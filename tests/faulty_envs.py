"""Small environments with one fault each, of the kinds that are reported of the field's, for `ppo_fast.doctor`."""

import os
import random
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.tensor import State, TensorVectorEnv, Transition

Reset = tuple[Any, Any]
Result = tuple[Any, Any, Any, Any, Any]


class Sound(gymnasium.Env):
    """Nothing is wrong with it: a point walks about 0 and ends at 3, at the latest after its max_episode_steps."""

    observation_space: spaces.Space = spaces.Box(-50.0, 50.0, (2,), np.float32)
    action_space: spaces.Space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-1, 1))
        self.time = 0
        return self.observe(), {}

    def step(self, action: Any) -> Result:
        self.time += 1
        self.place += (int(action) - 1) * 0.5 + float(self.np_random.normal(0, 0.1))
        return self.observe(), self.reward(), self.is_over(), False, {}

    def observe(self) -> Any:
        return np.array([self.place, np.sin(self.place)], np.float32)

    def reward(self) -> Any:
        return -abs(self.place)

    def is_over(self) -> Any:
        return abs(self.place) > 3


# ------------------------------------------------------------------ ends


class OwnLimit(Sound):
    """Its own limit of time is a termination."""

    max_steps = 30

    def is_over(self) -> bool:
        return self.time >= self.max_steps or abs(self.place) > 9


class WrittenLimit(Sound):
    """The same, with the number in the code."""

    def step(self, action: Any) -> Result:
        obs, reward, *_ = super().step(action)
        return obs, reward, self.time >= 50, False, {}


class HelpersLimit(Sound):
    """Also in the code, and in no step."""

    def is_over(self) -> bool:
        return self.time > 44


class SpecLimit(Sound):
    """It knows the limit that it is registered with, and terminates there, too."""

    def is_over(self) -> bool:
        return self.time >= 25


class NeverEnds(Sound):
    """No end, and no limit."""

    def step(self, action: Any) -> Result:
        obs, reward, *_ = super().step(action)
        self.place *= 0.9
        return obs, reward, False, False, {}


class StaleReset(Sound):
    """Its reset returns what was seen last."""

    seen: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        obs, info = super().reset(seed=seed)
        return obs if self.seen is None or seed is not None else self.seen, info

    def step(self, action: Any) -> Result:
        result = super().step(action)
        self.seen = result[0]
        return result


class LostReward(Sound):
    """The reward of an episode's last step is lost."""

    def step(self, action: Any) -> Result:
        obs, reward, over, _, info = super().step(action)
        return obs, 0.0 if over else reward, False, over, info


# ------------------------------------------------------------------ memory


class ReusedBuffer(Sound):
    """It returns one array again and again."""

    def __init__(self) -> None:
        self.buffer = np.zeros(2, np.float32)

    def observe(self) -> np.ndarray:
        self.buffer[:] = self.place, np.sin(self.place)
        return self.buffer


class ShowsItsState(Sound):
    """The array that it returns is where its state is."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        gymnasium.Env.reset(self, seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action: Any) -> Result:
        self.state = self.state + np.float32(0.2 * (int(action) - 1))
        return self.state, -1.0, bool(abs(self.state[0]) > 2), False, {}


class ChangesAction(Sound):
    """It works with the array of its caller."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action: Any) -> Result:
        action *= 0.5
        return super().step(1 + action[0])


# ------------------------------------------------------------------ random numbers, state


class SeedIgnored(Sound):
    """Its generator is its own, and knows no seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def observe(self) -> np.ndarray:
        return np.array([self.place, self.rng.uniform(-1, 1)], np.float32)


class UnseededSpace(Sound):
    """It samples from its space, which nobody seeds."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)

    def observe(self) -> np.ndarray:
        return self.observation_space.sample()


class GlobalRandom(Sound):
    """It draws from what all code of a process shares."""

    def observe(self) -> np.ndarray:
        return np.array([np.random.uniform(-1, 1), random.random()], np.float32)


class SharedState(Sound):
    """All instances have one state."""

    state: ClassVar = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        gymnasium.Env.reset(self, seed=seed)
        self.state[:] = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action: Any) -> Result:
        self.state[:] += 0.3 * (int(action) - 1)
        return self.observe(), 1.0, bool(abs(self.state[0]) > 2), False, {}

    def observe(self) -> np.ndarray:
        return self.state.astype(np.float32)


class CountedInClass(Sound):
    """What it shows depends on the steps of all instances there ever were."""

    count = 0

    def step(self, action: Any) -> Result:
        CountedInClass.count += 1
        return super().step(action)

    def observe(self) -> np.ndarray:
        return np.array([self.place, self.count % 7], np.float32)


class ResetLeaks(Sound):
    """Something of the episodes before is left."""

    drift = 0.0

    def step(self, action: Any) -> Result:
        self.drift = min(self.drift + 0.001, 0.5)
        return super().step(action)

    def observe(self) -> np.ndarray:
        return np.array([self.place, self.drift], np.float32)


# ------------------------------------------------------------------ numbers


class NanLater(Sound):
    """Not a number from its 40th step on."""

    steps = 0

    def observe(self) -> np.ndarray:
        self.steps += 1
        return np.array([self.place, np.nan if self.steps > 40 else 0.0], np.float32)


class OutOfBounds(Sound):
    """float64 and beyond the bounds of its space of float32."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)

    def observe(self) -> np.ndarray:
        return np.array([self.place, 12.0 + self.place])


class InfiniteInFloat32(Sound):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def observe(self) -> np.ndarray:
        return np.array([self.place, 1e300 if self.time == 4 else 0.0])


class RewardArray(Sound):
    def reward(self) -> Any:
        return np.array([1.5])


class RewardNone(Sound):
    def reward(self) -> Any:
        return None


class RewardWraps(Sound):
    """uint8 has no -1."""

    def reward(self) -> Any:
        return np.uint8(0) - np.uint8(1)


class HugeReward(Sound):
    def reward(self) -> Any:
        return 1e20 * self.place


class HugeObservation(Sound):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observe(self) -> np.ndarray:
        return np.array([self.place, 1e9 * self.place], np.float32)


class ConstantObservation(Sound):
    def observe(self) -> np.ndarray:
        return np.ones(2, np.float32)


class Wraps(Sound):
    """A level of one byte that falls below 0."""

    observation_space = spaces.Box(0, 255, (1,), np.uint8)

    def observe(self) -> np.ndarray:
        return np.array([round(self.place * 20) % 256], np.uint8)


class FractionsInInts(Sound):
    observation_space = spaces.Box(-10, 10, (2,), np.int64)


class OutsideDiscrete(Sound):
    observation_space = spaces.Discrete(5)

    def observe(self) -> int:
        return 5 if self.time == 4 else self.time % 5


# ------------------------------------------------------------------ the contract


class OldReset(Sound):
    """As gym before 0.26."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class OldStep(Sound):
    def step(self, action: Any) -> Any:
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, info


class InfoNone(Sound):
    def step(self, action: Any) -> Result:
        return *super().step(action)[:4], None


class WrongShape(Sound):
    def observe(self) -> np.ndarray:
        return np.array([self.place], np.float32)


class MissingKey(Sound):
    observation_space = spaces.Dict({"place": spaces.Box(-10, 10, (2,)), "goal": spaces.Box(-10, 10, (2,))})

    def observe(self) -> dict[str, np.ndarray]:
        return {"place": np.zeros(2, np.float32)}


class SpaceChanges(Sound):
    """A longer observation from its second episode on."""

    count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        self.count += 1
        if self.count > 3:
            self.observation_space = spaces.Box(-10.0, 10.0, (3,), np.float32)
        return super().reset(seed=seed)

    def observe(self) -> np.ndarray:
        return np.full(3 if self.count > 3 else 2, self.place, np.float32)


class DictActions(Sound):
    action_space = spaces.Dict({"a": spaces.Discrete(2)})


class MaskWrongSize(Sound):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        return super().reset(seed=seed)[0], {"action_mask": np.ones(4, np.int8)}


class MaskInverted(Sound):
    """Its mask says what is forbidden."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        return super().reset(seed=seed)[0], {"action_mask": np.array([0, 0, 1], np.int8)}

    def step(self, action: Any) -> Result:
        if action == 2:
            raise ValueError("a wall is there")
        return *super().step(action)[:4], {"action_mask": np.array([0, 0, 1], np.int8)}


class MaskLate(Sound):
    def step(self, action: Any) -> Result:
        return *super().step(action)[:4], {"action_mask": np.ones(3, np.int8)}


class MaskAllowsNothing(Sound):
    def action_masks(self) -> np.ndarray:
        return np.zeros(3, bool)


# ------------------------------------------------------------------ what is raised, what hangs


class RaisesWhenMade(Sound):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class RaisesAtFirst(Sound):
    def observe(self) -> np.ndarray:
        raise RuntimeError("no camera")


class RaisesLater(Sound):
    steps = 0

    def reward(self) -> Any:
        self.steps += 1
        return 1 / (20 - self.steps)


class SlowReset(Sound):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        time.sleep(0.06)
        return super().reset(seed=seed)


class NeedsASeed(Sound):
    """Its generator comes with the first seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.rng.random()
        return super().reset(seed=seed)


class CloseRaises(Sound):
    def close(self) -> None:
        raise RuntimeError("no socket")


class CloseHangs(Sound):
    def close(self) -> None:
        time.sleep(3600)


class StepHangs(Sound):
    def is_over(self) -> bool:
        if self.time == 3:
            time.sleep(3600)
        return super().is_over()


class EndsTheProcess(Sound):
    def is_over(self) -> bool:
        if self.time == 3:
            os._exit(3)
        return super().is_over()


class OneAtATime(Sound):
    """A port that only one instance can have."""

    alive = 0

    def __init__(self) -> None:
        if OneAtATime.alive:
            raise RuntimeError("port 5005 is in use")
        OneAtATime.alive += 1

    def close(self) -> None:
        OneAtATime.alive -= 1


# ------------------------------------------------------------------ vectors


class SoundVector(VectorEnv):
    """N walks as in Sound, which truncates after 20 steps; SAME_STEP."""

    mode: Any = AutoresetMode.SAME_STEP

    def __init__(self, num_envs: int) -> None:
        self.metadata = {} if self.mode is None else {"autoreset_mode": self.mode}
        self.num_envs, self.render_mode = num_envs, None
        self.single_observation_space = spaces.Box(-50.0, 50.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self.place = self.start(self.num_envs)
        self.time = np.zeros(self.num_envs, np.int64)
        return self.observe(), {}

    def start(self, number: int) -> np.ndarray:
        return self.np_random.uniform(-1, 1, number)

    def step(self, actions: np.ndarray) -> Result:
        self.time += 1
        self.place = self.place + 0.4 + (actions - 1) * 0.5
        terminated, truncated = self.place > 9, self.time >= 20
        reward = -np.abs(self.place)
        final = self.observe().copy()
        self.begin(terminated | truncated)
        return self.observe(), reward, terminated, truncated, self.info(final)

    def begin(self, done: np.ndarray) -> None:
        self.place = np.where(done, self.start(self.num_envs), self.place)
        self.time[done] = 0

    def info(self, final: np.ndarray) -> dict[str, Any]:
        return {"final_obs": final}

    def observe(self) -> np.ndarray:
        return np.stack([self.place, np.cos(self.place)], -1).astype(np.float32)


class NoFinalObs(SoundVector):
    def info(self, final: np.ndarray) -> dict[str, Any]:
        return {}


class FinalObsOfReset(SoundVector):
    def info(self, final: np.ndarray) -> dict[str, Any]:
        return {"final_obs": self.observe()}


class NoAutoreset(SoundVector):
    """It says that it resets, and goes on."""

    def begin(self, done: np.ndarray) -> None:
        self.time[done] = 0
        self.place = np.where(self.place > 9, 8.5, self.place)


class NoMode(SoundVector):
    mode = None


class AllTheSame(SoundVector):
    """Every environment has the same start at a seed, and later ones of its own."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self.place[:] = self.place[0]
        return self.observe(), {}


class VectorBuffer(SoundVector):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.buffer = np.zeros((num_envs, 2), np.float32)

    def observe(self) -> np.ndarray:
        self.buffer[:] = super().observe()
        return self.buffer


class VectorRewardShape(SoundVector):
    def step(self, actions: np.ndarray) -> Result:
        obs, reward, *rest = super().step(actions)
        return obs, reward.sum(), *rest


class VectorLostReward(SoundVector):
    """Its rewards are those of the new episodes where one has ended."""

    def step(self, actions: np.ndarray) -> Result:
        obs, reward, terminated, truncated, info = super().step(actions)
        return obs, np.where(terminated | truncated, 0, reward), terminated, truncated, info


class VectorNan(SoundVector):
    steps = 0

    def observe(self) -> np.ndarray:
        self.steps += 1
        obs = super().observe()
        obs[2, 0] = np.nan if self.steps > 50 else obs[2, 0]
        return obs


class SoundTensor(TensorVectorEnv):
    """N points that are pushed, for 30 steps."""

    reset_noise_size = 1

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 30, device: torch.device | str = "cpu") -> None:
        sees = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32)
        super().__init__(num_envs, max_episode_steps, sees, spaces.Discrete(2), device)

    def initial_state(self, noise: torch.Tensor) -> State:
        return noise, torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        return state[0]

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        place = state[0] + 0.1 * action[:, None]
        elapsed = state[1] + 1
        terminated, truncated = self.ends(place, elapsed)
        return (place, elapsed), place, -place[:, 0], terminated, truncated

    def ends(self, place: torch.Tensor, elapsed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return place[:, 0] > 2, elapsed >= self.max_episode_steps


class TensorLimit(SoundTensor):
    """Its limit is a termination."""

    def ends(self, place: torch.Tensor, elapsed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return elapsed >= self.max_episode_steps, torch.zeros_like(elapsed, dtype=torch.bool)


class TensorNoLimit(SoundTensor):
    """It was given a limit, and keeps none."""

    def ends(self, place: torch.Tensor, elapsed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return place[:, 0] > 2, torch.zeros_like(elapsed, dtype=torch.bool)


class NotPure(SoundTensor):
    """It counts its steps in Python."""

    steps = 0

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        self.steps += 1
        following, place, reward, terminated, truncated = super().transition(state, action, noise)
        return following, place, reward * self.steps, terminated, truncated


class Chatty(Sound):
    """Sound: it prints."""

    def step(self, action: Any) -> Result:
        print("step")
        return super().step(action)


class ReturnsHome(SoundVector):
    """Sound: an episode ends where it began, after a way out and back."""

    def step(self, actions: np.ndarray) -> Result:
        self.time += 1
        self.place = self.place + np.where(self.time <= 10, 1.0, -1.0)
        done = self.time >= 20
        reward = -np.abs(self.place)
        final = self.observe().copy()
        self.begin(done)
        return self.observe(), reward, done & False, done, {"final_obs": final}


class Masked(Sound):
    """Sound: it forbids what leads off, in the info."""

    def mask(self) -> dict[str, np.ndarray]:
        return {"action_mask": np.array([self.place > -2, 1, self.place < 2], np.int8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        return super().reset(seed=seed)[0], self.mask()

    def step(self, action: Any) -> Result:
        assert self.mask()["action_mask"][action]
        return *super().step(action)[:4], self.mask()


class MaskMethod(Sound):
    """Sound: the same by a method, of a MultiDiscrete space."""

    action_space = spaces.MultiDiscrete([3, 2])

    def action_masks(self) -> np.ndarray:
        return np.array([1, 1, self.place < 2, 1, 1], bool)

    def step(self, action: Any) -> Result:
        assert self.action_masks()[action[0]]
        return super().step(action[0])


class DictObservation(Sound):
    """Sound: its mask is in its observation."""

    observation_space = spaces.Dict(
        {"place": spaces.Box(-10, 10, (2,)), "kind": spaces.Discrete(3), "action_mask": spaces.MultiBinary(3)}
    )

    def observe(self) -> Any:
        mask = np.array([self.place > -2, 1, self.place < 2], np.int8)
        return {"place": super().observe(), "kind": self.time % 3, "action_mask": mask}


class SoundDials(Sound):
    """Sound: MultiDiscrete, of 12 moves."""

    action_space = spaces.MultiDiscrete([3, 4])

    def step(self, action: Any) -> Result:
        assert action.shape == (2,)
        return super().step(action[0])


for _name, _kind in list(globals().items()):
    if isinstance(_kind, type) and _kind.__module__ == __name__ and issubclass(_kind, (gymnasium.Env, VectorEnv)):
        _place = f"{__name__}:{_name}"
        if issubclass(_kind, VectorEnv):
            _limit = {"SoundTensor": 30, "TensorLimit": 30, "TensorNoLimit": 30, "NotPure": 30}.get(_name)
            gymnasium.register(f"{_name}-v0", vector_entry_point=_place, max_episode_steps=_limit)
        else:
            _limit = {"SpecLimit": 25, "NeverEnds": None}.get(_name, 60)
            gymnasium.register(f"{_name}-v0", entry_point=_place, max_episode_steps=_limit)
