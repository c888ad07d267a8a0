"""The run folder: what is written, that it is never lost or overwritten, and that no disk stops a run."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppo_fast import train as program
from ppo_fast.engine import capture
from ppo_fast.pictures import curves
from ppo_fast.pictures.curves import plot_curves
from ppo_fast.run import cli, tracking
from ppo_fast.run.tracking import NoRun, Run, WandbFlags, read_metrics

COLUMNS = [column for _, column in curves.PANELS]
PNG = b"\x89PNG"


def make_run(root, said=None, **overrides):
    settings = {"root": root, "env_id": "CartPole-v1", "exp_name": "train", "seed": 3, "config": {"gamma": 0.99}}
    return Run(**{**settings, **overrides}, say=(said if said is not None else []).append)


def row(step, **values):
    return {"global_step": step, **dict.fromkeys(COLUMNS, 1.5), **values}


def test_a_finished_run_leaves_the_whole_folder(tmp_path):
    said = []
    with make_run(tmp_path / "runs", said) as run:
        run.log(row(64))
        run.log(row(128))
        run.finish({"eval/mean_return": 500.0, "seconds": {"train": 1.0}}, plot_curves)
    assert re.fullmatch(r"CartPole-v1__train__3__\d{10}", run.folder.name)
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "result.json",
    ]
    assert json.loads((run.folder / "config.json").read_text()) == {"gamma": 0.99}
    assert json.loads((run.folder / "result.json").read_text())["seconds"] == {"train": 1.0}
    assert (run.folder / "curves.png").read_bytes().startswith(PNG)
    assert said == []


def test_a_row_is_in_the_file_when_log_returns(tmp_path):
    with make_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.log(row(step))
            assert [r["global_step"] for r in read_metrics(run.folder)] == list(range(1, step + 1))


@pytest.fixture
def small(tmp_path):
    """Flags of a run of four iterations in well under a second."""
    sizes = {"num_envs": 2, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "hidden_sizes": (8,)}
    quick = {"total_timesteps": 128, "eval_episodes": 0, "compile": "off", "cuda": False, "quiet": True}
    return program.Args(**sizes, **quick, run_root=str(tmp_path))


def test_rows_say_what_each_phase_took(small, tmp_path, monkeypatch):
    now, make = SimpleNamespace(seconds=0.0), program.make_iteration
    clock = SimpleNamespace(time=capture.time.time, perf_counter=lambda: now.seconds)

    def slowed(phase, seconds):
        def run():
            now.seconds += seconds * (now.seconds < 5)  # only in the first iteration
            return phase()

        return run

    def slow(*args, **flags):
        phases = make(*args, **flags)
        phases.collect, phases.learn = slowed(phases.collect, 2.0), slowed(phases.learn, 3.0)
        return phases

    monkeypatch.setattr(program, "make_iteration", slow)
    monkeypatch.setattr(capture, "time", clock)
    program.train(small)
    (folder,) = tmp_path.iterdir()
    rows = read_metrics(folder)
    assert [(r["time/collect"], r["time/learn"]) for r in rows] == [(2.0, 3.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]


def test_the_phases_fill_no_more_than_the_time_that_passes(small, tmp_path):
    program.train(small)
    (folder,) = tmp_path.iterdir()
    rows = read_metrics(folder)
    for before, now in pairwise([{"time/elapsed": 0.0}, *rows]):
        assert min(now["time/collect"], now["time/learn"]) > 0
        assert now["time/collect"] + now["time/learn"] <= now["time/elapsed"] - before["time/elapsed"]


def test_killed_after_the_last_row_loses_none(tmp_path):
    code = f"""
import os, signal
from ppo_fast.run.tracking import Run
run = Run(root={str(tmp_path)!r}, env_id="E", exp_name="x", seed=1, config={{}})
for step in range(300):
    run.log({{"global_step": step, "charts/SPS": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert done.returncode == -9
    (folder,) = tmp_path.iterdir()
    assert [r["global_step"] for r in read_metrics(folder)] == list(range(300))


def test_numbers_of_every_kind_become_strict_json(tmp_path):
    values = {
        "nan": math.nan,
        "inf": -math.inf,
        "int": 7,
        "bool": True,
        "none": None,
        "numpy": np.float32(0.25),
        "numpy_nan": np.float64("nan"),
        "tensor": torch.tensor(0.5),
        "tensor_int": torch.tensor(3),
        "tiny": 1e-300,
    }
    with make_run(tmp_path) as run:
        run.log({"global_step": 1, **values})
    text = (run.folder / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "global_step": 1,
        "nan": None,
        "inf": None,
        "int": 7,
        "bool": True,
        "none": None,
        "numpy": 0.25,
        "numpy_nan": None,
        "tensor": 0.5,
        "tensor_int": 3,
        "tiny": 1e-300,
    }


def test_config_of_nested_and_unknown_types(tmp_path):
    config = {"sizes": (64, 64), "path": Path("a/b"), "device": torch.device("cpu"), "deep": {"inf": math.inf, 1: None}}
    run = make_run(tmp_path, config=config)
    run.close()
    assert json.loads((run.folder / "config.json").read_text()) == {
        "sizes": [64, 64],
        "path": "a/b",
        "device": "cpu",
        "deep": {"inf": None, "1": None},
    }


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.time, "time", lambda: 1_700_000_000.9)
    runs = [make_run(tmp_path) for _ in range(3)]
    for number, run in enumerate(runs):
        run.log(row(number))
        run.close()
    name = "CartPole-v1__train__3__1700000000"
    assert [run.folder.name for run in runs] == [name, f"{name}-1", f"{name}-2"]
    assert [read_metrics(run.folder)[0]["global_step"] for run in runs] == [0, 1, 2]


def test_a_file_of_that_name_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.time, "time", lambda: 1_700_000_000.0)
    (tmp_path / "CartPole-v1__train__3__1700000000").write_text("mine")
    make_run(tmp_path).close()
    assert (tmp_path / "CartPole-v1__train__3__1700000000").read_text() == "mine"


@pytest.mark.parametrize("env_id", ["ppo_fast/CartPole-v1", "examples.point_mass:PointMass-v0", "../../x", "a b\\c"])
def test_any_env_id_makes_one_folder_inside_the_root(tmp_path, env_id):
    run = make_run(tmp_path / "runs", env_id=env_id, exp_name="my/exp")
    run.close()
    assert run.folder.parent == tmp_path / "runs"
    assert run.folder.resolve().parent == (tmp_path / "runs").resolve()


def test_unwritable_root_is_one_line_that_names_the_flag(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(ValueError, match=r"\A--run-root: .*file.*\Z") as error:
            make_run(root)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_subfolders_are_made_when_they_are_used(tmp_path):
    with make_run(tmp_path) as run:
        assert not (run.folder / "checkpoints").exists()
        assert run.subfolder("checkpoints").is_dir()
        assert run.subfolder("checkpoints") == run.folder / "checkpoints"


def test_an_exception_closes_the_files_and_goes_on(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), make_run(tmp_path) as run:
        run.log(row(1))
        raise RuntimeError("mine")
    assert run._metrics.closed
    assert not (run.folder / "result.json").exists()


def resume(run, said=None, **overrides):
    return make_run(run.folder.parent, said, **{"config": {"gamma": 0.5}, "resume_folder": run.folder, **overrides})


def test_a_resumed_run_goes_on_in_its_folder(tmp_path):
    with make_run(tmp_path) as first:
        first.log(row(64))
    with resume(first) as second:
        second.log(row(128))
        second.finish({"eval/mean_return": 1.0})
    assert second.folder == first.folder
    assert len(list(tmp_path.iterdir())) == 1
    assert [r["global_step"] for r in read_metrics(first.folder)] == [64, 128]
    assert json.loads((first.folder / "config.json").read_text()) == {"gamma": 0.99}
    assert (first.folder / "result.json").exists()


@pytest.mark.parametrize("left", ["", json.dumps(row(64)) + "\n", json.dumps(row(64)) + "\n" + json.dumps(row(65))[:9]])
def test_a_half_row_of_the_run_before_costs_no_row_after_it(tmp_path, left):
    with make_run(tmp_path) as first:
        (first.folder / "metrics.jsonl").write_text(left)
    with resume(first) as second:
        second.log(row(128))
    assert [r["global_step"] for r in read_metrics(first.folder)] == [64, 128][-left.count("\n") - 1 :]


def test_a_rollback_takes_rows_back(tmp_path):
    said = []

    def cut(path):
        (tmp_path / "short").write_text(json.dumps(row(1)) + "\n")
        (tmp_path / "short").replace(path)  # another file under the old name, as an atomic write leaves it

    def fail(path):
        raise OSError(28, "No space left on device")

    with make_run(tmp_path / "runs", said) as run:
        for step in (1, 2, 3):
            run.log(row(step))
        run.rewind(cut)
        run.log(row(2))
        assert [r["global_step"] for r in run.rows()] == [1, 2]
        run.rewind(fail)
        run.log(row(3))
    assert [r["global_step"] for r in read_metrics(run.folder)] == [1, 2, 3]
    assert len(said) == 1 and "No space left" in said[0]


def test_no_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NoRun() as run:
        run.log(row(1))
        run.rewind(lambda path: pytest.fail("nothing to cut"))
        assert run.rows() == []
        run.log_video(tmp_path / "greedy.mp4", 1)
        run.finish({"eval/mean_return": 1.0}, lambda *_: pytest.fail("nothing to draw"))
        run.close()
    with pytest.raises(RuntimeError, match="mine"), NoRun():
        raise RuntimeError("mine")
    assert run.folder is None and run.wandb_id is None
    assert not list(tmp_path.iterdir())


def test_no_run_has_the_methods_of_a_run():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))}

    assert public(Run) - public(NoRun) == {"from_flags", "subfolder"}


def events(folder):
    """(step, {tag: value}) of each record of rows in the TensorBoard files of a run, in their order."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = sorted((folder / "tensorboard").iterdir())
    found = [event for path in files for event in loader.LegacyEventFileLoader(str(path)).Load()]
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in found if e.summary.value]


def test_tensorboard_gets_the_rows_under_the_same_names(tmp_path):
    with make_run(tmp_path, tensorboard=True) as run:
        run.log(row(64, extra=math.nan, nothing=None, flag=True))
        run.log(row(128))
    first, second = events(run.folder)
    assert first == (64, {**dict.fromkeys(COLUMNS, 1.5), "flag": 1.0})
    assert second == (128, dict.fromkeys(COLUMNS, 1.5))


def test_a_resumed_run_has_all_its_rows_in_tensorboard_once(tmp_path):
    with make_run(tmp_path, tensorboard=True) as first:
        for step in (64, 128, 192):
            first.log(row(step))
    lines = (first.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (first.folder / "metrics.jsonl").write_text(lines[0])  # the checkpoint was made after the first row
    with resume(first, tensorboard=True) as second:
        second.log(row(128))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(first.folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("charts/SPS")] == [64, 128]


def test_tensorboard_missing_is_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"\A--tensorboard: needs tensorboard: pip install .*\Z"):
        make_run(tmp_path / "runs", tensorboard=True)
    assert not (tmp_path / "runs").exists()


def test_tensorboard_failing_is_said_once_and_training_goes_on(tmp_path):
    said = []
    with make_run(tmp_path, said, tensorboard=True) as run:
        assert run._board is not None
        run._board.close()
        run._board = object()
        run.log(row(64))
        run.log(row(128))
    assert len(said) == 1 and said[0].startswith("warning: TensorBoard failed (")
    assert len(read_metrics(run.folder)) == 2


def test_every_flag_of_a_program_reaches_the_run(tmp_path, monkeypatch):
    given = {"wandb_group": "g", "wandb_name": "n", "wandb_tags": ("a", "b"), "wandb_notes": "x", "wandb_entity": "e"}
    flags = cli.RunFlags(run_root=str(tmp_path), wandb_artifacts=True, track=True, **given)
    names = {field.name for field in dataclasses.fields(flags)}
    assert {f"wandb_{name}" for name in WandbFlags._fields} - {"wandb_run_id"} == {n for n in names if "wandb" in n}
    seen = []
    monkeypatch.setattr(tracking, "_start_wandb", lambda folder, wandb, config, say: seen.append(wandb))
    facts = dataclasses.asdict(flags) | {"env_id": "CartPole-v1"}
    with Run.from_flags(facts, print, wandb_id="abc") as run:
        assert run.folder.parent == tmp_path
    assert seen == [WandbFlags("online", "ppo_fast", "e", "g", "n", ("a", "b"), "x", True, "abc")]


class FullDisk:
    """A metrics file on a disk that takes `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def close(self):
        self.file.close()


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    said = []
    with make_run(tmp_path, said) as run:
        run.log(row(1))
        with monkeypatch.context() as full:
            full.setattr(run, "_metrics", FullDisk(run._metrics, room=30))
            for step in (2, 3, 4):
                run.log(row(step))  # row 2 is torn, rows 3 and 4 are refused
        run.log(row(5))
        run.log(row(6))
    assert len(said) == 1
    assert "warning" in said[0] and "gaps" in said[0]
    assert [r["global_step"] for r in read_metrics(run.folder)] == [1, 5, 6]


def test_a_disk_full_from_the_first_row_to_the_result(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    said = []
    with make_run(tmp_path, said) as run:
        monkeypatch.setattr(run, "_metrics", FullDisk(run._metrics, room=0))
        monkeypatch.setattr(tracking.os, "fsync", refuse)
        run.log(row(1))
        run.finish({"eval/mean_return": 1.0})
    assert len(said) == 1 and "No space left on device" in said[0]
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "metrics.jsonl"]


def test_a_result_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
    tracking.write_json(tmp_path / "result.json", {"old": 1})

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking.os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        tracking.write_json(tmp_path / "result.json", {"new": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_picture_that_cannot_be_drawn_does_not_fail_the_run(tmp_path):
    def fail(folder, rows):
        raise RuntimeError("no font\nlong story")

    said = []
    with make_run(tmp_path, said) as run:
        run.finish({"eval/mean_return": 1.0}, fail)
    assert said == ["warning: curves.png was not drawn: no font"]
    assert (run.folder / "result.json").exists()


BROKEN_FILES = {
    "half row at the end": json.dumps(row(1)) + "\n" + json.dumps(row(2))[:40],
    "half row in the middle": json.dumps(row(1))[:25] + "\n" + json.dumps(row(2)) + "\n",
    "nulls": json.dumps(row(1, **dict.fromkeys(COLUMNS))) + "\n" + json.dumps(row(2)) + "\n",
    "all null": json.dumps(row(1, **dict.fromkeys(COLUMNS))) + "\n",
    "NaN of a lax writer": json.dumps(row(1, **dict.fromkeys(COLUMNS, math.nan))) + "\n",
    "missing columns": '{"global_step": 1, "charts/SPS": 5}\n{"global_step": 2, "losses/entropy": 0.3}\n',
    "only steps": '{"global_step": 1}\n{"global_step": 2}\n',
    "rows that are no rows": '[1, 2]\n5\nnull\n"x"\n' + json.dumps(row(1)) + "\n",
    "values that are no numbers": json.dumps(row(1, **dict.fromkeys(COLUMNS, "x"))) + "\n",
    "bytes of a broken disk": "\x00\x00\x00\n" + json.dumps(row(1)) + "\n",
}


@pytest.mark.parametrize("text", BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_curves_survive_a_broken_file(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_curves(tmp_path, read_metrics(tmp_path)) is True
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("text", ["", "\n\n", '{"global_st', '{"charts/SPS": 5}\n', '{"global_step": null}\n'])
def test_no_row_no_picture(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_curves(tmp_path, read_metrics(tmp_path)) is False
    assert not (tmp_path / "curves.png").exists()


def test_moving_average_against_a_plain_mean():
    values = tuple(np.random.default_rng(0).normal(size=50).tolist())
    for width in (1, 2, 5, 9):
        half = width // 2
        expected = [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(50)]
        assert curves._moving_average(values, width) == pytest.approx(expected)


def test_tick_labels_are_short_and_right():
    labels = {0.0025: "0.0025", 500.0: "500", 9000: "9000", 250_000: "250k", 1_500_000: "1.5M", -2e9: "-2G", 0: "0"}
    assert {value: curves.short_number(value) for value in labels} == labels


def test_importing_it_is_cheap():
    code = """
import sys, ppo_fast.pictures.curves, ppo_fast.run.tracking
print([name for name in ("wandb", "matplotlib", "rich", "tensorboard", "torch") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
