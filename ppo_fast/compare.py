"""Is B better than A? Returns at equal steps and at equal time, speed, and how sure that is.

    python -m ppo_fast.compare runs/A* -- runs/B*     two groups of runs, or more, each a seed a run
    python -m ppo_fast.compare runs                   the configurations below runs/ with each other

Every figure is the interquartile mean over a group's runs with its 95 % bootstrap interval; the last columns say how
likely a run of a group is to beat one of the first, 0.5 being no difference (Agarwal et al. 2021, arXiv 2108.13264).
Returns while training are of sampled actions, averaged over a twentieth of the run. Needs SciPy: the extra `compare`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from ppo_fast.pictures import intervals, records
from ppo_fast.pictures.records import RunRecord
from ppo_fast.run import cli

DIVIDER = "--"
FEW = 5  # runs below which a bootstrap interval is too narrow to be trusted
PARTS = (0.25, 0.5, 1.0)  # of the stretch that all runs share
RETURN = "charts/episodic_return"
RESULTS = (
    ("final return, greedy", "eval/mean_return"),
    ("final return, sampled", "eval/sampled_mean_return"),
    ("steps per second", "sps"),
)


@dataclass
class Args:
    """What to compare."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders or folders of them, `--` between the groups; without `--`, a group for each configuration"""
    run_root: str = "runs"
    """folder that `latest` looks in"""
    json: bool = False
    """print one JSON object and nothing else"""
    seed: int = 0
    """of the bootstrap"""


class Group(NamedTuple):
    """Runs that are one side of the comparison."""

    name: str  # "A", "B", ...
    label: str
    runs: list[RunRecord]


class Figure(NamedTuple):
    """One row of the table: what was measured, and each group's values, a run each; runs without it are left out."""

    name: str
    values: dict[str, list[float]]  # by group name


def divide(words: Sequence[str]) -> list[list[str]]:
    """The words between the dividers. ValueError("runs: ...") where there is nothing between two of them."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == DIVIDER:
            parts.append([])
        else:
            parts[-1].append(word)
    if not all(parts):
        raise ValueError("runs: name run folders on both sides of --, as in: compare runs/A* -- runs/B*")
    return parts


def load(args: Args) -> list[Group]:
    """The groups to compare. ValueError("runs: ...") where they can't be."""
    parts = [
        [records.read_run(folder) for folder in records.find_runs(part, Path(args.run_root))]
        for part in divide(args.runs)
    ]
    if len(parts) == 1:
        found = records.group_runs(parts[0])
        if len(found) < 2:
            raise ValueError("runs: these are all of one configuration; put -- between two groups")
    else:
        configs, names = [records.configuration(part[0]) for part in parts], [part[0].folder.name for part in parts]
        found = dict(zip(records.labels_of(configs, names), parts, strict=True))
    groups = [Group(letters(i), label, list(runs)) for i, (label, runs) in enumerate(found.items())]
    trained = {run.config["env_id"]: group.name for group in groups for run in group.runs if "env_id" in run.config}
    if len(trained) > 1:
        wording = ", ".join(f"{env_id} in {name}" for env_id, name in trained.items())
        raise ValueError(f"runs: returns of different environments can't be compared ({wording})")
    return groups


def letters(index: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    return (letters(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def figures_of(groups: Sequence[Group]) -> list[Figure]:
    """All rows: final evaluation and speed, returns at equal steps, returns at equal time."""
    found = [
        Figure(
            name, {group.name: [x for run in group.runs if (x := of_result(run, key)) is not None] for group in groups}
        )
        for name, key in RESULTS
    ]
    for axis in ("steps", "time"):
        curves = {
            group.name: [records.smoothed(records.curve(run, RETURN, axis)) for run in group.runs] for group in groups
        }
        lines = [line for group in curves.values() for line in group if len(line[0])]
        if not lines:
            continue
        start, end = max(line[0][0] for line in lines), min(line[0][-1] for line in lines)
        for place in (end * part for part in PARTS if start <= end * part):
            name = f"return at {place:,.0f} steps" if axis == "steps" else f"return at {in_time(place)}"
            values = {
                key: [float(np.interp(place, *line)) for line in group if len(line[0])] for key, group in curves.items()
            }
            found.append(Figure(name, values))
    return [figure for figure in found if any(figure.values.values())]


def of_result(run: RunRecord, key: str) -> float | None:
    """A figure of result.json; the speed of a run that has none is that of its last row."""
    value = run.result.get(key)
    if not records.is_number(value) and key == "sps":
        value = run.rows[-1].get("charts/SPS")
    return float(value) if value is not None and records.is_number(value) else None


def in_time(seconds: float) -> str:
    """4.2 s, 75 s, 12.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def measure(groups: Sequence[Group], figures: Sequence[Figure], seed: int) -> list[dict[str, Any]]:
    """Each figure with, by group name, its IQM, interval and values, and the chance of each group to beat the first."""
    first, *others = (group.name for group in groups)
    rows = []
    for figure in figures:
        row: dict[str, Any] = {"name": figure.name, "groups": {}, f"beats_{first}": {}}
        for name, values in figure.values.items():
            if values:
                low, high = intervals.bootstrap_interval(values, intervals.iqm, seed=seed)
                row["groups"][name] = {"iqm": intervals.iqm(values), "low": low, "high": high, "values": values}
        for name in others:
            if figure.values[name] and figure.values[first]:
                p, low, high = intervals.probability_of_improvement(
                    figure.values[name], figure.values[first], seed=seed
                )
                row[f"beats_{first}"][name] = {"p": p, "low": low, "high": high}
        rows.append(row)
    return rows


def cautions(groups: Sequence[Group]) -> list[str]:
    """What a reader should know before believing the table."""
    said = []
    for group in groups:
        mixed = len(records.group_runs(group.runs))
        if mixed > 1:
            said.append(f"{group.name} mixes {mixed} configurations")
        if unfinished := sum(not run.result for run in group.runs):
            said.append(
                f"{unfinished} of {len(group.runs)} runs in {group.name} have no result.json: unfinished or killed"
            )
    few = [group.name for group in groups if len(group.runs) < FEW]
    if few:
        said.append(f"fewer than {FEW} runs in {cli.one_of(few).replace(' or ', ' and ')}: intervals are too narrow")
    return said


def print_table(groups: Sequence[Group], rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table, each group by its letter."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first = groups[0].name
    console = Console(highlight=False)
    for group in groups:
        count = len(group.runs)
        console.print(f"{group.name}  {group.label}  ({count} run{'s' * (count > 1)})", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for group in groups:
        table.add_column(group.name, justify="right", no_wrap=True)
    for group in groups[1:]:
        table.add_column(f"P({group.name} > {first})", justify="right", no_wrap=True)
    # A pipe has no width to keep to; in a narrow window intervals go below their figures.
    console.width = console.width if console.is_terminal else 1000
    narrow = console.width < 26 * len(groups) + 20 * len(groups)
    for row in rows:
        cells = [in_words(row["groups"].get(group.name), "iqm") for group in groups]
        cells += [in_words(row[f"beats_{first}"].get(group.name), "p") for group in groups[1:]]
        table.add_row(row["name"], *(cell.replace(" \\[", "\n\\[") if narrow else cell for cell in cells))
    console.print(table)
    console.print("interquartile means over runs, [95 % intervals]; P: chance of a run to beat one of A", markup=False)
    for line in cautions(groups):
        console.print(f"note: {line}", markup=False, soft_wrap=True)


def in_words(cell: Mapping[str, float] | None, key: str) -> str:
    """462.1 [431.0, 490.2]."""
    if cell is None:
        return "-"
    digits = 2 if key == "p" else 0 if abs(cell[key]) >= 10_000 else 1 if abs(cell[key]) >= 10 else 3
    text = f"{cell[key]:,.{digits}f}"
    return text if math.isnan(cell["low"]) else f"{text} \\[{cell['low']:,.{digits}f}, {cell['high']:,.{digits}f}]"


def strict(value: Any) -> Any:
    """`value` with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def compare(args: Args) -> dict[str, Any]:
    """Print the comparison; returns what `--json` prints. Runs that can't be compared are a ValueError."""
    cli.check_ranges(args)
    if not args.runs:
        raise ValueError("runs: name two groups of run folders, as in: compare runs/A* -- runs/B*")
    groups = load(args)
    figures = figures_of(groups)
    try:
        rows = measure(groups, figures, args.seed)
    except ModuleNotFoundError as problem:
        raise ValueError(f"runs: {problem}") from problem
    sides = {group.name: {"label": group.label, "runs": [str(run.folder) for run in group.runs]} for group in groups}
    result = strict({"groups": sides, "notes": cautions(groups)}) | {"figures": [strict(row) for row in rows]}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(groups, rows)
    return result


if __name__ == "__main__":
    cli.run(compare, Args, __doc__)
