"""Bad input to the training program: one line that names the flag and what it takes, status 2, nothing written."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_fast import cli
from ppo_fast.train import Args, train

ROOT = Path(__file__).parent.parent
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class SpacesEnv(gymnasium.Env):
    """Has the spaces it is given, and must not be stepped."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        raise AssertionError("an environment that can't be trained on was reset")


class MissingPackageEnv(gymnasium.Env):
    """Finds out in its constructor that a package is missing."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("pip install a-package-that-is-missing")


UNSUPPORTED = {
    "TextObs-v0": (spaces.Text(5), spaces.Discrete(2)),
    "SequenceObs-v0": (spaces.Sequence(BOX), spaces.Discrete(2)),
    "GraphObs-v0": (spaces.Graph(BOX, None), spaces.Discrete(2)),
    "DictTextObs-v0": (spaces.Dict({"a": BOX, "b": spaces.Text(5)}), spaces.Discrete(2)),
    "TupleTextObs-v0": (spaces.Tuple([BOX, spaces.Text(5)]), spaces.Discrete(2)),
    "DictAction-v0": (BOX, spaces.Dict({"a": BOX})),
    "TupleAction-v0": (BOX, spaces.Tuple([spaces.Discrete(2), BOX])),
    "MultiBinaryAction-v0": (BOX, spaces.MultiBinary(3)),
    "TextAction-v0": (BOX, spaces.Text(5)),
    "IntBoxAction-v0": (BOX, spaces.Box(0, 3, (2,), np.int64)),
}


@pytest.fixture(autouse=True)
def environments_that_cannot_be_trained_on() -> Iterator[None]:
    before = set(gymnasium.registry)
    for name, (observation, action) in UNSUPPORTED.items():
        kwargs = {"observation_space": observation, "action_space": action}
        gymnasium.register(name, entry_point=f"{__name__}:SpacesEnv", kwargs=kwargs, disable_env_checker=True)
    gymnasium.register("MissingModule-v0", entry_point="a_module_that_is_missing:Env")
    gymnasium.register("MissingPackage-v0", entry_point=f"{__name__}:MissingPackageEnv")
    yield
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


# command line, the flag that is named, what the line also says
ROWS = [
    # environments
    ("--env-id CartPol-v1", "--env-id", "did you mean CartPole-v1"),
    ("--env-id cartpole-v1", "--env-id", "did you mean CartPole-v1"),
    ("--env-id CartPole-v9", "--env-id", "did you mean CartPole-v1"),
    ("--env-id Acrobot", "--env-id", "did you mean Acrobot-v1"),
    ("--env-id LunarLander-v4", "--env-id", "did you mean LunarLander-v3"),
    ("--env-id zzzz", "--env-id", "module:Env-v0"),
    ("--env-id=", "--env-id", "module:Env-v0"),
    ("--env-id no_such_module:Env-v0", "--env-id", "can't import 'no_such_module'"),
    ("--env-id os:Env-v0", "--env-id", "no environment 'os:Env-v0'"),
    ("--env-id MissingModule-v0", "--env-id", "No module named 'a_module_that_is_missing'"),
    ("--env-id MissingPackage-v0", "--env-id", "pip install a-package-that-is-missing"),
    *((f"--env-id {name}", "--env-id", "supported are") for name in UNSUPPORTED),
    # backends
    ("--backend gpu", "--backend", "auto, tensor, entry_point, sync"),
    ("--backend=", "--backend", "auto, tensor, entry_point, sync"),
    ("--backend Sync", "--backend", "auto, tensor, entry_point, sync"),
    ("--env-id Blackjack-v1 --backend tensor", "--backend", "it has sync, async"),
    ("--env-id Blackjack-v1 --backend entry_point", "--backend", "it has sync, async"),
    ("--env-id Taxi-v4 --backend tensor", "--backend", "it has sync, async"),
    # sizes
    ("--num-envs 0", "--num-envs", "a whole number of at least 1, got 0"),
    ("--num-envs -5", "--num-envs", "a whole number of at least 1, got -5"),
    ("--num-envs 4.5", "--num-envs", "a whole number of at least 1, got '4.5'"),
    ("--num-envs many", "--num-envs", "a whole number of at least 1, got 'many'"),
    ("--num-envs nan", "--num-envs", "a whole number of at least 1, got 'nan'"),
    ("--num-steps 0", "--num-steps", "a whole number of at least 1, got 0"),
    ("--num-steps -1", "--num-steps", "a whole number of at least 1, got -1"),
    ("--num-minibatches 0", "--num-minibatches", "a whole number of at least 1, got 0"),
    ("--num-minibatches 5 --num-envs 2 --num-steps 2", "--num-minibatches", "at most 4 (num_envs x num_steps)"),
    ("--num-minibatches 2049 --num-envs 64 --num-steps 32", "--num-minibatches", "at most 2048"),
    ("--update-epochs 0", "--update-epochs", "a whole number of at least 1, got 0"),
    ("--total-timesteps 0", "--total-timesteps", "a whole number of at least 1, got 0"),
    ("--total-timesteps -1", "--total-timesteps", "a whole number of at least 1, got -1"),
    ("--total-timesteps 1e6", "--total-timesteps", "a whole number of at least 1, got '1e6'"),
    ("--total-timesteps 2047 --num-envs 64 --num-steps 32", "--total-timesteps", "one iteration is 2048 steps"),
    ("--total-timesteps 100 --num-envs 1 --num-steps 128", "--total-timesteps", "one iteration is 128 steps"),
    ("--hidden-sizes 0", "--hidden-sizes", "each of at least 1, got 0"),
    ("--hidden-sizes 64 0", "--hidden-sizes", "each of at least 1, got 0"),
    ("--hidden-sizes 64 -64", "--hidden-sizes", "each of at least 1, got -64"),
    ("--hidden-sizes 64,64", "--hidden-sizes", "separated by spaces, each of at least 1, got '64,64'"),
    ("--eval-episodes -1", "--eval-episodes", "a whole number of at least 0, got -1"),
    ("--seed -1", "--seed", "a whole number from 0 to 2147483648, got -1"),
    ("--seed 2147483649", "--seed", "a whole number from 0 to 2147483648, got 2147483649"),
    # numbers
    ("--gamma 1.01", "--gamma", "from 0 to 1, got 1.01"),
    ("--gamma -0.1", "--gamma", "from 0 to 1, got -0.1"),
    ("--gamma nan", "--gamma", "from 0 to 1, got nan"),
    ("--gamma inf", "--gamma", "from 0 to 1, got inf"),
    ("--gae-lambda 1.5", "--gae-lambda", "from 0 to 1, got 1.5"),
    ("--gae_lambda=-1", "--gae-lambda", "from 0 to 1, got -1.0"),
    ("--gae-lambda nan", "--gae-lambda", "from 0 to 1, got nan"),
    ("--learning-rate nan", "--learning-rate", "a finite number of at least 0, got nan"),
    ("--learning-rate -1e-3", "--learning-rate", "a finite number of at least 0, got -0.001"),
    ("--learning-rate inf", "--learning-rate", "a finite number of at least 0, got inf"),
    ("--learning-rate -inf", "--learning-rate", "a finite number of at least 0, got -inf"),
    ("--learning-rate 1e999", "--learning-rate", "a finite number of at least 0, got inf"),
    ("--learning-rate fast", "--learning-rate", "a finite number of at least 0, got 'fast'"),
    ("--clip-coef 0", "--clip-coef", "a finite number above 0, got 0"),
    ("--clip-coef -0.2", "--clip-coef", "a finite number above 0, got -0.2"),
    ("--clip-coef nan", "--clip-coef", "a finite number above 0, got nan"),
    ("--ent-coef -0.01", "--ent-coef", "a finite number of at least 0, got -0.01"),
    ("--ent-coef nan", "--ent-coef", "a finite number of at least 0, got nan"),
    ("--vf-coef -1", "--vf-coef", "a finite number of at least 0, got -1"),
    ("--vf-coef inf", "--vf-coef", "a finite number of at least 0, got inf"),
    ("--max-grad-norm 0", "--max-grad-norm", "a finite number above 0, got 0"),
    ("--max-grad-norm nan", "--max-grad-norm", "a finite number above 0, got nan"),
    ("--target-kl 0", "--target-kl", "a finite number above 0, or None, got 0"),
    ("--target-kl -0.01", "--target-kl", "a finite number above 0, or None, got -0.01"),
    ("--target-kl nan", "--target-kl", "a finite number above 0, or None, got nan"),
    # choices, booleans, flags
    ("--compile fast", "--compile", "auto, on or off, got 'fast'"),
    ("--precision fp16", "--precision", "fp32, tf32 or bf16, got 'fp16'"),
    ("--verify -1", "--verify", "a whole number of at least 0, got -1"),
    ("--wandb-mode disabled", "--wandb-mode", "online or offline, got 'disabled'"),
    ("--cuda maybe", "--cuda", "True or False, got 'maybe'"),
    ("--track=perhaps", "--track", "True or False, got 'perhaps'"),
    ("--gama 0.9", "--gama", "did you mean --gamma?"),
    ("--num-env 4", "--num-env", "did you mean --num-envs"),
    ("--seed", "--seed", "needs a value: a whole number"),
    ("--env-id --seed 1", "--env-id", "needs a value"),
    ("64", "'64'", "flags are written --name value"),
    # the run folder; `FILE` is a regular file
    ("--run-root FILE", "--run-root", "Not a directory"),
    ("--run-root FILE/runs", "--run-root", "cannot make a folder in"),
    (f"--run-root {'x' * 300}", "--run-root", "cannot make a folder in"),
]


def status_of(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(train, Args, "test")
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_there_are_enough_rows() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 60


@pytest.mark.parametrize(("line", "flag", "says"), ROWS, ids=[row[0][:50] for row in ROWS])
def test_one_line_status_2_nothing_written(
    line: str,
    flag: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("kept")
    assert status_of(line.split(), monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n") and err.startswith("error: ")
    assert flag in err.split(": ", 1)[1].split(": ")[0], f"{flag} is not what the line begins with: {err}"
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"] and (tmp_path / "FILE").read_text() == "kept"


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"num_envs": 2.5}, "--num-envs"),
        ({"num_envs": True}, "--num-envs"),
        ({"learning_rate": "1e-3"}, "--learning-rate"),
        ({"hidden_sizes": 64}, "--hidden-sizes"),
        ({"compile": "fast"}, "--compile"),
        ({"wandb_mode": "disabled"}, "--wandb-mode"),
        ({"backend": "gpu"}, "--backend"),
        ({"env_id": "CartPol-v1"}, "--env-id"),
        ({"total_timesteps": 5}, "--total-timesteps"),
    ],
)
def test_a_call_from_python_gets_the_same_words(flags: dict[str, Any], flag: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{flag}: "):
        train(Args(**flags, run_root=str(tmp_path / "runs")))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(ValueError, match=r'^--env-id: LunarLander-v3 needs .* pip install "ppo_fast\[box2d\]"$'):
        train(Args(env_id="LunarLander-v3", run_root=str(tmp_path / "runs")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wanted", [True, False])
def test_cuda_wanted_and_absent_is_said_and_training_goes_on(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = Args(cuda=wanted, compile="off", num_envs=2, num_steps=8, total_timesteps=16, eval_episodes=0)
    result = train(replace(args, run_root=str(tmp_path)))
    assert result["global_step"] == 16
    [header] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("device")]
    assert header.split()[1] == "cpu"
    assert ("no CUDA device found" in header) is wanted


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--num-envs 0", "--num-envs"),
        ("--env-id CartPol-v1", "--env-id"),
        ("--backend gpu", "--backend"),
        ("--learning-rate nan", "--learning-rate"),
        ("--gama 1", "--gama"),
        ("--run-root /dev/null/runs", "--run-root"),
    ],
)
def test_from_the_shell_it_takes_seconds_and_shows_no_traceback(line: str, flag: str, tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ppo_fast.train", *line.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seconds = time.monotonic() - began
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {flag}: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    # 1.7 s on an idle machine with 2 cores, nearly all of it the import of torch.
    assert seconds < 10
