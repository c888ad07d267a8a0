"""Run folders read back: their rows, what tells their configurations apart, and curves that can be averaged.

    runs = [read_run(folder) for folder in find_runs(["runs/CartPole*"], Path("runs"))]
    for label, members in group_runs(runs).items():
        x, values = common_grid([curve(run, "charts/episodic_return", "steps") for run in members])

What a killed or a broken run leaves is read as far as it goes: half rows, NaN and texts in place of numbers are left
out. Letters: K points of a curve, R runs.
"""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

METRICS = "metrics.jsonl"
LATEST = "latest"
# What may differ between two runs of one configuration: the seed, where and how it ran, what was recorded of it.
INCIDENTAL = {
    *("seed", "run_root", "quiet", "track", "tensorboard", "capture_video", "eval_episodes", "verify", "profile"),
    *("torch_deterministic", "execution", "versions", "device", "device_in_words", "threads", "backend_used", "cuda"),
    *("resume", "resumed_from", "save_interval", "keep_checkpoints", "max_runtime", "env_timeout", "env_restarts"),
    *("on_nan", "world_size", "observation_space", "action_space"),
    *("parameters", "num_iterations", "batch_size", "max_entropy", "no_preset", "preset", "exit_status"),
}
INCIDENTAL_PREFIX = "wandb_"
Curve = tuple[np.ndarray, np.ndarray]  # x and y, (K,) each, x rising


class RunRecord(NamedTuple):
    """One run folder."""

    folder: Path
    rows: list[dict[str, float]]  # by rising global_step; finite numbers only
    config: dict[str, Any]  # empty where there is none
    result: dict[str, Any]  # empty where the run did not end
    lost: int  # lines of metrics.jsonl that are no rows


def find_runs(words: Sequence[str], root: Path) -> list[Path]:
    """The run folders that `words` name, each once, in their order.

    A word is a run folder, a folder of run folders, a pattern with * or ?, or `latest`, the newest run below `root`.

    Raises:
        ValueError: "runs: ..." for a word that names no run.
    """
    found: list[Path] = []
    for word in words:
        places = [root / LATEST] if word == LATEST else [Path(word)]
        if any(mark in word for mark in "*?[") and not places[0].exists():
            places = [Path(place) for place in sorted(glob.glob(word))]
        runs = [run for place in places for run in _runs_at(place)]
        if not runs:
            place = f"below {root}; name one, or set --run-root" if word == LATEST else f"at {word}"
            raise ValueError(f"runs: no run folder (none with a {METRICS}) {place}")
        found += [run for run in runs if run not in found]
    return found


def _runs_at(place: Path) -> list[Path]:
    if (place / METRICS).is_file():
        return [place]
    below = [path.parent for path in (place.parent if place.name == LATEST else place).glob(f"*/{METRICS}")]
    if place.name == LATEST:
        return sorted(below, key=lambda run: (run / METRICS).stat().st_mtime_ns)[-1:]
    return sorted(below)


def read_run(folder: Path) -> RunRecord:
    """What a run folder holds.

    Raises:
        ValueError: "runs: ..." in one line when no row can be read.
    """
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as problem:
        raise ValueError(f"runs: {folder / METRICS}: {problem.strerror}") from problem
    rows = [row for row in map(_row, lines) if row is not None]
    if not rows:
        what = (
            "is empty" if not any(map(str.strip, lines)) else f"holds no row with a global_step in {len(lines)} lines"
        )
        raise ValueError(f"runs: {folder / METRICS} {what}")
    # A resumed run may have written some steps twice: the later row counts.
    by_step = {row["global_step"]: row for row in rows}
    ordered = [by_step[step] for step in sorted(by_step)]
    lost = sum(bool(line.strip()) for line in lines) - len(rows)
    return RunRecord(folder, ordered, _json_object(folder / "config.json"), _json_object(folder / "result.json"), lost)


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not is_number(row.get("global_step")):
        return None
    return {name: float(x) for name, x in row.items() if is_number(x)}


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def configuration(run: RunRecord) -> dict[str, Any]:
    """The flags that define what was trained, without the seed and what is incidental."""
    return {name: value for name, value in run.config.items() if not incidental(name)}


def incidental(name: str) -> bool:
    """Whether an entry of config.json does not define what was trained."""
    return name in INCIDENTAL or name.startswith(INCIDENTAL_PREFIX)


def group_runs(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs of one configuration together, under a label that says what tells it from the others.

    A run without a readable config.json is a configuration of its own.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(configuration(run), sort_keys=True) if run.config else str(run.folder), []).append(
            run
        )
    members = list(groups.values())
    labels = labels_of([configuration(group[0]) for group in members], [group[0].folder.name for group in members])
    return dict(zip(labels, members, strict=True))


def labels_of(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """What tells configurations apart: environment and experiment where that is enough, else the flags that differ."""
    differing = differences(configs)
    words = [key for key in ("env_id", "exp_name") if key in differing] or ["env_id", "exp_name"]
    plain = [" ".join(str(config[key]) for key in words if key in config) for config in configs]
    labels: list[str] = []
    for config, name, label in zip(configs, names, plain, strict=True):
        flags = [f"{key}={_short(config[key])}" for key in differing if key not in words and key in config]
        if label and plain.count(label) > 1:
            more = f" and {len(flags) - 3} more" if len(flags) > 3 else ""
            label = ", ".join([label] * ("env_id" in differing or "exp_name" in differing) + flags[:3]) + more or label
        label = label or name
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    return labels


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same in all configurations that are known."""
    known = [config for config in configs if config]
    names = dict.fromkeys(name for config in known for name in config)
    return [name for name in names if len({json.dumps(config.get(name)) for config in known}) > 1]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def curve(run: RunRecord, column: str, axis: str) -> Curve:
    """One column over "steps" (environment steps) or "time" (seconds of training): x and y, (K,) each."""
    points = [(x, row[column]) for row in run.rows if column in row and (x := position(row, axis)) is not None]
    x, y = (np.array(values, dtype=np.float64) for values in (zip(*points, strict=True) if points else ((), ())))
    # Strictly rising, or there is nothing to interpolate.
    keep = np.diff(np.maximum.accumulate(x), prepend=-np.inf) > 0
    return x[keep], y[keep]


def position(row: Mapping[str, float], axis: str) -> float | None:
    """Where a row stands: its global_step, or the seconds of training until then.

    The seconds are its "time/elapsed", or for older runs the steps over the mean steps per second so far.
    """
    if axis == "steps":
        return row["global_step"]
    if "time/elapsed" in row:
        return row["time/elapsed"]
    return row["global_step"] / row["charts/SPS"] if row.get("charts/SPS", 0.0) > 0 else None


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` values around each, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    low, high = np.maximum(0, middle - width // 2), np.minimum(len(values), middle + width // 2 + 1)
    return (sums[high] - sums[low]) / (high - low)


def smoothed(line: Curve) -> Curve:
    """The curve averaged over a twentieth of its points around each."""
    return line[0], smooth(line[1], max(1, len(line[1]) // 20))


def common_grid(curves: Sequence[Curve], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Curves at equal places, where all of them have values: x (K,) and their values (R, K), linearly between points.

    Empty where they share no stretch.
    """
    curves = [line for line in curves if len(line[0])]
    low = max((line[0][0] for line in curves), default=1.0)
    high = min((line[0][-1] for line in curves), default=0.0)
    if low > high:
        return np.empty(0), np.empty((len(curves), 0))
    x = np.linspace(low, high, points if high > low else 1)
    return x, np.stack([np.interp(x, *line) for line in curves])


def thinned(line: Curve, points: int = 400) -> Curve:
    """At most about `points` points of a curve, means of neighbours: what a picture can show."""
    every = math.ceil(len(line[0]) / points)
    if every <= 1:
        return line
    starts = np.arange(0, len(line[0]), every)
    counts = np.diff(np.append(starts, len(line[0])))
    return np.add.reduceat(line[0], starts) / counts, np.add.reduceat(line[1], starts) / counts
