"""Small environments that the end-to-end tests train on, for `--env-id odd_envs:NextStep-v0` and the like."""

import os
import random
import signal
import subprocess
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

LENGTH = 5  # steps of every episode of NextStepVector
NAN_AT = 20  # step of NanReward


class NextStepVector(VectorEnv):
    """Episodes of LENGTH steps in NEXT_STEP mode: action 1 earns 1. Even environments terminate, odd ones truncate.

    The junk row after an end shows a reward of 1000, which nothing may ever count.
    """

    def __init__(self, num_envs: int) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs, self.render_mode = num_envs, None
        self.single_observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._time = np.zeros(num_envs, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time[:] = 0
        return self._obs(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        junk = self._time == LENGTH
        self._time = np.where(junk, 0, self._time + 1)
        ended = self._time == LENGTH
        even = np.arange(self.num_envs) % 2 == 0
        reward = np.where(junk, 1000.0, actions == 1)
        return self._obs(), reward, ended & even, ended & ~even, {}

    def _obs(self) -> np.ndarray:
        return np.stack([self._time / LENGTH, self.np_random.random(self.num_envs)], -1).astype(np.float32)


class TwoDials(gymnasium.Env):
    """MultiDiscrete: each of two dials (3 and 4 positions) set to where the observation says earns a half."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.MultiDiscrete([3, 4])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action.shape == (2,) and (action >= 0).all() and action[0] < 3 and action[1] < 4
        reward = 0.5 * (action[0] == int(self._obs[0] * 2.99)) + 0.5 * (action[1] == int(self._obs[1] * 3.99))
        self._time += 1
        return self._draw(), float(reward), self._time == 8, False, {}

    def _draw(self) -> np.ndarray:
        self._obs = self.np_random.random(2, dtype=np.float32)
        return self._obs


class NanReward(TwoDials):
    """Its NAN_AT-th reward is NaN."""

    def __init__(self) -> None:
        self._steps = 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        self._steps += 1
        return obs, float("nan") if self._steps == NAN_AT else reward, terminated, truncated, info


class Shared(gymnasium.Env):
    """Draws all it shows from the generators that a process shares: those of `random`, NumPy and torch."""

    observation_space: spaces.Space = spaces.Box(-9.0, 9.0, (3,), np.float32)
    action_space: spaces.Space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._time = 0
        return self.draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        return self.draw(), random.random(), self._time == 7, False, {}

    def draw(self) -> np.ndarray:
        """What it shows next."""
        return np.array([random.random(), np.random.normal(), float(torch.rand(()))], np.float32)


class Fragile(TwoDials):
    """TwoDials that fails `how` at its `after`-th step, reset or start (`when`).

    Without arguments the variable FRAGILE says "how,after,path": only the environment that makes the file at `path`
    fails, and once.

    Args:
        how: "raise", "exit" (with status 3), "kill" (by SIGKILL) or "hang"; "hang with child" first starts a process
            and "exit with child" forks, and they write its id to `path`; "" never fails.
        after: counted from 1.
        when: "step", "reset" or "start".
        path: see above.
    """

    def __init__(self, how: str = "", after: int = 1, when: str = "step", path: str = "") -> None:
        self.how, self.after, self.when, self.path, self.once = how, after, when, path, False
        if not how and os.environ.get("FRAGILE"):
            self.how, count, self.path = os.environ["FRAGILE"].split(",")
            self.after, self.once = int(count), True
        self.counts = {"step": 0, "reset": 0, "start": 0}
        self._count("start")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._count("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._count("step")
        return super().step(action)

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self.how and self.when == what and self.counts[what] == self.after:
            self._fail()

    def _fail(self) -> None:
        if self.once:
            try:
                open(self.path, "x").close()
            except FileExistsError:
                return
        if self.how == "raise":
            raise ValueError("a screw is loose\nand a second line")
        if self.how == "exit":
            os._exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang with child":
            self._write(subprocess.Popen(["sleep", "3600"]).pid)
        if self.how == "exit with child" and (child := os.fork()):
            self._write(child)
            os._exit(3)
        time.sleep(3600)

    def _write(self, pid: int) -> None:
        with open(self.path, "w") as file:
            file.write(str(pid))


class Dial(gymnasium.Env):
    """Actions from 100 to 200, of which 150 is the best; it shows its last action as a grey from 0 to 200."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Box(100.0, 200.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._set = 100.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self._set = float(action[0])
        self._time += 1
        return self._draw(), -abs(self._set - 150) / 50, False, self._time == 8, {}

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), round(2 * (self._set - 100)), np.uint8)

    def _draw(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class Endless(gymnasium.Env):
    """No episode ends."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(2, np.float32), float(action), False, False, {}


class Forbids(gymnasium.Env):
    """Three actions, of which each step forbids another one; episodes of five steps. A forbidden one is an error."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._elapsed, self._forbidden = 0, int(self.np_random.integers(3))
        return self._seen()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action != self._forbidden
        self._elapsed, self._forbidden = self._elapsed + 1, int(self.np_random.integers(3))
        obs, info = self._seen()
        return obs, float(action), self._elapsed == 5, False, info

    def _seen(self) -> tuple[np.ndarray, dict]:
        allowed = np.arange(3) != self._forbidden
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {"action_mask": allowed.astype(np.int8)}


gymnasium.register("Forbids-v0", entry_point=f"{__name__}:Forbids")
gymnasium.register("Endless-v0", entry_point=f"{__name__}:Endless")
gymnasium.register("NextStep-v0", vector_entry_point=f"{__name__}:NextStepVector", entry_point=f"{__name__}:TwoDials")
gymnasium.register("TwoDials-v0", entry_point=f"{__name__}:TwoDials")
gymnasium.register("NanReward-v0", entry_point=f"{__name__}:NanReward")
gymnasium.register("Dial-v0", entry_point=f"{__name__}:Dial")
gymnasium.register("Shared-v0", entry_point=f"{__name__}:Shared")
gymnasium.register("Fragile-v0", entry_point=f"{__name__}:Fragile")
