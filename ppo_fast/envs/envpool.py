"""EnvPoolVectorEnv: environments that envpool steps in C++ threads, as a well-behaved vector.

What envpool does differently, and is put right here: its seed is given when a pool is made and ignored by `reset`; an
episode that terminates at the very step of its time limit is reported as truncated; a masked reset returns only the
rows that were reset; lower bounds of some spaces are the smallest positive number where minus infinity is meant.

The package is imported when a pool or a list is asked for. Letters: N envs, S observation shape.
"""

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.spaces import ObservationEncoder, own_mask_length

# envpool's own "no limit".
_UNLIMITED = 2**31 - 1


def installed() -> bool:
    """Whether there is an envpool to import."""
    return find_spec("envpool") is not None


def all_ids() -> list[str]:
    """Every id that envpool has, none where it is not installed; its import takes most of a second."""
    if not installed():
        return []
    import envpool

    return envpool.list_all_envs()


class EnvPoolVectorEnv(VectorEnv):
    """N environments of an envpool pool: SAME_STEP, encoded observations (N, *S), a dense `final_obs`.

    Two pools with equal seeds give equal trajectories, whatever the number of threads. The arrays that are returned are
    buffers, overwritten by the next call.

    Args:
        env_id: as envpool lists it.
        num_envs: N.
        env_kwargs: for envpool.make_gymnasium, e.g. `max_episode_steps`, `num_threads` (default: the CPUs that this
            process may use, N at most), `render_mode`.

    Raises:
        ImportError: without envpool.
        ValueError: naming --env-id or --backend, for arguments or spaces that can't be used.
    """

    def __init__(self, env_id: str, num_envs: int, **env_kwargs: Any) -> None:
        import envpool

        self._make = envpool.make_gymnasium
        self.env_id, self.num_envs, self.render_mode = env_id, num_envs, env_kwargs.get("render_mode")
        self.metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._kwargs = {"num_threads": min(num_envs, cpus), **env_kwargs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gymnasium, about the rounded bounds of envpool's spaces
            try:
                spec: Any = envpool.make_spec(env_id, num_envs=num_envs, **self._kwargs)
            except (TypeError, ValueError, AssertionError, RuntimeError) as problem:
                line = (str(problem).strip() or type(problem).__name__).splitlines()[0]
                raise ValueError(f"--backend: envpool can't make {env_id}: {line}") from problem
            observation_space, action_space = spec.gymnasium_observation_space, spec.gymnasium_action_space
        if getattr(spec.config, "max_num_players", 1) > 1:
            raise ValueError(f"--env-id: {env_id} is for several players; supported is one")
        self.mask_size = own_mask_length(observation_space, action_space)
        self._encoder = ObservationEncoder(_open_bounds(observation_space), env_id, self.mask_size)
        self.single_observation_space, self.single_action_space = self._encoder.space, action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        limit = spec.config.max_episode_steps
        self.max_episode_steps = limit if 0 < limit < _UNLIMITED else 0
        if self.max_episode_steps:
            # envpool would call every end at its limit a truncation. It gets one step more, and the limit is kept here.
            self._kwargs["max_episode_steps"] = limit + 1
        shape = (num_envs, *self.single_observation_space.shape)
        self._obs, self._final_obs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._pool: Any = None
        self._fresh_from: list[int] | None = None

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there.

        A seed, one for all or one for each environment, makes a new pool: microseconds for most environments, 0.2 s
        each for those of dm_control.
        """
        mask = (options or {}).get("reset_mask")
        seeds = None if seed is None else [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else [*seed]
        if seeds is not None and seeds == self._fresh_from:
            return self._obs, {}
        if seeds is not None or self._pool is None:
            entropy = np.random.SeedSequence().generate_state(self.num_envs) >> 1
            self._close_pool()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as above
                self._pool = self._make(self.env_id, num_envs=self.num_envs, seed=seeds or entropy, **self._kwargs)
                _ = self._pool.observation_space  # made when it is first looked at
            mask = None
        self._restart(np.ones(self.num_envs, bool) if mask is None else mask)
        self._fresh_from = seeds
        return self._obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Step all with actions (N, ...)."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Hand actions (N, ...) to the pool's threads and return; `step_wait` has to follow."""
        self._fresh_from = None
        self._pool.send(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """What `step` returns, once every environment has stepped."""
        obs, reward, terminated, truncated, _ = self._pool.recv()
        self._encoder.write(obs, self._obs)
        self._elapsed += 1
        if self.max_episode_steps:
            truncated = truncated | (self._elapsed >= self.max_episode_steps)
        done = terminated | truncated
        if done.any():
            self._final_obs[done] = self._obs[done]
            # Also where the pool has ended the episode itself: resetting it now spares the row that it would need.
            self._restart(done)
        return self._obs, reward, terminated, truncated, {"final_obs": self._final_obs}

    def render(self) -> np.ndarray:
        """A frame of the first environment, (1, H, W, 3)."""
        return self._pool.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the pool."""
        self._close_pool()

    def _restart(self, mask: np.ndarray) -> None:
        """Reset the environments where mask (N,) holds, and write their observations."""
        obs, _ = self._pool.reset(np.flatnonzero(mask).astype(np.int32))
        rows = np.empty((int(mask.sum()), *self._obs.shape[1:]), np.float32)
        self._encoder.write(obs, rows)
        self._obs[mask] = rows
        self._elapsed[mask] = 0

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None


def _open_bounds(space: spaces.Space) -> spaces.Space:
    """The space with minus infinity where a lower bound is the smallest positive number of its type."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _open_bounds(value) for key, value in space.items()})
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low = np.where(space.low == np.finfo(space.dtype).tiny, -np.inf, space.low)
        return spaces.Box(low.astype(space.dtype), space.high, dtype=space.dtype.type)
    return space
