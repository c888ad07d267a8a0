"""HostVectorEnv: any gymnasium vector environment behind the same contract as the tensor environments.

This adapter alone knows the three autoreset modes, object arrays, missing masks and aliased buffers. Letters: N envs,
S observation shape, A action size.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.actions import ActionBounds
from ppo_fast.envs.closing import close_all
from ppo_fast.envs.contract import ActionSpace, Part, State, Step, StepResult
from ppo_fast.envs.encoded import EncodedVectorEnv
from ppo_fast.envs.faults import blame, is_of_environment
from ppo_fast.envs.fitting import FIRST_RESET, Misfit, begun, dictionary, five, misfit_of, vector_numbers
from ppo_fast.envs.masks import (
    MASK,
    NO_MASKS,
    Masks,
    check_late,
    find_vector_masks,
    maskable,
    masks_in_observation,
    vector_method,
)
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.envs.seeds import restart_seed, spread_seeds
from ppo_fast.envs.settings import theirs_of
from ppo_fast.envs.spaces import ActionDecoder, ObservationEncoder, moved, remaining_columns
from ppo_fast.envs.staging import Staging

# Backends that take one seed for each environment. A vector entry point takes one for all.
SEEDED_EACH = ("sync", "async", "envpool")


@runtime_checkable
class _StepsBeside(Protocol):
    """A vector that steps in other threads or processes; the names are those of gymnasium.vector.AsyncVectorEnv."""

    def step_async(self, actions: np.ndarray) -> None: ...

    def step_wait(self) -> Any: ...


class _Rows(NamedTuple):
    """A step on the host, before it is sent to the device. Observations are staged already."""

    obs: torch.Tensor  # (N, *S), to go on from
    reward: np.ndarray  # (N,)
    terminated: np.ndarray  # (N,)
    truncated: np.ndarray  # (N,)
    final_obs: torch.Tensor | None = None  # (N, *S), the true successors; None where they are obs
    valid: np.ndarray | None = None  # (N,), where the row is no reset row; None where there are no such rows

    @property
    def done(self) -> np.ndarray:
        """(N,), where an episode ended."""
        return np.logical_or(self.terminated, self.truncated)


class HostVectorEnv(VectorEnv):
    """Adapts `envs`, which steps on the host and speaks NumPy, to tensors on `device`.

    A caller sees SAME_STEP semantics: obs after an end is that of the new episode and `info["final_obs"]` the true
    successor. NEXT_STEP environments keep their extra row, which comes with `info["valid"]` False, reward 0 and no
    end. DISABLED ones are reset here.

    Args:
        envs: a gymnasium vector environment in any autoreset mode. Without one in its metadata NEXT_STEP is assumed,
            with a warning.
        device: where what is returned lives. On CUDA it is staged in pinned memory and copied without blocking.
        backend: what is reported as `backend`.
        spec_id: what is reported as `spec_id`, and named in errors.
        remake: makes `envs` anew, for `restart`.
        action_bounds: how Box actions get into their bounds (see actions.py).
        hide: columns of the flat observations that are left out of what is returned.
        is_borrowed: whether `envs` stays open when this is closed.

    Action masks (see masks.py) are appended to the observations, flat (N, D + n), 1 where allowed; the attribute
    `mask_size` is then n, else 0. Whether there are such is found out by a reset here, unless `envs` has a `mask_size`
    itself and does it already.

    Raises:
        ValueError: when a space is not supported (see ppo_fast.envs.spaces).
        EnvironmentFault: from reset and step, for whatever `envs` raises.
    """

    pure = False
    state: State = ()  # it lies in the environments, and so do their random numbers
    generator = None
    single_observation_space: spaces.Box
    single_action_space: ActionSpace

    def __init__(
        self,
        envs: VectorEnv,
        device: torch.device | str = "cpu",
        backend: str = "entry_point",
        spec_id: str = "",
        remake: Callable[[], VectorEnv] | None = None,
        action_bounds: ActionBounds = "clip",
        hide: Sequence[int] = (),
        is_borrowed: bool = False,
    ) -> None:
        self._is_borrowed = is_borrowed
        self.device = torch.device(device)
        self.backend = backend
        self.spec_id = spec_id
        self.spec = envs.spec
        self.num_envs = envs.num_envs
        self._theirs = theirs_of(spec_id)
        self._masks = NO_MASKS  # that are to be added to the observations
        self._take(envs)
        self._mode = _autoreset_mode(envs)
        seen = AutoresetMode.NEXT_STEP if self._mode is AutoresetMode.NEXT_STEP else AutoresetMode.SAME_STEP
        self.metadata = {**envs.metadata, "autoreset_mode": seen}
        self.render_mode = envs.render_mode

        self._encoder = ObservationEncoder(envs.single_observation_space, spec_id)
        self._decoder = ActionDecoder(envs.single_action_space, envs.num_envs, spec_id, action_bounds)
        own_mask_size: int | None = getattr(envs, "mask_size", None)
        if own_mask_size is None:
            self._masks = self._find_masks(envs)
            self._encoder = ObservationEncoder(envs.single_observation_space, spec_id, self._masks)
            self._take(envs)
        self.mask_size = self._masks.size if own_mask_size is None else own_mask_size
        # Where a mask would come too late. Environments of ours look for that themselves.
        self._maskable = () if self.mask_size or self._is_ours else maskable(envs.single_action_space)
        self.columns = envs.columns if isinstance(envs, EncodedVectorEnv) else self._encoder.columns
        self.single_observation_space = self._encoder.space
        self._kept: torch.Tensor | None = None  # columns of the observation that are seen; None for all
        self._hidden = tuple(hide)
        if hide:
            self._hide(hide)
        self.single_action_space = self._decoder.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._staging = Staging(self.device)
        # Where an episode ended at the last step; known of NEXT_STEP environments only.
        self._ended = np.zeros(self.num_envs, dtype=bool)
        # The observations before the step, kept where they may have to stand for a missing final_obs.
        self._previous: torch.Tensor | None = None
        self._warned = False
        self._remake = remake
        self._seed: int | list[int] | None = None
        self._restarts = 0
        self._pending: np.ndarray | None = None
        self._steps = 0  # that were made or begun
        self._first_lengths: np.ndarray | None = None  # see `stagger`
        # (N,) int64, the step at which each first episode is to end, 0 where none is left to cut; None where all are 0.
        self._end_at: np.ndarray | None = None

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Start new episodes.

        Args:
            seed: gives each sub-environment of sync, async and envpool its own seed, spread so that neighbouring seeds
                share none; a vector entry point gets the number itself. A list has one for each.
            options: handed to the environments; `reset_mask` (N,) bool resets only some, where `envs` supports it.

        Returns:
            obs (N, *S) and an empty info.

        Raises:
            ValueError: for a negative seed.
        """
        obs = self._begin(seed, options)
        if seed is not None:
            self._seed = seed
        return obs, {}

    def restart(self) -> torch.Tensor:
        """Close everything, workers that hang too, and make it anew: the observations (N, *S) of fresh episodes.

        Their seed follows from the last one that `reset` was given and the number of restarts: equal runs restart
        equally, and no restart repeats episodes.

        Raises:
            EnvironmentFault: when the fault is there again at once.
        """
        assert self._remake is not None, "made without `remake`"
        self._restarts += 1
        self.close_extras()
        self._take(self._remake())
        self._previous = None
        seed = None if self._seed is None else restart_seed(self._seed, self._restarts)
        return self._begin(seed, None)

    @property
    def resets_singly(self) -> bool:
        """Whether some environments can begin new episodes while others go on."""
        return self._is_ours or self._mode is AutoresetMode.DISABLED

    def stagger(self, lengths: np.ndarray) -> None:
        """From the next reset of all on, truncate first episodes at these lengths (N,), in steps; `resets_singly` has
        to hold."""
        assert self.resets_singly
        self._first_lengths = lengths

    def step(self, actions: torch.Tensor | np.ndarray) -> StepResult:
        """Step every environment with actions (N,) or (N, A); Box actions get into their bounds.

        Returns:
            obs (N, *S) float32, reward (N,) float32, terminated (N,), truncated (N,), and info with `final_obs` (N,
            *S), the true successor, `_final_obs` (N,) bool, where an episode ended, and `valid` (N,) bool.

        Raises:
            ValueError: when the actions have another shape.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: torch.Tensor | np.ndarray) -> None:
        """Begin a step, which goes on in other threads or processes where `envs` has such; `step_wait` has to follow.

        The names are those of gymnasium.vector.AsyncVectorEnv.
        """
        decoded = self._decoder(actions)
        if self._beside is None:
            self._pending = decoded
        else:
            self._beside.step_async(decoded)

    def step_wait(self) -> StepResult:
        """What `step` returns, of the step that `step_async` began."""
        obs, reward, terminated, truncated, final_obs, valid = self._finish()
        if valid is None:
            valid = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        info = {"final_obs": final_obs, "_final_obs": terminated | truncated, "valid": valid}
        return obs, reward, terminated, truncated, info

    def advance(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> tuple[State, Step]:
        """Step every environment (see contract.py): `step` in the form that all environments share.

        Args:
            state: `()`, and so is the state that is returned: the environments keep theirs.
            action: (N,) or (N, A); Box actions get into their bounds.
            noise: of `draw_noise`, (N, 0); the environments draw their own random numbers.
        """
        self.step_async(action)
        return state, self._finish()

    @property
    def own_spaces(self) -> OwnSpaces:
        """What one environment itself observes and takes, and what lies between that and a program."""
        encoder = self.envs.encoder if isinstance(self.envs, EncodedVectorEnv) else self._encoder
        decoder = self._decoder
        own = OwnSpaces(encoder.source, decoder.source, encoder.masks, self.mask_size)
        return own._replace(action_bounds=decoder.bounds, hidden=self._hidden)

    @property
    def parts(self) -> Sequence[Part]:
        """This environment; see HostGroups for several."""
        return (self,)

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """An empty tensor (T, N, 0): the environments draw their own random numbers."""
        return torch.empty((num_steps, self.num_envs, 0), device=self.device)

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """What each environment's method of this name returns; of a vector's own method the one answer."""
        call_each, own = getattr(self.envs, "call", None), getattr(self.envs, name, None)
        try:
            if call_each is not None:
                return call_each(name, *args)
            if callable(own):
                return (self._theirs.call(own, *args),)
            raise AttributeError(f"{type(self.envs).__name__} has no method {name!r}")
        except BaseException as problem:
            self._blame(problem, f"{name}()")

    def render(self) -> Any:
        """Frames of the sub-environments, when made with a render_mode."""
        return self.envs.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments. Workers that no longer answer are terminated: it neither raises nor hangs."""
        if self._is_borrowed:
            return
        if self._is_ours:
            self.envs.close(**kwargs)  # ours, which sees to it
        elif isinstance(self.envs, AsyncVectorEnv):
            # Not made here: it waits for hung workers without a timeout, and trips over dead ones.
            try:
                self.envs.close(timeout=3.0, **kwargs)
            except Exception:
                self.envs.close(terminate=True)
        else:
            close_all([self.envs])

    def spread(self, seed: int | list[int] | None) -> Any:
        """What `envs` is seeded with: a seed for each environment, or as given where there is one for all."""
        if isinstance(seed, int) and (self.backend in SEEDED_EACH or seed < 0):
            return spread_seeds(seed, self.num_envs)
        return seed

    def _hide(self, hidden: Sequence[int]) -> None:
        """Leave these columns out of what is returned. ValueError where there is no such column, or none is left."""
        space = self.single_observation_space
        kept = remaining_columns(space, hidden, self.mask_size)
        self._kept = torch.tensor(kept, device=self.device)
        self.single_observation_space = spaces.Box(space.low[kept], space.high[kept])
        self.columns = {name: moved(columns, kept) for name, columns in self.columns.items()}

    def _seen(self, obs: torch.Tensor) -> torch.Tensor:
        """What is not hidden of observations (N, *S) on the device."""
        return obs if self._kept is None else obs.index_select(-1, self._kept)

    # How the environments behind it are made, begun and stepped.

    def _take(self, envs: VectorEnv) -> None:
        """Have these environments behind it from now on."""
        self.envs = envs
        self._steps = 0
        self._beside = envs if isinstance(envs, _StepsBeside) else None
        self._is_ours = isinstance(envs, EncodedVectorEnv)
        self._mask_method = vector_method(envs) if self._masks.source == "method" else None

    def _begin(self, seed: int | list[int] | None, options: dict[str, Any] | None) -> torch.Tensor:
        """Start new episodes: the observations (N, *S)."""
        seeds = self.spread(seed)
        given_mask = None if options is None else options.get("reset_mask")
        mask = np.asarray(True if given_mask is None else given_mask, dtype=bool)
        try:
            own_options = None if options is None else dict(options)
            obs, info = begun(self._theirs.call(self.envs.reset, seed=seeds, options=own_options))
            encoded = self._encode(obs, self._masks_now(info))
        except BaseException as problem:
            self._blame(problem, f"a reset after step {self._steps}" if self._steps else FIRST_RESET)
        self._ended &= ~mask
        if given_mask is None:
            self._end_at = None if self._first_lengths is None else self._steps + self._first_lengths
        elif seed is not None:  # a seeded reset may ignore the mask: then nothing is cut any more
            self._end_at = None
        elif self._end_at is not None:
            self._end_at[mask] = 0
        return self._seen(self._staging.send(encoded))

    def _finish(self) -> Step:
        """Wait for the step that was begun. The tensors are new ones, and none shares memory with another."""
        self._steps += 1
        try:
            if self._steps == 1 or self._theirs.settings is not None:
                result = self._theirs.call(self._step)
            else:  # without a look at the settings, which takes some microseconds
                result = self._step()
            rows = self._rows_of(result)
            if self._end_at is not None:
                rows = self._end_first(rows, self._end_at)
        except BaseException as problem:
            self._blame(problem, f"step {self._steps}")
        return self._send(rows)

    def _step(self) -> Any:
        """What the step that was begun gave."""
        return self.envs.step(self._pending) if self._beside is None else self._beside.step_wait()

    def _rows_of(self, result: Any) -> _Rows:
        """What a step gave, with the true successors, and new episodes where some ended."""
        if self._is_ours:  # looked at already
            obs, reward, terminated, truncated, info = result
            staged = self._staging.empty(obs.shape)
            staged.numpy()[...] = obs
            return self._after_same_step(_Rows(staged, reward, terminated, truncated), info)
        obs, reward, terminated, truncated, info = five(result)
        rows = _Rows(
            self._encode(obs, self._masks_now(info)),
            reward=vector_numbers(reward, "reward", self.num_envs),
            terminated=vector_numbers(terminated, "terminated", self.num_envs),
            truncated=vector_numbers(truncated, "truncated", self.num_envs),
        )
        if self._mode is AutoresetMode.SAME_STEP:
            return self._after_same_step(rows, info)
        if self._mode is AutoresetMode.NEXT_STEP:
            return self._after_next_step(rows)
        return self._after_disabled(rows)

    def _blame(self, problem: BaseException, when: str) -> NoReturn:
        """Raise a fault of the environments: of one of them, where that is known."""
        if not isinstance(problem, Misfit) and not is_of_environment(problem.__traceback__):
            problem = self._misfit_of_singles() or problem
        row = problem.row if isinstance(problem, Misfit) else None
        blame(row, problem, when)

    def _misfit_of_singles(self) -> Misfit | None:
        """What is wrong with an observation that Gymnasium's SyncVectorEnv could not put together with the others."""
        for index, obs in enumerate(getattr(self.envs.unwrapped, "_env_obs", None) or ()):
            words = None if obs is None else misfit_of(self._encoder.source, obs)
            if words is not None:
                return Misfit(words, index)
        return None

    # One of these follows each step.

    def _after_same_step(self, rows: _Rows, info: dict[str, Any]) -> _Rows:
        """The environments have begun new episodes where one ended; the true successors are in their info."""
        done = rows.done
        if done.any():
            rows = rows._replace(final_obs=self._final_obs(info, done, rows.obs))
        if self.backend == "entry_point":  # others always give a final_obs
            self._previous = rows.obs.clone()
        return rows

    def _after_next_step(self, rows: _Rows) -> _Rows:
        """The environments begin new episodes at their next step, the reset row, where obs is the first observation.

        Some give a reward or an end on the reset row too; nothing of it is an experience.
        """
        valid = ~self._ended
        rows = rows._replace(
            reward=np.where(valid, rows.reward, 0),
            terminated=np.logical_and(rows.terminated, valid),
            truncated=np.logical_and(rows.truncated, valid),
            valid=valid,
        )
        self._ended = rows.done
        return rows

    def _after_disabled(self, rows: _Rows) -> _Rows:
        """The environments begin new episodes where they are told to."""
        done = rows.done
        if not done.any():
            return rows
        return rows._replace(obs=self._begun_anew(rows.obs, done), final_obs=rows.obs)

    def _end_first(self, rows: _Rows, end_at: np.ndarray) -> _Rows:
        """Truncate the first episodes that are to end at this step (see `stagger`)."""
        end_at[rows.done] = 0  # they have ended by themselves
        due = end_at == self._steps
        end_at[due] = 0
        if not end_at.any():
            self._end_at = None
        if not due.any():
            return rows
        return rows._replace(
            obs=self._begun_anew(rows.obs, due),
            truncated=np.logical_or(rows.truncated, due),
            final_obs=rows.obs if rows.final_obs is None else rows.final_obs,
        )

    def _begun_anew(self, obs: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
        """New episodes where mask (N,) holds: obs (N, *S) with their first observations, as new memory."""
        fresh = obs.clone()
        try:
            first, info = begun(self._theirs.call(self.envs.reset, options={"reset_mask": mask.copy()}))
            fresh.numpy()[mask] = self._encode(first, self._masks_now(info), np.flatnonzero(mask)).numpy()
        except BaseException as problem:
            self._blame(problem, f"a reset after step {self._steps}")
        return fresh

    def _final_obs(self, info: dict[str, Any], done: np.ndarray, encoded: torch.Tensor) -> torch.Tensor:
        """The true successors (N, *S): `encoded` with the final observations where `done`."""
        final_obs = self._staging.empty(encoded.shape).copy_(encoded)
        out = final_obs.numpy()
        given = info.get("final_obs", info.get("final_observation"))
        if self._is_ours and given is not None:  # encoded already
            out[done] = given[done]
            return final_obs
        last = dictionary(info.get("final_info", {}))
        check_late(last, self._maskable)
        masks = last.get(MASK) if self._masks.source == "info" else None
        which = np.flatnonzero(done)
        if isinstance(given, np.ndarray) and given.dtype == object:
            if not any(given[index] is None for index in which):
                self._encode_objects(given, out, masks, which)
                return final_obs
        elif given is not None:
            out[done] = self._encode(given, masks, which).numpy()
            return final_obs
        self._warn_no_final_obs()
        # The state before the end is the nearest thing known to the true successor; the reset state is not near it at
        # all.
        if self._previous is not None:
            out[done] = self._previous.numpy()[done]
        return final_obs

    def _warn_no_final_obs(self) -> None:
        if not self._warned:
            name = self.spec_id or "the environment"
            warnings.warn(
                f"{name} gives no final_obs: truncated episodes bootstrap from the observation before the last",
                stacklevel=3,
            )
        self._warned = True

    # From what the environments give to tensors on the device.

    def _encode(self, obs: Any, masks: Any, which: np.ndarray | None = None) -> torch.Tensor:
        """Batched observations with their action masks, all N or those at the indices `which` (n,), as new host memory
        (n, *S), which shares nothing with the environment's buffers."""
        staged = self._staging.empty((self.num_envs if which is None else len(which), *self._encoder.space.shape))
        self._encoder.write(obs, staged.numpy(), masks, which)
        return staged

    def _encode_objects(self, observations: np.ndarray, out: np.ndarray, masks: Any, which: np.ndarray) -> None:
        """Observations that came one by one, (N,) objects, into the rows `which` of out (N, *S)."""
        for index in which:
            try:
                self._encoder.write_one(observations[index], out[index], None if masks is None else masks[index])
            except Misfit as problem:
                raise Misfit(str(problem), int(index)) from None

    def _masks_now(self, info: Any) -> Any:
        """The action masks of what a reset or a step gave, as `flat_masks` takes them; None where there are none. Rows
        without one are zero in an info, which allows everything."""
        if self._mask_method is not None:
            return self._theirs.call(self._mask_method)
        if self._masks.source == "info":
            return dictionary(info).get(MASK)
        if self._maskable:
            check_late(dictionary(info), self._maskable)
        return None

    def _find_masks(self, envs: VectorEnv) -> Masks:
        """The masks that are to be added to a vector's observations. It may take a reset."""
        masks = masks_in_observation(envs.single_observation_space, envs.single_action_space, self.spec_id)
        if masks.size or not maskable(envs.single_action_space):
            return masks
        try:
            return find_vector_masks(envs, begun(self._theirs.call(envs.reset, seed=0))[1])
        except BaseException as problem:
            self._blame(problem, FIRST_RESET)

    def _send(self, rows: _Rows) -> Step:
        """The rows on the device."""
        staging = self._staging
        obs = self._seen(staging.send(rows.obs))
        return Step(
            obs,
            reward=staging.send_array(rows.reward, np.float32),
            terminated=staging.send_array(rows.terminated, bool),
            truncated=staging.send_array(rows.truncated, bool),
            # Never the same memory twice: a caller may normalise obs in place.
            final_obs=obs.clone() if rows.final_obs is None else self._seen(staging.send(rows.final_obs)),
            valid=None if rows.valid is None else staging.send_array(rows.valid, bool),
        )


def _autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if mode is None:
        warnings.warn(f"{envs} names no autoreset_mode in its metadata; NEXT_STEP is assumed", stacklevel=3)
        return AutoresetMode.NEXT_STEP
    return AutoresetMode(mode)
