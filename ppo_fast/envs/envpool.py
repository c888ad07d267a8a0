"""EnvPoolVectorEnv: environments that envpool steps in C++ threads, as a well-behaved vector.

What envpool does differently, and is put right here: its seed is given when a pool is made and ignored by `reset`; an
episode that terminates at the very step of its time limit is reported as truncated; a masked reset returns only the
rows that were reset; lower bounds of some spaces are the smallest positive number where minus infinity is meant.

The package is imported when a pool or a list is asked for. Letters: N envs, S observation shape.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.encoded import EncodedVectorEnv, HostStep
from ppo_fast.envs.masks import masks_in_observation
from ppo_fast.envs.spaces import ObservationEncoder
from ppo_fast.envs.workers import usable_cpus
from ppo_fast.names import first_line

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


class EnvPoolVectorEnv(EncodedVectorEnv):
    """N environments of an envpool pool (see EncodedVectorEnv).

    Two pools with equal seeds give equal trajectories, whatever the number of threads.

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

        self.env_id = env_id
        self._make = envpool.make_gymnasium
        self._kwargs = {"num_threads": min(num_envs, usable_cpus()), **env_kwargs}
        with _rounded_bounds():
            try:
                spec: Any = envpool.make_spec(env_id, num_envs=num_envs, **self._kwargs)
            except (TypeError, ValueError, AssertionError, RuntimeError) as problem:
                raise ValueError(f"--backend: envpool can't make {env_id}: {first_line(problem)}") from problem
            observation_space = spec.gymnasium_observation_space
            action_space = spec.gymnasium_action_space
        if getattr(spec.config, "max_num_players", 1) > 1:
            raise ValueError(f"--env-id: {env_id} is for several players; supported is one")
        masks = masks_in_observation(observation_space, action_space, env_id)
        encoder = ObservationEncoder(_open_bounds(observation_space), env_id, masks)
        metadata = {"render_modes": ["rgb_array"]}
        super().__init__(num_envs, encoder, action_space, metadata, env_kwargs.get("render_mode"))
        limit = spec.config.max_episode_steps
        self.max_episode_steps = limit if 0 < limit < _UNLIMITED else 0
        if self.max_episode_steps:
            # envpool would call every end at its limit a truncation. It gets one step more, and the limit is kept here.
            self._kwargs["max_episode_steps"] = limit + 1
        shape = (num_envs, *encoder.space.shape)
        self._obs = np.zeros(shape, np.float32)
        self._final_obs = np.zeros(shape, np.float32)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._pool: Any = None
        # The seeds of a pool that was reset and not stepped since.
        self._fresh_from: list[int] | None = None

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there.

        A seed, one for all or one for each environment, makes a new pool: microseconds for most environments, 0.2 s
        each for those of dm_control.
        """
        mask = (options or {}).get("reset_mask")
        seeds = self._seeds(seed)
        if seeds is not None and seeds == self._fresh_from:
            return self._obs, {}
        if seeds is not None or self._pool is None:
            self._new_pool(seeds)
            mask = None
        self._restart(np.ones(self.num_envs, bool) if mask is None else mask)
        self._fresh_from = seeds
        return self._obs, {}

    def step(self, actions: np.ndarray) -> HostStep:
        """Step all with actions (N, ...)."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Hand actions (N, ...) to the pool's threads and return; `step_wait` has to follow."""
        self._fresh_from = None
        self._pool.send(actions)

    def step_wait(self) -> HostStep:
        """What `step` returns, once every environment has stepped."""
        obs, reward, terminated, truncated, _ = self._pool.recv()
        self.encoder.write(obs, self._obs)
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

    def _seeds(self, seed: int | Sequence[int] | None) -> list[int] | None:
        """One seed for each environment; a number is the first one's, from which the others count on."""
        if seed is None:
            return None
        if isinstance(seed, int):
            return list(range(seed, seed + self.num_envs))
        return list(seed)

    def _new_pool(self, seeds: list[int] | None) -> None:
        """Make the pool, with these seeds or with fresh entropy."""
        entropy = np.random.SeedSequence().generate_state(self.num_envs) >> 1
        self._close_pool()
        with _rounded_bounds():
            self._pool = self._make(self.env_id, num_envs=self.num_envs, seed=seeds or entropy, **self._kwargs)
            _ = self._pool.observation_space  # made when it is first looked at

    def _restart(self, mask: np.ndarray) -> None:
        """Reset the environments where mask (N,) holds, and write their observations."""
        obs, _ = self._pool.reset(np.flatnonzero(mask).astype(np.int32))
        rows = np.empty((int(mask.sum()), *self._obs.shape[1:]), np.float32)
        self.encoder.write(obs, rows)
        self._obs[mask] = rows
        self._elapsed[mask] = 0

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None


@contextlib.contextmanager
def _rounded_bounds() -> Iterator[None]:
    """Without gymnasium's warnings about the rounded bounds of envpool's spaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open_bounds(space: spaces.Space) -> spaces.Space:
    """The space with minus infinity where a lower bound is the smallest positive number of its type."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _open_bounds(value) for key, value in space.items()})
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low = np.where(space.low == np.finfo(space.dtype).tiny, -np.inf, space.low)
        return spaces.Box(low.astype(space.dtype), space.high, dtype=space.dtype.type)
    return space
