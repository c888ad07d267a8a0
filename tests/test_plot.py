"""The plot program: real and broken runs, what it says about them, and mistakes in one line."""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from checked_page import Checked
from run_folders import config, write_run

from ppo_fast import names
from ppo_fast.pictures.panels import plot_curves
from ppo_fast.pictures.records import read_run
from ppo_fast.plot import Args, advice, plot, thresholds
from ppo_fast.run import cli, health
from ppo_fast.train import Args as TrainArgs, train

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


def test_pictures_and_a_page_of_real_runs(real, tmp_path, capsys):
    for name in ("a.png", "b.svg"):
        assert plot(Args(runs=(str(real),), out=str(tmp_path / name), x="time")) == [tmp_path / name]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert ElementTree.parse(tmp_path / "b.svg").getroot().tag.endswith("svg")
    assert plot(Args(runs=(str(real),), html=str(tmp_path / "c.html"))) == [tmp_path / "c.html"]
    assert capsys.readouterr().out == "".join(f"written: {tmp_path / name}\n" for name in ("a.png", "b.svg", "c.html"))
    shown = Checked((tmp_path / "c.html").read_text()).words
    for word in ("3 runs, 2 configurations", "return, greedy", "steps/s", "complete", "learning_rate", "0.0001"):
        assert word in shown, word


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
    # The page holds the panels over steps and over time; the picture those over one of them.
    written = plot(Args(runs=(str(folder),), out=str(tmp_path / "a.png"), html=str(tmp_path / "a.html"), x="time"))
    assert [path.stat().st_size > 5_000 for path in written] == [True, True]
    Checked((tmp_path / "a.html").read_text())
    plot(Args(runs=(str(folder),)))
    assert (folder / "plot.png").read_bytes().startswith(PNG)


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


def test_advice_counts_what_the_rows_say(tmp_path):
    def rows(*shares):
        return [{"global_step": i, "health/clip_fraction": int(i in shares), "health/entropy": 0} for i in range(10)]

    runs = [read_run(write_run(tmp_path, str(i), rows(*x))) for i, x in enumerate([(1, 2, 3, 4, 9), (1,), ()])]
    assert advice(runs[2:]) == []
    assert advice(runs[1:2]) == []  # a tenth of the updates, and not at the end
    rule = next(rule for rule in health.RULES if rule.key == "clip_fraction")
    (line,) = advice(runs)
    assert line.startswith("clip fraction above 0.2 in 20% of the updates, at the end of 1 of 3 runs: ")
    assert line.endswith(f": {rule.meaning}; {rule.action}")
    stopped = read_run(write_run(tmp_path, "nan", [{"global_step": 1, "health/not_finite": 1}]))
    assert advice([stopped]) == ["NaN or infinity stopped nan"]


def test_thresholds_are_those_of_the_advice_that_are_figures_of_their_metric():
    assert thresholds() == {names.CLIPFRAC: 0.2, names.APPROX_KL: 0.02, names.EXPLAINED_VARIANCE: 0.5}


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


HOSTILE = ("$$", "$x_", r"\frac{", "\ud800$", "a\nb\x1b[2J", "\u202eabc", "x" * 3000, "_^&<", r"\$a$")


def test_any_name_is_drawn_and_none_reaches_the_terminal_as_it_is(tmp_path, capsys):
    """As title of one run, and as labels of several: `$$` is no formula, and surrogates are no UTF-8."""
    row = [{"global_step": 1, "charts/episodic_return": 1.0}]
    for i, name in enumerate(HOSTILE):
        write_run(tmp_path / "runs", f"run{i}", [*row, HALF], config(exp_name=name, env_id=name))
    for name in ("all.svg", "all.png"):
        plot(Args(runs=(str(tmp_path / "runs"),), out=str(tmp_path / name), html=str(tmp_path / "all.html")))
    shown = ElementTree.parse(tmp_path / "all.svg")
    assert shown.getroot().tag.endswith("svg")
    Checked((tmp_path / "all.html").read_text(encoding="utf-8"))
    for folder in ("$$", "$\x1b[31m_\n", "\udc80"):
        write_run(tmp_path, folder, [*row, HALF], config())
        plot(Args(runs=(str(tmp_path / folder),), html=str(tmp_path / "one.html"), out=str(tmp_path / "one.png")))
        assert plot_curves(tmp_path / folder, row)
    said = capsys.readouterr().out
    assert "\x1b" not in said and r"\x1b[31m_\n" in said


def test_equal_seeds_are_one(tmp_path, capsys):
    """The newest counts, by the time in its name; another seed, configuration or no seed is another run."""
    rows = [{"global_step": 1, "charts/episodic_return": 1.0}]
    for name, flags in {
        "a__200": config(),
        "a__100": config(),
        "other": config(seed=2),
        "conf": config(gamma=0.5),
        "none1": {"env_id": "E"},
        "none2": {"env_id": "E"},
    }.items():
        write_run(tmp_path, name, rows, flags)
    plot(Args(runs=(str(tmp_path),), html=str(tmp_path / "a.html")))
    note = "note: a__100 left out: a__200 is newer, of the same configuration and seed 1"
    assert capsys.readouterr().out.splitlines()[:-1] == [note]
    assert "5 runs" in Checked((tmp_path / "a.html").read_text()).words
