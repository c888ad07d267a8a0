"""HostVectorEnv: any gymnasium vector environment behind the same contract as the tensor environments.

This adapter alone knows the three autoreset modes, object arrays, missing masks and aliased buffers. Letters: N envs,
S observation shape.
"""

import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.spaces import ActionDecoder, ObservationEncoder, host_array


class KeepFinalObs(gymnasium.Wrapper):
    """Copies the last observation of an episode.

    SyncVectorEnv and AsyncVectorEnv in SAME_STEP mode keep a reference to it while they reset; an environment that
    writes every observation into one buffer would overwrite it (Gymnasium pull request 1680).
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment; see the class."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            obs = _copy(obs)
        return obs, reward, terminated, truncated, info


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

    Raises:
        ValueError: when a space is not supported (see ppo_fast.envs.spaces).
    """

    def __init__(
        self, envs: VectorEnv, device: torch.device | str = "cpu", backend: str = "entry_point", spec_id: str = ""
    ) -> None:
        self.envs = envs
        self.device = torch.device(device)
        self.backend, self.spec_id, self.spec = backend, spec_id, envs.spec
        self.num_envs = envs.num_envs
        self._mode = _autoreset_mode(envs)
        self._encoder = ObservationEncoder(envs.single_observation_space, spec_id)
        self._decoder = ActionDecoder(envs.single_action_space, envs.num_envs, spec_id)
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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Start new episodes.

        Args:
            seed: gives each sub-environment of a sync or async vector its own seed, spread so that neighbouring seeds
                share none; a vector entry point gets the number itself.
            options: handed to the environments; `reset_mask` (N,) bool resets only some, where `envs` supports it.

        Returns:
            obs (N, *S) and an info that holds `action_mask` (N, n) bool where the environment offers one.

        Raises:
            ValueError: for a negative seed.
        """
        obs, info = self.envs.reset(seed=self._spread(seed), options=None if options is None else dict(options))
        mask = True if options is None else options.get("reset_mask", True)
        self._ended &= ~np.asarray(mask, dtype=bool)
        return self._send(self._encode(obs)), self._masks(self._action_mask(info))

    def step(
        self, actions: torch.Tensor | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Step every environment with actions (N,) or (N, A); Box actions are clipped to their bounds.

        Returns:
            obs (N, *S) float32, reward (N,) float32, terminated (N,), truncated (N,), and info with `final_obs` (N,
            *S), the true successor, `_final_obs` (N,) bool, where an episode ended, `valid` (N,) bool, and
            `action_mask` (N, n) bool where offered.

        Raises:
            ValueError: when the actions have another shape.
        """
        obs, reward, terminated, truncated, info = self.envs.step(self._decoder(actions))  # type: ignore[arg-type]
        valid = ~self._ended
        # Some environments give a reward or an end on the reset row too; nothing of it is an experience.
        reward = np.where(valid, host_array(reward), 0)
        terminated = host_array(terminated).astype(bool) & valid
        truncated = host_array(truncated).astype(bool) & valid
        done = terminated | truncated
        encoded = final_obs = self._encode(obs)
        mask = self._action_mask(info)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._ended = done
        elif done.any() and self._mode is AutoresetMode.SAME_STEP:
            final_obs = self._final_obs(info, done, encoded)
        elif done.any():
            encoded, mask = self._reset_ended(done, encoded, mask)
        if self._mode is AutoresetMode.SAME_STEP and self.backend == "entry_point":
            self._previous = encoded.clone()
        sent = self._send(encoded)
        info = {
            # Never the same memory twice: a caller may normalise obs in place.
            "final_obs": sent.clone() if final_obs is encoded else self._send(final_obs),
            "_final_obs": self._send_array(done),
            "valid": self._send_array(valid),
            **self._masks(mask),
        }
        return sent, self._send_array(reward), self._send_array(terminated), self._send_array(truncated), info

    def render(self) -> Any:
        """Frames of the sub-environments, when made with a render_mode."""
        return self.envs.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments; workers that no longer answer are terminated."""
        try:
            self.envs.close(**kwargs)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            self.envs.close(terminate=True)

    def _spread(self, seed: int | None) -> Any:
        """Per-environment seeds. With Gymnasium's seed, seed + 1, ... neighbouring seeds would share most episodes."""
        if seed is not None and seed < 0:
            raise ValueError(f"--seed: must be 0 or more, got {seed}")
        if seed is None or self.backend not in ("sync", "async"):
            return seed
        return [int(word) >> 1 for word in np.random.SeedSequence(int(seed)).generate_state(self.num_envs)]

    def _final_obs(self, info: dict[str, Any], done: np.ndarray, encoded: torch.Tensor) -> torch.Tensor:
        """The true successors (N, *S): `encoded` with the final observations where `done`."""
        final_obs = self._empty(encoded.shape).copy_(encoded)
        out = final_obs.numpy()
        given = info.get("final_obs", info.get("final_observation"))
        if isinstance(given, np.ndarray) and given.dtype == object:
            rows = [given[i] for i in np.flatnonzero(done)]
            if not any(row is None for row in rows):
                out[done] = self._encoder.rows(rows)
                return final_obs
        elif given is not None:
            out[done] = self._encode(given).numpy()[done]
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

    def _reset_ended(
        self, done: np.ndarray, encoded: torch.Tensor, mask: np.ndarray | None
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Reset the ended environments of a DISABLED vector: the observations and action masks to go on from."""
        obs, info = self.envs.reset(options={"reset_mask": done.copy()})
        fresh = self._encode(obs)
        fresh.numpy()[~done] = encoded.numpy()[~done]
        fresh_mask = self._action_mask(info)
        if mask is None or fresh_mask is None:
            return fresh, mask
        return fresh, np.where(done[:, None], fresh_mask, mask)

    def _action_mask(self, info: dict[str, Any]) -> np.ndarray | None:
        """The action mask (N, n) bool of a Discrete environment that offers it, all True where it skipped a row."""
        mask = info.get("action_mask")
        if mask is None or np.shape(mask) != (self.num_envs, getattr(self.single_action_space, "n", -1)):
            return None
        offered = np.asarray(info.get("_action_mask", True), dtype=bool).reshape(-1, 1)
        return (host_array(mask) != 0) | ~offered

    def _masks(self, mask: np.ndarray | None) -> dict[str, torch.Tensor]:
        return {} if mask is None else {"action_mask": self._send_array(mask)}

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Host memory to fill and send. Pinned blocks come from torch's caching allocator, which gives none out anew
        before the copies from it are done."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._pinned)

    def _encode(self, obs: Any) -> torch.Tensor:
        """Batched observations as new host memory (N, *S), which shares nothing with the environment's buffers."""
        out = self._empty((self.num_envs, *self._encoder.space.shape))
        self._encoder.write(obs, out.numpy())
        return out

    def _send(self, staged: torch.Tensor) -> torch.Tensor:
        """What was staged here, on the device; on the CPU that is the same memory."""
        return staged.to(self.device, non_blocking=True)

    def _send_array(self, array: np.ndarray) -> torch.Tensor:
        """A copy of an array on the device, bool or float32."""
        staged = self._empty(array.shape, torch.bool if array.dtype == bool else torch.float32)
        staged.numpy()[...] = array
        return self._send(staged)


def _autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if mode is None:
        warnings.warn(f"{envs} names no autoreset_mode in its metadata; NEXT_STEP is assumed", stacklevel=3)
        return AutoresetMode.NEXT_STEP
    return AutoresetMode(mode)


def _copy(obs: Any) -> Any:
    """A copy of an observation: an array, or a dict or tuple of them."""
    if isinstance(obs, dict):
        return {key: _copy(value) for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_copy(value) for value in obs)
    return obs.copy() if isinstance(obs, np.ndarray) else obs
