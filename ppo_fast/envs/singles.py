"""Single environments side by side: a loop that steps some of them, and the vector that runs it in this process.

The loop encodes each observation where it goes, so a vector has nothing left to batch. Letters: N envs, S observation
shape, A action shape of the environment itself.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces

from ppo_fast.envs.closing import close_all
from ppo_fast.envs.encoded import EncodedVectorEnv, HostStep
from ppo_fast.envs.faults import blame, outside
from ppo_fast.envs.fitting import FIRST_RESET, Misfit, begun, one_number, wrong_step
from ppo_fast.envs.masks import MASK, METHOD, Masks, check_late, find_masks, maskable, masks_in_observation
from ppo_fast.envs.seeds import seed_spaces
from ppo_fast.envs.settings import Theirs, theirs_of
from ppo_fast.envs.spaces import ObservationEncoder, presented_actions

T = TypeVar("T")

MakeEnv = Callable[[], gymnasium.Env]
# Shape and type of each array, by its name.
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


class Kind(NamedTuple):
    """What all environments of a vector have in common, found out with one that is closed again."""

    encoder: ObservationEncoder
    action_space: spaces.Space
    metadata: dict[str, Any]
    render_mode: str | None
    masks: Masks
    theirs: Theirs


def find_kind(make_env: MakeEnv, env_id: str = "") -> Kind:
    """Make one environment, look, close it: a space that is not supported or a missing package is told before N of
    them exist.

    Raises:
        ValueError: naming --env-id, for an unsupported space.
        ImportError, gymnasium.error.Error: of making it: a package is missing, there is no such environment.
        EnvironmentFault: it raised something else.
    """
    theirs = theirs_of(env_id)
    env = made(make_env, 0, theirs)
    try:
        presented_actions(env.action_space, env_id)
        ObservationEncoder(env.observation_space, env_id)
        masks = masks_in_observation(env.observation_space, env.action_space, env_id)
        if not masks.size and maskable(env.action_space):
            masks = _masks_at_reset(env, theirs)
        encoder = ObservationEncoder(env.observation_space, env_id, masks)
        return Kind(encoder, env.action_space, dict(env.metadata), env.render_mode, masks, theirs)
    except ValueError as problem:
        if str(problem).startswith("--"):
            raise
        blame(0, problem)
    except BaseException as problem:  # it has no spaces, say
        blame(0, problem)
    finally:
        close_all([env])


def made(make: Callable[[], T], index: int | None, theirs: Theirs) -> T:
    """What `make` makes, with its own settings of the process. What it raises is the fault of environment `index`,
    unless something is missing."""
    try:
        with quiet_models(), theirs.hold():
            return make()
    except (ImportError, gymnasium.error.Error):
        raise
    except BaseException as problem:
        blame(index, problem)


def _masks_at_reset(env: gymnasium.Env, theirs: Theirs) -> Masks:
    """Only a reset tells whether there are masks in the info, and only after one a method may be called."""
    try:
        return find_masks(env, begun(theirs.call(env.reset, seed=0))[1])
    except BaseException as problem:
        blame(0, problem, FIRST_RESET)


class Rows(NamedTuple):
    """What N environments returned last. `final_obs` is written only where an episode ended."""

    obs: np.ndarray  # (N, *S) f32
    final_obs: np.ndarray  # (N, *S) f32
    reward: np.ndarray  # (N,) f32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool

    @staticmethod
    def layout(kind: Kind, num_envs: int) -> Layout:
        """Shape and type of each array."""
        obs = ((num_envs, *kind.encoder.space.shape), np.dtype(np.float32))
        number = ((num_envs,), np.dtype(np.float32))
        flag = ((num_envs,), np.dtype(bool))
        return {"obs": obs, "final_obs": obs, "reward": number, "terminated": flag, "truncated": flag}


class Block:
    """The environments `first`, `first` + 1, ... of a vector, stepped in turn, each writing its own row.

    Args:
        makers: one for each environment.
        first: the index of the first of them.
        kind: of all of them.
        rows: of the whole vector.
        at: (1,) int64, where the index of the environment at work is kept, for whoever watches.
    """

    def __init__(self, makers: Sequence[MakeEnv], first: int, kind: Kind, rows: Rows, at: np.ndarray) -> None:
        self._kind = kind
        self._encoder = kind.encoder
        self._rows = rows
        self._at = at
        self._at[0] = first
        self._indices = range(first, first + len(makers))
        self._own_obs = rows.obs[self._indices.start : self._indices.stop]
        self._obs_shape = rows.obs.shape[1:]
        self._views = [memoryview(row) for row in self._own_obs]
        self._steps = 0  # that were made or begun
        self._result: Any = None  # of the last step of one environment
        # Of the last observation, which the next one is likely to be like; None for none that may be copied as it is.
        self._usual_type: np.dtype | None = None
        self._fits_view = False  # whether such a one can be copied as bytes
        # Of environments that gave no mask so far: a late one would have been left out of account.
        self._maskable = () if kind.masks.size else maskable(kind.action_space)
        self._envs: list[gymnasium.Env] = []
        try:
            for index, maker in zip(self._indices, makers, strict=True):
                self._at[0] = index
                self._envs.append(made(maker, index, kind.theirs))
        except BaseException:
            close_all(self._envs)  # those that are there: a simulator may allow only so many
            raise
        self._mask_methods: list[Callable[[], Any]] = []
        if kind.masks.source == "method":
            self._mask_methods = [env.get_wrapper_attr(METHOD) for env in self._envs]

    def reset(self, seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        """Start new episodes: in all environments, or where mask (N,) holds; seeds is one for each of the vector."""
        for place, index in enumerate(self._indices):
            if mask is None or mask[index]:
                self._reset_one(place, seeds[index], options)

    def step(self, actions: np.ndarray) -> None:
        """Step all with actions (envs of this block, *A), with SAME_STEP autoreset."""
        self._steps += 1
        try:
            self._step_each(actions)
        except BaseException as problem:
            self._blame_step(problem)

    def _step_each(self, actions: np.ndarray) -> None:
        """Step one after the other, and write what they give."""
        # Local names, and no calls where nothing ends: this loop is the time of a step.
        at, plain, shape, usual, array = self._at, self._encoder.plain, self._obs_shape, self._usual_type, np.ndarray
        all_obs, _, rewards, terminations, truncations = self._rows
        is_usual = self._fits_view
        is_first, wants_masks = self._steps == 1, self._kind.masks.size
        first = self._indices.start
        seen: list[Any] = []
        masks: list[Any] = []
        for index, env, action, view in zip(self._indices, self._envs, actions, self._views, strict=True):
            at[0] = index
            result = self._result = env.step(action)
            obs, reward, terminated, truncated, info = result
            if is_first:
                self._look_closely(result)
            if terminated or truncated:
                obs, info = self._next_episode(index, env, obs, info)
            if not plain:  # encoding is cheaper for all at once, and each keeps its own last observation until then
                seen.append(obs)
                masks.append(self._mask(index - first, info) if wants_masks else None)
            try:
                if is_usual:
                    view[:] = obs  # which takes no other shape and no other type
                elif plain and type(obs) is array and obs.dtype is usual and obs.shape == shape:
                    all_obs[index] = obs
                elif plain:
                    self._write_one(obs, all_obs, index, None)
                rewards[index] = reward
                terminations[index] = terminated
                truncations[index] = truncated
            except (TypeError, ValueError):  # something of another type, or an array of one number
                self._write_unusual(index, obs, result)
        if seen:
            self._encoder.write_list(seen, self._own_obs, masks)

    def _look_closely(self, result: Any) -> None:
        """A Misfit where the first step gave something else than numbers and an info, or the first mask."""
        words = wrong_step(result)
        if words is not None:
            raise Misfit(words)
        check_late(result[4], self._maskable)

    def _reset_one(self, place: int, seed: int | None, options: dict[str, Any] | None) -> None:
        """Start a new episode in the environment at a place of this block."""
        index, env = self._indices[place], self._envs[place]
        self._at[0] = index
        try:
            seed_spaces(env, seed)
            obs, info = begun(env.reset(seed=seed, options=options))
            check_late(info, self._maskable)
            self._write_one(obs, self._rows.obs, index, self._mask(place, info))
        except BaseException as problem:
            blame(index, problem, self._reset_now())

    def _next_episode(self, index: int, env: gymnasium.Env, obs: Any, info: Any) -> tuple[Any, Any]:
        """Write the last observation of an episode; the first one of the next, and its info."""
        mask = info.get(MASK)
        if mask is not None and self._maskable:
            check_late(info, self._maskable)
        # Beside the last observation a method may not be called, and nobody acts.
        self._write_one(obs, self._rows.final_obs, index, mask)
        try:
            result = env.reset()
            obs, info = result if type(result) is tuple and len(result) == 2 else begun(result)
        except BaseException as problem:
            blame(index, problem, self._reset_now())
        return obs, info

    def _mask(self, place: int, info: Any) -> Any:
        """The mask beside an observation of the environment at a place of this block; None where there is none."""
        return self._mask_methods[place]() if self._mask_methods else info.get(MASK)

    def _write_one(self, obs: Any, out: np.ndarray, index: int, mask: Any) -> None:
        """Encode an observation into a row of out (N, *S)."""
        is_array = self._encoder.plain and type(obs) is np.ndarray
        if is_array and obs.dtype is self._usual_type and obs.shape == self._obs_shape:
            out[index] = obs
            return
        self._encoder.write_one(obs, out[index], mask)
        self._usual_type = obs.dtype if is_array else None
        self._fits_view = is_array and obs.dtype == np.float32 and len(self._obs_shape) == 1

    def _write_unusual(self, index: int, obs: Any, result: Sequence[Any]) -> None:
        """Write what a step gave, also a reward and flags that are arrays of one number.

        Args:
            obs: to go on from.
            result: of the step.
        """
        if self._encoder.plain:
            self._write_one(obs, self._rows.obs, index, None)
        for name, value in zip(("reward", "terminated", "truncated"), result[1:4], strict=True):
            getattr(self._rows, name)[index] = one_number(value, name)

    def _blame_step(self, problem: BaseException) -> NoReturn:
        """Raise the fault of a step: of what an environment raised, or because of what it returned."""
        index = int(self._at[0])
        if isinstance(problem, Misfit):
            index = index if problem.row is None else self._indices.start + problem.row
        elif outside(problem.__traceback__) is None:  # raised here
            words = wrong_step(self._result)
            problem = problem if words is None else Misfit(words)
        blame(index, problem, f"step {self._steps}")

    def _reset_now(self) -> str:
        """When a reset is, in words."""
        return f"its reset after step {self._steps}" if self._steps else FIRST_RESET

    def call(self, name: str, args: Sequence[Any]) -> list[Any]:
        """What the method of this name returns, of each."""
        answers: list[Any] = []
        for index, env in zip(self._indices, self._envs, strict=True):
            self._at[0] = index
            try:
                answers.append(self._kind.theirs.call(env.get_wrapper_attr(name), *args))
            except BaseException as problem:
                blame(index, problem, f"{name}()")
        return answers

    def render(self) -> list[Any]:
        """A frame of each."""
        return [env.render() for env in self._envs]

    def close(self) -> None:
        """Close all of them, also when one can't be: it raises, or hangs."""
        close_all(self._envs)


class SingleVectorEnv(EncodedVectorEnv):
    """N single environments in this process (see EncodedVectorEnv).

    Args:
        makers: make the N environments, one each.
        kind: from `find_kind`.

    Raises:
        EnvironmentFault: from every method, when an environment raises.
    """

    def __init__(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        super().__init__(len(makers), kind.encoder, kind.action_space, kind.metadata, kind.render_mode)
        self._start(makers, kind)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there; one seed for each
        environment, or a number for the first that the others count on from."""
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int):
            seeds = list(range(seed, seed + self.num_envs))
        else:
            seeds = seed
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        self._reset(seeds, mask, options or None)
        return self._rows.obs, {}

    def step(self, actions: np.ndarray) -> HostStep:
        """Step all with actions (N, *A)."""
        self._block.step(actions)
        return self._stepped()

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """What the method of this name returns, of each environment."""
        return tuple(self._block.call(name, args))

    def render(self) -> tuple[Any, ...]:
        """A frame of each environment."""
        return tuple(self._block.render())

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        self._block.close()

    def _start(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        """Make the environments."""
        layout = Rows.layout(kind, self.num_envs)
        self._rows = Rows(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()})
        self._block = Block(makers, 0, kind, self._rows, np.zeros(1, np.int64))

    def _reset(self, seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        self._block.reset(seeds, mask, options)

    def _stepped(self) -> HostStep:
        """The rows of the last step."""
        rows = self._rows
        return rows.obs, rows.reward, rows.terminated, rows.truncated, {"final_obs": rows.final_obs}


@contextlib.contextmanager
def quiet_models() -> Iterator[None]:
    """Drop what MuJoCo says while it compiles a model: Gymnasium's own models use an attribute that it deprecates, and
    it would print that and write MUJOCO_LOG.TXT for each of N environments. Warnings of the simulation stay."""
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is None or not hasattr(mujoco, "set_mju_user_warning"):
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
