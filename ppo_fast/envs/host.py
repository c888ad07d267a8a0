"""HostVectorEnv: any gymnasium vector environment behind the same contract as the tensor environments.

This adapter alone knows the three autoreset modes, object arrays, missing masks and aliased buffers. Letters: N envs,
S observation shape.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.contract import Part, State, Step
from ppo_fast.envs.spaces import ActionDecoder, ObservationEncoder, host_array, mask_length, own_mask_length


class EnvironmentFault(RuntimeError):
    """An environment died, hung or raised; nothing can be done with its vector but `restart` or `close`.

    Attributes:
        index: of the environment in its vector.
        reason: what happened, e.g. "died (exit code -9)", "gave no answer for 60 s", "raised ValueError: ...".
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)  # the arguments themselves: it travels between processes
        self.index, self.reason = index, reason

    def __str__(self) -> str:
        return f"environment {self.index} {self.reason}"


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

    An environment that offers `info["action_mask"]` for a Discrete action space of n actions, or has it in its Dict
    observations, gets it appended to its observations, flat (N, D + n), 1 where allowed; the attribute `mask_size` is
    then n, else 0. It is found out by a reset here, unless `envs` has a `mask_size` itself and does it already.

    Raises:
        ValueError: when a space is not supported (see ppo_fast.envs.spaces).
        EnvironmentFault: from reset and step, where `envs` raises it.
    """

    pure = False
    state: State = ()  # it lies in the environments

    def __init__(
        self,
        envs: VectorEnv,
        device: torch.device | str = "cpu",
        backend: str = "entry_point",
        spec_id: str = "",
        remake: Callable[[], VectorEnv] | None = None,
    ) -> None:
        self.envs = envs
        self.device = torch.device(device)
        self.backend, self.spec_id, self.spec = backend, spec_id, envs.spec
        self.num_envs, self.group_sizes = envs.num_envs, [envs.num_envs]
        self._mode = _autoreset_mode(envs)
        ObservationEncoder(envs.single_observation_space, spec_id)
        self._decoder = ActionDecoder(envs.single_action_space, envs.num_envs, spec_id)
        self.mask_size, appended = _mask_size(envs)
        self._encoder = ObservationEncoder(envs.single_observation_space, spec_id, appended)
        seen = AutoresetMode.NEXT_STEP if self._mode is AutoresetMode.NEXT_STEP else AutoresetMode.SAME_STEP
        self.metadata = {**envs.metadata, "autoreset_mode": seen}
        self.render_mode = envs.render_mode
        self.single_observation_space = self._encoder.space
        self.single_action_space = self._decoder.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._pinned = self.device.type == "cuda"
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._previous: torch.Tensor | None = None
        self._warned = False
        self._remake, self._seed, self._restarts = remake, None, 0
        self._begun: Callable[[], Any]

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
        self._seed = self._seed if seed is None else seed
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
        self.envs = self._remake()
        self._previous = None
        if self._seed is None:
            return self._begin(None, None)
        seeds = self._seed if isinstance(self._seed, list) else [self._seed]
        (fresh,) = np.random.SeedSequence([*seeds, self._restarts]).generate_state(1)
        return self._begin(int(fresh) >> 1, None)

    def step(
        self, actions: torch.Tensor | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Step every environment with actions (N,) or (N, A); Box actions are clipped to their bounds.

        Returns:
            obs (N, *S) float32, reward (N,) float32, terminated (N,), truncated (N,), and info with `final_obs` (N,
            *S), the true successor, `_final_obs` (N,) bool, where an episode ended, and `valid` (N,) bool.

        Raises:
            ValueError: when the actions have another shape.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: torch.Tensor | np.ndarray, group: int = 0) -> None:
        """Begin a step, which goes on in other threads or processes where `envs` has such; `step_wait` has to follow.

        The names are those of gymnasium.vector.AsyncVectorEnv. All environments are group 0 (see HostGroups).
        """
        decoded: Any = self._decoder(actions)
        begin = getattr(self.envs, "step_async", None)
        self._begun = partial(self.envs.step, decoded) if begin is None else self.envs.step_wait  # pyright: ignore[reportAttributeAccessIssue]
        if begin is not None:
            begin(decoded)

    def step_wait(
        self, group: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
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
            action: (N,) or (N, A); Box actions are clipped to their bounds.
            noise: of `draw_noise`, (N, 0); the environments draw their own random numbers.
        """
        self.step_async(action)
        return state, self._finish()

    @property
    def parts(self) -> Sequence[Part]:
        """This environment; see HostGroups for several."""
        return (self,)

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """An empty tensor (T, N, 0): the environments draw their own random numbers."""
        return torch.empty((num_steps, self.num_envs, 0), device=self.device)

    def _finish(self) -> Step:
        """Wait for the step that was begun. The tensors are new ones, and none shares memory with another."""
        obs, reward, terminated, truncated, info = self._begun()
        valid = ~self._ended
        reward, terminated, truncated = host_array(reward), host_array(terminated), host_array(truncated)
        if self._mode is AutoresetMode.NEXT_STEP:
            # Some environments give a reward or an end on the reset row too; nothing of it is an experience.
            reward = np.where(valid, reward, 0)
            terminated, truncated = np.logical_and(terminated, valid), np.logical_and(truncated, valid)
        done = np.logical_or(terminated, truncated)
        encoded = final_obs = self._encode(obs, info)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._ended = done
        elif done.any() and self._mode is AutoresetMode.SAME_STEP:
            final_obs = self._final_obs(info, done, encoded)
        elif done.any():
            encoded = self._reset_ended(done, encoded)
        if self._mode is AutoresetMode.SAME_STEP and self.backend == "entry_point":
            self._previous = encoded.clone()
        sent = self._send(encoded)
        return Step(
            sent,
            self._send_array(reward, np.float32),
            self._send_array(terminated, bool),
            self._send_array(truncated, bool),
            # Never the same memory twice: a caller may normalise obs in place.
            final_obs=sent.clone() if final_obs is encoded else self._send(final_obs),
            valid=self._send_array(valid, bool) if self._mode is AutoresetMode.NEXT_STEP else None,
        )

    def render(self) -> Any:
        """Frames of the sub-environments, when made with a render_mode."""
        return self.envs.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments. Workers that no longer answer are terminated: it neither raises nor hangs."""
        # An AsyncVectorEnv that was not made here waits for hung workers without a timeout, and trips over dead ones.
        foreign = isinstance(self.envs, AsyncVectorEnv)
        try:
            self.envs.close(**({"timeout": 3.0} if foreign else {}), **kwargs)
        except Exception as problem:
            if foreign:
                self.envs.close(terminate=True)
            else:
                warnings.warn(f"{self.spec_id or 'the environment'} did not close: {problem!r}", stacklevel=2)

    def _begin(self, seed: int | list[int] | None, options: dict[str, Any] | None) -> torch.Tensor:
        """Start new episodes: the observations (N, *S)."""
        obs, info = self.envs.reset(seed=self.spread(seed), options=None if options is None else dict(options))
        mask = True if options is None else options.get("reset_mask", True)
        self._ended &= ~np.asarray(mask, dtype=bool)
        return self._send(self._encode(obs, info))

    def spread(self, seed: int | list[int] | None) -> Any:
        """Per-environment seeds. With Gymnasium's seed, seed + 1, ... neighbouring seeds would share most episodes."""
        if isinstance(seed, int) and (seed < 0 or self.backend in ("sync", "async", "envpool")):
            return spread_seeds(seed, self.num_envs)
        return seed

    def _final_obs(self, info: dict[str, Any], done: np.ndarray, encoded: torch.Tensor) -> torch.Tensor:
        """The true successors (N, *S): `encoded` with the final observations where `done`."""
        final_obs = self._empty(encoded.shape).copy_(encoded)
        out = final_obs.numpy()
        given = info.get("final_obs", info.get("final_observation"))
        masks = info.get("final_info", {})
        if isinstance(given, np.ndarray) and given.dtype == object:
            ended = np.flatnonzero(done)
            if not any(given[i] is None for i in ended):
                masks = self._action_masks(masks)
                for i in ended:
                    self._encoder.write_one(given[i], out[i], None if masks is None else masks[i])
                return final_obs
        elif given is not None:
            out[done] = self._encode(given, masks).numpy()[done]
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

    def _reset_ended(self, done: np.ndarray, encoded: torch.Tensor) -> torch.Tensor:
        """Reset the ended environments of a DISABLED vector: the observations to go on from."""
        obs, info = self.envs.reset(options={"reset_mask": done.copy()})
        fresh = self._encode(obs, info)
        fresh.numpy()[~done] = encoded.numpy()[~done]
        return fresh

    def _action_masks(self, info: dict[str, Any]) -> Any:
        """The action masks (N, n) of a vector's info, or None; rows without one are zero there, which allows all."""
        offered = mask_length(info, self.single_action_space, self.num_envs)
        return info["action_mask"] if offered else None

    def _empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Host memory to fill and send. Pinned blocks come from torch's caching allocator, which gives none out anew
        before the copies from it are done."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._pinned)

    def _encode(self, obs: Any, info: dict[str, Any]) -> torch.Tensor:
        """Batched observations, with the action masks of their info, as new host memory (N, *S), which shares nothing
        with the environment's buffers."""
        out = self._empty((self.num_envs, *self._encoder.space.shape))
        self._encoder.write(obs, out.numpy(), self._action_masks(info) if self._encoder.mask_size else None)
        return out

    def _send(self, staged: torch.Tensor) -> torch.Tensor:
        """What was staged here, on the device; on the CPU that is the same memory."""
        return staged.to(self.device, non_blocking=True)

    def _send_array(self, array: np.ndarray, dtype: type) -> torch.Tensor:
        """A copy of an array on the device, bool or float32."""
        if not self._pinned:
            return self._send(torch.from_numpy(np.array(array, dtype)))
        staged = self._empty(array.shape, torch.bool if dtype is bool else torch.float32)
        staged.numpy()[...] = array
        return self._send(staged)


def spread_seeds(seed: int, num_envs: int) -> list[int]:
    """N seeds from one, none of them shared with its neighbours' (numpy.random.SeedSequence).

    Raises:
        ValueError: for a negative one.
    """
    if seed < 0:
        raise ValueError(f"--seed: must be 0 or more, got {seed}")
    return [int(word) >> 1 for word in np.random.SeedSequence(seed).generate_state(num_envs)]


def _autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if mode is None:
        warnings.warn(f"{envs} names no autoreset_mode in its metadata; NEXT_STEP is assumed", stacklevel=3)
        return AutoresetMode.NEXT_STEP
    return AutoresetMode(mode)


def _mask_size(envs: VectorEnv) -> tuple[int, int]:
    """The n of action masks, and how many columns are still to be appended: n, or 0 where `envs` has done it."""
    own = getattr(envs, "mask_size", None)
    if own is not None or not isinstance(envs.single_action_space, spaces.Discrete):
        return own or 0, 0
    n = own_mask_length(envs.single_observation_space, envs.single_action_space)
    n = n or mask_length(envs.reset(seed=0)[1], envs.single_action_space, envs.num_envs)
    return n, n
