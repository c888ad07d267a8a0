"""A copy of a program in somebody's own folder is trained, resumed, evaluated, filmed, exported like the original."""

import importlib
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import ppo_fast
from ppo_fast import compare, evaluate, export, plot
from ppo_fast.replay import replay
from ppo_fast.run import checkpoint

PACKAGE = Path(ppo_fast.__file__).parent
# An actor that NumPy does not play: it has to be imported with the program.
CHANGES = {
    "train": (
        "self.actor = mlp.MLP([*sizes, self.head.outputs], 0.01, generator, dtype=dtype)",
        "self.actor = nn.Sequential(nn.Linear(sizes[0], 8), nn.ReLU(), nn.Linear(8, self.head.outputs))",
    ),
    "train_lstm": (
        "self.actor = mlp.MLP([args.lstm_hidden_size, self.head.outputs], 0.01, generator, dtype=dtype)",
        "self.actor = nn.Sequential(nn.Linear(args.lstm_hidden_size, 8), nn.ReLU(), nn.Linear(8, self.head.outputs))",
    ),
}
TINY: dict[str, Any] = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "num_minibatches": 1, "compile": "off"}
TINY |= {"total_timesteps": 64, "eval_episodes": 3, "quiet": True, "save_interval": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, on Python's path as for `python -m`; what is imported from there is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def copied(original: str, folder: Path, changed: bool = True) -> ModuleType:
    """A copy of a program as the module my_<original>, with another actor."""
    source = (PACKAGE / f"{original}.py").read_text()
    before, after = CHANGES[original]
    assert source.count(before) == 1
    (folder / f"my_{original}.py").write_text(source.replace(before, after) if changed else source)
    importlib.invalidate_caches()
    return importlib.import_module(f"my_{original}")


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("original", ["train", "train_lstm"])
def test_a_changed_copy_does_what_the_original_does(original: str, here: Path) -> None:
    own = copied(original, here)
    result = own.train(own.Args(**TINY, capture_video=True, backend="sync"))
    run = only_run(here)
    assert json.loads((run / "config.json").read_text())["program"] == f"my_{original}"
    assert list(run.glob("videos/greedy.mp4"))
    longer = own.train(own.Args(resume="latest", total_timesteps=128))
    assert longer["global_step"] == 128
    del sys.modules[f"my_{original}"]  # as in another process, which does not know it
    played = evaluate.evaluate(evaluate.Args(episodes=3, cuda=False, video=True))
    assert played["greedy"]["mean_return"] == longer["eval/mean_return"] and Path(played["video"]).exists()
    newest = max((run / "checkpoints").glob("checkpoint-*.pt"))
    assert evaluate.evaluate(evaluate.Args(run=str(newest), episodes=3, cuda=False))["greedy"] == played["greedy"]
    policy = ppo_fast.load()
    assert policy(np.zeros(4, np.float32), memory=policy.memory()) in (0, 1)
    assert Path(export.export(export.Args(to="torch"))["path"]).exists()
    own.train(own.Args(**{**TINY, "seed": 2}))
    plot.plot(plot.Args(runs=("runs/*",)))
    assert result["global_step"] == 64


def test_its_runs_are_compared(here: Path) -> None:
    own = copied("train", here)
    for seed in (1, 2):
        own.train(own.Args(**TINY, seed=seed))
        own.train(own.Args(**TINY, seed=seed, exp_name="other", gamma=0.9))
    found = compare.compare(compare.Args(runs=("runs/*train__*", "--", "runs/*other__*")))
    assert len(found["groups"]) == 2


def test_its_crash_file_is_replayed(here: Path) -> None:
    own = copied("train", here)
    with pytest.raises(FloatingPointError):
        own.train(own.Args(**{**TINY, "env_id": "odd_envs:NanReward-v0"}))
    del sys.modules["my_train"]
    (file,) = only_run(here).glob("crash-*.pt")
    assert "update reproduced" in "\n".join(replay(checkpoint.load(file), file.parent))


def test_as_a_script_it_has_the_name_of_its_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python my_train.py`: what it leaves is played by the programs of ppo_fast, and gone on with by itself."""
    copied("train", here)
    del sys.modules["my_train"]
    words = "--num-envs 2 --num-steps 8 --hidden-sizes 8 --num-minibatches 1 --compile off --eval-episodes 3 --quiet"
    for more in ("--total-timesteps 64", "--resume latest --total-timesteps 128"):
        monkeypatch.setattr(sys, "argv", ["my_train.py", *words.split(), "--no-preset", *more.split()])
        runpy.run_path("my_train.py", run_name="__main__")
    assert only_run(here).name.startswith("CartPole-v1__my_train__1__")
    found = [json.loads((only_run(here) / name).read_text()) for name in ("config.json", "result.json")]
    assert found[0]["program"] == "my_train" and found[1]["global_step"] == 128
    assert evaluate.evaluate(evaluate.Args(episodes=2, cuda=False))["greedy"]["episodes"] == 2
    assert "imports my_train from" in capsys.readouterr().err


def test_in_a_notebook_it_has_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted into a cell, where there is no `__file__`."""
    cell = type(sys)("my_cell")
    monkeypatch.setitem(sys.modules, "__main__", cell)
    cell.__name__ = cell.__dict__["__name__"] = "__main__"
    source = (PACKAGE / "train.py").read_text().split("if __name__ ==")[0]
    exec(compile(source, "<cell>", "exec"), cell.__dict__)
    cell.train(cell.Args(**TINY))
    assert only_run(here).name.startswith("CartPole-v1__train__1__")


def test_one_that_is_not_here_is_told_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copied("train", here)
    own.train(own.Args(**TINY))
    run = only_run(here)
    del sys.modules["my_train"]
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(ValueError, match=r"its program is my_train, which is not here; start where my_train.py lies"):
        evaluate.evaluate(evaluate.Args(run=str(run), cuda=False))
    monkeypatch.syspath_prepend(str(here))  # as PYTHONPATH says
    assert evaluate.evaluate(evaluate.Args(run=str(run), episodes=2, cuda=False))["greedy"]["episodes"] == 2


def test_no_run_folder_brings_its_program_along(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copied("train", here)
    own.train(own.Args(**TINY))
    run = only_run(here)
    del sys.modules["my_train"]
    shutil.move("my_train.py", run)
    monkeypatch.chdir(run)
    with pytest.raises(ValueError, match=r"the module 'my_train' of its program is .*, inside a run folder; .*--trust"):
        evaluate.evaluate(evaluate.Args(run=str(run), cuda=False))
    assert "my_train" not in sys.modules
    played = evaluate.evaluate(evaluate.Args(run=str(run), episodes=2, trust=True, cuda=False))
    assert played["greedy"]["episodes"] == 2
