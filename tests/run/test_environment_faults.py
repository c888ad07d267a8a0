"""A fault of an environment, from its import to its end: one line, where its code raised, status 6, no empty folder."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ppo_fast import train, train_lstm
from ppo_fast.run import cli

MODULE = """
import gymnasium
import numpy as np
import torch
from gymnasium import spaces
{top}

class Env(gymnasium.Env):
    observation_space, action_space = spaces.Box(-9.0, 9.0, (3,), np.float32), spaces.Discrete(2)
    steps = 0

    def __init__(self):
        {init}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        {reset}
        return np.zeros(3, np.float32), {{}}

    def step(self, action):
        self.time += 1
        Env.steps += 1
        reward = 1.0
        {step}
        return np.full(3, self.time, np.float32), reward, False, self.time == 5, {{}}

    def close(self):
        {close}

gymnasium.register("{name}-v0", entry_point="{name}:Env")
"""
FLAGS = "--num-envs 4 --num-steps 8 --num-minibatches 2 --update-epochs 1 --hidden-sizes 8 --compile off --no-cuda"
SMALL = (*FLAGS.split(), "--total-timesteps", "64", "--eval-episodes", "0")

Trained = tuple[int, str, list[Path]]  # exit status, all that was printed, the run folders


@pytest.fixture
def trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Callable[..., Trained]:
    """Runs a program as a command does, with an environment whose module has these lines in it."""
    names = iter(f"odd_{abs(hash(request.node.name))}_{i}" for i in range(9))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)

    def train_it(*flags: str, program: Any = train, **lines: str) -> Trained:
        name = next(names)
        parts = {"top": "", "init": "pass", "reset": "pass", "step": "pass", "close": "pass", "name": name, **lines}
        (tmp_path / f"{name}.py").write_text(MODULE.format(**parts))
        root = tmp_path / f"runs-{name}"
        argv = ["train", "--env-id", f"{name}:{name}-v0", "--run-root", str(root), *SMALL, *flags]
        monkeypatch.setattr(sys, "argv", argv)
        status: Any = 0
        capfd.readouterr()
        try:
            cli.run(program.train, program.Args, "")
        except SystemExit as stop:
            status = stop.code
        finally:
            gymnasium.registry.pop(f"{name}-v0", None)
        captured = capfd.readouterr()
        return status, captured.out + captured.err, sorted(root.glob("*"))

    return train_it


# ---------------------------------------------------------------- before the first iteration

EARLY = {
    "import": ({"top": "{}[3]"}, "the vector environment raised KeyError: 3 at the import of 'odd_"),
    "import that exits": ({"top": "raise SystemExit(4)"}, "the vector environment raised SystemExit: 4 at the import"),
    "start": ({"init": "{}[3]"}, "environment 0 raised KeyError: 3"),
    "second start": (
        {"init": "assert not hasattr(Env, 'one'), 'port 5005 is in use'; Env.one = 1", "close": "del Env.one"},
        "environment 1 raised AssertionError: port 5005 is in use",
    ),
    "no spaces": ({"init": "del type(self).action_space; pass"}, "environment 0 raised AttributeError: "),
    "reset": ({"reset": "{}[3]"}, "environment 0 raised KeyError: 3"),
    "reset of gym": ({"reset": "return np.zeros(3)"}, "environment 0 gave at its first reset: [0., 0., 0.], not ("),
    "shape": ({"reset": "return np.zeros(1), {}"}, "environment 0 gave at its first reset: an observation that is not"),
}


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("name", EARLY)
def test_a_fault_before_there_is_anything_to_lose(name: str, backend: str, trained: Callable[..., Trained]) -> None:
    lines, words = EARLY[name]
    status, said, folders = trained("--backend", backend, **lines)
    assert (status, folders) == (6, [])
    last = said.strip().splitlines()[-1]
    if backend == "async":  # either of its workers may be the first to say so
        last = last.replace("environment 2", "environment 0").replace("environment 3", "environment 1")
    assert last.startswith(f"error: {words}"), said
    assert said.count("Traceback") == (0 if " gave " in last else 1), said
    if "KeyError" in words:
        assert '.py", line' in said and "{}[3]" in said and "ppo_fast" not in said.partition("Traceback")[2], said


def test_train_lstm_too(trained: Callable[..., Trained]) -> None:
    status, said, folders = trained("--num-minibatches", "2", program=train_lstm, reset="{}[3]")
    assert (status, folders) == (6, []) and said.strip().endswith("error: environment 0 raised KeyError: 3")


def test_a_package_that_is_missing_is_the_users_mistake(trained: Callable[..., Trained]) -> None:
    for lines in ({"top": "import no_such_package"}, {"init": "import no_such_package"}):
        status, said, folders = trained(**lines)
        assert (status, folders) == (2, []) and "no_such_package" in said and "Traceback" not in said


# ---------------------------------------------------------------- while it trains


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["lines", "quiet"])
def test_where_an_environment_raised_is_shown_once_and_kept(
    backend: str, quiet: tuple[str, ...], trained: Callable[..., Trained]
) -> None:
    bad = "if Env.steps >= 40: {}[3]"
    status, said, folders = trained("--backend", backend, "--total-timesteps", "640", *quiet, step=bad)
    assert status == 6 and len(folders) == 1
    assert said.count("Traceback") == 1 and said.count("if Env.steps >= 40: {}[3]") == 1, said
    kept = (folders[0] / "faults.txt").read_text()
    assert "raised KeyError: 3" in kept and kept.count("if Env.steps >= 40: {}[3]") == 1
    assert list((folders[0] / "checkpoints").glob("*.pt"))


def test_equal_faults_are_shown_once_and_kept_each_time(trained: Callable[..., Trained]) -> None:
    bad = "if Env.steps >= 40: Env.steps = 0; {}[3]"
    status, said, [folder] = trained("--env-restarts", "3", "--total-timesteps", "640", step=bad)
    assert status == 6 and said.count("Traceback") == 1
    assert (folder / "faults.txt").read_text().count("Traceback") == 4


def test_what_is_wrong_with_a_step_needs_no_traceback(trained: Callable[..., Trained]) -> None:
    status, said, [folder] = trained(step="if self.time == 3: return np.zeros(2), 0.0, False, False, {}")
    line = (
        "environment 0 gave at step 3: an observation that is not in its space Box(-9.0, 9.0, (3,), float32): [0., 0.]"
    )
    assert status == 6 and line in said and "Traceback" not in said
    assert line in (folder / "faults.txt").read_text()


def test_a_fault_in_closing_is_no_fault_of_the_run(trained: Callable[..., Trained]) -> None:
    with pytest.warns(UserWarning, match="Env did not close: KeyError: 3"):
        status, _, [folder] = trained(close="{}[3]")
    assert status == 0 and (folder / "result.json").exists()


def test_a_stop_by_a_signal_stays_one(trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that sends its own process a signal has not failed."""
    lines = {"top": "import os, signal", "step": "if Env.steps == 40: os.kill(os.getpid(), signal.SIGTERM)"}
    status, said, [folder] = trained("--total-timesteps", "640", **lines)
    assert status == 143 and not (folder / "faults.txt").exists(), said


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("reward = 1e20 if self.time == 2 else 0.0", "reward of environment 0 is 1e+20 at rollout step 1"),
        ("reward = -3e25", "reward of environment 0 is -3e+25 at rollout step 0"),
    ],
)
def test_numbers_too_large_to_learn_from_are_named(step: str, words: str, trained: Callable[..., Trained]) -> None:
    status, said, _ = trained(step=step)
    assert status == 3 and words in said and "too large to learn from: scale it" in said, said


# ---------------------------------------------------------------- settings of the process

SETTINGS = [
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device('meta')",
    "torch.set_grad_enabled(False)",
    "np.seterr(all='raise')",
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("where", ["top", "init", "reset", "step"])
def test_settings_of_an_environment_change_nothing_of_the_run(
    setting: str, where: str, trained: Callable[..., Trained]
) -> None:
    plain, odd = trained(), trained(**{where: setting})
    assert plain[0] == odd[0] == 0, odd[1]
    rows = [(folder / "metrics.jsonl").read_text().splitlines() for _, _, [folder] in (plain, odd)]
    assert losses(rows[0]) == losses(rows[1])
    assert torch.zeros(1).dtype is torch.float32 and torch.zeros(1).device.type == "cpu" and torch.is_grad_enabled()
    assert np.geterr()["over"] == "warn"


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_has_the_settings_that_it_made(backend: str, trained: Callable[..., Trained]) -> None:
    check = "assert torch.zeros(1).dtype is torch.float64"
    lines = {"top": "torch.set_default_dtype(torch.float64)", "init": check, "reset": check, "step": check}
    status, said, _ = trained("--backend", backend, "--eval-episodes", "2", **lines)
    assert status == 0, said


def losses(rows: list[str]) -> list[dict[str, Any]]:
    return [{key: value for key, value in json.loads(row).items() if "losses" in key} for row in rows]
