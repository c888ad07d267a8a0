"""How Gymnasium's spaces look to a program: observations as float32 Boxes, actions as Discrete, MultiDiscrete or flat
Boxes.

Chosen once per environment, then applied to whole batches of N environments. Observation encodings equal
gymnasium.spaces.flatten, except that a Box that stands alone keeps its shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, and Dict or Tuple of these"
SUPPORTED_ACTIONS = "Discrete, MultiDiscrete and Box of floats"
MASK = "action_mask"  # in an info, or in a Dict observation


def host_array(value: Any) -> np.ndarray:
    """`value` as a NumPy array, also when it is a tensor, on whatever device."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def mask_length(info: dict[str, Any], action_space: spaces.Space, num_envs: int | None = None) -> int:
    """n of the action mask that `info` offers for a Discrete action space of n actions, or 0: it is (n,), and (N, n)
    where the info is of a vector of N environments."""
    mask = info.get(MASK)
    if mask is None or not isinstance(action_space, spaces.Discrete):
        return 0
    n = int(action_space.n)
    return n if np.shape(mask) == ((n,) if num_envs is None else (num_envs, n)) else 0


def own_mask_length(observation_space: spaces.Space, action_space: spaces.Space) -> int:
    """n of the action mask that a Dict observation holds under "action_mask", beside other things, for a Discrete
    action space of n actions, or 0."""
    if not isinstance(observation_space, spaces.Dict) or not isinstance(action_space, spaces.Discrete):
        return 0
    mask, n = observation_space.spaces.get(MASK), int(action_space.n)
    return n if mask is not None and mask.shape == (n,) and len(observation_space.spaces) > 1 else 0


def allowed_actions(mask: Any) -> np.ndarray:
    """A mask (..., n) of any type as bool.

    A row that allows nothing, as some environments give at the end of an episode, allows everything: a policy over no
    action is NaN, and there nothing hangs on the action.
    """
    allowed = host_array(mask) != 0
    return allowed if allowed.any(-1).all() else allowed | ~allowed.any(-1, keepdims=True)


@dataclass(frozen=True)
class _Leaf:
    """One plain space inside an observation space: where it lies, and which columns of the flat row it fills."""

    path: tuple[Any, ...]
    space: spaces.Space
    start: int
    stop: int

    @cached_property
    def columns(self) -> np.ndarray | None:
        """What is added to a Discrete or MultiDiscrete value to find its one-hot columns; None for other spaces."""
        if isinstance(self.space, (spaces.Box, spaces.MultiBinary)):
            return None
        first, counts = np.ravel(self.space.start), _counts(self.space)  # type: ignore[attr-defined]
        return np.cumsum(counts) - counts - first

    def pick(self, obs: Any) -> Any:
        for key in self.path:
            obs = obs[key]
        return obs

    def write_one(self, value: Any, out: np.ndarray) -> None:
        """Encode one value into out (stop - start,)."""
        if self.columns is None:
            out[...] = np.ravel(value)
            return
        out[...] = 0
        out[np.ravel(value) + self.columns] = 1

    def write(self, values: np.ndarray, out: np.ndarray) -> None:
        """Encode values (N, ...) into out (N, stop - start)."""
        rows = len(values)
        if self.columns is None:
            out[...] = values.reshape(rows, -1)
            return
        out[...] = 0
        np.put_along_axis(out, (values.reshape(rows, -1) + self.columns).astype(np.int64), 1, axis=1)


class ObservationEncoder:
    """Encodes observations of `space` into float32 arrays of the Box `self.space`.

    An action mask travels as part of the observation: with `mask_size` n > 0 it is the last n columns of a flat row,
    1 where the action is allowed. It is given beside the observation, or taken from it where `own_mask_length` found
    it. `plain` says that an observation is an array of the row's own shape.

    Raises:
        ValueError: when the space holds something else than Box, Discrete, MultiBinary, MultiDiscrete, Dict and Tuple.
    """

    def __init__(self, space: spaces.Space, env_id: str = "", mask_size: int = 0) -> None:
        self._leaves: list[_Leaf] = []
        self.plain = isinstance(space, spaces.Box) and not mask_size
        self.mask_size, self._own_mask = mask_size, False
        if isinstance(space, spaces.Dict) and MASK in space.spaces and space[MASK].shape == (mask_size,):
            self._own_mask = True
            space = spaces.Dict({key: part for key, part in space.items() if key != MASK})
        self._collect(space, (), env_id, space)
        with np.errstate(over="ignore"):  # float64 bounds beyond float32 become infinite
            low = np.concatenate([_bound(leaf.space, "low", 0) for leaf in self._leaves] + [np.zeros(mask_size)])
            high = np.concatenate([_bound(leaf.space, "high", 1) for leaf in self._leaves] + [np.ones(mask_size)])
        shape = space.shape if isinstance(space, spaces.Box) and not mask_size else low.shape
        low, high = low.reshape(shape).astype(np.float32), high.reshape(shape).astype(np.float32)
        self.space = spaces.Box(low, high, dtype=np.float32)

    def write_one(self, obs: Any, out: np.ndarray, mask: Any = None) -> None:
        """Encode one observation into out (*self.space.shape); a mask of None allows every action."""
        if self.plain:
            out[...] = host_array(obs) if isinstance(obs, torch.Tensor) else obs
            return
        for leaf in self._leaves:
            leaf.write_one(host_array(leaf.pick(obs)), out[leaf.start : leaf.stop])
        if self.mask_size:
            mask = obs[MASK] if self._own_mask else mask
            out[-self.mask_size :] = 1 if mask is None else allowed_actions(mask)

    def write_list(self, observations: Sequence[Any], out: np.ndarray, masks: Sequence[Any]) -> None:
        """Encode a list of observations into out (len(observations), *self.space.shape); as `write_one` each."""
        for leaf in self._leaves:
            values = np.array([host_array(leaf.pick(obs)) for obs in observations])
            leaf.write(values, out.reshape(len(out), -1)[:, leaf.start : leaf.stop])
        if self.mask_size:
            masks = [obs[MASK] for obs in observations] if self._own_mask else masks
            every = np.ones(self.mask_size)
            stacked = np.array([every if mask is None else host_array(mask) for mask in masks])
            out[:, -self.mask_size :] = allowed_actions(stacked)

    def write(self, obs: Any, out: np.ndarray, masks: Any = None) -> None:
        """Encode batched observations (arrays (N, ...), or a dict or tuple of them) into out (N, *self.space.shape);
        masks (N, n)."""
        if self.plain:
            out[...] = host_array(obs)
            return
        for leaf in self._leaves:
            leaf.write(host_array(leaf.pick(obs)), out[:, leaf.start : leaf.stop])
        if self.mask_size:
            masks = obs[MASK] if self._own_mask else masks
            out[:, -self.mask_size :] = 1 if masks is None else allowed_actions(masks)

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
