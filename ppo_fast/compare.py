"""Is B better than A? Returns at equal steps and at equal time, speed, and how sure that is.

    python -m ppo_fast.compare runs/A* -- runs/B*     two groups of runs, or more, each a seed a run
    python -m ppo_fast.compare runs                   the configurations below runs/ with each other

Every figure is the interquartile mean over a group's runs with its 95 % bootstrap interval; the last columns say how
likely a run of a group is to beat one of the first, 0.5 being no difference (Agarwal et al. 2021, arXiv 2108.13264).
Returns while training are of sampled actions, averaged over a twentieth of the run. Needs SciPy: the extra `compare`.
"""

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ppo_fast import names
from ppo_fast.pictures.comparison import Chance, Estimate, Group, Row, figures_of, measure
from ppo_fast.pictures.configurations import configuration, group_runs, labels_of, one_a_seed
from ppo_fast.pictures.records import RunRecord, find_runs, read_run
from ppo_fast.run import cli, pairs
from ppo_fast.run.flags import one_of, plain_args
from ppo_fast.run.streams import is_terminal, show

DIVIDER = "--"
FEW = 5  # runs below which a bootstrap interval is too narrow to be trusted
GROUP_WIDTH = 46  # characters that a group takes in the table: its figure and its chance, each with its interval
PIPE_WIDTH = 1000  # a pipe has no width to keep to


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


def load(args: Args) -> tuple[list[Group], list[str]]:
    """The groups, and a line for each run that another repeats. ValueError("runs: ...") where they can't be."""
    root = Path(args.run_root)
    parts: list[list[RunRecord]] = []
    repeated: list[str] = []
    for words in divide(args.runs):
        runs, lines = one_a_seed([read_run(folder) for folder in find_runs(words, root)])
        parts.append(runs)
        repeated += lines
    if len(parts) == 1:
        labelled = group_runs(parts[0])
        if len(labelled) < 2:
            raise ValueError("runs: these are all of one configuration; put -- between two groups")
    else:
        configs = [configuration(part[0]) for part in parts]
        folders = [part[0].folder.name for part in parts]
        labelled = dict(zip(labels_of(configs, folders), parts, strict=True))
    groups = [Group(letters(i), label, runs) for i, (label, runs) in enumerate(labelled.items())]
    check_environments(groups)
    return groups, repeated


def check_environments(groups: Sequence[Group]) -> None:
    """ValueError("runs: ...") where not all runs are of one environment."""
    trained: dict[str, str] = {}
    for group in groups:
        for run in group.runs:
            env_id, keywords = run.config.get("env_id"), run.config.get("env_kwargs")
            if isinstance(env_id, str):  # a file may hold anything
                own = pairs.spelled(keywords) if isinstance(keywords, dict) else ""
                trained[f"{env_id} {own}".strip()] = group.name
    if len(trained) > 1:
        wording = ", ".join(f"{names.printable(env_id)[:60]} in {name}" for env_id, name in trained.items())
        raise ValueError(f"runs: returns of different environments can't be compared ({wording})")


def letters(index: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    return (letters(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def cautions(groups: Sequence[Group]) -> list[str]:
    """What a reader should know before believing the table."""
    said: list[str] = []
    for group in groups:
        mixed = len(group_runs(group.runs))
        if mixed > 1:
            said.append(f"{group.name} mixes {mixed} configurations")
        unfinished = sum(not run.result for run in group.runs)
        if unfinished:
            count = f"{unfinished} of {len(group.runs)} runs in {group.name}"
            said.append(f"{count} have no result.json: unfinished or killed")
        said += [note for run in group.runs for note in run.notes]
    few = [group.name for group in groups if len(group.runs) < FEW]
    if few:
        said.append(f"fewer than {FEW} runs in {one_of(few).replace(' or ', ' and ')}: intervals are too narrow")
    return said


def table(groups: Sequence[Group], rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The rows as a table for this terminal, each group by its letter."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first, others = groups[0], groups[1:]
    screen = io.StringIO()
    console = Console(file=screen, highlight=False, force_terminal=is_terminal(sys.stdout) or None)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("", no_wrap=True)
    for group in groups:
        drawn.add_column(group.name, justify="right", no_wrap=True)
    for group in others:
        drawn.add_column(f"P({group.name} > {first.name})", justify="right", no_wrap=True)
    console.width = console.width if console.is_terminal else PIPE_WIDTH
    # In a narrow window intervals go below their figures.
    gap = "\n" if console.width < GROUP_WIDTH * len(groups) else " "
    for row in rows:
        cells = [estimate_in_words(row.estimates.get(group.name), gap) for group in groups]
        cells += [chance_in_words(row.chances.get(group.name), gap) for group in others]
        drawn.add_row(row.name, *cells)
    for group in groups:
        count = len(group.runs)
        label = names.printable(group.label)
        console.print(f"{group.name}  {label}  ({count} run{'s' * (count > 1)})", markup=False, soft_wrap=True)
    console.print(drawn)
    console.print("interquartile means over runs, [95 % intervals]; P: chance of a run to beat one of A", markup=False)
    for line in notes:
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    return screen.getvalue().rstrip("\n")


def estimate_in_words(estimate: Estimate | None, gap: str) -> str:
    """462.1 [431.0, 490.2], in rich's markup; `gap` stands between the figure and its interval."""
    if estimate is None:
        return "-"
    size = abs(estimate.iqm)
    digits = 3
    if size >= 10:
        digits = 1
    if size >= 10_000:
        digits = 0
    return _with_interval(estimate.iqm, estimate.low, estimate.high, digits, gap)


def chance_in_words(chance: Chance | None, gap: str) -> str:
    """0.82 [0.52, 1.00], as `estimate_in_words`."""
    return "-" if chance is None else _with_interval(chance.p, chance.low, chance.high, 2, gap)


def _with_interval(value: float, low: float, high: float, digits: int, gap: str) -> str:
    text = f"{value:,.{digits}f}"
    return text if math.isnan(low) else f"{text}{gap}\\[{low:,.{digits}f}, {high:,.{digits}f}]"


def as_json(groups: Sequence[Group], rows: Sequence[Row], notes: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints: "groups", "notes" and "figures", with null where there is no interval."""
    sides = {group.name: {"label": group.label, "runs": [str(run.folder) for run in group.runs]} for group in groups}
    figures: list[Mapping[str, Any]] = []
    for row in rows:
        estimates = {name: estimate._asdict() for name, estimate in row.estimates.items()}
        chances = {name: chance._asdict() for name, chance in row.chances.items()}
        figures.append({"name": row.name, "groups": estimates, f"beats_{groups[0].name}": chances})
    return names.jsonable({"groups": sides, "notes": notes, "figures": figures})


def compare(args: Args) -> dict[str, Any]:
    """Print the comparison; returns what `--json` prints. Runs that can't be compared are a ValueError."""
    args = plain_args(args)
    if not args.runs:
        raise ValueError("runs: name two groups of run folders, as in: compare runs/A* -- runs/B*")
    groups, repeated = load(args)
    notes = [*repeated, *cautions(groups)]
    figures = figures_of(groups)
    try:
        rows = measure(groups, figures, args.seed)
    except ModuleNotFoundError as problem:
        raise ValueError(f"runs: {problem}") from problem
    result = as_json(groups, rows, notes)
    if args.json:
        show(json.dumps(result, indent=2))
    else:
        show(table(groups, rows, notes))
    return result


if __name__ == "__main__":
    cli.run(compare, Args, __doc__)
