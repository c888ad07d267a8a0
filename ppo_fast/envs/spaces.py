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

from ppo_fast.envs.actions import ActionBounds, BoxMap, map_to
from ppo_fast.envs.contract import ActionSpace
from ppo_fast.envs.masks import MASK, allowed_actions

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, and Dict or Tuple of these"
SUPPORTED_ACTIONS = "Discrete, MultiDiscrete and Box of floats"

PlainSpace = spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete


def host_array(value: Any) -> np.ndarray:
    """`value` as a NumPy array, also when it is a tensor, on whatever device."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@dataclass(frozen=True)
class _Leaf:
    """One plain space inside an observation space: where it lies, and which columns of the flat row it fills."""

    path: tuple[Any, ...]
    space: PlainSpace
    columns: slice

    @cached_property
    def column_of_zero(self) -> np.ndarray | None:
        """For each entry of a one-hot space, which column a value of 0 would set to 1; None for other spaces.

        Each entry has as many columns as it has values, the first of them for its lowest value, which need not be 0.
        """
        if isinstance(self.space, (spaces.Box, spaces.MultiBinary)):
            return None
        counts = self.space.n if isinstance(self.space, spaces.Discrete) else self.space.nvec
        counts = np.ravel(counts)
        first_columns = np.cumsum(counts) - counts
        return first_columns - np.ravel(self.space.start)

    def pick(self, obs: Any) -> Any:
        """Its part of an observation."""
        for key in self.path:
            obs = obs[key]
        return obs

    def write_one(self, value: Any, row: np.ndarray) -> None:
        """Encode one value into its columns of a row (D,)."""
        out = row[self.columns]
        if self.column_of_zero is None:
            out[...] = np.ravel(value)
            return
        out[...] = 0
        out[np.ravel(value) + self.column_of_zero] = 1

    def write(self, values: np.ndarray, rows: np.ndarray) -> None:
        """Encode values (N, ...) into their columns of rows (N, D)."""
        flat = values.reshape(len(values), -1)
        out = rows[:, self.columns]
        if self.column_of_zero is None:
            out[...] = flat
            return
        out[...] = 0
        np.put_along_axis(out, (flat + self.column_of_zero).astype(np.int64), 1, axis=1)


def remaining_columns(space: spaces.Box, hidden: Sequence[int], mask_size: int = 0) -> list[int]:
    """The columns of flat observations (D,) that are left without `hidden`; the last `mask_size`, a mask, stay.

    Raises:
        ValueError: naming --hide, where there is no such column, or none would be left.
    """
    shape = space.shape or ()
    if len(shape) != 1:
        raise ValueError(f"--hide: only flat observations have numbers to hide, this one's shape is {shape}")
    size = shape[0] - mask_size
    for column in hidden:
        if not 0 <= column < size:
            raise ValueError(f"--hide: an observation's numbers are 0 to {size - 1}, got {column}")
    kept = [column for column in range(size) if column not in hidden]
    if not kept:
        raise ValueError(f"--hide: nothing would be left of {size} numbers")
    return [*kept, *range(size, shape[0])]


def moved(columns: slice, kept: Sequence[int]) -> slice:
    """Where columns of an observation are, of which `kept` are left."""
    start = sum(column < columns.start for column in kept)
    return slice(start, start + sum(columns.start <= column < columns.stop for column in kept))


class ObservationEncoder:
    """Encodes observations of `space` into float32 arrays of the Box `self.space`.

    An action mask travels as part of the observation: with `mask_size` n > 0 it is the last n columns of a flat row,
    1 where the action is allowed. It is given beside the observation, or taken from it where `mask_in_observation`
    found it.

    Attributes:
        space: the Box, (D,), or a lone Box's own shape.
        mask_size: as given.
        plain: whether an observation is an array of the row's own shape.
        columns: which columns of a row belong to which key of a Dict, and to which place in a Tuple ("0", "1", ...);
            names of nested ones are joined by dots, and the outer one stands for all that it holds. An action mask's
            are under "action_mask".

    Raises:
        ValueError: when the space holds something else than Box, Discrete, MultiBinary, MultiDiscrete, Dict and Tuple.
    """

    def __init__(self, space: spaces.Space, env_id: str = "", mask_size: int = 0) -> None:
        self.mask_size = mask_size
        self.plain = isinstance(space, spaces.Box) and not mask_size
        self._mask_inside = False
        if isinstance(space, spaces.Dict) and MASK in space.spaces and space[MASK].shape == (mask_size,):
            self._mask_inside = True
            space = spaces.Dict({key: part for key, part in space.items() if key != MASK})
        self._leaves: list[_Leaf] = []
        self.columns: dict[str, slice] = {}
        width = self._collect(space, (), 0, env_id) + mask_size
        if mask_size:
            self.columns[MASK] = slice(width - mask_size, width)
        self.space = self._box(width, space.shape if self.plain else (width,))

    def write_one(self, obs: Any, out: np.ndarray, mask: Any = None) -> None:
        """Encode one observation into out (*self.space.shape); a mask of None allows every action."""
        if self.plain:
            out[...] = host_array(obs) if isinstance(obs, torch.Tensor) else obs
            return
        for leaf in self._leaves:
            leaf.write_one(host_array(leaf.pick(obs)), out)
        if self.mask_size:
            mask = obs[MASK] if self._mask_inside else mask
            out[-self.mask_size :] = 1 if mask is None else allowed_actions(host_array(mask))

    def write_list(self, observations: Sequence[Any], out: np.ndarray, masks: Sequence[Any]) -> None:
        """Encode a list of observations into out (len(observations), *self.space.shape); as `write_one` each."""
        rows = out.reshape(len(out), -1)
        for leaf in self._leaves:
            values = np.array([host_array(leaf.pick(obs)) for obs in observations])
            leaf.write(values, rows)
        if self.mask_size:
            masks = [obs[MASK] for obs in observations] if self._mask_inside else masks
            all_allowed = np.ones(self.mask_size)
            stacked = np.array([all_allowed if mask is None else host_array(mask) for mask in masks])
            out[:, -self.mask_size :] = allowed_actions(stacked)

    def write(self, obs: Any, out: np.ndarray, masks: Any = None) -> None:
        """Encode batched observations (arrays (N, ...), or a dict or tuple of them) into out (N, *self.space.shape);
        masks (N, n)."""
        if self.plain:
            out[...] = host_array(obs)
            return
        for leaf in self._leaves:
            leaf.write(host_array(leaf.pick(obs)), out)
        if self.mask_size:
            masks = obs[MASK] if self._mask_inside else masks
            out[:, -self.mask_size :] = 1 if masks is None else allowed_actions(host_array(masks))

    def _collect(self, space: spaces.Space, path: tuple[Any, ...], start: int, env_id: str) -> int:
        """Note the leaves of a space and the columns of what it holds, from column `start` on; returns the next one."""
        stop = start
        if isinstance(space, spaces.Dict):
            for key, part in space.items():
                stop = self._collect(part, (*path, key), stop, env_id)
        elif isinstance(space, spaces.Tuple):
            for place, part in enumerate(space.spaces):
                stop = self._collect(part, (*path, place), stop, env_id)
        elif isinstance(space, PlainSpace):
            stop = start + spaces.flatdim(space)
            self._leaves.append(_Leaf(path, space, slice(start, stop)))
        else:
            raise ValueError(
                f"--env-id: {env_id or 'the environment'} has {type(space).__name__} observations; "
                f"supported are {SUPPORTED_OBSERVATIONS}"
            )
        if path:
            self.columns[".".join(str(key) for key in path)] = slice(start, stop)
        return stop

    def _box(self, width: int, shape: tuple[int, ...] | None) -> spaces.Box:
        """The Box of this shape, which has `width` numbers: from 0 to 1 where they are one-hot, binary or a mask."""
        assert shape is not None
        low = np.zeros(width, np.float32)
        high = np.ones(width, np.float32)
        with np.errstate(over="ignore"):  # float64 bounds beyond float32 become infinite
            for leaf in self._leaves:
                if isinstance(leaf.space, spaces.Box):
                    low[leaf.columns] = leaf.space.low.ravel()
                    high[leaf.columns] = leaf.space.high.ravel()
        return spaces.Box(low.reshape(shape), high.reshape(shape), dtype=np.float32)


def presented_actions(space: spaces.Space, env_id: str = "") -> ActionSpace:
    """The action space as a program sees it: Discrete and MultiDiscrete from 0 on, MultiDiscrete and Box flat.

    Raises:
        ValueError: for any other action space.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.ravel())
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        with np.errstate(over="ignore"):  # as in ObservationEncoder
            low, high = space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    raise ValueError(
        f"--env-id: {env_id or 'the environment'} has {type(space).__name__} actions of {space.dtype}; "
        f"supported are {SUPPORTED_ACTIONS}"
    )


class ActionDecoder:
    """Turns actions of the space that `presented_actions` gives, `self.space`, into what the environment takes.

    The start of Discrete and MultiDiscrete is added; Box actions are clipped or rescaled to their bounds.

    Raises:
        ValueError: for an action space that is not supported; when called, for actions of the wrong shape.
    """

    def __init__(
        self, space: spaces.Space, num_envs: int, env_id: str = "", action_bounds: ActionBounds = "clip"
    ) -> None:
        self.space = presented_actions(space, env_id)
        self._to_box: BoxMap[np.ndarray] | None = None
        if isinstance(space, spaces.Box):
            self._to_box = map_to(space, action_bounds)
            self.space = presented_actions(spaces.Box(self._to_box.low, self._to_box.high, dtype=space.dtype))
        self.shape = (num_envs, *(self.space.shape or ()))
        assert isinstance(space, ActionSpace)
        self._source = space

    def __call__(self, actions: torch.Tensor | np.ndarray) -> np.ndarray:
        """Actions (N,) or (N, A) as the environment's array (N, *its action shape)."""
        # The environment needs them on the host now: on CUDA this is the one synchronisation of a step.
        values = host_array(actions)
        if values.shape != self.shape:
            raise ValueError(f"actions must have the shape {self.shape}, got {values.shape}")
        space = self._source
        if self._to_box is not None:
            return self._to_box(values).astype(space.dtype).reshape(-1, *(space.shape or ()))
        assert not isinstance(space, spaces.Box)
        values = values.astype(space.dtype).reshape(-1, *(space.shape or ()))
        return values + space.start
