"""Action masks: which of its actions an environment allows now, and where it says so.

It says so in the info of reset and step or in a Dict observation, both under the key "action_mask", or by a method
`action_masks()`, as sb3-contrib has it. A mask is flat, one number for each action: n of a Discrete action space; for a
MultiDiscrete one those of its dimensions one after the other, which are given like that or as one mask for each
dimension. Letters: N envs, n numbers of a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from ppo_fast.envs.fitting import NUMBERS, Misfit, host_array, short, short_space

MASK = "action_mask"
METHOD = "action_masks"  # of sb3-contrib

# Where masks come from; "" where there are none.
Source = Literal["", "observation", "info", "method"]


class Masks(NamedTuple):
    """How an environment says what it allows."""

    source: Source = ""
    sizes: tuple[int, ...] = ()  # actions of each dimension of the action space; () where no mask is read

    @property
    def size(self) -> int:
        """n, 0 without masks."""
        return sum(self.sizes)


NO_MASKS = Masks()


def maskable(action_space: spaces.Space) -> tuple[int, ...]:
    """How many actions each dimension of an action space has; () where a mask means nothing."""
    if isinstance(action_space, spaces.Discrete):
        return (int(action_space.n),)
    if isinstance(action_space, spaces.MultiDiscrete):
        return tuple(np.ravel(action_space.nvec).tolist())
    return ()


def masks_in_observation(observation_space: spaces.Space, action_space: spaces.Space, env_id: str = "") -> Masks:
    """The masks of a Dict observation space, none where it has no part of that name.

    Raises:
        ValueError: naming --env-id, where that part has another size than a mask.
    """
    sizes = maskable(action_space)
    if not sizes or not isinstance(observation_space, spaces.Dict) or MASK not in observation_space.spaces:
        return NO_MASKS
    part = observation_space[MASK]
    if part.shape is None or int(np.prod(part.shape)) != sum(sizes) or isinstance(part, spaces.Discrete):
        name = env_id or "the environment"
        wrong = f"which is no mask of {_wanted(sizes)}; change it, or its name if it is none"
        raise ValueError(f"--env-id: {name} observes an {MASK!r} {short_space(part)}, {wrong}")
    return Masks("observation", sizes)


def find_masks(env: gymnasium.Env, info: Mapping[str, Any]) -> Masks:
    """How an environment says what it allows besides in its observations, from the info of its first reset.

    Raises:
        Misfit: what it gives is no mask of its actions.
    """
    sizes = maskable(env.action_space)
    source: Source = ""
    if not sizes:
        return NO_MASKS
    if info.get(MASK) is not None:
        source = "info"
        flat_mask(info[MASK], sizes)
    elif env.has_wrapper_attr(METHOD):
        source = "method"
        flat_mask(env.get_wrapper_attr(METHOD)(), sizes)
    return Masks(source, sizes) if source else NO_MASKS


def find_vector_masks(envs: VectorEnv, info: Mapping[str, Any]) -> Masks:
    """As `find_masks`, of a vector environment: its own method counts, or that of each environment in it."""
    sizes = maskable(envs.single_action_space)
    source: Source = ""
    if not sizes:
        return NO_MASKS
    method = vector_method(envs)
    if info.get(MASK) is not None:
        source = "info"
        flat_masks(info[MASK], sizes, envs.num_envs)
    elif method is not None:
        source = "method"
        flat_masks(method(), sizes, envs.num_envs)
    return Masks(source, sizes) if source else NO_MASKS


def vector_method(envs: VectorEnv) -> Callable[[], Any] | None:
    """What gives the masks of a vector environment now, if it has a method for that."""
    own = getattr(envs, METHOD, None)
    if callable(own):
        return own
    inner = envs.unwrapped
    if isinstance(inner, (SyncVectorEnv, AsyncVectorEnv)) and all(inner.call("has_wrapper_attr", METHOD)):
        return partial(inner.call, METHOD)
    return None


def check_late(info: Mapping[str, Any], sizes: Sequence[int]) -> None:
    """Raise a Misfit where an environment without masks so far gives one: its first actions were chosen without.

    Args:
        info: of a step or a reset.
        sizes: `maskable` of its action space.
    """
    if sizes and info.get(MASK) is not None:
        raise Misfit(
            f"an {MASK} in its info, but none at its first reset; it has to be in the info of every reset, too"
        )


def flat_mask(mask: Any, sizes: Sequence[int]) -> np.ndarray:
    """One mask (n,) from any of its forms: None allows everything, also in a list of one for each dimension.

    Raises:
        Misfit: it is no mask of so many actions.
    """
    if mask is None:
        return np.ones(sum(sizes), bool)
    try:
        if len(sizes) > 1 and isinstance(mask, Sequence) and len(mask) == len(sizes):
            return np.concatenate([flat_mask(part, (size,)) for part, size in zip(mask, sizes, strict=True)])
        array = host_array(mask)
    except (ValueError, TypeError, Misfit):
        array = np.array(None)
    if array.size != sum(sizes) or array.dtype.kind not in NUMBERS:
        shape = f" of the shape {array.shape}" if array.shape else ""
        raise Misfit(f"the action mask {short(mask)}{shape}, which is none of {_wanted(sizes)}")
    return array.reshape(-1)


def flat_masks(masks: Any, sizes: Sequence[int], rows: int) -> np.ndarray:
    """Masks (rows, n) from an array of them, or from a sequence with a mask for each row in any of its forms.

    Raises:
        Misfit: with its row, where one is no mask of so many actions.
    """
    try:
        array = host_array(masks)
    except (ValueError, TypeError):  # some are None, or of different lengths
        array = np.array(None)
    if array.dtype.kind in NUMBERS and array.shape[:1] == (rows,) and array.size == rows * sum(sizes):
        return array.reshape(rows, -1)
    if array.dtype.kind in NUMBERS and array.ndim < 2:  # no row is a mask
        raise Misfit(f"the action masks {short(masks)} of the shape {array.shape}, not ({rows}, {sum(sizes)})")
    flat = []
    for row, mask in enumerate(masks):
        try:
            flat.append(flat_mask(mask, sizes))
        except Misfit as problem:
            raise Misfit(str(problem), row) from None
    return np.array(flat)


def allowed_actions(mask: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """A mask (..., n) of any type as bool.

    A row that allows nothing in one dimension, as some environments give at the end of an episode, allows everything
    there: a policy over no action is NaN, and there nothing hangs on the action.
    """
    allowed = mask != 0
    start = 0
    for size in sizes:
        part = allowed[..., start : start + size]
        some = part.any(-1, keepdims=True)
        if not some.all():
            part |= ~some
        start += size
    return allowed


def _wanted(sizes: Sequence[int]) -> str:
    """How many actions there are, in words."""
    if len(sizes) == 1:
        return f"{sizes[0]} actions"
    return f"{' + '.join(map(str, sizes))} = {sum(sizes)} actions"
