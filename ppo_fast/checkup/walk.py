"""Walk: a single environment stepped with random actions, and each thing that it gives looked at."""

import copy
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import ppo_fast
from ppo_fast.checkup.findings import Findings
from ppo_fast.checkup.player import Player
from ppo_fast.checkup.record import Columns, Record
from ppo_fast.checkup.values import leaves, look_at_flag, look_at_obs, look_at_reward
from ppo_fast.envs.fitting import FIRST_RESET, begun, dictionary, five
from ppo_fast.envs.masks import MASK, METHOD, Masks, check_late, flat_mask, maskable
from ppo_fast.envs.spaces import ObservationEncoder

OURS = str(Path(ppo_fast.__file__).parent)
SEED = 1  # of the first episode


class _Over(Exception):
    """Going on makes no sense; the finding is noted."""


class Walk:
    """One environment on its way.

    Args:
        env: made, not yet reset.
        masks: how it says which actions it allows.
        found: gets what is wrong.

    Attributes:
        record: what it gave.
        actions: that were taken.
        step_seconds, reset_seconds: how long each took.
        finished: whether it came to its end: nothing was raised, and all could be read.
    """

    def __init__(self, env: gymnasium.Env, masks: Masks, found: Findings) -> None:
        self.env = env
        self.masks = masks
        self.found = found
        self.encoder = ObservationEncoder(env.observation_space, masks=masks)
        self.record = Record(Columns.of(env.observation_space, self.encoder))
        self.actions: list[Any] = []
        self.step_seconds: list[float] = []
        self.reset_seconds: list[float] = []
        self.finished = False
        self._player = Player(env.action_space, SEED)
        self._spaces = copy.deepcopy((env.observation_space, env.action_space))
        self._late = () if masks.size else maskable(env.action_space)
        self._given: list[tuple[np.ndarray, np.ndarray]] = []  # arrays of the last observation, and how they were
        self._row = np.zeros(self.encoder.space.shape, np.float32)

    def go(self, steps: int, seconds: float) -> None:
        """Reset, and step until so many steps or seconds are over. What is wrong goes into the findings."""
        end = time.monotonic() + seconds
        self.found.at(FIRST_RESET)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                mask = self._reset(SEED)
                while len(self.actions) < steps and time.monotonic() < end:
                    mask = self._step(len(self.actions) + 1, mask)
                    self._hear(told)
            self.finished = True
        except _Over:
            pass
        except BaseException as problem:
            self.found.raised(problem, self.found.place)

    def forbidden_action(self, env: gymnasium.Env) -> Any:
        """An action that the first mask of a fresh instance, which gets no seed, forbids; None where there is none."""
        obs, info = begun(env.reset())
        mask = self._mask(env, obs, info, is_last=False)
        return None if mask is None else self._player.forbidden(mask)

    def _reset(self, seed: int | None) -> np.ndarray | None:
        """Begin an episode: the mask of its first action."""
        started = time.perf_counter()
        result = self.env.reset(seed=seed) if seed is not None else self.env.reset()
        self.reset_seconds.append(time.perf_counter() - started)
        obs, info = begun(result)
        now = (self.env.observation_space, self.env.action_space)
        if now != self._spaces:
            what = f"its spaces are {now[0]} and {now[1]} now, and were {self._spaces[0]} and {self._spaces[1]} before"
            self.found.error("space-changes", self.found.place, what, "a policy is made for one space: keep it")
            raise _Over
        mask = self._look(obs, info)
        self.record.begin(0, self._row)
        return mask

    def _step(self, number: int, mask: np.ndarray | None) -> np.ndarray | None:
        """One step with a random action, and a reset where it ends an episode: the mask of the next action."""
        self.found.at(f"step {number}")
        action = self._player.draw(mask)
        kept = copy.deepcopy(action)
        self.actions.append(kept)
        started = time.perf_counter()
        result = self.env.step(action)
        self.step_seconds.append(time.perf_counter() - started)
        if not np.array_equal(action, kept):
            what = f"changed the action that it was given, from {kept} to {action}"
            self.found.warn("changes-action", self.found.place, what, "copy it first: it is the caller's")
        self._look_whether_overwritten()
        obs, reward, terminated, truncated, info = five(result)
        number_of_reward = look_at_reward(reward, self.found.place, self.found)
        ended = look_at_flag(terminated, "terminated", self.found.place, self.found)
        cut = look_at_flag(truncated, "truncated", self.found.place, self.found)
        mask = self._look(obs, dictionary(info), ended or cut)
        self.record.add(self._row[None], np.array([number_of_reward]), np.array([ended]), np.array([cut]))
        if ended or cut:
            self.found.at(f"the reset after step {number}")
            mask = self._reset(None)
        return mask

    def _look(self, obs: Any, info: Any, is_last: bool = False) -> np.ndarray | None:
        """Look at an observation, write it into the row, and return the mask beside it."""
        check_late(info, self._late)
        mask = self._mask(self.env, obs, info, is_last)
        self.encoder.write_one(obs, self._row, mask)
        look_at_obs(self.env.observation_space, obs, self.found.place, self.found)
        arrays = [value for _, _, value in leaves(self.env.observation_space, obs) if isinstance(value, np.ndarray)]
        self._given = [(array, array.copy()) for array in arrays]
        return mask

    def _mask(self, env: gymnasium.Env, obs: Any, info: Any, is_last: bool) -> np.ndarray | None:
        """The mask now, flat, (n,); None where there is none."""
        if not self.masks.size:
            return None
        if self.masks.source == "observation":
            given = obs[MASK]
        elif self.masks.source == "method":
            given = None if is_last else env.get_wrapper_attr(METHOD)()
        else:
            given = info.get(MASK)
            if given is None and not is_last:
                what = f"no {MASK} in its info, though there was one at its first reset: everything counts as allowed"
                self.found.warn("mask-missing", self.found.place, what, "put one into the info of every reset and step")
        flat = flat_mask(given, self.masks.sizes)
        if not is_last:
            self._look_at_mask(flat)
        return flat

    def _look_at_mask(self, flat: np.ndarray) -> None:
        if not np.isin(flat, (0, 1)).all():
            what = f"its action mask holds other numbers than 0 and 1: {flat.tolist()}"
            self.found.warn("mask-numbers", self.found.place, what, "1 allows an action, 0 forbids it")
        first = 0
        for size in self.masks.sizes:
            if not flat[first : first + size].any():
                what = "its action mask allows nothing, and the episode goes on: everything counts as allowed"
                self.found.warn("mask-empty", self.found.place, what, "allow an action, or end the episode")
            first += size

    def _look_whether_overwritten(self) -> None:
        """Whether the observation before has been changed by the step after it."""
        for array, before in self._given:
            if not np.array_equal(array, before, equal_nan=array.dtype.kind == "f"):
                what = "the observation that it had returned before was changed: it returns one array again and again"
                advice = "return a copy; here observations are copied at once, other libraries may keep the same one"
                self.found.warn("reused-buffer", self.found.place, what, advice)

    def _hear(self, told: list[warnings.WarningMessage]) -> None:
        """What NumPy warns of: an overflow, a division by 0."""
        for warning in told:
            is_ours = warning.filename.startswith(OURS)  # such as of a cast, of which there is more to say
            if issubclass(warning.category, RuntimeWarning) and not is_ours:
                where = f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}"
                key = "wraps" if "overflow" in str(warning.message) else "numpy-warning"
                self.found.warn(key, self.found.place, f"{warning.message} ({where})", "mend the arithmetic there")
        told.clear()
