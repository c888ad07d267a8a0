"""Whether what an environment gives is what it promised, and in words what is not.

What comes in each step is looked at in whole batches, where it is encoded (spaces.py). The words are looked for once
something is wrong. They go on after "environment 3 gave at step 7".
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    import torch

FIRST_RESET = "its first reset"
NUMBERS = "biuf"  # kinds of NumPy's types that an observation, a reward or a mask may have
WORDS = 80  # letters of a value that are told
SPACE_WORDS = 120  # and of a space

PlainSpace = spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete


class Misfit(Exception):
    """What an environment gave is not what it promised.

    Attributes:
        row: of the batch that was looked at; None where the batch as a whole is wrong.
    """

    def __init__(self, words: str, row: int | None = None) -> None:
        super().__init__(words)
        self.row = row


def host_array(value: Any) -> np.ndarray:
    """`value` as a NumPy array, also when it is a tensor, on whatever device."""
    if type(value) is np.ndarray:  # mostly
        return value
    return value.detach().cpu().numpy() if is_tensor(value) else np.asarray(value)


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a tensor. Where there is one, torch has been imported, and it isn't imported here."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(value, torch_module.Tensor)


def limits_of(space: PlainSpace) -> tuple[Any, Any] | None:
    """The least and the largest value of each number, None for a Box: outside of their bounds Boxes are right too."""
    if isinstance(space, spaces.Box):
        return None
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
    return space.start, space.start + counts - 1


def are_in(values: np.ndarray, shape: tuple[int, ...], limits: tuple[Any, Any] | None) -> bool:
    """Whether all of values (N, *shape) are numbers that a space of this shape and these limits has."""
    if values.shape[1:] != shape or values.dtype.kind not in NUMBERS:
        return False
    if limits is None:
        return True
    inside = (values >= limits[0]) & (values <= limits[1])
    if values.dtype.kind == "f":
        inside &= values == np.rint(values)
    return bool(inside.all())


def misfit_of(space: spaces.Space, value: Any, part: str = "") -> str | None:
    """What is wrong with one observation, None where nothing is.

    Args:
        space: of Box, Discrete, MultiBinary, MultiDiscrete, Dict and Tuple.
        value: the observation.
        part: which part of the whole this is, its keys joined by dots; "" for the whole.
    """
    wrong = None
    if isinstance(space, spaces.Dict):
        wrong = _wrong_keys(space, value)
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        wrong = _wrong_length(space, value)
        inner = list(enumerate(space.spaces))
    else:
        wrong = _wrong_number(space, value)
        inner = []
    if wrong is not None:
        whole = f"an observation whose part {part!r}" if part else "an observation that"
        return f"{whole} is not in its space {short_space(space)}: {short(value)}{wrong}"
    for key, inner_space in inner:
        found = misfit_of(inner_space, value[key], f"{part}.{key}" if part else str(key))
        if found is not None:
            return found
    return None


def _wrong_keys(space: spaces.Dict, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f", a {type(value).__name__}"
    missing = [key for key in space.spaces if key not in value]
    more = [key for key in value if key not in space.spaces]
    if missing:
        return f", without the key {missing[0]!r}"
    return f", with the key {more[0]!r} besides" if more else None


def _wrong_length(space: spaces.Tuple, value: Any) -> str | None:
    if not isinstance(value, Sequence):
        return f", a {type(value).__name__}"
    return f", of {len(value)} parts" if len(value) != len(space.spaces) else None


def _wrong_number(space: Any, value: Any) -> str | None:
    try:
        array = host_array(value)
    except (ValueError, TypeError):  # lists of different lengths, say
        return ", which is no array"
    if array.dtype.kind not in NUMBERS:
        return f", of the type {array.dtype if array.shape else type(value).__name__}"
    if array.shape != space.shape:
        return f", of the shape {array.shape}"
    return None if are_in(array[None], array.shape, limits_of(space)) else ""


def begun(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """The observation and the info of what reset() gave, which has to be a tuple.

    Raises:
        Misfit: it gave something else.
    """
    if type(result) is not tuple or len(result) != 2:
        raise Misfit(f"{short(result)}, not (observation, info); before gym 0.26 a reset gave the observation alone")
    obs, info = result
    return obs, dictionary(info)


def dictionary(info: Any) -> Mapping[str, Any]:
    """The info of a reset or a step; a Misfit where it is none."""
    if type(info) is not dict and not isinstance(info, Mapping):  # the second takes longer
        raise Misfit(f"{short(info)} as info, which has to be a dictionary")
    return info


def five(result: Any) -> Sequence[Any]:
    """What step() gave; a Misfit where that is not five values."""
    if type(result) is tuple and len(result) == 5:  # as it should be
        return result
    if not isinstance(result, Sequence) or isinstance(result, str):
        raise Misfit(f"{short(result)}, not (observation, reward, terminated, truncated, info)")
    if len(result) != 5:
        of_gym = "; before gym 0.26 a step gave 4" if len(result) == 4 else ""
        raise Misfit(f"{len(result)} values, not 5 (observation, reward, terminated, truncated, info){of_gym}")
    return result


def wrong_step(result: Any) -> str | None:
    """What is wrong with what step() of one environment gave, besides the observation; None where nothing is."""
    try:
        five(result)
        for name, value in zip(("reward", "terminated", "truncated"), result[1:4], strict=True):
            one_number(value, name)
        dictionary(result[4])
    except Misfit as problem:
        return str(problem)
    return None


def one_number(value: Any, name: str) -> float:
    """A reward or a flag of one environment, which may be an array of one number.

    Raises:
        Misfit: it is something else.
    """
    try:
        array = host_array(value)
    except (ValueError, TypeError):
        array = np.array(None)
    if array.size != 1 or array.dtype.kind not in NUMBERS:
        raise Misfit(f"{short(value)} as {name}, which has to be one number")
    return array.item()


def vector_numbers(values: Any, name: str, num_envs: int) -> np.ndarray:
    """Rewards or flags (N,) of a vector environment, which may have the shape (N, 1).

    Raises:
        Misfit: they are something else.
    """
    array = host_array(values)
    if array.shape == (num_envs,) and array.dtype.kind in NUMBERS:
        return array
    if array.size != num_envs or array.dtype.kind not in NUMBERS:
        kind = f"the shape {array.shape} and the type {array.dtype}"
        raise Misfit(f"{short(values)} as {name}, of {kind}; there has to be one number for each of {num_envs}")
    return array.reshape(num_envs)


def short(value: Any) -> str:
    """A value in one line, cut where it is long."""
    if is_tensor(value):
        value = host_array(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return _cut(np.array2string(value, precision=4, threshold=8, separator=", "), WORDS)
    return _cut(reprlib.repr(value), WORDS)


def short_space(space: spaces.Space) -> str:
    """A space in one line, cut where it is long."""
    return _cut(str(space), SPACE_WORDS)


def _cut(text: str, letters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
