"""Bad input to the training program: one line that names the flag and what it takes, status 2, nothing written."""

import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_fast.run import checkpoint, cli
from ppo_fast.train import Args, train

ROOT = Path(__file__).parents[2]
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


def register_environments_that_cannot_be_trained_on() -> None:
    for name, (observation, action) in UNSUPPORTED.items():
        kwargs = {"observation_space": observation, "action_space": action}
        gymnasium.register(name, entry_point=f"{__name__}:SpacesEnv", kwargs=kwargs, disable_env_checker=True)
    gymnasium.register("MissingModule-v0", entry_point="a_module_that_is_missing:Env")
    gymnasium.register("MissingPackage-v0", entry_point=f"{__name__}:MissingPackageEnv")


@pytest.fixture(autouse=True)
def environments_that_cannot_be_trained_on() -> Iterator[None]:
    before = set(gymnasium.registry)
    register_environments_that_cannot_be_trained_on()
    yield
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


# Words that no value of a kind of flag can be, and how the line words what it takes.
WHOLE = ("0", "-1", "1.5", "1e3", "nan", "ten", "")
NOT_NEGATIVE = ("-1", "nan", "inf", "-inf", "ten", "1,5", "")
POSITIVE = ("0", "-0.5", "nan", "inf", "ten", "")
BY_KIND: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    (
        ("num-envs", "num-steps", "num-minibatches", "update-epochs", "total-timesteps", "save-interval"),
        WHOLE,
        "a whole number of at least 1, got",
    ),
    (("keep-checkpoints", "env-groups"), WHOLE, "a whole number of at least 1, got"),
    (("eval-episodes", "verify", "env-restarts"), WHOLE[1:], "a whole number of at least 0, got"),
    (("learning-rate", "ent-coef", "vf-coef"), NOT_NEGATIVE, "a finite number of at least 0, got"),
    (("clip-coef", "max-grad-norm", "desired-kl", "env-timeout"), POSITIVE, "a finite number above 0, got"),
    (("target-kl", "max-runtime"), POSITIVE, "a finite number above 0, or None, got"),
    (("gamma", "gae-lambda"), ("-0.1", "1.1", "nan", "inf", "ten", ""), "a finite number from 0 to 1, got"),
    (("log-std-init",), ("-21", "21", "nan", "ten"), "a finite number from -20 to 20, got"),
    (("lr-schedule",), ("cosine", "LINEAR", ""), "linear, constant or kl, got"),
    (("on-nan",), ("ignore", "1", ""), "stop or rollback, got"),
    (("compile",), ("fast", "true", ""), "auto, on or off, got"),
    (("precision",), ("fp16", "32", ""), "fp32, tf32 or bf16, got"),
    (("wandb-mode",), ("disabled", ""), "online or offline, got"),
    (
        ("cuda", "track", "quiet", "capture-video", "anneal-lr", "norm-adv", "norm-obs", "norm-reward", "clip-vloss"),
        ("maybe",),
        "True or False, got",
    ),
    (
        ("shared-backbone", "torch-deterministic", "tensorboard", "wandb-artifacts", "profile", "preset"),
        ("2", ""),
        "True or False, got",
    ),
]
GENERATED = [
    (f"--{flag}={value}", f"--{flag}", says) for flags, values, says in BY_KIND for flag in flags for value in values
]
TYPOS = {"learning-rat": "learning-rate", "num-step": "num-steps", "normobs": "norm-obs", "resum": "resume"}
TYPOS |= {"max-run-time": "max-runtime", "onnan": "on-nan", "keep-checkpoint": "keep-checkpoints"}
GENERATED += [(f"--{typo} 1", f"--{typo}", f"did you mean --{flag}") for typo, flag in TYPOS.items()]
VALUELESS = ("gamma", "num-envs", "env-id", "resume", "on-nan", "max-runtime", "save-interval", "env-timeout")
GENERATED += [(f"--seed 1 --{flag}", f"--{flag}", "needs a value: ") for flag in VALUELESS]

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
    ("--env-groups 2", "--env-groups", "needs --backend async or envpool, which step beside the policy, not auto"),
    ("--env-groups 2 --backend sync", "--env-groups", "needs --backend async or envpool"),
    ("--env-groups 5 --backend async --num-envs 4", "--env-groups", "4 environments can't be parted into 5 groups"),
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
    # a run to go on with
    ("--resume nowhere", "--resume", "nowhere is neither a run folder, a checkpoint file nor 'latest'"),
    ("--resume FILE", "--resume", "FILE: truncated, or not a checkpoint of ppo_fast (4 bytes)"),
    ("--resume latest", "--resume", "no run with a valid checkpoint below runs"),
    ("--resume latest --run-root FILE", "--resume", "no run with a valid checkpoint below FILE"),
    ("--resume .", "--resume", "no checkpoint here"),
]
SEEN = {row[0] for row in ROWS}
ROWS += [row for row in GENERATED if row[0] not in SEEN and row[0].replace("=", " ") not in SEEN]


def status_of(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(train, Args, "test")
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_there_are_enough_rows() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS)
    assert len(ROWS) + len(CHECKPOINTS) + len(CHANGED) >= 200
    # Every flag with a value that can be wrong is among them.
    flags = {name for name, flag in cli.flags_of(Args).items() if flag.kind is not str or flag.choices}
    assert flags <= {row[1] for row in ROWS}


def assert_one_line(out: str, err: str, flag: str, says: str) -> None:
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n") and err.startswith("error: ")
    assert flag in err.split(": ", 1)[1].split(": ")[0], f"{flag} is not what the line begins with: {err}"
    assert says in err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    assert_one_line(out, err, flag, says)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"] and (tmp_path / "FILE").read_text() == "kept"


# ---------------------------------------------------------------- checkpoints


TINY = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "update_epochs": 1, "num_minibatches": 1, "quiet": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints, stopped before its end."""
    root = tmp_path_factory.mktemp("finished")
    few = {"total_timesteps": 160, "save_interval": 1, "max_runtime": 1e-9, "compile": "off", "norm_obs": True}
    train(Args(**TINY, **few, run_root=str(root)))
    [run] = root.iterdir()
    train(Args(resume=str(run), max_runtime=1e-9, quiet=True))
    return run


Spoil = Callable[[dict[str, Any]], Any]


def without(name: str) -> Spoil:
    return lambda payload: payload.pop(name)


def with_flag(name: str, value: Any) -> Spoil:
    return lambda payload: payload["flags"].__setitem__(name, value)


def with_progress(name: str, value: Any) -> Spoil:
    return lambda payload: payload["progress"].__setitem__(name, value)


def with_tensor(name: str, value: torch.Tensor) -> Spoil:
    return lambda payload: payload["ranks"][0]["tensors"].__setitem__(name, value)


# A whole file with a right checksum that is no checkpoint of this program: what is done to a good one, what is said.
CHECKPOINTS: dict[str, tuple[Spoil, str]] = {
    **{f"no {name}": (without(name), f"it has no {name}") for name in ("program", "flags", "progress", "ranks")},
    "no format": (without("format"), "another version of ppo_fast wrote it"),
    "another format": (lambda payload: payload.__setitem__("format", 1), "another version of ppo_fast wrote it"),
    "no process-wide generators": (lambda payload: payload["ranks"][0].pop("rng"), "it has no training state"),
    "empty": (lambda payload: payload.clear(), "it has no program"),
    "crash file": (lambda payload: payload.__setitem__("finding", "x"), "python -m ppo_fast.replay looks at it"),
    "another program": (
        lambda payload: payload.__setitem__("program", "ppo_fast.train_atari"),
        "it is of ppo_fast.train_",
    ),
    "a program by number": (lambda payload: payload.__setitem__("program", 5), "it has no program"),
    "flags as a list": (lambda payload: payload.__setitem__("flags", [1]), "it has no flags"),
    "no iteration": (lambda payload: payload["progress"].pop("iteration"), "its progress has no iteration"),
    "iteration as text": (with_progress("iteration", "5"), "its progress has no iteration"),
    "iteration below 0": (with_progress("iteration", -1), "its progress is below 0"),
    "step below 0": (with_progress("global_step", -16), "its progress is below 0"),
    "elapsed as text": (with_progress("elapsed", "1 s"), "its progress has no elapsed"),
    "wandb_id by number": (with_progress("wandb_id", 5), "its progress has no wandb_id"),
    "no ranks": (lambda payload: payload["ranks"].clear(), "it has no training state"),
    "a rank by number": (lambda payload: payload["ranks"].append(5), "it has no training state"),
    "no tensors": (lambda payload: payload["ranks"][0].pop("tensors"), "it has no training state"),
    "no generators": (lambda payload: payload["ranks"][0].pop("generators"), "it has no training state"),
    "no parameters": (lambda payload: payload["ranks"][0]["tensors"].pop("theta"), "it has no training state"),
    "a tensor by number": (with_tensor("theta", 5), "it has no training state"),  # type: ignore[arg-type]
    "another network": (with_tensor("theta", torch.zeros(7)), "its theta does not fit"),
    "another optimiser": (with_tensor("moment1", torch.zeros(7)), "its moment1 does not fit"),
    "other observations": (with_tensor("agent.normalize_obs.shift", torch.zeros(7)), "does not fit"),
    "no statistics": (
        lambda payload: payload["ranks"][0]["tensors"].pop("agent.normalize_obs.shift"),
        "its agent.normalize_obs.shift does not fit",
    ),
    "other layers": (with_flag("hidden_sizes", (9,)), "its theta does not fit"),
    "env_id by number": (with_flag("env_id", 5), "holds --env-id as 5, no str"),
    "a boolean as text": (with_flag("norm_obs", "yes"), "holds --norm-obs as 'yes', no bool"),
    "num_envs as text": (with_flag("num_envs", "2"), "holds --num-envs as '2', no int"),
    "num_envs below 1": (with_flag("num_envs", -2), "--num-envs: must be a whole number of at least 1, got -2"),
    "gamma is NaN": (with_flag("gamma", math.nan), "--gamma: must be a finite number from 0 to 1, got nan"),
    "target_kl as text": (
        with_flag("target_kl", "x"),
        "--target-kl: must be a finite number above 0, or None, got 'x'",
    ),
    "an environment that is not there": (with_flag("env_id", "CartPol-v1"), "--env-id: no environment 'CartPol-v1'"),
    "a backend that is not there": (with_flag("backend", "gpu"), "--backend: no backend 'gpu'"),
}


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    by_kind = {"half": data[: len(data) // 2], "one byte short": data[:-1], "none": b"", "flipped": bytes(flipped)}
    by_kind |= {"zeros": bytes(len(data)), "text": b"hello\n", "pickle": pickle.dumps({"a": print})}
    path.write_bytes(by_kind[kind])


DAMAGES = ("half", "one byte short", "none", "flipped", "zeros", "text", "pickle")


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.mark.parametrize("kind", [*CHECKPOINTS, *DAMAGES])
@pytest.mark.parametrize("spec", ["run folder", "file"])
def test_a_checkpoint_that_cannot_be_gone_on_from(
    copied: Path, kind: str, spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (copied / "checkpoints").glob("*.pt"):
        if kind in DAMAGES:
            damage(path, kind)
        else:
            payload = checkpoint.load(path)
            CHECKPOINTS[kind][0](payload)
            checkpoint.write(path, payload)
    before = contents(copied.parent)
    says = CHECKPOINTS[kind][1] if kind in CHECKPOINTS else ".pt: "
    named = "--" if says.startswith("--") else "--resume"
    assert status_of(["--resume", str(copied if spec == "run folder" else path), "--quiet"], monkeypatch) == 2
    out, err = capsys.readouterr()
    assert_one_line(out, err, named, says)
    assert contents(copied.parent) == before, "something was written"


# Flags that may not change when a run goes on, each with another value.
CHANGED = {
    **{"--env-id": "Acrobot-v1", "--num-envs": "4", "--num-steps": "16", "--seed": "2", "--learning-rate": "0.1"},
    **{"--gamma": "0.5", "--lr-schedule": "constant", "--hidden-sizes": "9", "--backend": "sync", "--exp-name": "x"},
    **{"--num-minibatches": "2", "--update-epochs": "2", "--clip-coef": "0.3", "--target-kl": "1", "--verify": "1"},
    **{
        "--compile": "auto",
        "--precision": "bf16",
        "--norm-obs": "False",
        "--shared-backbone": "True",
        "--cuda": "False",
        "--env-groups": "2",
    },
}


@pytest.mark.parametrize("flag", CHANGED)
def test_a_flag_that_would_make_it_another_run(
    copied: Path, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied.parent)
    assert status_of(["--resume", str(copied), flag, CHANGED[flag]], monkeypatch) == 2
    out, err = capsys.readouterr()
    assert_one_line(out, err, flag, f"in {copied} and can't change when a run goes on")
    assert contents(copied.parent) == before


def test_flags_that_may_change(copied: Path) -> None:
    more = {"total_timesteps": 64, "save_interval": 3, "keep_checkpoints": 1, "on_nan": "rollback", "env_timeout": 5.0}
    result = train(Args(resume=str(copied), quiet=True, eval_episodes=0, env_restarts=1, tensorboard=False, **more))
    assert result["global_step"] == 64


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


def in_a_shell(line: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """What `python -m ppo_fast.train` does with a command line, and in how many seconds of a CPU.

    On an idle machine these are the seconds that a user waits, on a busy one they still are about the same.
    """
    program = ["-m", "ppo_fast.train"]
    if any(name in line for name in (*UNSUPPORTED, "MissingModule", "MissingPackage")):
        register = "import test_bad_input as t; t.register_environments_that_cannot_be_trained_on()"
        program = ["-c", f"{register}; t.cli.run(t.train, t.Args, 't')"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command, before = [sys.executable, *program, *line.split()], os.times()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    after = os.times()
    return done, sum(after[2:4]) - sum(before[2:4])


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--run-root /dev/null/runs", "--run-root"),
        ("--resume nowhere", "--resume"),
    ],
)
def test_from_the_shell_it_takes_seconds_and_shows_no_traceback(line: str, flag: str, tmp_path: Path) -> None:
    done, seconds = in_a_shell(line, tmp_path)
    assert done.returncode == 2
    assert_one_line(done.stdout, done.stderr, flag, flag)
    assert list(tmp_path.iterdir()) == []
    # Nearly all of it is the import of torch.
    assert seconds < 10


@pytest.mark.slow
def test_all_of_it_from_the_shell(finished: Path, tmp_path: Path) -> None:
    times = []
    (tmp_path / "FILE").write_text("kept")
    for line, flag, says in ROWS:
        done, seconds = in_a_shell(line, tmp_path)
        assert done.returncode == 2, line
        assert_one_line(done.stdout, done.stderr, flag, says)
        assert contents(tmp_path) == {"FILE": b"kept"}
        times.append(seconds)
    for kind, (spoil, says) in CHECKPOINTS.items():
        run = tmp_path / kind.replace(" ", "-")
        shutil.copytree(finished, run)
        for path in (run / "checkpoints").glob("*.pt"):
            payload = checkpoint.load(path)
            spoil(payload)
            checkpoint.write(path, payload)
        before = contents(run)
        done, seconds = in_a_shell(f"--resume {run} --quiet", tmp_path)
        assert done.returncode == 2, kind
        assert_one_line(done.stdout, done.stderr, "--", says)
        assert contents(run) == before
        times.append(seconds)
    times.sort()
    print(f"{len(times)} of {len(times)} refused in one line, status 2, nothing written;", end=" ")
    print(f"median {times[len(times) // 2]:.2f} s, slowest {times[-1]:.2f} s")
    assert times[len(times) // 2] < 3
