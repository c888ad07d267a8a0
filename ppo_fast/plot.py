"""Learning curves of runs, as a picture or as one HTML page.

    python -m ppo_fast.plot runs/<run>                         one run
    python -m ppo_fast.plot runs/A* runs/B* --out curves.svg   seeds of one configuration become a mean with a band
    python -m ppo_fast.plot runs --x time                      all runs below runs/, over seconds of training
    python -m ppo_fast.plot runs --html report.html            figures, configuration, advice and video in one file

A run belongs to a configuration by its flags; the seed and where it ran do not count.
"""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from ppo_fast.pictures import page, records
from ppo_fast.pictures.curves import scale, short_number
from ppo_fast.pictures.records import RunRecord
from ppo_fast.run import cli, health

Groups = Mapping[str, Sequence[RunRecord]]
FORMATS = (".png", ".svg", ".pdf")
LARGEST_VIDEO = 12_000_000  # bytes, before base64 makes four bytes of three
ROW_INCHES, LEGEND_INCHES, WIDTH_INCHES = 2.6, 0.2, 14.0


class Panel(NamedTuple):
    """One curve of the picture."""

    title: str
    column: str
    key: str = ""  # of the health rule whose threshold is drawn


PANELS = (
    Panel("episodic return", "charts/episodic_return"),
    Panel("steps per second", "charts/SPS"),
    Panel("policy loss", "losses/policy_loss"),
    Panel("value loss", "losses/value_loss"),
    Panel("approximate KL", "losses/approx_kl", "approx_kl"),
    Panel("clip fraction", "losses/clipfrac", "clip_fraction"),
    Panel("explained variance", "losses/explained_variance", "explained_variance"),
    Panel("entropy", "losses/entropy"),
)


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
        cli.check_ranges(self)
        if self.out is not None and Path(self.out).suffix.lower() not in FORMATS:
            raise ValueError(f"--out: must end in {cli.one_of(FORMATS)}, got {self.out!r}")


# ---------------------------------------------------------------- drawing


def draw_panel(axes: Any, panel: Panel, groups: Groups, axis: str) -> None:
    """Each configuration's curve: smoothed, with the raw values of one run or the mean and deviation of several.

    The mean reaches as far as all its runs do; each run's own curve is drawn thinly behind.
    """
    axes.set_title(panel.title, loc="left", fontsize=10, color=page.INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(page.FAINT)
    axes.tick_params(labelsize=8, colors=page.INK)
    axes.grid(axis="y", color=page.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    drawn = [_draw_group(axes, i, list(runs), panel.column, axis) for i, runs in enumerate(groups.values())]
    values = [value for series in drawn for value in series]
    if not values:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=page.FAINT)
        axes.set(xticks=[], yticks=[])
        return
    _scale(axes, panel, min(values), max(values))
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.locator_params(axis="x", nbins=5)


def _draw_group(axes: Any, index: int, runs: list[RunRecord], column: str, axis: str) -> list[float]:
    """Draws one configuration and returns the values on its lines."""
    raw = [line for run in runs if len((line := records.curve(run, column, axis))[0])]
    if not raw:
        return []
    colour, style = page.SERIES[index % len(page.SERIES)], line_style(index)
    marker = "o" if max(len(line[0]) for line in raw) == 1 else ""
    smooth = [records.smoothed(line) for line in raw]
    for line in raw if len(raw) == 1 else smooth:
        axes.plot(*records.thinned(line), color=colour, linewidth=0.8, alpha=0.4, marker=marker)
    x, values = (smooth[0][0], smooth[0][1][None]) if len(raw) == 1 else records.common_grid(smooth)
    if not len(x):  # the runs share no stretch
        return [float(y) for line in smooth for y in line[1]]
    mean, deviation = values.mean(0), values.std(0)
    axes.plot(*records.thinned((x, mean)), linewidth=1.8, marker=marker, **style)
    if len(raw) > 1:
        low, high = np.maximum(mean - deviation, values.min(0)), np.minimum(mean + deviation, values.max(0))
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    return [float(y) for line in [(x, mean), *smooth] for y in line[1]]


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the configuration `index`: told apart in grey, too."""
    dashes = page.DASHES[index % len(page.DASHES)]
    style = (0, tuple(map(float, dashes.split()))) if dashes else "solid"
    return {"color": page.SERIES[index % len(page.SERIES)], "linestyle": style}


def _scale(axes: Any, panel: Panel, low: float, high: float) -> None:
    """The vertical axis, as in curves.png, with the threshold at which advice begins."""
    scale(axes, panel.column, low, high)
    rule = next((rule for rule in health.RULES if rule.key == panel.key), None)
    if rule is not None and axes.get_ylim()[0] < rule.threshold < axes.get_ylim()[1]:
        axes.axhline(rule.threshold, color=page.FAINT, linewidth=0.9, linestyle=(0, (1, 2)))


def draw_figure(groups: Groups, axis: str, title: str) -> Any:
    """All panels, with a legend of their own strip above them. A matplotlib Figure."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    labels = [_clipped(label, 90) for label in groups]
    columns = max(1, min(len(labels), int(150 / (max(map(len, labels)) + 9))))
    strip = 0.75 + (LEGEND_INCHES * math.ceil(len(labels) / columns) + 0.1 if len(labels) > 1 else 0.0)
    height = strip + 2 * ROW_INCHES + 0.55
    # Figure alone, without pyplot: no display, no global state, half the import time.
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=120, facecolor="white")
    grid = figure.subplots(2, 4)
    figure.subplots_adjust(
        left=0.045, right=0.985, bottom=0.62 / height, top=1 - strip / height, wspace=0.26, hspace=0.33
    )
    figure.text(0.012, 1 - 0.28 / height, title, fontsize=12, color=page.INK, va="center", weight="bold")
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        draw_panel(axes, panel, groups, axis)
    words = "environment steps" if axis == "steps" else "seconds of training"
    figure.text(
        0.012, 0.16 / height, f"against {words}; {reading(groups)}", fontsize=8.5, color=page.FAINT, va="center"
    )
    if len(labels) > 1:
        handles = [Line2D([], [], label=label, linewidth=1.8, **line_style(i)) for i, label in enumerate(labels)]
        place = {"loc": "upper left", "bbox_to_anchor": (0.008, 1 - 0.42 / height), "ncols": columns, "frameon": False}
        look = {"fontsize": 9, "labelcolor": page.INK, "handlelength": 3.4, "labelspacing": 0.3, "columnspacing": 1.6}
        figure.legend(handles=handles, **place, **look)
    return figure


def reading(groups: Groups) -> str:
    """How the lines are to be read."""
    several = any(len(runs) > 1 for runs in groups.values())
    thick = "thick: the mean of the seeds, smoothed; band: one standard deviation, within the seeds; thin: each seed"
    return f"{thick if several else 'thick: smoothed; thin: as logged'}; dotted: where advice begins"


def svg_panels(groups: Groups, axis: str) -> str:
    """The panels as inline markup for the page, one picture each, so that they stack on a phone."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures = []
    for panel in PANELS:
        # Texts stay texts, and equal pictures get equal ids.
        with rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": f"{panel.column} {axis}", "font.family": "sans-serif"}
        ):
            figure = Figure(figsize=(3.9, 2.5))
            figure.patch.set_alpha(0)
            axes = figure.subplots()
            axes.patch.set_alpha(0)
            figure.subplots_adjust(left=0.145, right=0.97, bottom=0.12, top=0.89)
            draw_panel(axes, panel, groups, axis)
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
        pictures.append(page.themed(file.getvalue(), f"{panel.title} against {axis}"))
    return page.panels(pictures)


def _clipped(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


# ---------------------------------------------------------------- the page


RETURNS = (("return, greedy", "eval/mean_return"), ("return, sampled", "eval/sampled_mean_return"))


def tiles(runs: Sequence[RunRecord]) -> str:
    """The figures of the runs of one configuration, large."""
    figures = {"environment steps": f"{max(run.rows[-1]['global_step'] for run in runs):,.0f}"}
    for name, key in RETURNS:
        if (found := _over_seeds(runs, key)) is not None:
            figures[name] = found
    if (speed := _over_seeds(runs, "sps", "{:,.0f}")) is not None:
        figures["steps per second"] = speed
    seconds = [x for run in runs if (x := records.position(run.rows[-1], "time")) is not None]
    return page.tiles(figures | ({"seconds of training": f"{statistics.mean(seconds):,.1f}"} if seconds else {}))


def _over_seeds(runs: Sequence[RunRecord], key: str, form: str = "{:,.2f}") -> str | None:
    """The mean of a result over runs, with its standard deviation where there are several. None where none has it."""
    values = [run.result[key] for run in runs if records.is_number(run.result.get(key))]
    if not values:
        return None
    spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + spread


def result_tables(groups: Groups) -> str:
    """One row a configuration, and one a run folded below."""
    summary = [
        [
            label,
            len(runs),
            *(_over_seeds(runs, key) or "-" for _, key in RETURNS),
            _over_seeds(runs, "sps", "{:,.0f}") or "-",
        ]
        for label, runs in groups.items()
    ]
    each = [
        [run.folder.name, run.config.get("seed", "-"), f"{run.rows[-1]['global_step']:,.0f}"]
        + [_over_seeds([run], key) or "-" for _, key in RETURNS]
        + [_over_seeds([run], "sps", "{:,.0f}") or "-", _ending(run)]
        for runs in groups.values()
        for run in runs
    ]
    names = [name for name, _ in RETURNS]
    html = page.table(["configuration", "runs", *names, "steps/s"], summary) if len(groups) > 1 else ""
    html += '<p class="faint">Over seeds: mean ± standard deviation.</p>' if len(each) > len(groups) else ""
    runs_table = page.table(["run", "seed", "steps", *names, "steps/s", "end"], each)
    return html + page.fold(f"{len(each)} run{'s' * (len(each) > 1)}", runs_table, opened=len(each) <= 4)


def _ending(run: RunRecord) -> str:
    if not run.result:
        return "no result.json: still running, or killed"
    return f"stopped by {run.result['stopped']}" if "stopped" in run.result else "complete"


def advice(runs: Sequence[RunRecord]) -> list[str]:
    """What health/... in the rows says about the runs of one configuration, in words."""
    said = []
    for rule in health.RULES:
        column = f"health/{rule.key}"
        shares = [[row[column] for row in run.rows if column in row] for run in runs]
        share = statistics.mean([statistics.mean(values) for values in shares if values] or [0.0])
        ends = sum(values[-1] > 0 for values in shares if values)
        if share < health.LASTING and not ends:
            continue
        when = f"{share:.0%} of the updates" + (f", at the end of {ends} of {len(runs)} runs" if ends else "")
        words = "while returns are low" if rule.key == "entropy" else f"{rule.bad} {rule.threshold:g}"
        said.append(f"{rule.key.replace('_', ' ')} {words} in {when}: {rule.text.partition(': ')[2]}")
    broken = [run.folder.name for run in runs if any(row.get("health/not_finite", 0) > 0 for row in run.rows)]
    return said + [f"NaN or infinity stopped {name}" for name in broken]


def configuration_tables(groups: Groups) -> str:
    """The flags that differ, then, folded, all that config.json holds."""
    configs = [runs[0].config for runs in groups.values()]
    head = ["flag", *(groups if len(groups) > 1 else ["value"])]
    differing = records.differences([records.configuration(runs[0]) for runs in groups.values()])
    names = list(dict.fromkeys(name for config in configs for name in config if not records.incidental(name)))
    rest = list(dict.fromkeys(name for config in configs for name in config if records.incidental(name)))
    if not names:
        return ""
    rows = {name: [name, *(flag_value(config, name) for config in configs)] for name in names + rest}
    html = page.table(head, [rows[name] for name in differing]) if differing else ""
    same = [name for name in names if name not in differing]
    equal = [[name, *{flag_value(config, name): None for config in configs if name in config}] for name in same]
    html += page.fold("Flags that are equal in all" if differing else "Flags", page.table(["flag", "value"], equal))
    return html + page.fold("Seeds, machine and record", page.table(head, [rows[name] for name in rest]))


def flag_value(config: Mapping[str, Any], name: str) -> str:
    """A value of config.json in words."""
    value = config.get(name, "-")
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def films(groups: Groups) -> dict[str, bytes]:
    """The newest video of each configuration, by caption; those too large for a page are left out."""
    found = {}
    for label, runs in groups.items():
        paths = [
            path for run in runs for path in (run.folder / "videos").glob("*.mp4") if not path.name.startswith(".")
        ]
        paths = [path for path in paths if 0 < path.stat().st_size <= LARGEST_VIDEO]
        if paths:
            newest = max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
            found[f"{label}: {newest.parent.parent.name}/videos/{newest.name}"] = newest.read_bytes()
    return found


def report(groups: Groups, title: str, first: str) -> str:
    """The page as one text; its curves over steps and over time, `first` in front."""
    names = {"steps": "over environment steps", "time": "over seconds of training"}
    parts = {names[axis]: svg_panels(groups, axis) for axis in (first, *(names.keys() - {first}))}
    legend = page.legend(list(groups)) if len(groups) > 1 else ""
    findings = ""
    for label, runs in groups.items():
        findings += f"<p><b>{page.text(label)}</b></p>" if len(groups) > 1 else ""
        findings += page.findings(advice(runs), "no advice")
    sections = [
        ("Result", (tiles(*groups.values()) if len(groups) == 1 else "") + result_tables(groups)),
        ("Curves", legend + page.tabs("axis", parts) + f'<p class="faint">{page.text(reading(groups))}</p>'),
        ("Advice", findings),
        ("Videos", page.videos(films(groups))),
        ("Configuration", configuration_tables(groups)),
    ]
    count, kinds = sum(map(len, groups.values())), len(groups)
    return page.page(title, f"{count} run{'s' * (count > 1)}, {kinds} configuration{'s' * (kinds > 1)}", sections)


# ---------------------------------------------------------------- the program


def load(words: Sequence[str], root: Path) -> list[RunRecord]:
    """The runs that can be read; what is wrong with the others is said, and raised where none is left."""
    runs, wrong = [], []
    for folder in records.find_runs(words, root):
        try:
            runs.append(records.read_run(folder))
        except ValueError as problem:
            wrong.append(str(problem))
            continue
        if runs[-1].lost:
            print(f"note: {folder / records.METRICS}: {runs[-1].lost} broken line(s) left out", flush=True)
    if not runs:
        raise ValueError(wrong[0] + (f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""))
    for line in wrong:
        print(f"warning: {line.removeprefix('runs: ')}; left out", flush=True)
    return runs


def plot(args: Args) -> list[Path]:
    """Write what was asked for; returns the files. A flag or a file that can't be used is a ValueError."""
    args.check()
    runs = load(args.runs, Path(args.run_root))
    groups = records.group_runs(runs)
    environments = {str(run.config["env_id"]) for run in runs if "env_id" in run.config}
    title = runs[0].folder.name if len(runs) == 1 else ", ".join(sorted(environments)) or f"{len(runs)} runs"
    out = Path(args.out) if args.out else (runs[0].folder if len(runs) == 1 else Path()) / "plot.png"
    written: list[Path] = []
    if args.out or not args.html:
        _write("--out", out, lambda: draw_figure(groups, args.x, title).savefig(out), written)
    if args.html:
        path, text = Path(args.html), report(groups, title, args.x)
        _write("--html", path, lambda: path.write_text(text, encoding="utf-8"), written)
    return written


def _write(flag: str, path: Path, write: Any, written: list[Path]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as problem:
        raise ValueError(f"{flag}: can't write {path}: {problem.strerror or problem}") from problem
    print(f"written: {path}", flush=True)
    written.append(path)


if __name__ == "__main__":
    cli.run(plot, Args, __doc__)
