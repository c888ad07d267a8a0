"""The spaces of an environment as JSON, in config.json and in a policy file, and back.

    facts = to_json(envs.own_spaces)
    from_json(facts) == envs.own_spaces

A space is an object with its "type"; bounds that are everywhere the same are one number, infinities "inf" and "-inf".
What comes back is data from anywhere: whatever it says, it is an OwnSpaces or a ValueError in one line.
"""

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.actions import ActionBounds
from ppo_fast.envs.masks import Masks, Source, maskable
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.names import first_line, kind_and_line

LARGEST = 10_000_000  # numbers of a space, far more than a policy for vectors has inputs


def to_json(own: OwnSpaces) -> dict[str, Any] | None:
    """As JSON; None where a space can't be written down, such as a Dict with keys that are no texts."""
    try:
        observation, action = space_to_json(own.observation), space_to_json(own.action)
    except TypeError:
        return None
    return {
        "observation": observation,
        "action": action,
        "masks": {"source": own.masks.source, "sizes": list(own.masks.sizes)},
        "mask_size": own.mask_size,
        "action_bounds": own.action_bounds,
        "hidden": list(own.hidden),
    }


def from_json(facts: object) -> OwnSpaces:
    """The inverse of `to_json`. ValueError("spaces: ...") for anything else."""
    try:
        return _from_json(facts)
    except ValueError as problem:
        raise ValueError(f"spaces: {first_line(problem)}") from problem
    except (TypeError, KeyError, AttributeError, AssertionError, OverflowError, RecursionError) as problem:
        raise ValueError(f"spaces: {kind_and_line(problem)}") from problem


def _from_json(facts: Any) -> OwnSpaces:
    masks = Masks(facts["masks"]["source"], _whole_numbers(facts["masks"]["sizes"]))
    bounds, mask_size = facts["action_bounds"], facts["mask_size"]
    if masks.source not in get_args(Source) or bounds not in get_args(ActionBounds):
        raise ValueError(f"unknown masks or action_bounds: {masks.source!r}, {bounds!r}")
    observation, action = space_from_json(facts["observation"]), space_from_json(facts["action"])
    is_masked = masks.source != ""
    if masks.sizes != (maskable(action) if is_masked else ()) or (is_masked and mask_size != masks.size):
        raise ValueError(f"masks of the sizes {masks.sizes}, {mask_size} in all, for {action}")
    own = OwnSpaces(observation, action, masks, _count(mask_size), bounds, _whole_numbers(facts["hidden"]))
    own.presented()  # or a ValueError
    return own


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """One space. TypeError where it can't be written down."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _numbers_to_json(space.low), "high": _numbers_to_json(space.high)}
        return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        counts = {"nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        return {"type": "MultiDiscrete", **counts, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    if isinstance(space, spaces.Dict):
        parts = []
        for key, part in space.spaces.items():
            if not isinstance(key, str):
                raise TypeError(f"a Dict with the key {key!r}")
            parts.append([key, space_to_json(part)])
        return {"type": "Dict", "spaces": parts}  # a list, since their order is that of the columns
    raise TypeError(f"a {type(space).__name__}")


def space_from_json(facts: Mapping[str, Any]) -> spaces.Space:
    """The inverse of `space_to_json`. ValueError, TypeError, KeyError and others for anything else."""
    kind = facts["type"]
    if kind == "Box":
        return _box(facts)
    if kind == "Discrete":
        return spaces.Discrete(_whole(facts["n"]), start=_whole(facts["start"]), **_dtype(facts))
    if kind == "MultiDiscrete":
        counts, start = _integers(facts["nvec"]), _integers(facts["start"])
        return spaces.MultiDiscrete(counts, start=start, **_dtype(facts))
    if kind == "MultiBinary":
        shape = facts["n"]
        sizes = _whole_numbers(shape if isinstance(shape, list) else [shape])
        if math.prod(sizes) > LARGEST:
            raise ValueError(f"a space of {shape} numbers")
        return spaces.MultiBinary(sizes if isinstance(shape, list) else sizes[0])
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in facts["spaces"]])
    if kind == "Dict":
        return spaces.Dict([(str(key), space_from_json(part)) for key, part in facts["spaces"]])
    raise ValueError(f"no type of a space: {kind!r}")


def _box(facts: Mapping[str, Any]) -> spaces.Box:
    shape, dtype = _whole_numbers(facts["shape"]), np.dtype(facts["dtype"])
    if math.prod(shape) > LARGEST:
        raise ValueError(f"a space of the shape {shape}")
    low = _numbers_from_json(facts["low"], shape, dtype)
    high = _numbers_from_json(facts["high"], shape, dtype)
    return spaces.Box(low, high, dtype=dtype.type)


def _dtype(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The type of a space's values as an argument; none where it is the usual one."""
    dtype = np.dtype(facts["dtype"])
    return {} if dtype == np.int64 else {"dtype": dtype.type}


def _numbers_to_json(values: np.ndarray) -> Any:
    """Bounds: one number where all are the same, else a flat list."""
    flat = [_number_to_json(value) for value in values.ravel().tolist()]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


def _number_to_json(value: float) -> float | str:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _numbers_from_json(values: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    flat = values if isinstance(values, list) else [values] * math.prod(shape)
    return np.array([float(value) if isinstance(value, str) else value for value in flat], dtype).reshape(shape)


def _integers(values: Any) -> np.ndarray:
    array = np.array(values, np.int64)
    if not array.size or int(array.sum()) > LARGEST:
        raise ValueError(f"counts of {array.sum()} in all")
    return array


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) > LARGEST:
        raise ValueError(f"no whole number that a space has: {value!r}")
    return value


def _count(value: Any) -> int:
    if _whole(value) < 0:
        raise ValueError(f"a number below 0: {value}")
    return value


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError(f"no list of whole numbers: {values!r}")
    return tuple(_count(value) for value in values)
