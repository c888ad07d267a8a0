"""Two groups of runs side by side: the figures against their definition, and what can't be compared."""

import json
import math
import os
import sys

import numpy as np
import pytest
from run_folders import config, write_run

from ppo_fast import compare as program
from ppo_fast.compare import Args, compare
from ppo_fast.pictures.comparison import in_time
from ppo_fast.pictures.intervals import iqm, probability_of_improvement
from ppo_fast.run import cli

pytest.importorskip("scipy")


def write_group(root, name, slopes, speed=100.0, steps=11, **flags):
    """Runs whose return is slope * step / 100 at equal speed, one a slope; the final evaluation is the last return."""
    for seed, slope in enumerate(slopes):
        rows = [
            {"global_step": 100 * i, "charts/episodic_return": slope * i, "time/elapsed": 100 * i / speed}
            for i in range(1, steps)
        ]
        result = {"eval/mean_return": slope * (steps - 1), "eval/sampled_mean_return": 1.0, "sps": speed}
        write_run(root, f"{name}{seed}", rows, config(exp_name=name, seed=seed, **flags), result)
    return str(root / f"{name}*")


@pytest.fixture
def sides(tmp_path):
    a = write_group(tmp_path, "a", [1.0, 2.0, 3.0, 4.0, 5.0])
    b = write_group(tmp_path, "b", [3.0, 4.0, 5.0, 6.0, 7.0], speed=50.0)
    return [a, "--", b]


def figure(result, name):
    return next(row for row in result["figures"] if row["name"] == name)


def test_figures_are_at_equal_steps_and_at_equal_time(sides, capsys):
    """Each curve is a straight line, so that its value anywhere is known. B is half as fast: after 10 s, where A ends,
    it is at half of its steps."""
    result = compare(Args(runs=tuple(sides), json=True))
    assert json.loads(capsys.readouterr().out) == result
    for steps in (250, 500, 1000):
        row = figure(result, f"return at {steps:,} steps")["groups"]
        assert row["A"]["values"] == pytest.approx([slope * steps / 100 for slope in (1, 2, 3, 4, 5)])
        assert row["B"]["values"] == pytest.approx([slope * steps / 100 for slope in (3, 4, 5, 6, 7)])
    for seconds in (2.5, 5, 10):
        row = figure(result, f"return at {seconds:g} s")["groups"]
        assert row["A"]["values"] == pytest.approx([slope * seconds for slope in (1, 2, 3, 4, 5)])
        assert row["B"]["values"] == pytest.approx([slope * seconds / 2 for slope in (3, 4, 5, 6, 7)])
    assert figure(result, "steps per second")["groups"]["B"]["iqm"] == 50.0
    assert figure(result, "final return, greedy")["groups"]["A"]["values"] == [10, 20, 30, 40, 50]


def test_intervals_and_chances_are_those_of_the_leaf(sides, capsys):
    result = compare(Args(runs=tuple(sides), json=True))
    row = figure(result, "final return, greedy")
    a, b = (row["groups"][name]["values"] for name in "AB")
    assert row["groups"]["A"]["iqm"] == iqm(a)
    assert row["groups"]["A"]["low"] < iqm(a) < row["groups"]["A"]["high"]
    assert tuple(row["beats_A"]["B"].values()) == probability_of_improvement(b, a)
    assert row["beats_A"]["B"]["p"] == pytest.approx(np.mean([(x > y) + (x == y) / 2 for x in b for y in a]))


def test_the_table_is_whole_in_a_pipe_and_in_a_narrow_window(sides, capsys, monkeypatch):
    compare(Args(runs=tuple(sides)))
    piped = capsys.readouterr().out
    assert "A  a  (5 runs)\nB  b  (5 runs)\n" in piped
    line = next(line for line in piped.splitlines() if "final return, greedy" in line)
    assert "30.0 [" in line and "50.0 [" in line and "0.82 [" in line
    assert "note:" not in piped
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    compare(Args(runs=tuple(sides)))
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())) <= 80
    assert "…" not in narrow and "30.0" in narrow


def test_without_a_divider_configurations_are_compared(tmp_path, capsys):
    for name in ("a", "b", "c"):
        write_group(tmp_path, name, [1.0, 2.0])
    result = compare(Args(runs=(str(tmp_path),), json=True))
    assert {name: side["label"] for name, side in result["groups"].items()} == {"A": "a", "B": "b", "C": "c"}
    assert set(figure(result, "steps per second")["beats_A"]) == {"B", "C"}
    assert result["notes"] == ["fewer than 5 runs in A, B and C: intervals are too narrow"]


def test_doubts_are_named(tmp_path, capsys):
    a = write_group(tmp_path, "a", [1.0, 2.0])
    write_run(tmp_path, "a9", [{"global_step": 100, "charts/SPS": 7.0}], config(exp_name="a", gamma=0.5))
    b = write_group(tmp_path, "b", [1.0])
    result = compare(Args(runs=(a, "--", b)))
    said = capsys.readouterr().out
    assert "note: A mixes 2 configurations" in said
    assert "note: 1 of 3 runs in A have no result.json" in said
    assert figure(result, "steps per second")["groups"]["A"]["values"] == [100.0, 100.0, 7.0]
    single = figure(result, "final return, greedy")["groups"]["B"]
    assert single["low"] is None and single["iqm"] == 10.0
    assert math.isfinite(figure(result, "final return, greedy")["beats_A"]["B"]["p"])


def test_runs_that_share_no_stretch_are_compared_by_their_results(tmp_path, capsys):
    early = [{"global_step": i, "charts/episodic_return": 1.0, "time/elapsed": i} for i in (1, 2)]
    late = [{"global_step": i, "charts/episodic_return": 1.0, "time/elapsed": i} for i in (8, 9)]
    for name, rows in (("a", early), ("b", late)):
        write_run(tmp_path, name, rows, config(exp_name=name), {"eval/mean_return": 1.0})
    result = compare(Args(runs=(str(tmp_path / "a"), "--", str(tmp_path / "b"))))
    assert [row["name"] for row in result["figures"]] == ["final return, greedy"]


def test_names_of_groups():
    assert [program.letters(i) for i in (0, 1, 25, 26, 27, 52)] == ["A", "B", "Z", "AA", "AB", "BA"]
    assert [in_time(x) for x in (0.1234, 75, 750, 11520)] == ["0.123 s", "75 s", "12.5 min", "3.2 h"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "runs: name two groups of run folders"),
        (["a0", "--"], "runs: name run folders on both sides of --"),
        (["--", "a0"], "runs: name run folders on both sides of --"),
        (["a0", "--", "nope"], "runs: no run folder (none with a metrics.jsonl) at nope"),
        (["a0", "a1"], "runs: these are all of one configuration; put -- between two groups"),
        (["a0", "--", "other"], "runs: returns of different environments can't be compared (CartPole-v1 in A, Acr"),
        (["a0", "--", "empty"], "runs: empty/metrics.jsonl is empty"),
        (["a0", "--", "a1", "--sead", "3"], "--sead: no such flag; did you mean --seed?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    write_group(tmp_path, "a", [1.0, 2.0])
    write_run(tmp_path, "other", [{"global_step": 1}], config(env_id="Acrobot-v1"))
    write_run(tmp_path, "empty", [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(SystemExit) as stop:
        cli.run(compare, Args, "")
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


def test_without_scipy_it_says_how_to_get_it(sides, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match=r'^runs: intervals need SciPy: pip install "ppo_fast\[compare\]"'):
        compare(Args(runs=tuple(sides)))


def test_a_repeated_seed_is_no_second_sample(sides, tmp_path, capsys):
    before = compare(Args(runs=tuple(sides), json=True))
    rows = [{"global_step": 1000, "charts/episodic_return": 1.0, "time/elapsed": 1.0}]
    write_run(tmp_path, "a7__0", rows, config(exp_name="a", seed=1), {"eval/mean_return": 777.0})
    os.utime(tmp_path / "a7__0" / "metrics.jsonl", (1, 1))
    after = compare(Args(runs=tuple(sides), json=True))
    assert after["figures"] == before["figures"]
    assert after["notes"] == ["a7__0 left out: a1 is newer, of the same configuration and seed 1"]


def test_no_escape_sequence_reaches_the_terminal(tmp_path, capsys):
    for name in ("a", "b"):
        write_group(tmp_path, name, [1.0, 2.0], torch="\x1b]0;owned\x07" + name)
    for folder in sorted(tmp_path.iterdir()):
        text = (folder / "config.json").read_text().replace('"exp_name": "', '"exp_name": "\\u001b[2J\\ud800')
        (folder / "config.json").write_text(text)
    compare(Args(runs=(str(tmp_path),)))
    said = capsys.readouterr().out
    assert "\x1b" not in said and r"\x1b[2J\ud800a" in said
