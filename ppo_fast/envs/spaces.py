"""How Gymnasium's spaces look to a program: observations as float32 Boxes, actions as Discrete, MultiDiscrete or flat
Boxes.

Chosen once per environment, then applied to whole batches of N environments. Observation encodings equal
gymnasium.spaces.flatten, except that a Box that stands alone keeps its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.actions import ActionBounds, ActionSpace, BoxMap, map_to
from ppo_fast.envs.fitting import (
    NUMBERS,
    Misfit,
    PlainSpace,
    are_in,
    host_array,
    limits_of,
    misfit_of,
    short,
    short_space,
)
from ppo_fast.envs.masks import MASK, NO_MASKS, Masks, allowed_actions, flat_mask, flat_masks

if TYPE_CHECKING:
    import torch

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, and Dict or Tuple of these"
SUPPORTED_ACTIONS = "Discrete, MultiDiscrete and Box of floats"

# What taking a part out of an observation raises where it is not there, and an encoder where it is not in its space.
UNFIT = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


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

    @cached_property
    def limits(self) -> tuple[Any, Any] | None:
        """See `limits_of`."""
        return limits_of(self.space)

    def write_one(self, value: Any, row: np.ndarray) -> None:
        """Encode one value into its columns of a row (D,); one of UNFIT where it is not in the space."""
        is_index = isinstance(self.space, spaces.Discrete) and isinstance(value, (int, np.integer))
        if is_index and self.limits is not None and self.limits[0] <= value <= self.limits[1]:
            out = row[self.columns]
            out[...] = 0
            out[value - self.limits[0]] = 1
        else:
            self.write(host_array(value)[None], row[None])

    def write(self, values: np.ndarray, rows: np.ndarray) -> None:
        """Encode values (N, ...) into their columns of rows (N, D); one of UNFIT where they are not in the space."""
        assert self.space.shape is not None
        if len(values) != len(rows) or not are_in(values, self.space.shape, self.limits):
            raise ValueError("not in the space")
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
    1 where the action is allowed. It is given beside the observation, or taken from it where masks come from there; one
    that is all there is to see stays an observation too.

    Each `write...` raises a Misfit, with its row, for what is not in the space: shapes, types, keys, and values that a
    space other than a Box does not have.

    Args:
        space: of the observations.
        env_id: to be named in errors.
        masks: how the environment says what it allows.

    Attributes:
        source: the space of the observations.
        space: the Box, (D,), or a lone Box's own shape, (1,) where that is ().
        masks: as given.
        mask_size: n.
        plain: whether an observation is an array of the row's own shape.
        columns: which columns of a row belong to which key of a Dict, and to which place in a Tuple ("0", "1", ...);
            names of nested ones are joined by dots, and the outer one stands for all that it holds. An action mask's
            are under "action_mask".

    Raises:
        ValueError: when the space holds something else than Box, Discrete, MultiBinary, MultiDiscrete, Dict and Tuple.
    """

    def __init__(self, space: spaces.Space, env_id: str = "", masks: Masks = NO_MASKS) -> None:
        self.source = space
        self.masks = masks
        self.mask_size = masks.size
        self.plain = isinstance(space, spaces.Box) and space.shape != () and not masks.size
        self._mask_sizes = masks.sizes
        self._mask_inside = masks.source == "observation"
        self._nests: list[
            tuple[tuple[Any, ...], int]
        ] = []  # of each Dict and Tuple: the path, and how many parts it has
        self._leaves: list[_Leaf] = []
        self.columns: dict[str, slice] = {}
        width = self._collect(space, (), 0, env_id) + masks.size
        if masks.size:
            self.columns[MASK] = slice(width - masks.size, width)
        self.space = self._box(width, space.shape if self.plain else (width,))

    def rows_in(self, obs: Any) -> int | None:
        """How many observations there are in `obs`, arrays (N, ...) or a dict or tuple of them; None for a single one.

        Raises:
            Misfit: it is neither.
        """
        leaf = self._leaves[0]
        assert leaf.space.shape is not None
        try:
            shape = host_array(_pick(obs, leaf.path)).shape
        except UNFIT:
            shape = None
        if shape is not None and len(shape) == len(leaf.space.shape) + 1:
            return shape[0]
        if shape is None or len(shape) != len(leaf.space.shape):
            raise Misfit(str(self._misfit([obs].__getitem__, 1)))
        return None

    def write_one(self, obs: Any, out: np.ndarray, mask: Any = None) -> None:
        """Encode one observation into out (*self.space.shape), and the mask beside it, as `flat_mask` takes it. A
        Misfit has no row."""
        row = out.reshape(-1)
        try:
            self._check_parts([obs])
            for leaf in self._leaves:
                leaf.write_one(_pick(obs, leaf.path), row)
            mask = obs[MASK] if self._mask_inside else mask
        except UNFIT:
            raise Misfit(str(self._misfit([obs].__getitem__, 1))) from None
        if self.mask_size:
            row[-self.mask_size :] = allowed_actions(flat_mask(mask, self._mask_sizes), self._mask_sizes)

    def write_list(self, observations: Sequence[Any], out: np.ndarray, masks: Sequence[Any]) -> None:
        """Encode a list of observations into out (len(observations), *self.space.shape); as `write_one` each."""
        rows = out.reshape(len(out), -1)
        try:
            self._check_parts(observations)
            for leaf in self._leaves:
                leaf.write(np.array([host_array(_pick(obs, leaf.path)) for obs in observations]), rows)
            masks = [obs[MASK] for obs in observations] if self._mask_inside else masks
        except UNFIT:
            raise self._misfit(observations.__getitem__, len(out)) from None
        if self.mask_size:
            self._write_masks(masks, out)

    def write(self, obs: Any, out: np.ndarray, masks: Any = None, which: np.ndarray | None = None) -> None:
        """Encode batched observations into out (n, *self.space.shape).

        Args:
            obs: arrays (N, ...), or a dict or tuple of them.
            out: where to.
            masks: in any of the forms of `flat_masks`; None allows everything.
            which: (n,) the indices of those that count; None for all.
        """
        if self.plain and which is None:
            values = host_array(obs)
            if values.shape == out.shape and values.dtype.kind in NUMBERS:
                out[...] = values
                return
        rows = out.reshape(len(out), -1)
        try:
            self._check_parts([obs])
            for leaf in self._leaves:
                values = host_array(_pick(obs, leaf.path))
                leaf.write(values if which is None else values[which], rows)
            masks = obs[MASK] if self._mask_inside else masks
            if which is not None and masks is not None:
                masks = [masks[index] for index in which]
        except UNFIT:
            numbers = np.arange(len(out)) if which is None else which
            raise self._misfit(lambda row: _row_of(obs, numbers[row]), len(out), numbers) from None
        if self.mask_size:
            self._write_masks(masks, out)

    def _check_parts(self, observations: Sequence[Any]) -> None:
        """One of UNFIT where a Dict or a Tuple has not as many parts as its space."""
        for path, parts in self._nests:
            if any(len(_pick(obs, path)) != parts for obs in observations):
                raise ValueError("too many parts")

    def _write_masks(self, masks: Any, out: np.ndarray) -> None:
        """Write masks, None or as `flat_masks` takes them, into out (n, *self.space.shape)."""
        allowed = True
        if masks is not None:
            allowed = allowed_actions(flat_masks(masks, self._mask_sizes, len(out)), self._mask_sizes)
        out[:, -self.mask_size :] = allowed

    def _misfit(self, row_of: Callable[[int], Any], count: int, numbers: Sequence[int] | np.ndarray = ()) -> Misfit:
        """What is wrong with `count` observations, which `row_of` gives; their rows are `numbers`, if given."""
        try:
            for row in range(count):
                words = misfit_of(self.source, row_of(row))
                if words is not None:
                    return Misfit(words, int(numbers[row]) if len(numbers) else row)
            extra = row_of(count)
        except UNFIT:
            return Misfit(f"too few observations of its space {short_space(self.source)} for {count} environments")
        return Misfit(f"more observations of its space {short_space(self.source)} than environments, {short(extra)}")

    def _collect(self, space: spaces.Space, path: tuple[Any, ...], start: int, env_id: str) -> int:
        """Note the leaves of a space and the columns of what it holds, from column `start` on; returns the next one."""
        stop = start
        if isinstance(space, spaces.Dict):
            self._nests.append((path, len(space.spaces)))
            for key, part in self._seen_parts(space, path):
                stop = self._collect(part, (*path, key), stop, env_id)
        elif isinstance(space, spaces.Tuple):
            self._nests.append((path, len(space.spaces)))
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

    def _seen_parts(self, space: spaces.Dict, path: tuple[Any, ...]) -> list[tuple[Any, spaces.Space]]:
        """The parts of a Dict that are observations: not the mask, unless there is nothing else."""
        parts = list(space.items())
        if path or not self._mask_inside or len(parts) == 1:
            return parts
        return [(key, part) for key, part in parts if key != MASK]

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
        ValueError: for any other action space, or one without numbers.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.ravel())
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if 0 in space.shape:
            raise ValueError(f"--env-id: {env_id or 'the environment'} has actions without numbers, of {space.shape}")
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

    Args:
        space: of one environment.
        num_envs: N; None for any number of actions.
        env_id: to be named in errors.
        action_bounds: see actions.py.

    Attributes:
        source: the space of one environment.
        space: what a program sees of it.
        bounds: as given.
        box_map: how Box actions get into their bounds; None for others.

    Raises:
        ValueError: for an action space that is not supported; when called, for actions of the wrong shape.
    """

    def __init__(
        self, space: spaces.Space, num_envs: int | None, env_id: str = "", action_bounds: ActionBounds = "clip"
    ) -> None:
        self.bounds: ActionBounds = action_bounds
        self.space = presented_actions(space, env_id)
        self.box_map: BoxMap[np.ndarray] | None = None
        if isinstance(space, spaces.Box):
            self.box_map = map_to(space, action_bounds)
            self.space = presented_actions(spaces.Box(self.box_map.low, self.box_map.high, dtype=space.dtype))
        self._num_envs = num_envs
        self._shape = self.space.shape or ()
        assert isinstance(space, ActionSpace)
        self.source = space

    def __call__(self, actions: torch.Tensor | np.ndarray) -> np.ndarray:
        """Actions (N,) or (N, A) as the environment's array (N, *its action shape)."""
        # The environment needs them on the host now: on CUDA this is the one synchronisation of a step.
        values = host_array(actions)
        rows = values.shape[:1] if self._num_envs is None else (self._num_envs,)
        if values.shape != (*rows, *self._shape):
            raise ValueError(f"actions must have the shape {(*rows, *self._shape)}, got {values.shape}")
        space = self.source
        if self.box_map is not None:
            return self.box_map(values).astype(space.dtype).reshape(-1, *(space.shape or ()))
        assert not isinstance(space, spaces.Box)
        values = values.astype(space.dtype).reshape(-1, *(space.shape or ()))
        return values + space.start


def _pick(obs: Any, path: tuple[Any, ...]) -> Any:
    """A part of an observation."""
    for key in path:
        obs = obs[key]
    return obs


def _row_of(obs: Any, row: int) -> Any:
    """One of batched observations; one of UNFIT where there are fewer."""
    if isinstance(obs, Mapping):
        return {key: _row_of(part, row) for key, part in obs.items()}
    return tuple(_row_of(part, row) for part in obs) if isinstance(obs, tuple) else host_array(obs)[row]
