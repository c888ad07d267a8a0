"""A vector environment looked at as training sees it: tensors, an entry point's vector, envpool's.

Letters: T steps, N envs, S observation shape, A action shape, n numbers of a mask.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from ppo_fast import envs as environments
from ppo_fast.checkup.again import digest, generators
from ppo_fast.checkup.findings import Findings
from ppo_fast.checkup.player import Player
from ppo_fast.checkup.record import Columns, Record
from ppo_fast.checkup.walk import SEED
from ppo_fast.envs import Environments, HostVectorEnv, TensorVectorEnv
from ppo_fast.envs.fitting import FIRST_RESET
from ppo_fast.envs.seeds import seed_process
from ppo_fast.envs.spaces import ObservationEncoder

STARTS = 30  # resets that show what a start looks like
MARGIN = 0.25  # of the room that starts take up, around it
DISCERNING = 0.5  # share of steps outside of that room from which on it tells starts from other steps
MOST = 0.9  # of all
MANY = 5  # ends that say something about all
SHORT_LIMIT = 3  # steps of the episodes that show how a limit is reported
BEYOND = 3.0e38  # of float32


class Look:
    """What was returned last by the environment behind the adapter, to see whether it is changed later."""

    def __init__(self, raw: VectorEnv | None, found: Findings) -> None:
        self._found = found
        self._given: list[tuple[np.ndarray, np.ndarray]] = []
        if raw is not None:
            step = raw.step
            raw.step = lambda actions: self._seen(step(actions))  # type: ignore[method-assign]

    def _seen(self, result: Any) -> Any:
        """Look whether the observations before have changed, and keep these."""
        for array, before in self._given:
            if not np.array_equal(array, before, equal_nan=array.dtype.kind == "f"):
                what = "the observations that it had returned before were changed: it returns one array again and again"
                advice = "return copies; here observations are copied at once, other libraries may keep the same ones"
                self._found.warn("reused-buffer", "", what, advice)
        obs = result[0] if isinstance(result, tuple) and result else None
        arrays = [obs] if isinstance(obs, np.ndarray) else []
        self._given = [(array, array.copy()) for array in arrays]
        return result


class VectorWalk:
    """A vector environment on its way; see Walk.

    Attributes:
        actions: that were taken, (N,) or (N, A) each.
        digests: of what each step gave, to be compared.
    """

    def __init__(self, envs: Environments, found: Findings) -> None:
        self.envs = envs
        self.found = found
        encoder = ObservationEncoder(envs.single_observation_space)
        self.columns = Columns.of(envs.single_observation_space, encoder)
        if envs.mask_size:
            width = int(np.prod(envs.single_observation_space.shape)) - envs.mask_size
            self.columns.is_number[self.columns.kept >= width] = False
        self.record = Record(self.columns, envs.num_envs)
        self.actions: list[np.ndarray] = []
        self.digests: list[bytes] = []
        self.first_obs: list[np.ndarray] = []  # that a step returned where an episode ended
        self.final_obs: list[np.ndarray] = []  # and the final ones
        self.next_obs: list[np.ndarray] = []  # in NEXT_STEP mode: of the reset row
        self.finished = False
        self._players = [Player(envs.single_action_space, SEED + i) for i in range(envs.num_envs)]
        self._next_step = envs.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP

    def go(self, steps: int, seconds: float, actions: Sequence[np.ndarray] | None = None, seed: int = SEED) -> None:
        """Reset, and step so often, with these actions or random ones."""
        end = time.monotonic() + seconds
        self.found.at(FIRST_RESET)
        try:
            obs = _array(self.envs.reset(seed=seed)[0])
            self.digests.append(digest(obs))
            for env, row in enumerate(obs):
                self.record.begin(env, row)
            for number in range(1, steps + 1):
                self.found.at(f"step {number}")
                action = self._draw(obs) if actions is None else actions[number - 1]
                obs = self._step(action, obs)
                if time.monotonic() > end:
                    break
            self.finished = True
        except BaseException as problem:
            self.found.raised(problem, self.found.place)

    def _draw(self, obs: np.ndarray) -> np.ndarray:
        """Random actions (N, ...)."""
        size = self.envs.mask_size
        masks = [row[-size:] for row in obs] if size else [None] * len(obs)
        # The players draw as the space is: from its start on. Programs count from 0.
        return np.array([player.draw(mask) for player, mask in zip(self._players, masks, strict=True)])

    def _step(self, action: np.ndarray, before: np.ndarray) -> np.ndarray:
        """One step of all: the observations to go on from."""
        self.actions.append(action.copy())
        given = self.envs.step(action)
        self._look_at_types(given)
        obs, reward, terminated, truncated = (_array(x) for x in given[:4])
        final_obs, valid = _array(given[4]["final_obs"]), _array(given[4]["valid"]).astype(bool)
        done = terminated | truncated
        self.digests.append(digest(final_obs, reward, terminated, truncated))
        self.record.add(final_obs, reward, terminated, truncated, valid)
        self._look_at_numbers(final_obs, reward)
        for env in np.flatnonzero(done):
            self.first_obs.append(obs[env])
            self.final_obs.append(final_obs[env])
            if not self._next_step:
                self.record.begin(int(env), obs[env])
        for env in np.flatnonzero(~valid):
            self.next_obs.append(obs[env])
            self.record.begin(int(env), obs[env])
        return obs

    def _look_at_types(self, given: Any) -> None:
        wanted = {"obs": torch.float32, "reward": torch.float32, "terminated": torch.bool, "truncated": torch.bool}
        for (name, dtype), tensor in zip(wanted.items(), given[:4], strict=True):
            if tensor.dtype is not dtype:
                what = f"{name} is {tensor.dtype}, not {dtype}"
                self.found.error("type", self.found.place, what, "compiled rollouts take no other: convert it")
        shape = (self.envs.num_envs, *self.envs.single_observation_space.shape)
        if tuple(given[0].shape) != shape:
            what = f"observations have the shape {tuple(given[0].shape)}, not {shape}"
            self.found.error("misfit", self.found.place, what, "return what single_observation_space says")

    def _look_at_numbers(self, obs: np.ndarray, reward: np.ndarray) -> None:
        space = self.envs.single_observation_space
        for name, values in (("the observation", obs), ("the reward", reward)):
            if not np.isfinite(values).all():
                index = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
                what = f"{name} of environment {index[0]} is {values[index]}"
                self.found.error("not-finite", self.found.place, what, "training stops there: find where it comes from")
                return
        room = 1e-4 * (1 + np.abs(np.clip(space.low, -BEYOND, BEYOND)).astype(np.float64))
        outside = (obs < space.low - room) | (obs > space.high + room)
        if outside.any():
            index = tuple(np.argwhere(outside)[0].tolist())
            where = f"environment {index[0]} at {list(index[1:])}"
            what = f"the observation of {where} is {obs[index]:g}, outside of its space"
            self.found.warn("outside-space", self.found.place, what, "widen observation_space, or mend the value")


def _array(x: Any) -> np.ndarray:
    """A tensor, of whatever device, as memory of its own."""
    return x.detach().cpu().numpy().copy() if isinstance(x, torch.Tensor) else np.array(x)


Make = Callable[..., Environments]


class Vector:
    """The examination of one vector environment.

    Args:
        make: makes it; takes `max_episode_steps`.
        found: gets what is wrong.
    """

    def __init__(self, make: Make, found: Findings) -> None:
        self._make = make
        self.found = found
        self.walk: VectorWalk | None = None
        self.autoreset = ""  # how it says that it begins new episodes
        self.limit_is_kept = False  # whether it truncates where it is told to

    def examine(self, steps: int, seconds: float, goes_on: Callable[[], bool]) -> None:
        """Look at everything that time allows."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.found.at("made")
            envs = self._make()
            try:
                walk = self._walk(envs, steps, seconds)
            finally:
                envs.close()
            if walk.finished and goes_on():
                self._compare(walk, min(len(walk.actions), 200))
                self._look_at_limit()
            for warning in told:
                self._hear(str(warning.message), walk)

    def _walk(self, envs: Environments, steps: int, seconds: float) -> VectorWalk:
        """Step it, and look at what it gave."""
        mode = (envs.envs if isinstance(envs, HostVectorEnv) else envs).metadata.get("autoreset_mode")
        self.autoreset = getattr(mode, "name", str(mode))
        raw = envs.envs if isinstance(envs, HostVectorEnv) and envs.backend == "entry_point" else None
        if raw is not None and raw.metadata.get("autoreset_mode") is None:
            what = "its metadata names no autoreset_mode; NEXT_STEP is assumed"
            self.found.warn("no-autoreset-mode", "", what, "set metadata['autoreset_mode'] to one of AutoresetMode")
        Look(raw, self.found)
        self.walk = VectorWalk(envs, self.found)
        self.walk.go(max(1, steps // envs.num_envs), seconds)
        if self.walk.finished:
            if not self.found.has("not-finite"):
                self._look_at_autoreset(envs, self.walk)
            _compare_rows(self.walk, self.found)
            if isinstance(envs, TensorVectorEnv):
                _look_whether_pure(envs, self.walk, self.found)
        return self.walk

    # What happens where episodes end.

    def _look_at_autoreset(self, envs: Environments, walk: VectorWalk) -> None:
        if len(walk.final_obs) < MANY:
            return
        starts = np.concatenate([_array(envs.reset(seed=100 + i)[0]) for i in range(STARTS)])
        room = _Room(starts.reshape(len(starts), -1))
        inside_steps = room.holds(walk.record.obs[walk.record.valid], walk.columns.kept)
        if 1 - inside_steps.mean() < DISCERNING:  # most steps look like starts: nothing can be told
            self._look_for_equal_final_obs(walk)
            return
        kept = walk.columns.kept
        fresh = np.array(walk.next_obs or walk.first_obs).reshape(-1, starts[0].size)[:, kept]
        final = np.array(walk.final_obs).reshape(-1, starts[0].size)[:, kept]
        leaps = Leaps(walk.record)
        if room.holds(final, kept).mean() > MOST and leaps.is_far(*leaps.last_steps()):
            what = f"the final observations of {len(final)} episodes are first ones of new episodes"
            advice = "info['final_obs'] is the state that the last action led to; the mode says when it is reset"
            self.found.error("final-obs", "", what, advice)
        elif room.holds(fresh, kept).mean() < 1 - MOST and not leaps.is_far(final[: len(fresh)], fresh):
            what = f"after {len(fresh)} ends the observation is none that a reset gives"
            self.found.error("no-autoreset", "", what, "its autoreset mode says that it begins a new episode there")
        else:
            self._look_for_equal_final_obs(walk)

    def _look_for_equal_final_obs(self, walk: VectorWalk) -> None:
        """Final observations that are the very ones that the next episode begins with."""
        if walk.next_obs:
            return
        pairs = zip(walk.first_obs, walk.final_obs, strict=True)
        equal = [bool(np.array_equal(first, final)) for first, final in pairs]
        rows = walk.record.obs
        moves = float((rows[1:] != rows[:-1]).any(-1).mean()) if len(rows) > 1 else 0.0
        if all(equal) and (1 - moves) ** len(equal) < 1e-3:
            what = f"the final observations of {len(equal)} episodes are the first ones of the next"
            self.found.error("final-obs", "", what, "info['final_obs'] is the state that the last action led to")

    def _hear(self, text: str, walk: VectorWalk) -> None:
        """A warning of the adapter."""
        if "gives no final_obs" in text:
            truncated = bool(walk.record.truncated.any())
            what = "no info['final_obs'] where an episode ends: the true last observation is lost"
            advice = "put it there, or use AutoresetMode.NEXT_STEP; truncated episodes need its value"
            self.found.add("error" if truncated else "warning", "no-final-obs", "", what, advice)
        elif "did not close" in text:
            self.found.warn("close", "", text, "close() has to end whatever it started")

    # The same again.

    def _compare(self, walk: VectorWalk, steps: int) -> None:
        same, drawn_from = self._again(walk, steps, SEED)
        if drawn_from:
            what = f"draws from {' and '.join(drawn_from)}, which all code of a process shares"
            self.found.warn("global-random", "", what, "draw from self.np_random")
        wrong = next((i for i, (a, b) in enumerate(zip(walk.digests, same, strict=False)) if a != b), None)
        if wrong is not None:
            if not drawn_from:
                place = f"step {wrong}" if wrong else "its first reset"
                what = f"two instances with the same seed and the same actions differ from {place} on"
                advice = "draw from self.np_random, seeded by super().reset(seed=seed)"
                self.found.warn("seed-ignored", "", what, advice)
            return
        other, _ = self._again(walk, steps, SEED + 1)
        if other == same:
            what = "other seeds give the same episodes"
            self.found.note("seed-without-effect", "", what, "right if nothing in it is random; else seed what is")

    def _again(self, walk: VectorWalk, steps: int, seed: int) -> tuple[list[bytes], list[str]]:
        """What another one gives with the same actions, and which shared generators it draws from."""
        self.found.at("made again")
        envs = self._make()
        try:
            seed_process(2)
            before = generators()
            again = VectorWalk(envs, Findings(self.found.subject))
            again.go(steps, 1e9, walk.actions[:steps], seed)
            drawn_from = [name for name, state in generators().items() if state != before[name]]
        finally:
            envs.close()
        return again.digests, drawn_from

    def _look_at_limit(self) -> None:
        """Whether an episode that a limit ends is truncated."""
        self.found.at(f"made with max_episode_steps={SHORT_LIMIT}")
        try:
            envs = self._make(max_episode_steps=SHORT_LIMIT)
        except (ValueError, TypeError, environments.EnvironmentFault):  # it does not take that
            return
        walk = VectorWalk(envs, self.found)
        try:
            walk.go(SHORT_LIMIT, 1e9)
        finally:
            envs.close()
        ends = [episode for episode in walk.record.episodes() if episode.length == SHORT_LIMIT]
        place = f"with max_episode_steps={SHORT_LIMIT}"
        if not any(episode.length < SHORT_LIMIT for episode in walk.record.episodes()) and walk.finished:
            if not ends and int(walk.record.running().max()) == SHORT_LIMIT:
                what = f"no episode ends after {SHORT_LIMIT} steps"
                self.found.warn("limit-ignored", place, what, "a vector environment has to keep the limit itself")
            elif ends and all(episode.terminated for episode in ends):
                what = f"all {len(ends)} episodes end after {SHORT_LIMIT} steps with terminated=True"
                self.found.error("time-limit", place, what, "a limit of time is truncated=True, terminated=False")
            self.limit_is_kept = bool(ends)


class Leaps:
    """How far observations move in a step, to tell whether others are farther apart."""

    def __init__(self, record: Record) -> None:
        obs = record.obs
        goes_on = (record.valid & ~record.terminated & ~record.truncated)[:-1] & record.valid[1:]
        inside = goes_on[:-1] & goes_on[1:] if len(goes_on) > 1 else goes_on[:0]  # not the last steps of episodes
        self._record = record
        self._scale = obs[record.valid].std(0) + 1e-8  # (D,)
        self._usual = self._sizes(obs[:-2][inside], obs[1:-1][inside])

    def _sizes(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """(K,) how far (K, D) are from each other."""
        return np.abs((after - before) / self._scale).max(-1)

    def last_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Observations before the last step of episodes, and after it."""
        obs = self._record.obs
        ends = [episode for episode in self._record.episodes() if episode.length > 1]
        before = [obs[episode.last - 1, episode.env] for episode in ends]
        after = [obs[episode.last, episode.env] for episode in ends]
        return np.array(before).reshape(len(ends), -1), np.array(after).reshape(len(ends), -1)

    def is_far(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether most of these are farther apart than nearly all steps are."""
        if not len(before) or not len(self._usual):
            return False
        return bool(np.median(self._sizes(before, after)) > np.quantile(self._usual, 0.95))


class _Room:
    """The room that first observations take up: from the least to the largest of each number, and a margin."""

    def __init__(self, starts: np.ndarray) -> None:
        margin = MARGIN * np.ptp(starts, axis=0) + 1e-5
        self._low, self._high = starts.min(0) - margin, starts.max(0) + margin

    def holds(self, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """(K,) whether observations, of which the columns `kept` are given (K, D), lie in it."""
        return ((rows >= self._low[kept]) & (rows <= self._high[kept])).all(-1)


def _compare_rows(walk: VectorWalk, found: Findings) -> None:
    """Environments of one vector that are all the same one."""
    starts = walk.record.starts[: walk.envs.num_envs]
    others = walk.record.starts[walk.envs.num_envs :]
    if len(starts) > 1 and (starts == starts[0]).all() and len(others) and not (others == starts[0]).all():
        what = f"all {len(starts)} environments begin in the same state, and later episodes in others"
        found.error("same-seeds", "", what, "give each a stream of random numbers of its own")


def _look_whether_pure(envs: TensorVectorEnv, walk: VectorWalk, found: Findings) -> None:
    """Whether a step of tensors, given the same, gives the same again, and leaves what it was given."""
    envs.reset(seed=SEED)
    state = envs.state
    noise = envs.draw_noise(1)[0]
    kept = [tensor.clone() for tensor in state]
    action = torch.as_tensor(walk.actions[0])
    _, one = envs.advance(state, action, noise)
    first = one.obs.clone(), one.reward.clone()
    if not all(torch.equal(a, b) for a, b in zip(state, kept, strict=True)):
        found.error("not-pure", "step 1", "a step changes the state that it was given", "return new tensors")
        return
    _, other = envs.advance(state, action, noise)
    if not (torch.equal(first[0], other.obs) and torch.equal(first[1], other.reward)):
        what = "a step gives other numbers for the same state, action and noise"
        found.error("not-pure", "step 1", what, "what changes belongs into the state, randomness into the noise")
