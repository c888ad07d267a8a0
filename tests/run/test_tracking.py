"""The run folder: what is written, that it is never lost or overwritten, and that no disk stops a run."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import make_row, make_run, resume

from ppo_fast.run import cli, tracking, wandb_twin
from ppo_fast.run.rows import RowFile, read_metrics
from ppo_fast.run.tracking import NoRun, Run, WandbFlags


def test_a_finished_run_leaves_the_whole_folder(tmp_path):
    def draw(folder, rows):
        (folder / "curves.png").write_text(f"{len(rows)} rows")

    said = []
    with make_run(tmp_path / "runs", said) as run:
        run.log(make_row(64))
        run.log(make_row(128))
        run.finish({"eval/mean_return": 500.0, "seconds": {"train": 1.0}}, draw)
    assert re.fullmatch(r"CartPole-v1__train__3__\d{10}", run.folder.name)
    assert sorted(path.name for path in run.folder.iterdir()) == [
        ".lock",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "result.json",
    ]
    assert json.loads((run.folder / "config.json").read_text()) == {"gamma": 0.99, "run_id": run.run_id}
    assert json.loads((run.folder / "result.json").read_text())["seconds"] == {"train": 1.0}
    assert (run.folder / "curves.png").read_text() == "2 rows"
    assert said == []


def test_a_row_is_in_the_file_when_log_returns(tmp_path):
    with make_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.log(make_row(step))
            assert [r["global_step"] for r in read_metrics(run.folder)] == list(range(1, step + 1))


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
        "run_id": run.run_id,
        "sizes": [64, 64],
        "path": "a/b",
        "device": "cpu",
        "deep": {"inf": None, "1": None},
    }


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.time, "time", lambda: 1_700_000_000.9)
    runs = [make_run(tmp_path) for _ in range(3)]
    for number, run in enumerate(runs):
        run.log(make_row(number))
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
        run.log(make_row(1))
        raise RuntimeError("mine")
    with pytest.raises(ValueError, match="closed"):
        run.log(make_row(2))
    assert not (run.folder / "result.json").exists()


def test_a_resumed_run_goes_on_in_its_folder(tmp_path):
    with make_run(tmp_path) as first:
        first.log(make_row(64))
    with resume(first) as second:
        second.log(make_row(128))
        second.finish({"eval/mean_return": 1.0})
    assert second.folder == first.folder
    assert len(list(tmp_path.iterdir())) == 1
    assert [r["global_step"] for r in read_metrics(first.folder)] == [64, 128]
    assert json.loads((first.folder / "config.json").read_text()) == {"gamma": 0.99, "run_id": first.run_id}
    assert (first.folder / "result.json").exists()


def test_a_rollback_takes_rows_back(tmp_path, monkeypatch):
    said = []

    def fail(*_):
        raise OSError(28, "No space left on device")

    with make_run(tmp_path / "runs", said) as run:
        run.log(make_row(1))
        tally = run.remember()
        for step in (2, 3):
            run.log(make_row(step))
        run.rewind()
        assert run.remember() == tally
        run.log(make_row(2))
        assert [r["global_step"] for r in run.rows()] == [1, 2]
        with monkeypatch.context() as full:
            full.setattr(os, "ftruncate", fail)
            run.rewind()
        run.log(make_row(3))
    assert [r["global_step"] for r in read_metrics(run.folder)] == [1, 2, 3]
    assert len(said) == 1 and "No space left" in said[0]


def test_no_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NoRun() as run:
        run.log(make_row(1))
        assert run.remember() is None
        run.rewind()
        run.go_on(lambda folder: pytest.fail("nothing to cut"))
        assert run.rows() == []
        run.log_video(tmp_path / "greedy.mp4", 1)
        run.finish({"eval/mean_return": 1.0}, lambda *_: pytest.fail("nothing to draw"))
        run.close()
    with pytest.raises(RuntimeError, match="mine"), NoRun():
        raise RuntimeError("mine")
    assert run.wandb_id is None
    with pytest.raises(RuntimeError, match="no run folder"):
        run.folder  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_no_run_has_the_methods_of_a_run():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))}

    assert public(Run) - public(NoRun) == {"from_flags"}


def test_every_flag_of_a_program_reaches_the_run(tmp_path, monkeypatch):
    given = {"wandb_group": "g", "wandb_name": "n", "wandb_tags": ("a", "b"), "wandb_notes": "x", "wandb_entity": "e"}
    flags = cli.RunFlags(run_root=str(tmp_path), wandb_artifacts=True, track=True, **given)
    names = {field.name for field in dataclasses.fields(flags)}
    assert {f"wandb_{name}" for name in WandbFlags._fields} - {"wandb_run_id"} == {n for n in names if "wandb" in n}
    seen = []
    monkeypatch.setattr(wandb_twin, "start", lambda folder, wandb, config, say: seen.append(wandb))
    facts = dataclasses.asdict(flags) | {"env_id": "CartPole-v1"}
    with Run.from_flags(facts, print, wandb_id="abc") as run:
        assert run.folder.parent == tmp_path
    assert seen == [WandbFlags("online", "ppo_fast", "e", "g", "n", ("a", "b"), "x", True, "abc")]


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    """From the first row to the result; what fits again is written."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    said = []
    with make_run(tmp_path, said) as run:
        with monkeypatch.context() as full:
            full.setattr(RowFile, "append", refuse)
            run.log(make_row(1))
            run.log(make_row(2))
        run.log(make_row(3))
        monkeypatch.setattr(os, "fsync", refuse)
        run.finish({"eval/mean_return": 1.0})
    (line,) = said
    assert line.startswith(f"warning: cannot write to {run.folder}")
    assert "No space left on device" in line and "gaps" in line
    assert [r["global_step"] for r in read_metrics(run.folder)] == [3]
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "config.json", "metrics.jsonl"]


def test_a_picture_that_cannot_be_drawn_does_not_fail_the_run(tmp_path):
    def fail(folder, rows):
        raise RuntimeError("no font\nlong story")

    said = []
    with make_run(tmp_path, said) as run:
        run.finish({"eval/mean_return": 1.0}, fail)
    assert said == ["warning: curves.png was not drawn: no font"]
    assert (run.folder / "result.json").exists()


def test_importing_it_is_cheap():
    code = """
import sys, ppo_fast.run.tracking
print([name for name in ("wandb", "matplotlib", "rich", "tensorboard", "torch") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
