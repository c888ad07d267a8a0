"""Whether a single value that an environment gives is as its space and Gymnasium's contract say."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_fast.checkup.findings import Findings
from ppo_fast.envs.fitting import Misfit, host_array, one_number, short, short_space

LARGEST = 3.4028234663852886e38  # of float32
ROUNDING = 1e-5  # of a bound: how far beyond it rounding may take a value
SMALL_TYPES = ("int8", "uint8", "int16", "uint16")  # in which sums and differences wrap around


def leaves(space: spaces.Space, value: Any, name: str = "") -> Iterator[tuple[str, spaces.Space, Any]]:
    """The plain spaces in a space with their values, by names as in `boxes_of`."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from leaves(part, value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(space, spaces.Tuple):
        for place, part in enumerate(space.spaces):
            yield from leaves(part, value[place], f"{name}.{place}" if name else str(place))
    else:
        yield name, space, value


def look_at_obs(space: spaces.Space, obs: Any, place: str, found: Findings) -> None:
    """Look at an observation whose keys and shapes fit its space: its types, its bounds, NaN."""
    for name, part, value in leaves(space, obs):
        if isinstance(part, spaces.Box):
            called = f"the observation's {name!r}" if name else "the observation"
            look_at_box(part, host_array(value), called, place, found)


def look_at_box(box: spaces.Box, values: np.ndarray, name: str, place: str, found: Findings) -> None:
    """Look at the numbers of a Box; `values` may be a batch of them."""
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        index = _first(~np.isfinite(values))
        what = f"{name} holds {values[index]} at {list(map(int, index))}"
        found.error("not-finite", place, what, "training stops there: find what divides by 0 or grows without end")
        return
    if is_float and values.dtype.itemsize > 4 and (np.abs(values) > LARGEST).any():
        index = _first(np.abs(values) > LARGEST)
        what = f"{name} is {values[index]:g} at {list(map(int, index))}, infinite in float32"
        found.error("not-finite", place, what, "scale it, or find what grows without end")
        return
    if values.dtype != box.dtype:
        _look_at_type(box, values, name, place, found)
    low = box.low.astype(np.float64)
    high = box.high.astype(np.float64)
    with np.errstate(invalid="ignore"):
        below = values < low - ROUNDING * np.maximum(1, np.abs(low))
        above = values > high + ROUNDING * np.maximum(1, np.abs(high))
    if below.any() or above.any():
        index = _first(below | above)
        bounds = f"[{np.broadcast_to(low, values.shape)[index]:g}, {np.broadcast_to(high, values.shape)[index]:g}]"
        what = f"{name} is {values[index]:g} at {list(map(int, index))}, outside of its bounds {bounds}"
        advice = "widen observation_space, or mend the value; what scales by the bounds would be wrong"
        found.warn("outside-space", place, what, advice)


def _look_at_type(box: spaces.Box, values: np.ndarray, name: str, place: str, found: Findings) -> None:
    what = f"{name} is {values.dtype}, its space {box.dtype}"
    is_fraction = values.dtype.kind == "f" and bool((values != np.rint(values)).any())
    if np.issubdtype(box.dtype, np.integer) and is_fraction:
        found.warn("type", place, f"{what}: whoever keeps it in the space's type loses the fractions", "declare floats")
    else:
        found.note("type", place, what, f"return it as {box.dtype}, so that every library takes it")


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(np.argwhere(wrong)[0].tolist())


def look_at_reward(value: Any, place: str, found: Findings) -> float:
    """The reward of a step as a number. A Misfit where it is none."""
    number = one_number(value, "reward")
    if np.ndim(value) > 0:
        what = f"the reward is {short(value)}, of the shape {np.shape(value)}"
        found.warn("reward-array", place, what, "return one number: float(reward)")
    kind = getattr(getattr(value, "dtype", None), "name", "")
    if kind in SMALL_TYPES:
        what = f"the reward is a {kind}, whose sums and differences wrap around"
        found.warn("wraps", place, what, "reckon in Python's numbers or float32")
    if not np.isfinite(number):
        found.error("not-finite", place, f"the reward is {number}", "training stops there: find where it comes from")
    return float(number)


def look_at_flag(value: Any, name: str, place: str, found: Findings) -> bool:
    """`terminated` or `truncated` as a bool. A Misfit where it is no number."""
    number = one_number(value, name)
    if not isinstance(value, bool | np.bool_):
        found.note("flag-type", place, f"{name} is {short(value)}, a {type(value).__name__}", "return a bool")
    if number not in (0, 1):
        raise Misfit(f"{short(value)} as {name}, which has to be True or False")
    return bool(number)


def look_at_action_space(space: spaces.Space, found: Findings) -> None:
    """Bounds of actions that a policy will not meet."""
    if not isinstance(space, spaces.Box):
        return
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        what = f"the actions {short_space(space)} have no bounds"
        found.note("action-bounds", "", what, "a policy draws them about 0 with a deviation of 1: scale them inside")
    elif (low == high).any():
        found.warn("action-bounds", "", "an action's lower bound is its upper one", "leave that action out")
    elif (np.abs(low + high) > (high - low)).any() or (high - low > 20).any() or (high - low < 0.5).any():
        what = f"the actions {short_space(space)} are far from the [-1, 1] of a policy's first ones"
        found.note("action-bounds", "", what, "--action-bounds auto maps them, as it does unless told otherwise")
