"""Learning curves of runs, as a picture or as one HTML page.

    python -m ppo_fast.plot runs/<run>                         one run
    python -m ppo_fast.plot runs/A* runs/B* --out curves.svg   seeds of one configuration become a mean with a band
    python -m ppo_fast.plot runs --x time                      all runs below runs/, over seconds of training
    python -m ppo_fast.plot runs --html report.html            figures, configuration, advice and video in one file

A run belongs to a configuration by its flags; the seed and where it ran do not count.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ppo_fast import names
from ppo_fast.engine import caches
from ppo_fast.pictures.configurations import group_runs, one_a_seed
from ppo_fast.pictures.panels import draw_figure
from ppo_fast.pictures.records import RunRecord, find_runs, read_run
from ppo_fast.pictures.report import report
from ppo_fast.run import cli, health
from ppo_fast.run.flags import check_ranges, one_of, plain_args
from ppo_fast.run.streams import complain, say

FORMATS = (".png", ".svg", ".pdf")


@dataclass
class Args:
    """What to draw, and where to."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("latest",)
    """run folders, folders of run folders, or `latest`"""
    run_root: str = "runs"
    """folder that `latest` looks in"""
    x: Literal["steps", "time"] = "steps"
    """environment steps, or seconds of training"""
    out: str | None = None
    """picture to write, .png, .svg or .pdf; else plot.png, in the folder of a single run, where --html isn't given"""
    html: str | None = None
    """write one self-contained HTML page"""

    def check(self) -> None:
        """Raise ValueError naming the first flag whose value cannot work."""
        check_ranges(self)
        if self.out is not None and Path(self.out).suffix.lower() not in FORMATS:
            raise ValueError(f"--out: must end in {one_of(FORMATS)}, got {self.out!r}")


def load(words: Sequence[str], root: Path) -> list[RunRecord]:
    """The runs that can be read; what is wrong with the others is said, and raised where none is left."""
    runs: list[RunRecord] = []
    wrong: list[str] = []
    for folder in find_runs(words, root):
        try:
            run = read_run(folder)
        except ValueError as problem:
            wrong.append(str(problem))
            continue
        runs.append(run)
        if run.lost:
            say(f"note: {folder / names.METRICS_FILE}: {run.lost} broken line(s) left out")
        for note in run.notes:
            say(f"note: {note}")
    if not runs:
        more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)
    for line in wrong:
        say(f"warning: {line.removeprefix('runs: ')}; left out")
    kept, repeated = one_a_seed(runs)
    for line in repeated:
        say(f"note: {line}")
    return kept


def thresholds() -> dict[str, float]:
    """By column, from where on there is advice. What is a part of the largest entropy differs between runs."""
    return {rule.metric: rule.threshold for rule in health.RULES if not rule.of_max_entropy}


def advice(runs: Sequence[RunRecord]) -> list[str]:
    """What health/... in the rows says about the runs of one configuration, in words."""
    said: list[str] = []
    for rule in health.RULES:
        column = f"health/{rule.key}"
        flags = [[row[column] for row in run.rows if column in row] for run in runs]
        flags = [of_run for of_run in flags if of_run]
        if not flags:
            continue
        share = statistics.mean(statistics.mean(of_run) for of_run in flags)
        ends = sum(of_run[-1] > 0 for of_run in flags)
        if share < health.LASTING and not ends:
            continue
        when = f"{share:.0%} of the updates"
        if ends:
            when += f", at the end of {ends} of {len(runs)} runs"
        name = rule.key.replace("_", " ")
        condition = "while returns are low" if rule.key == "entropy" else f"{rule.bad} {rule.threshold:g}"
        said.append(f"{name} {condition} in {when}: {rule.meaning}; {rule.action}")
    for run in runs:
        if any(row.get(names.NOT_FINITE, 0) > 0 for row in run.rows):
            said.append(f"NaN or infinity stopped {run.folder.name}")
    return said


@caches.home()
def plot(args: Args) -> list[Path]:
    """Write what was asked for; returns the files. A flag or a file that can't be used is a ValueError."""
    args = plain_args(args)
    args.check()
    for line in caches.for_pictures():
        complain(line)
    runs = load(args.runs, Path(args.run_root))
    groups = group_runs(runs)
    title = title_of(runs)
    written: list[Path] = []
    if args.out or not args.html:
        folder = runs[0].folder if len(runs) == 1 else Path()
        path = Path(args.out) if args.out else folder / "plot.png"
        write("--out", path, lambda: draw_figure(groups, args.x, title, thresholds()).savefig(path))
        written.append(path)
    if args.html:
        path = Path(args.html)
        said = {label: advice(members) for label, members in groups.items()}
        draw = partial(report, groups, title, args.x, thresholds(), said)
        write("--html", path, lambda: path.write_text(draw(), encoding="utf-8"))
        written.append(path)
    return written


def title_of(runs: Sequence[RunRecord]) -> str:
    """The run's name, or the environments of several runs."""
    if len(runs) == 1:
        return runs[0].folder.name
    environments = {str(run.config["env_id"]) for run in runs if "env_id" in run.config}
    return ", ".join(sorted(environments)) or f"{len(runs)} runs"


def write(flag: str, path: Path, save: Callable[[], object]) -> None:
    """Call `save`, which writes `path`, and say so; ValueError with the flag's name where the disk says no."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save()
    except OSError as problem:
        raise ValueError(f"{flag}: can't write {path}: {problem.strerror or problem}") from problem
    say(f"written: {path}")


if __name__ == "__main__":
    cli.run(plot, Args, __doc__)
