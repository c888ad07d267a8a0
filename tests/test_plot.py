"""Pictures and pages of real and of broken runs."""

import base64
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from run_folders import config, write_run

from ppo_fast import plot as program
from ppo_fast.pictures import curves, page, records
from ppo_fast.plot import PANELS, Args, advice, draw_figure, plot
from ppo_fast.run import cli, health
from ppo_fast.train import Args as TrainArgs, train

VOID = {"meta", "link", "br", "input", "img"}
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two seeds of one configuration and one run of another, trained for a moment."""
    root = tmp_path_factory.mktemp("plot")
    tiny = TrainArgs(
        num_envs=8, num_steps=16, total_timesteps=1024, cuda=False, compile="off", quiet=True, eval_episodes=2
    )
    for changes in ({"seed": 1}, {"seed": 2}, {"seed": 1, "exp_name": "slow", "learning_rate": 1e-4}):
        train(replace(tiny, **changes, run_root=str(root)))
    return root


def groups_of(root):
    return records.group_runs([records.read_run(folder) for folder in records.find_runs([str(root)], root)])


class Checked(HTMLParser):
    """Collects what a page shows and refers to; tags must close in order."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.words, self.links, self.ids = [], "", [], []
        self.feed(markup)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "poster")]
        self.ids += [value for name, value in attrs if name == "id" and tag == "input"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data if not self.open or self.open[-1] != "style" else ""


def test_a_picture_of_real_runs(real, tmp_path, capsys):
    for name in ("a.png", "b.svg"):
        assert plot(Args(runs=(str(real),), out=str(tmp_path / name), x="time")) == [tmp_path / name]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert ElementTree.parse(tmp_path / "b.svg").getroot().tag.endswith("svg")
    assert capsys.readouterr().out == f"written: {tmp_path / 'a.png'}\nwritten: {tmp_path / 'b.svg'}\n"


def test_seeds_become_a_mean_with_a_band_and_configurations_differ_in_colour_and_dashes(real):
    figure = draw_figure(groups_of(real), "steps", "title")
    for axes, panel in zip(figure.axes, PANELS, strict=True):
        thick = [line for line in axes.lines if line.get_linewidth() == 1.8]
        assert len(thick) == 2, panel
        assert len(axes.collections) == 1  # the band of the configuration with two seeds
        assert len({line.get_color() for line in thick}) == len({line.get_linestyle() for line in thick}) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["slow", "train"]


def test_the_mean_is_the_mean(tmp_path):
    for seed, slope in ((1, 1.0), (2, 3.0)):
        rows = [{"global_step": i, "charts/episodic_return": slope * i} for i in range(10)]
        write_run(tmp_path, f"run{seed}", rows, config(seed=seed))
    axes = draw_figure(groups_of(tmp_path), "steps", "title").axes[0]
    mean = next(line for line in axes.lines if line.get_linewidth() == 1.8)
    assert mean.get_ydata() == pytest.approx(2 * mean.get_xdata())
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(27.0) and band[:, 1].min() == 0.0


def test_the_band_stays_within_the_seeds(tmp_path):
    for seed, slope in ((1, 1.0), (2, 1.0), (3, 10.0)):  # mean 4 and deviation 4.24: without a limit, -0.24 to 8.24
        rows = [{"global_step": i, "losses/value_loss": slope * 10.0 ** (4 - i)} for i in range(9)]
        write_run(tmp_path, f"run{seed}", rows, config(seed=seed))
    figure = draw_figure(groups_of(tmp_path), "steps", "title")
    axes = figure.axes[[panel.column for panel in PANELS].index("losses/value_loss")]
    line = next(line for line in axes.lines if line.get_linewidth() == 0.8)  # the lowest seed, smoothed
    band = axes.collections[0].get_paths()[0].vertices
    assert axes.get_yscale() == "log" and band[:, 1].min() == pytest.approx(min(line.get_ydata()))


def test_the_legend_covers_no_panel_and_no_label_another(real):
    """Boxes of all texts in the drawn figure: none overlaps, none reaches over the edge. Also for long labels."""
    runs = next(iter(groups_of(real).values()))
    many = {f"a configuration with a rather long name, number={i}": runs for i in range(7)}
    for groups in (groups_of(real), many, {"one": runs[:1]}):
        figure = draw_figure(groups, "steps", "CartPole-v1__train__1__1795464964")
        figure.draw_without_rendering()
        legend = [text for legend in figure.legends for text in legend.get_texts()]
        titles = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
        texts = [text for text in (*figure.texts, *legend, *titles) if text.get_text()]
        boxes = [text.get_window_extent() for text in texts] + [axes.get_window_extent() for axes in figure.axes]
        for i, box in enumerate(boxes):
            assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max)
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_errors_over_many_decades_get_a_logarithmic_axis(tmp_path):
    rows = [
        {"global_step": i, "losses/value_loss": 10.0 ** (4 - i), "losses/explained_variance": -1e6} for i in range(9)
    ]
    write_run(tmp_path, "run", rows)
    axes = dict(
        zip([panel.column for panel in PANELS], draw_figure(groups_of(tmp_path), "steps", "").axes, strict=True)
    )
    assert axes["losses/value_loss"].get_yscale() == "log"
    assert axes["losses/explained_variance"].get_ylim()[0] == -1.0
    assert axes["charts/episodic_return"].texts[0].get_text() == "not logged"


@pytest.mark.full_end
def test_curves_at_the_end_of_a_run_have_the_same_axes(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))
    rows = [{"global_step": i, "losses/value_loss": 10.0 ** (4 - i), "losses/explained_variance": -9} for i in range(9)]
    assert curves.plot_curves(tmp_path, rows)
    axes = dict(zip([column for _, column in curves.PANELS], figures[0].axes, strict=True))
    assert axes["losses/value_loss"].get_yscale() == "log"
    assert axes["losses/explained_variance"].get_ylim()[0] == -1.0


HALF = '{"global_step": 4, "charts/episodic_re'
BROKEN = {
    "half a row": [{"global_step": 1, "charts/episodic_return": 1.0}, {"global_step": 2}, HALF],
    "one row": [{"global_step": 1, "charts/episodic_return": 1.0, "charts/SPS": 10.0}],
    "nan": ['{"global_step": 1, "charts/episodic_return": NaN}', '{"global_step": 2, "charts/SPS": -Infinity}'],
    "nothing but steps": [{"global_step": 1}, {"global_step": 2}],
    "negative": [{"global_step": i, "losses/value_loss": -1.0, "charts/SPS": 0} for i in range(3)],
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_rows_are_drawn_as_far_as_they_go(tmp_path, case):
    folder = write_run(tmp_path, "run", BROKEN[case], '{"half": ')
    for axis in ("steps", "time"):
        written = plot(Args(runs=(str(folder),), out=str(tmp_path / "a.png"), html=str(tmp_path / "a.html"), x=axis))
        assert [path.stat().st_size > 5_000 for path in written] == [True, True]
        Checked((tmp_path / "a.html").read_text())


def test_a_run_without_rows_is_left_out_in_one_line_and_refused_alone(tmp_path, capsys):
    empty, good = write_run(tmp_path, "empty", []), write_run(tmp_path, "good", [*BROKEN["one row"], HALF])
    with pytest.raises(ValueError, match=r"^runs: .*empty.metrics.jsonl is empty$"):
        plot(Args(runs=(str(empty),), out=str(tmp_path / "a.png")))
    plot(Args(runs=(str(tmp_path),)))
    assert capsys.readouterr().out.splitlines() == [
        f"note: {good / 'metrics.jsonl'}: 1 broken line(s) left out",
        f"warning: {empty / 'metrics.jsonl'} is empty; left out",
        f"written: {good / 'plot.png'}",
    ]


def test_the_page_is_whole_self_contained_and_says_everything(real, tmp_path):
    folder = sorted(real.glob("*slow*"))[0]
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos" / "greedy.mp4").write_bytes(b"a video <&>")
    (folder / "videos" / ".greedy.mp4.part.mp4").write_bytes(b"half a video")
    plot(Args(runs=(str(real),), html=str(tmp_path / "a.html")))
    text = (tmp_path / "a.html").read_text()
    shown = Checked(text)
    assert all(link.startswith(("data:", "#")) for link in shown.links)
    video = next(link for link in shown.links if link.startswith("data:video"))
    assert base64.b64decode(video.partition(",")[2]) == b"a video <&>"
    assert "<script" not in text and not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert text.count("<svg role=") == 2 * len(PANELS)
    for word in (
        "learning_rate",
        "0.0001",
        "return, greedy",
        "steps/s",
        "over seconds of training",
        "2 configurations",
    ):
        assert word in shown.words, word
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_page_follows_light_and_dark(real):
    """No colour of the drawing is left as it is: each became a variable that both schemes define."""
    markup = program.svg_panels(groups_of(real), "steps")
    style = re.sub(r"<text.*?</text>", "", markup)
    assert not re.search(r"(fill|stroke): #(?!ffffff)", style)
    used = set(re.findall(r"var\(--(\w+)\)", markup))
    assert {"ink", "grid", "faint", "s0", "s1"} <= used
    light, dark = page.page("t", "s", []).split("@media")
    assert all(f"--{name}: " in light and f"--{name}: " in dark for name in used)


def test_texts_cannot_become_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    write_run(tmp_path, "a", BROKEN["one row"], config(exp_name=evil), {"stopped": evil, "eval/mean_return": evil})
    write_run(tmp_path, "b", BROKEN["one row"], config(gamma=[evil]))
    text = program.report(groups_of(tmp_path), evil, "steps")
    assert "<script" not in text
    assert evil in Checked(text).words


def test_advice_counts_what_the_rows_say(tmp_path):
    def rows(*shares):
        return [{"global_step": i, "health/clip_fraction": int(i in shares), "health/entropy": 0} for i in range(10)]

    runs = [records.read_run(write_run(tmp_path, str(i), rows(*x))) for i, x in enumerate([(1, 2, 3, 4, 9), (1,), ()])]
    assert advice(runs[2:]) == []
    assert advice(runs[1:2]) == []  # a tenth of the updates, and not at the end
    rule = next(rule for rule in health.RULES if rule.key == "clip_fraction")
    (line,) = advice(runs)
    assert line.startswith("clip fraction above 0.2 in 20% of the updates, at the end of 1 of 3 runs: ")
    assert line.endswith(rule.text.rpartition("): ")[2])
    stopped = records.read_run(write_run(tmp_path, "nan", [{"global_step": 1, "health/not_finite": 1}]))
    assert advice([stopped]) == ["NaN or infinity stopped nan"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "error: runs: no run folder (none with a metrics.jsonl) at nowhere"),
        (["--out", "a.bmp"], "error: --out: must end in .png, .svg or .pdf, got 'a.bmp'"),
        (["--x", "hours"], "error: --x: must be steps or time, got 'hours'"),
        (["run", "--out", "file/a.png"], "error: --out: can't write file/a.png: "),
        (["run", "--html", "."], "error: --html: can't write .: "),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    write_run(tmp_path, "run", BROKEN["one row"])
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot", *words])
    with pytest.raises(SystemExit) as stop:
        cli.run(plot, Args, "")
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith(said) and err.count("\n") == 1


def test_result_json_of_any_shape_is_shown(tmp_path):
    write_run(tmp_path, "a", BROKEN["one row"], config(), {"seconds": 3, "sps": "fast", "eval/mean_return": 7.0})
    text = Checked(program.report(groups_of(tmp_path), "t", "steps")).words
    assert "7.00" in text and "complete" in text
    assert json.dumps("fast") not in text
