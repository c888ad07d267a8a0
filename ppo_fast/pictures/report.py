"""The report of runs as one HTML page: results, curves, advice, videos and configuration.

    text = report(groups, "CartPole-v1", "steps", thresholds, {"lr=0.1": ["clip fraction above 0.2 in ..."]})
    Path("report.html").write_text(text)

How a table or a tile looks stands in page.py; what is in it, here.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppo_fast import names, reading
from ppo_fast.pictures import page, panels
from ppo_fast.pictures.configurations import Groups, configuration, differences, incidental, names_in
from ppo_fast.pictures.curves import Axis, position
from ppo_fast.pictures.records import RunRecord

LARGEST_VIDEO = 12_000_000  # bytes, before base64 makes four bytes of three
MOST_RUNS_UNFOLDED = 4  # so many rows a reader has in view without a click


class Result(NamedTuple):
    """A figure of result.json."""

    name: str
    key: str
    form: str  # of the number


RETURNS = (
    Result("return, greedy", names.MEAN_RETURN, "{:,.2f}"),
    Result("return, sampled", names.SAMPLED_MEAN_RETURN, "{:,.2f}"),
)
SPEED = Result("steps per second", "sps", "{:,.0f}")


def report(
    groups: Groups, title: str, first: Axis, thresholds: Mapping[str, float], advice: Mapping[str, Sequence[str]]
) -> str:
    """The page as one text.

    Args:
        groups: the runs of each configuration, by its label.
        title: of the page.
        first: the axis of the curves that show at first; those over the other one show on a click.
        thresholds: by column, from where on there is advice about it.
        advice: lines about each configuration, by its label.
    """
    runs = sum(map(len, groups.values()))
    result = result_tables(groups)
    if len(groups) == 1:
        result = tiles(*groups.values()) + result
    sections = [
        page.Section("Result", result),
        page.Section("Curves", curves(groups, first, thresholds)),
        page.Section("Advice", findings(advice)),
        page.Section("Videos", page.videos(films(groups))),
        page.Section("Configuration", configuration_tables(groups)),
    ]
    return page.page(title, f"{_count(runs, 'run')}, {_count(len(groups), 'configuration')}", sections)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


# ---------------------------------------------------------------- results


def tiles(runs: Sequence[RunRecord]) -> str:
    """The figures of the runs of one configuration, large."""
    figures = {"environment steps": f"{max(_steps(run) for run in runs):,.0f}"}
    for result in (*RETURNS, SPEED):
        found = over_seeds(runs, result)
        if found is not None:
            figures[result.name] = found
    ends = [position(run.rows[-1], "time") for run in runs]
    seconds = [end for end in ends if end is not None]
    if seconds:
        figures["seconds of training"] = f"{statistics.mean(seconds):,.1f}"
    return page.tiles(figures)


def _steps(run: RunRecord) -> float:
    return run.rows[-1][names.GLOBAL_STEP]


def over_seeds(runs: Sequence[RunRecord], result: Result) -> str | None:
    """The mean of a result over runs, with its standard deviation where there are several. None where none has it."""
    values = [run.result[result.key] for run in runs if names.is_number(run.result.get(result.key))]
    if not values:
        return None
    mean = result.form.format(statistics.mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {result.form.format(statistics.stdev(values))}"


def result_tables(groups: Groups) -> str:
    """One row a configuration, and one a run folded below."""
    results = [result.name for result in RETURNS] + ["steps/s"]
    summary: list[list[object]] = []
    each: list[list[object]] = []
    for label, runs in groups.items():
        summary.append([label, len(runs), *_results(runs)])
        for run in runs:
            seed = run.config.get("seed", "-")
            each.append([run.folder.name, seed, f"{_steps(run):,.0f}", *_results([run]), _ending(run)])
    html = ""
    if len(groups) > 1:
        html += page.table(["configuration", "runs", *results], summary)
    if len(each) > len(groups):
        html += '<p class="faint">Over seeds: mean ± standard deviation.</p>'
    table = page.table(["run", "seed", "steps", *results, "end"], each)
    return html + page.fold(_count(len(each), "run"), table, opened=len(each) <= MOST_RUNS_UNFOLDED)


def _results(runs: Sequence[RunRecord]) -> list[str]:
    """One cell for each result."""
    return [over_seeds(runs, result) or "-" for result in (*RETURNS, SPEED)]


def _ending(run: RunRecord) -> str:
    if not run.result:
        return "no result.json: still running, or killed"
    return f"stopped by {run.result['stopped']}" if "stopped" in run.result else "complete"


# ---------------------------------------------------------------- curves and advice


def curves(groups: Groups, first: Axis, thresholds: Mapping[str, float]) -> str:
    """The panels over steps and over time, of which one shows, with their legend."""
    over_steps = {"over environment steps": svg_panels(groups, "steps", thresholds)}
    over_time = {"over seconds of training": svg_panels(groups, "time", thresholds)}
    parts = over_steps | over_time if first == "steps" else over_time | over_steps
    legend = page.legend(list(groups)) if len(groups) > 1 else ""
    return legend + page.tabs("axis", parts) + f'<p class="faint">{page.text(panels.reading(groups))}</p>'


def svg_panels(groups: Groups, axis: Axis, thresholds: Mapping[str, float]) -> str:
    """The panels as inline markup, one picture each, so that they stack on a phone."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures: list[str] = []
    for panel in panels.PANELS:
        # Texts stay texts, and equal pictures get equal ids.
        salt = f"{panel.column} {axis}"
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
            figure = Figure(figsize=(3.9, 2.5))
            figure.patch.set_alpha(0)
            axes = figure.subplots()
            axes.patch.set_alpha(0)
            figure.subplots_adjust(left=0.145, right=0.97, bottom=0.12, top=0.89)
            panels.draw_panel(axes, panel, groups, axis, thresholds)
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
        pictures.append(page.themed(file.getvalue(), f"{panel.title} against {axis}"))
    return page.panels(pictures)


def findings(advice: Mapping[str, Sequence[str]]) -> str:
    """The lines of advice of each configuration, below its label where there are several."""
    html = ""
    for label, lines in advice.items():
        if len(advice) > 1:
            html += f"<p><b>{page.text(label)}</b></p>"
        html += page.findings(lines, "no advice")
    return html


# ---------------------------------------------------------------- videos and configuration


def films(groups: Groups) -> dict[str, bytes]:
    """The film of the end of each configuration's newest run that has one, by caption, else its latest step's.

    Those too large for a page are left out.
    """
    found: dict[str, bytes] = {}
    for label, runs in groups.items():
        paths = [path for run in runs for path in _videos_of(run)]
        if paths:
            newest = max(paths, key=_lateness)
            run_name = newest.parent.parent.name
            found[f"{label}: {run_name}/videos/{newest.name}"] = reading.read_bytes(newest, LARGEST_VIDEO)
    return found


def _lateness(path: Path) -> tuple[float, int, str]:
    """Larger for a film that shows more of what was learned in the end: greedy.mp4, then step-<n>.mp4, then others."""
    step = re.fullmatch(r"step-(\d+)", path.stem)
    place = float(step[1]) if step else -1.0
    if path.stem == "greedy":
        place = math.inf
    return place, path.stat().st_mtime_ns, path.name


def _videos_of(run: RunRecord) -> list[Path]:
    """The videos of a run that a page can hold; one that is still being written begins with a dot."""
    paths = [path for path in (run.folder / "videos").glob("*.mp4") if not path.name.startswith(".")]
    return [path for path in paths if path.is_file() and 0 < path.stat().st_size <= LARGEST_VIDEO]


def configuration_tables(groups: Groups) -> str:
    """The flags that differ, then, folded, all that config.json holds."""
    configs = [runs[0].config for runs in groups.values()]
    entries = names_in(configs)
    flags = [name for name in entries if not incidental(name)]
    record = [name for name in entries if incidental(name)]
    if not flags:
        return ""
    differing = differences([configuration(runs[0]) for runs in groups.values()])
    equal = [name for name in flags if name not in differing]
    head = ["flag", *(groups if len(groups) > 1 else ["value"])]
    html = ""
    if differing:
        html += page.table(head, [_row(name, configs) for name in differing])
    shared = page.table(["flag", "value"], [_row_of_equals(name, configs) for name in equal])
    html += page.fold("Flags that are equal in all" if differing else "Flags", shared)
    return html + page.fold("Seeds, machine and record", page.table(head, [_row(name, configs) for name in record]))


def _row(name: str, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """An entry of config.json, and what each configuration has there."""
    return [name, *(in_words(config.get(name, "-")) for config in configs)]


def _row_of_equals(name: str, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """An entry of config.json that is the same in all configurations that have it."""
    values = [in_words(config[name]) for config in configs if name in config]
    return [name, values[0]]


def in_words(value: Any) -> str:
    """A value of config.json as a reader likes it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
