"""Groups of runs beside each other: what is compared, how sure it is, and how likely one is to beat another.

    rows = measure(groups, figures_of(groups), seed=0)
    rows[0].estimates["A"].iqm, rows[0].chances["B"].p

The first group is the one that the others are set against.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ppo_fast import names
from ppo_fast.pictures.curves import Axis, Curve, curve, smoothed, value_at
from ppo_fast.pictures.intervals import bootstrap_interval, iqm, probability_of_improvement
from ppo_fast.pictures.records import RunRecord

PARTS = (0.25, 0.5, 1.0)  # of the stretch that all runs share
SPEED = "sps"
RESULTS = {  # the figures of result.json that are compared, by their names in the table
    "final return, greedy": names.MEAN_RETURN,
    "final return, sampled": names.SAMPLED_MEAN_RETURN,
    "steps per second": SPEED,
}


class Group(NamedTuple):
    """Runs that are one side of the comparison."""

    name: str  # "A", "B", ...
    label: str
    runs: list[RunRecord]


class Figure(NamedTuple):
    """What is compared: its name, and each group's values, a run each; runs without it are left out."""

    name: str
    values: dict[str, list[float]]  # by group name


class Estimate(NamedTuple):
    """The interquartile mean over a group's runs; the bounds of its interval are NaN where there is one run."""

    iqm: float
    low: float
    high: float
    values: list[float]


class Chance(NamedTuple):
    """How likely a run of one group is to beat one of another; the bounds are NaN where either has one run."""

    p: float
    low: float
    high: float


class Row(NamedTuple):
    """One row of the table."""

    name: str
    estimates: dict[str, Estimate]  # by group name; those without a value are left out
    chances: dict[str, Chance]  # to beat the first group, by group name


def figures_of(groups: Sequence[Group]) -> list[Figure]:
    """All that is compared: final evaluation and speed, returns at equal steps, returns at equal time."""
    found = [final_figure(groups, name, key) for name, key in RESULTS.items()]
    found += returns_at_equal(groups, "steps")
    found += returns_at_equal(groups, "time")
    return [figure for figure in found if any(figure.values.values())]


def final_figure(groups: Sequence[Group], name: str, key: str) -> Figure:
    """A figure of result.json."""
    values: dict[str, list[float]] = {}
    for group in groups:
        results = [of_result(run, key) for run in group.runs]
        values[group.name] = [result for result in results if result is not None]
    return Figure(name, values)


def of_result(run: RunRecord, key: str) -> float | None:
    """A figure of result.json; the speed of a run that has none is that of its last row."""
    value = run.result.get(key)
    if not names.is_number(value) and key == SPEED:
        value = run.rows[-1].get(names.SPS)
    return float(value) if value is not None and names.is_number(value) else None


def returns_at_equal(groups: Sequence[Group], axis: Axis) -> list[Figure]:
    """The smoothed training return at some places of the stretch that all runs share; none where they share none."""
    curves = {group.name: smoothed_returns(group, axis) for group in groups}
    every = [line for lines in curves.values() for line in lines]
    if not every:
        return []
    start = max(line.x[0] for line in every)
    end = min(line.x[-1] for line in every)
    figures: list[Figure] = []
    for part in PARTS:
        place = float(end * part)
        if place >= start:
            where = f"{place:,.0f} steps" if axis == "steps" else in_time(place)
            values = {name: [value_at(line, place) for line in lines] for name, lines in curves.items()}
            figures.append(Figure(f"return at {where}", values))
    return figures


def smoothed_returns(group: Group, axis: Axis) -> list[Curve]:
    """The curve of each run, those left out that logged no return."""
    lines = [smoothed(curve(run.rows, names.EPISODIC_RETURN, axis)) for run in group.runs]
    return [line for line in lines if len(line.x)]


def in_time(seconds: float) -> str:
    """4.2 s, 75 s, 12.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def measure(groups: Sequence[Group], figures: Sequence[Figure], seed: int) -> list[Row]:
    """Each figure with the groups' estimates, and the chance of each group to beat the first.

    Args:
        groups: at least one.
        figures: of these groups.
        seed: of the resampling.

    Raises:
        ModuleNotFoundError: SciPy is not installed; the message says how to install it.
    """
    first = groups[0].name
    rows: list[Row] = []
    for figure in figures:
        row = Row(figure.name, {}, {})
        for name, values in figure.values.items():
            if not values:
                continue
            low, high = bootstrap_interval(values, iqm, seed=seed)
            row.estimates[name] = Estimate(iqm(values), low, high, values)
            if name != first and figure.values[first]:
                p, low, high = probability_of_improvement(values, figure.values[first], seed=seed)
                row.chances[name] = Chance(p, low, high)
        rows.append(row)
    return rows
