"""Run folders read back: what is broken is left out, what belongs together is found, curves meet at equal places."""

import math
import os

import numpy as np
import pytest
from run_folders import config, write_run

from ppo_fast.pictures import records
from ppo_fast.pictures.records import common_grid, curve, find_runs, group_runs, read_run, smooth, thinned
from ppo_fast.run import cli

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
    assert curve(run, "y", "steps")[0].tolist() == [1, 2, 3, 4]
    assert curve(run, "y", "steps")[1].tolist() == [1, 20, 30, 40]


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


def test_seeds_of_one_configuration_belong_together(tmp_path):
    different = [
        config(),
        config(seed=2, device="cuda", wandb_group="x", quiet=True),
        config(seed=3, gamma=0.9),
        config(seed=1, gamma=0.9, ent_coef=0.0),
        None,
    ]
    runs = [read_run(write_run(tmp_path, f"run{i}", ROWS, c)) for i, c in enumerate(different)]
    groups = group_runs(runs)
    assert [[run.folder.name for run in group] for group in groups.values()] == [
        ["run0", "run1"], ["run2"], ["run3"], ["run4"],
    ]  # fmt: skip
    assert list(groups) == ["gamma=0.99, ent_coef=0.01", "gamma=0.9, ent_coef=0.01", "gamma=0.9, ent_coef=0", "run4"]


def test_the_experiment_names_a_configuration_where_it_can():
    names = ["x", "y"]
    assert records.labels_of([config(exp_name="a", gamma=0.9), config(exp_name="b")], names) == ["a", "b"]
    assert records.labels_of([config(), config(env_id="Acrobot-v1")], names) == ["CartPole-v1", "Acrobot-v1"]
    assert records.labels_of([config()], names[:1]) == ["CartPole-v1 train"]
    same = [config(exp_name="a"), config(exp_name="a", gamma=0.5), config(exp_name="b")]
    assert records.labels_of(same, [*names, "z"]) == ["a, gamma=0.99", "a, gamma=0.5", "b"]


def test_every_flag_of_a_run_is_configuration_or_named_as_incidental():
    """A name in the list that is no flag of a run any more would be dead; the seed must be there."""
    known = {flag.field for flag in cli.flags_of(cli.RunFlags).values()}
    derived = {"execution", "versions", "device", "device_in_words", "threads", "backend_used", "resumed_from"}
    derived |= {"parameters", "num_iterations", "batch_size", "max_entropy", "world_size", "exit_status"}
    derived |= {"observation_space", "action_space", "no_preset", "preset", "tensorboard"}
    assert known - derived >= {"seed", "quiet"}
    assert not records.INCIDENTAL - known - derived
    assert not records.INCIDENTAL & {"env_id", "exp_name", "gamma", "learning_rate", "precision", "backend", "program"}


def test_time_is_elapsed_or_steps_over_speed(tmp_path):
    new = read_run(write_run(tmp_path, "new", ROWS))
    assert curve(new, "charts/episodic_return", "time")[0].tolist() == [i / 8 for i in range(1, 11)]
    rows = [{"global_step": 100 * i, "charts/SPS": 50.0, "y": i} for i in range(1, 4)]
    old = read_run(write_run(tmp_path, "old", [*rows, {"global_step": 400, "charts/SPS": 0.0, "y": 4}]))
    assert curve(old, "y", "time")[0].tolist() == [2.0, 4.0, 6.0]


def test_a_clock_that_goes_back_leaves_a_rising_curve(tmp_path):
    times = [1.0, 2.0, 3.0, 0.5, 2.5, 3.5, 3.5]
    rows = [{"global_step": i, "time/elapsed": x, "y": i} for i, x in enumerate(times)]
    x, y = curve(read_run(write_run(tmp_path, "run", rows)), "y", "time")
    assert x.tolist() == [1.0, 2.0, 3.0, 3.5] and y.tolist() == [0, 1, 2, 5]


def test_smoothing_is_a_mean_over_neighbours():
    values = np.random.default_rng(0).normal(size=30)
    for width in (1, 3, 7):
        half = width // 2
        expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(30)]
        np.testing.assert_allclose(smooth(values, width), expected, rtol=0, atol=1e-12)


def test_curves_meet_where_all_of_them_are():
    a = (np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    b = (np.array([5.0, 20.0]), np.array([1.0, 1.0]))
    x, values = common_grid([a, b], points=6)
    assert x.tolist() == [5, 6, 7, 8, 9, 10]
    assert values.tolist() == [[5, 6, 7, 8, 9, 10], [1] * 6]
    later = (np.array([30.0]), np.array([1.0]))
    assert common_grid([a, later])[0].size == common_grid([])[0].size == 0
    assert common_grid([later, later])[1].tolist() == [[1.0], [1.0]]


def test_thinning_keeps_the_mean_and_the_order():
    x = np.arange(10_000.0)
    few_x, few_y = thinned((x, x**2), 400)
    assert 390 <= len(few_x) <= 410 and (np.diff(few_x) > 0).all()
    assert math.isclose(few_y.mean(), (x**2).mean(), rel_tol=1e-3)
    assert thinned((x[:5], x[:5]), 400)[0] is x[:5] or len(thinned((x[:5], x[:5]), 400)[0]) == 5
