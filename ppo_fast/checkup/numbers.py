"""The rewards and the numbers of the observations of a record, in figures, and what they make hard to learn."""

from typing import NamedTuple

import numpy as np

from ppo_fast.checkup.findings import Findings
from ppo_fast.checkup.record import Record

HUGE_REWARD = 1e4
OVERFLOWS = 1e15  # a sum of squares of it is infinite in float32
TINY_REWARD = 1e-4
SPARSE = 0.95  # share of zeros
HUGE_NUMBER = 1e6
SPREAD = 1e3  # of the standard deviations of two numbers
UNUSED = 0.01  # of the room between its bounds that a number keeps to
WRAPS = 0.9  # of its range that a whole number jumps
SMOOTH = 0.1  # and the share of it that its other steps keep to
FLAT = 64  # numbers up to which an observation of whole numbers is no picture and no memory


class Figures(NamedTuple):
    """Of one number over all steps."""

    mean: float
    std: float
    min: float
    max: float
    zeros: float  # share

    @classmethod
    def of(cls, values: np.ndarray) -> "Figures":
        """Of the finite ones."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(np.nan, np.nan, np.nan, np.nan, 0.0)
        with np.errstate(all="ignore"):
            mean, std = float(values.mean()), float(values.std())
        return cls(mean, std, float(values.min()), float(values.max()), float((values == 0).mean()))


def look_at_rewards(record: Record, found: Findings) -> Figures | None:
    """The figures of all rewards; None without a step."""
    rewards = record.reward[record.valid]
    if not len(rewards):
        return None
    figures = Figures.of(rewards)
    size = max(abs(figures.min), abs(figures.max))
    scale = "--norm-reward divides by their scale; or scale them in the environment"
    if size > OVERFLOWS:
        found.error("huge-reward", "", f"a reward is {_largest(figures):g}, too large to learn from", scale)
    elif size > HUGE_REWARD:
        found.warn("huge-reward", "", f"rewards reach {_largest(figures):g}", scale)
    elif 0 < size < TINY_REWARD:
        found.note("tiny-reward", "", f"rewards are {size:g} at most", scale)
    if figures.min == figures.max and len(rewards) > 1:
        what = f"all {len(rewards):,} rewards are {figures.min:g}"
        found_nothing = "random actions find nothing to learn from"
        advice = "only the length of episodes counts, then" if figures.min else found_nothing
        found.note("constant-reward", "", what, advice)
    elif figures.zeros > SPARSE:
        what = f"{figures.zeros:.1%} of the rewards are 0"
        found.note("sparse-reward", "", what, "random actions seldom find one: learning may take long to begin")
    return figures


def _largest(figures: Figures) -> float:
    return figures.max if abs(figures.max) >= abs(figures.min) else figures.min


def look_at_observations(record: Record, bounds: tuple[np.ndarray, np.ndarray], found: Findings) -> dict[str, Figures]:
    """The figures of each number by its name; what never changes, is huge, wraps around, keeps away from its bounds.

    Args:
        bounds: low and high (D,) of the numbers that are kept.
    """
    columns = record.columns
    rows = np.concatenate([record.starts, record.obs[record.valid]])
    if len(rows) < 2:
        return {}
    of_numbers = np.flatnonzero(columns.is_number)
    figures = {columns.names[i]: Figures.of(rows[:, i]) for i in of_numbers}
    varies = _spread(rows)
    if not (varies > 0).any():
        what = f"the observation is the same in all {len(rows):,} steps and resets"
        if (columns.is_number.any() and (bounds[0] < bounds[1]).any()) or len(columns.kept) > 1:
            found.warn("constant-obs", "", what, "a policy sees nothing: is the state written into the observation?")
        return figures
    still = [name for name, x in figures.items() if x.std == 0]
    if still:
        what = f"{len(still)} of {len(figures)} numbers never change: {_listed(still)}"
        found.note("constant-numbers", "", what, "right where they hardly ever matter; else they are not written")
    _look_at_scales(figures, found)
    _look_at_bounds(figures, columns.names, bounds, found)
    _look_for_wraps(record, bounds, found)
    return figures


def _spread(rows: np.ndarray) -> np.ndarray:
    """(D,) how far the finite values of each column are apart."""
    finite = np.isfinite(rows)
    low = np.where(finite, rows, np.inf).min(0)
    high = np.where(finite, rows, -np.inf).max(0)
    return np.where(finite.any(0), high - low, 0.0)


def _look_at_scales(figures: dict[str, Figures], found: Findings) -> None:
    sizes = {name: max(abs(x.min), abs(x.max)) for name, x in figures.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if largest and sizes[largest] > HUGE_NUMBER:
        what = f"{largest} reaches {sizes[largest]:g}"
        found.warn("huge-obs", "", what, "scale it; --norm-obs does, once it has seen enough of it")
        return
    moving = {name: x.std for name, x in figures.items() if x.std > 0}
    if len(moving) > 1 and max(moving.values()) > SPREAD * min(moving.values()):
        most, least = max(moving, key=lambda name: moving[name]), min(moving, key=lambda name: moving[name])
        what = f"scales are far apart: the deviation of {most} is {moving[most]:.3g}, of {least} {moving[least]:.3g}"
        found.note("obs-scales", "", what, "--norm-obs brings them together")


def _look_at_bounds(
    figures: dict[str, Figures], names: list[str], bounds: tuple[np.ndarray, np.ndarray], found: Findings
) -> None:
    endless, unused = [], []
    for i, name in enumerate(names):
        if name not in figures:
            continue
        room = bounds[1][i] - bounds[0][i]
        if not np.isfinite(room) or room > HUGE_NUMBER:
            endless.append(name)
        elif 0 < figures[name].max - figures[name].min < UNUSED * room:
            unused.append(name)
    if unused:
        what = f"{len(unused)} of {len(figures)} numbers keep to a hundredth of their bounds: {_listed(unused)}"
        found.note("wide-bounds", "", what, "bounds near to what is seen help whoever scales by them")
    if endless:
        what = f"{len(endless)} of {len(figures)} numbers have no bounds: {_listed(endless)}"
        found.note("no-bounds", "", what, "--norm-obs finds out their scale")


def _look_for_wraps(record: Record, bounds: tuple[np.ndarray, np.ndarray], found: Findings) -> None:
    """Whole numbers that go beyond the end of their type and come out at its other end."""
    obs = record.obs
    if len(obs) < 3 or len(record.columns.kept) > FLAT:
        return
    ended = (record.terminated | record.truncated | ~record.valid)[:-1]
    within = ~ended & record.valid[1:]
    for i in np.flatnonzero(record.columns.is_whole):
        room = float(bounds[1][i] - bounds[0][i])
        jumps = np.abs(np.diff(obs[:, :, i], axis=0))[within]
        if not np.isfinite(room) or room < 2 or not len(jumps):
            continue
        far = jumps >= WRAPS * room
        if far.sum() >= 2 and (jumps[~far] <= SMOOTH * room).all():
            what = f"{record.columns.names[i]} jumps between {bounds[0][i]:g} and {bounds[1][i]:g} {far.sum()} times"
            found.warn("wraps", "", what, "a whole number that wraps around? reckon in a larger type, and clip")
            return


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
