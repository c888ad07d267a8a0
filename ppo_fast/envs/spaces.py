"""How Gymnasium's spaces look to a program: observations as float32 Boxes, actions as Discrete, MultiDiscrete or flat
Boxes.

Chosen once per environment, then applied to whole batches of N environments. Observation encodings equal
gymnasium.spaces.flatten, except that a Box that stands alone keeps its shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, and Dict or Tuple of these"
SUPPORTED_ACTIONS = "Discrete, MultiDiscrete and Box of floats"


def host_array(value: Any) -> np.ndarray:
    """`value` as a NumPy array, also when it is a tensor, on whatever device."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@dataclass(frozen=True)
class _Leaf:
    """One plain space inside an observation space: where it lies, and which columns of the flat row it fills."""

    path: tuple[Any, ...]
    space: spaces.Space
    start: int
    stop: int

    def pick(self, obs: Any) -> Any:
        for key in self.path:
            obs = obs[key]
        return obs

    def write(self, values: np.ndarray, out: np.ndarray) -> None:
        """Encode values (N, ...) into out (N, stop - start)."""
        rows = len(values)
        if isinstance(self.space, (spaces.Box, spaces.MultiBinary)):
            out[...] = values.reshape(rows, -1)
            return
        out[...] = 0
        first, counts = np.ravel(self.space.start), _counts(self.space)  # type: ignore[attr-defined]
        offsets = np.cumsum(counts) - counts
        columns = values.reshape(rows, -1) - first + offsets
        np.put_along_axis(out, columns.astype(np.int64), 1, axis=1)


class ObservationEncoder:
    """Encodes batched observations of `space` into float32 arrays of the Box `self.space`.

    Raises:
        ValueError: when the space holds something else than Box, Discrete, MultiBinary, MultiDiscrete, Dict and Tuple.
    """

    def __init__(self, space: spaces.Space, env_id: str = "") -> None:
        self._leaves: list[_Leaf] = []
        self._plain = isinstance(space, spaces.Box)
        self._collect(space, (), env_id, space)
        with np.errstate(over="ignore"):  # float64 bounds beyond float32 become infinite
            low = np.concatenate([_bound(leaf.space, "low", 0) for leaf in self._leaves])
            high = np.concatenate([_bound(leaf.space, "high", 1) for leaf in self._leaves])
        shape = space.shape if isinstance(space, spaces.Box) else low.shape
        self.space = spaces.Box(low.reshape(shape), high.reshape(shape), dtype=np.float32)

    def write(self, obs: Any, out: np.ndarray) -> None:
        """Encode batched observations (arrays (N, ...), or a dict or tuple of them) into out (N, *self.space.shape)."""
        if self._plain:
            out[...] = host_array(obs)
            return
        for leaf in self._leaves:
            leaf.write(host_array(leaf.pick(obs)), out[:, leaf.start : leaf.stop])

    def rows(self, observations: Sequence[Any]) -> np.ndarray:
        """Encode single observations into (len(observations), *self.space.shape)."""
        out = np.empty((len(observations), *self.space.shape), dtype=np.float32)
        for leaf in self._leaves:
            values = np.stack([host_array(leaf.pick(obs)) for obs in observations])
            leaf.write(values, out.reshape(len(out), -1)[:, leaf.start : leaf.stop])
        return out

    def _collect(self, space: spaces.Space, path: tuple[Any, ...], env_id: str, whole: spaces.Space) -> None:
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            keys = space.spaces.keys() if isinstance(space, spaces.Dict) else range(len(space.spaces))
            for key in keys:
                self._collect(space[key], (*path, key), env_id, whole)  # type: ignore[index]
            return
        if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
            raise ValueError(
                f"--env-id: {env_id or 'the environment'} has {type(space).__name__} observations; "
                f"supported are {SUPPORTED_OBSERVATIONS}"
            )
        start = self._leaves[-1].stop if self._leaves else 0
        self._leaves.append(_Leaf(path, space, start, start + spaces.flatdim(space)))


class ActionDecoder:
    """Presents an action space as `self.space`, and turns a program's actions into what the environment takes.

    Discrete and MultiDiscrete are presented with start 0 (the start is added), MultiDiscrete and Box flat; Box
    actions are clipped.

    Raises:
        ValueError: for any other action space; when called, for actions of the wrong shape.
    """

    def __init__(self, space: spaces.Space, num_envs: int, env_id: str = "") -> None:
        self._source = space
        self.space: spaces.Discrete | spaces.MultiDiscrete | spaces.Box
        if isinstance(space, spaces.Discrete):
            self.space = spaces.Discrete(int(space.n))
        elif isinstance(space, spaces.MultiDiscrete):
            self.space = spaces.MultiDiscrete(space.nvec.ravel())
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            with np.errstate(over="ignore"):
                low, high = space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
            self.space = spaces.Box(low, high, dtype=np.float32)
        else:
            raise ValueError(
                f"--env-id: {env_id or 'the environment'} has {type(space).__name__} actions of {space.dtype}; "
                f"supported are {SUPPORTED_ACTIONS}"
            )
        self.shape = (num_envs, *(self.space.shape or ()))

    def __call__(self, actions: torch.Tensor | np.ndarray) -> np.ndarray:
        """Actions (N,) or (N, A) as the environment's array (N, *its action shape)."""
        # The environment needs them on the host now: on CUDA this is the one synchronisation of a step.
        values = host_array(actions)
        if values.shape != self.shape:
            raise ValueError(f"actions must have the shape {self.shape}, got {values.shape}")
        space = self._source
        if isinstance(space, spaces.Box):
            clipped = np.clip(values, np.ravel(space.low), np.ravel(space.high))
            return clipped.astype(space.dtype).reshape(-1, *space.shape)
        values = values.astype(space.dtype).reshape(-1, *(space.shape or ()))
        return values + space.start  # type: ignore[attr-defined]


def _counts(space: Any) -> np.ndarray:
    """How many values each entry of a Discrete or MultiDiscrete can take, flat."""
    return np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).ravel()


def _bound(space: spaces.Space, name: str, otherwise: float) -> np.ndarray:
    """A leaf's lower or upper bounds, flat float32; `otherwise` for one-hot and binary entries."""
    if isinstance(space, spaces.Box):
        return getattr(space, name).ravel().astype(np.float32)
    return np.full(spaces.flatdim(space), otherwise, dtype=np.float32)
