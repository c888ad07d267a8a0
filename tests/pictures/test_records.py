"""Run folders read back: which there are, and that what is broken is left out."""

import os

import pytest
from run_folders import write_run

from ppo_fast.pictures.records import find_runs, in_order, read_run

ROWS = [{"global_step": 64 * i, "charts/episodic_return": float(i), "time/elapsed": i / 8} for i in range(1, 11)]


def test_half_rows_nan_and_texts_are_left_out(tmp_path):
    """What a kill, a full disk or another program may leave, among good rows."""
    broken = [
        '{"global_step": 1, "x": NaN, "y": 2, "z": null, "t": "text", "b": true, "l": [1]}',
        '{"global_step": 2, "x": Infinity, "y": 3}',
        '{"global_step": NaN, "y": 9}',
        '{"y": 9}',
        "[1, 2]",
        "",
        '{"global_step": 3, "y": 4.5}',
        '{"global_step": 4, "y": 5',
    ]
    run = read_run(write_run(tmp_path, "run", broken))
    assert run.rows == [{"global_step": 1, "y": 2}, {"global_step": 2, "y": 3}, {"global_step": 3, "y": 4.5}]
    assert run.lost == 4 and run.config == run.result == {}


def test_of_steps_written_twice_the_later_row_counts(tmp_path):
    rows = [{"global_step": step, "y": y} for step, y in ((1, 1), (2, 2), (3, 3), (2, 20), (3, 30), (4, 40))]
    run = read_run(write_run(tmp_path, "run", rows))
    assert [(row["global_step"], row["y"]) for row in run.rows] == [(1, 1), (2, 20), (3, 30), (4, 40)]
    assert run.rows == in_order(rows)


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "metrics.jsonl is empty"), (["", " "], "is empty"), (["x", "{}"], "no row with a global_step in 2 lines")],
)
def test_a_run_without_rows_is_one_line(tmp_path, rows, said):
    folder = write_run(tmp_path, "run", rows)
    with pytest.raises(ValueError, match=r"^runs: ") as problem:
        read_run(folder)
    assert said in str(problem.value) and str(folder) in str(problem.value)


def test_broken_json_files_count_as_absent(tmp_path):
    run = read_run(write_run(tmp_path, "run", ROWS, config='{"gamma": ', result="[1]"))
    assert run.config == run.result == {}


def test_runs_are_found_by_folder_root_pattern_and_latest(tmp_path):
    a, b, c = (write_run(tmp_path / "runs", name, ROWS) for name in ("a1", "a2", "b1"))
    os.utime(a / "metrics.jsonl", (2e9, 2e9))
    root = tmp_path / "runs"
    assert find_runs([str(b)], root) == [b]
    assert find_runs([str(root)], root) == [a, b, c]
    assert find_runs([str(root / "a*"), str(a)], root) == [a, b]
    assert find_runs(["latest"], root) == [a]
    for word in ("nothing", str(root / "z*"), str(tmp_path / "empty")):
        with pytest.raises(ValueError, match=r"^runs: no run folder"):
            find_runs([str(a), word], root)


def test_latest_may_stand_behind_a_folder_and_may_be_the_name_of_a_run(tmp_path):
    for name in ("a", "b"):
        folder = write_run(tmp_path / "runs", name, ROWS)
        os.utime(folder / "metrics.jsonl", (2e9, 2e9) if name == "a" else (1e9, 1e9))
    assert find_runs([str(tmp_path / "runs" / "latest")], tmp_path) == [tmp_path / "runs" / "a"]
    named = write_run(tmp_path / "runs", "latest", ROWS)
    assert find_runs(["latest"], tmp_path / "runs") == [named]


def test_a_bracket_may_be_part_of_a_name(tmp_path):
    folder = write_run(tmp_path, "lr[1]", ROWS)
    assert find_runs([str(folder)], tmp_path) == [folder]
