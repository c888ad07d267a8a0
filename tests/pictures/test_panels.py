"""The panels: curves.png of whatever a metrics.jsonl may hold, and the picture of several runs."""

import json
import math
import os
import subprocess
import sys

import pytest
from drawn_runs import groups_of, write_three_runs
from run_folders import config, make_row, write_run

from ppo_fast import jsonl, names, reading
from ppo_fast.pictures.panels import PANELS, draw_figure, plot_curves, short_number

COLUMNS = [panel.column for panel in PANELS]
PNG = b"\x89PNG"

BROKEN_FILES = {
    "half row at the end": json.dumps(make_row(1)) + "\n" + json.dumps(make_row(2))[:40],
    "half row in the middle": json.dumps(make_row(1))[:25] + "\n" + json.dumps(make_row(2)) + "\n",
    "nulls": json.dumps(make_row(1, **dict.fromkeys(COLUMNS))) + "\n" + json.dumps(make_row(2)) + "\n",
    "all null": json.dumps(make_row(1, **dict.fromkeys(COLUMNS))) + "\n",
    "NaN of a lax writer": json.dumps(make_row(1, **dict.fromkeys(COLUMNS, math.nan))) + "\n",
    "missing columns": '{"global_step": 1, "charts/SPS": 5}\n{"global_step": 2, "losses/entropy": 0.3}\n',
    "only steps": '{"global_step": 1}\n{"global_step": 2}\n',
    "rows that are no rows": '[1, 2]\n5\nnull\n"x"\n' + json.dumps(make_row(1)) + "\n",
    "values that are no numbers": json.dumps(make_row(1, **dict.fromkeys(COLUMNS, "x"))) + "\n",
    "bytes of a broken disk": "\x00\x00\x00\n" + json.dumps(make_row(1)) + "\n",
}


@pytest.mark.parametrize("text", BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_curves_survive_a_broken_file(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_curves(tmp_path, jsonl.rows_of(reading.lines(tmp_path / "metrics.jsonl")).rows) is True
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("text", ["", "\n\n", '{"global_st', '{"charts/SPS": 5}\n', '{"global_step": null}\n'])
def test_no_row_no_picture(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_curves(tmp_path, jsonl.rows_of(reading.lines(tmp_path / "metrics.jsonl")).rows) is False
    assert not (tmp_path / "curves.png").exists()


def test_tick_labels_are_short_and_right():
    labels = {0.0025: "0.0025", 500.0: "500", 9000: "9000", 250_000: "250k", 1_500_000: "1.5M", -2e9: "-2G", 0: "0"}
    assert {value: short_number(value) for value in labels} == labels


def test_importing_it_is_cheap():
    """Every run imports it, and those that are killed never draw."""
    code = (
        "import sys, ppo_fast.pictures.panels\n"
        "print([name for name in ('wandb', 'matplotlib', 'rich', 'scipy', 'torch') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def figure_of(root, **thresholds):
    return draw_figure(groups_of(root), "steps", "title", thresholds)


def panel_of(figure, column):
    return figure.axes[COLUMNS.index(column)]


def thick(axes):
    return [line for line in axes.lines if line.get_linewidth() == 1.8]


def thin(axes):
    return [line for line in axes.lines if line.get_linewidth() == 0.8]


def test_seeds_become_a_mean_with_a_band_and_configurations_differ_in_colour_and_dashes(tmp_path):
    write_three_runs(tmp_path)
    figure = figure_of(tmp_path)
    assert len(figure.axes) == len(PANELS)
    for axes in figure.axes:
        lines = thick(axes)
        assert len(lines) == 2
        assert len(axes.collections) == 1  # the band of the configuration with two seeds
        assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["slow", "train"]


def test_the_mean_is_the_mean(tmp_path):
    for seed, slope in ((1, 1.0), (2, 3.0)):
        rows = [{"global_step": i, "charts/episodic_return": slope * i} for i in range(10)]
        write_run(tmp_path, f"run{seed}", rows, config(seed=seed))
    axes = panel_of(figure_of(tmp_path), names.EPISODIC_RETURN)
    (mean,) = thick(axes)
    assert mean.get_ydata() == pytest.approx(2 * mean.get_xdata())
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(27.0) and band[:, 1].min() == 0.0


def test_the_band_stays_within_the_seeds(tmp_path):
    for seed, slope in ((1, 1.0), (2, 1.0), (3, 10.0)):  # mean 4 and deviation 4.24: without a limit, -0.24 to 8.24
        rows = [{"global_step": i, "losses/value_loss": slope * 10.0 ** (4 - i)} for i in range(9)]
        write_run(tmp_path, f"run{seed}", rows, config(seed=seed))
    axes = panel_of(figure_of(tmp_path), names.VALUE_LOSS)
    lowest = min(min(line.get_ydata()) for line in thin(axes))
    band = axes.collections[0].get_paths()[0].vertices
    assert axes.get_yscale() == "log" and band[:, 1].min() == pytest.approx(lowest)


def test_seeds_that_share_no_stretch_have_no_mean(tmp_path):
    for seed, steps in ((1, (1, 2)), (2, (8, 9))):
        rows = [{"global_step": step, "charts/SPS": 1.0} for step in steps]
        write_run(tmp_path, f"run{seed}", rows, config(seed=seed))
    axes = panel_of(figure_of(tmp_path), names.SPS)
    assert len(thin(axes)) == 2 and not thick(axes) and not axes.collections


def test_the_legend_covers_no_panel_and_no_label_another(tmp_path):
    """Boxes of all texts in the drawn figure: none overlaps, none reaches over the edge. Also for long labels."""
    write_three_runs(tmp_path)
    groups = groups_of(tmp_path)
    runs = next(iter(groups.values()))
    many = {f"a configuration with a rather long name, number={i}": runs for i in range(7)}
    for shown in (groups, many, {"one": runs[:1]}):
        figure = draw_figure(shown, "steps", "CartPole-v1__train__1__1795464964", {})
        figure.draw_without_rendering()
        legend = [text for legend in figure.legends for text in legend.get_texts()]
        titles = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
        texts = [text for text in (*figure.texts, *legend, *titles) if text.get_text()]
        boxes = [text.get_window_extent() for text in texts] + [axes.get_window_extent() for axes in figure.axes]
        for i, box in enumerate(boxes):
            assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max)
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_threshold_is_drawn_where_it_is_in_sight(tmp_path):
    rows = [{"global_step": i, "losses/clipfrac": i / 10, "losses/approx_kl": 0.001} for i in range(1, 4)]
    write_run(tmp_path, "run", rows)
    figure = figure_of(tmp_path, **{names.CLIPFRAC: 0.2, names.APPROX_KL: 0.02, names.ENTROPY: 0.1})

    def levels(column):
        return [line.get_ydata()[0] for line in panel_of(figure, column).lines if line.get_linewidth() == 0.9]

    assert levels(names.CLIPFRAC) == [0.2]
    assert levels(names.APPROX_KL) == levels(names.ENTROPY) == []


@pytest.mark.parametrize("at_the_end_of_a_run", [False, True])
def test_both_pictures_have_the_same_axes(tmp_path, monkeypatch, at_the_end_of_a_run):
    """Errors over many decades are logarithmic, and an explained variance far below 0 is cut off."""
    rows = [
        {"global_step": i, "losses/value_loss": 10.0 ** (4 - i), "losses/explained_variance": -1e6} for i in range(9)
    ]
    figures = []
    if at_the_end_of_a_run:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))
        assert plot_curves(tmp_path, rows)
    else:
        write_run(tmp_path, "run", rows)
        figures.append(figure_of(tmp_path))
    (figure,) = figures
    assert panel_of(figure, names.VALUE_LOSS).get_yscale() == "log"
    assert panel_of(figure, names.EXPLAINED_VARIANCE).get_ylim()[0] == -1.0
    assert panel_of(figure, names.EPISODIC_RETURN).texts[0].get_text() == "not logged"
