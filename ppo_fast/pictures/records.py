"""Run folders read back: which there are, and what each holds.

    for folder in find_runs(["runs/CartPole*"], Path("runs")):
        run = read_run(folder)
        run.rows[-1]["charts/episodic_return"], run.config["gamma"], run.result["sps"]

What a killed or a broken run leaves is read as far as it goes: half rows, NaN and texts in place of numbers are left
out. The files may be anybody's, see `reading`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppo_fast import jsonl, names, reading

LATEST = "latest"
WILDCARDS = "*?["
LARGEST = 1e100  # of the numbers in a row: a picture's scale or a mean of larger ones is beyond a float


class RunRecord(NamedTuple):
    """One run folder."""

    folder: Path
    rows: list[dict[str, float]]  # by rising global_step; finite numbers only
    config: dict[str, Any]  # empty where there is none
    result: dict[str, Any]  # empty where the run did not end
    lost: int  # lines of metrics.jsonl that are no rows
    notes: tuple[str, ...] = ()  # a line for each other file that can't be read


def find_runs(words: Sequence[str], root: Path) -> list[Path]:
    """The run folders that `words` name, each once, in their order.

    A word is a run folder, a folder of run folders, a pattern with * or ?, or `latest`, the newest run below `root`.

    Raises:
        ValueError: "runs: ..." for a word that names no run.
    """
    found: list[Path] = []
    for word in words:
        runs = _runs_named(word, root)
        if not runs:
            place = f"below {root}; name one, or set --run-root" if word == LATEST else f"at {word}"
            raise ValueError(f"runs: no run folder (none with a {names.METRICS_FILE}) {place}")
        found += [run for run in runs if run not in found]
    return found


def _runs_named(word: str, root: Path) -> list[Path]:
    if word == LATEST:
        return _runs_at(root / LATEST)
    # The name of a folder may itself hold a bracket.
    if any(mark in word for mark in WILDCARDS) and not Path(word).exists():
        return [run for place in sorted(glob.glob(word)) for run in _runs_at(Path(place))]
    return _runs_at(Path(word))


def _runs_at(place: Path) -> list[Path]:
    """The run in this folder, else the newest beside it where it is called `latest`, else those in it."""
    if (place / names.METRICS_FILE).is_file():
        return [place]
    if place.name != LATEST:
        return _runs_below(place)
    return sorted(_runs_below(place.parent), key=_last_written)[-1:]


def _runs_below(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob(f"*/{names.METRICS_FILE}") if path.exists())


def _last_written(run: Path) -> int:
    return (run / names.METRICS_FILE).stat().st_mtime_ns


def read_run(folder: Path) -> RunRecord:
    """What a run folder holds.

    Raises:
        ValueError: "runs: ..." in one line when no row can be read.
    """
    path = folder / names.METRICS_FILE
    try:
        lines = jsonl.rows_of(reading.lines(path))
    except OSError as problem:
        raise ValueError(f"runs: {path}: {problem.strerror}") from problem
    placed = [row for row in lines.rows if _has_step(row)]
    count = len(lines.rows) + lines.broken
    if count == 0:
        raise ValueError(f"runs: {path} is empty")
    if not placed:
        raise ValueError(f"runs: {path} holds no row with a global_step in {count} lines")
    notes: list[str] = []
    config = _json_file(folder / names.CONFIG_FILE, notes)
    result = _json_file(folder / names.RESULT_FILE, notes)
    ids = config.get(names.RUN_ID), result.get(names.RUN_ID)
    if None not in ids and ids[0] != ids[1]:
        notes.append(f"{folder / names.RESULT_FILE} is of another run than {names.CONFIG_FILE}; left out")
        result = {}
    return RunRecord(folder, in_order(placed), config, result, count - len(placed), tuple(notes))


def in_order(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Rows of metrics.jsonl as they can be drawn: numbers up to LARGEST only, by rising global_step.

    Rows without a global_step are left out. A resumed run may have written some steps twice: the later row counts.
    """
    by_step: dict[float, dict[str, float]] = {}
    for row in rows:
        if _has_step(row):
            numbers = {name: float(value) for name, value in row.items() if _can_be_drawn(value)}
            by_step[numbers[names.GLOBAL_STEP]] = numbers
    return [by_step[step] for step in sorted(by_step)]


def _has_step(row: Mapping[str, Any]) -> bool:
    return _can_be_drawn(row.get(names.GLOBAL_STEP))


def _can_be_drawn(value: Any) -> bool:
    return names.is_number(value) and abs(value) <= LARGEST


def _json_file(path: Path, notes: list[str]) -> dict[str, Any]:
    """What the file holds; empty where it is not there, or can't be read, which is noted."""
    try:
        found = jsonl.json_object(reading.read_bytes(path, reading.SMALL))
    except FileNotFoundError:
        return {}
    except OSError as problem:
        notes.append(f"{path}: {problem.strerror}; left out")
        return {}
    if found is None:
        notes.append(f"{path} holds no JSON object; left out")
    return found or {}
