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
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_fast.run import checkpoint, cli
from ppo_fast.run.flags import flags_of
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


# Words that are no value of these flags. What a line says of each kind stands in test_flags.py and test_mistakes.py.
WHOLE = ("0", "-1", "1.5", "1e-3", "nan", "ten", "")
NOT_NEGATIVE = ("-1", "nan", "inf", "-inf", "ten", "1,5", "")
POSITIVE = ("0", "-0.5", "nan", "inf", "ten", "")
BAD_WORDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("num-envs", "num-steps", "num-minibatches", "update-epochs", "total-timesteps", "save-interval"): WHOLE,
    ("keep-checkpoints", "env-groups"): WHOLE,
    ("hidden-sizes",): (*WHOLE, "64 0", "64 -64", "64,,64", "[64", "64;64"),
    ("eval-episodes", "eval-every", "verify", "env-restarts"): WHOLE[1:],
    ("eval-max-steps", "eval-every-episodes"): WHOLE,
    ("seed",): ("-1", "2147483649", "1.5", "ten", ""),
    ("learning-rate", "ent-coef", "vf-coef", "adv-std-min"): (*NOT_NEGATIVE, "1e999"),
    ("clip-coef", "max-grad-norm", "desired-kl", "env-timeout", "eval-seconds"): POSITIVE,
    ("target-kl", "max-runtime"): POSITIVE,
    ("gamma", "gae-lambda"): ("-0.1", "1.1", "nan", "inf", "ten", ""),
    ("log-std-init",): ("-21", "21", "nan", "ten"),
    ("lr-schedule",): ("cosine", "LINEAR", ""),
    ("on-nan",): ("ignore", "1", ""),
    ("compile",): ("fast", "true", ""),
    ("precision",): ("fp16", "32", ""),
    ("action-bounds",): ("scale", "-1 1", ""),
    ("env-kwargs",): ("size", "size 8", "=8", "a b=1", "{'a': 1", "[1, 2]", "1e999", "size=1e999", "size=[1,1e999]"),
    ("hide",): ("-1", "1.5", "position", "0 -1"),
    ("wandb-mode",): ("disabled", ""),
    ("cuda", "track", "quiet", "capture-video", "anneal-lr", "norm-adv", "norm-obs", "norm-reward", "stagger-resets"): (
        "maybe",
    ),
    ("clip-vloss", "shared-backbone", "torch-deterministic"): ("2", ""),
    ("tensorboard", "wandb-artifacts", "profile", "preset", "recipe", "trust"): ("perhaps",),
}
TYPOS = ("learning-rat", "num-step", "normobs", "resum", "max-run-time", "onnan", "keep-checkpoint", "gama", "num-env")
VALUELESS = ("gamma", "num-envs", "env-id", "resume", "on-nan", "max-runtime", "save-interval", "env-timeout", "seed")


class Case(NamedTuple):
    """A command line that is refused."""

    line: str
    flag: str  # what the one line begins with
    says: str  # and what is in it


def wrong_values() -> list[Case]:
    """`--flag word` for all of the words above, `--flag=` for the empty one."""
    cases = []
    for flags, words in BAD_WORDS.items():
        for flag in flags:
            for word in words:
                cases.append(Case(f"--{flag} {word}" if word else f"--{flag}=", f"--{flag}", "must be"))
    return cases


def wrong_names() -> list[Case]:
    """Flags that are nearly right, flags without a value, and a word without a flag."""
    cases = [Case(f"--{typo} 1", f"--{typo}", "did you mean --") for typo in TYPOS]
    cases += [Case(f"--num-envs 4 --{flag}", f"--{flag}", "needs a value") for flag in VALUELESS]
    return [*cases, Case("--env-id --seed 1", "--env-id", "needs a value"), Case("64", "unexpected '64'", "--help")]


ENVIRONMENTS = [
    Case("--env-id CartPol-v1", "--env-id", "did you mean CartPole-v1"),
    Case("--env-id cartpole-v1", "--env-id", "did you mean CartPole-v1"),
    Case("--env-id CartPole-v9", "--env-id", "did you mean CartPole-v1"),
    Case("--env-id Acrobot", "--env-id", "did you mean Acrobot-v1"),
    Case("--env-id LunarLander-v4", "--env-id", "did you mean LunarLander-v3"),
    Case("--env-id zzzz", "--env-id", "module:Env-v0"),
    Case("--env-id=", "--env-id", "module:Env-v0"),
    Case("--env-id no_such_module:Env-v0", "--env-id", "can't import 'no_such_module'"),
    Case("--env-id os:Env-v0", "--env-id", "no environment 'os:Env-v0'"),
    Case("--env-id MissingModule-v0", "--env-id", "No module named 'a_module_that_is_missing'"),
    Case("--env-id MissingPackage-v0", "--env-id", "pip install a-package-that-is-missing"),
    *(Case(f"--env-id {name}", "--env-id", "supported are") for name in UNSUPPORTED),
]
OTHERS = [
    # backends
    Case("--backend gpu", "--backend", "auto, tensor, entry_point, sync"),
    Case("--backend=", "--backend", "auto, tensor, entry_point, sync"),
    Case("--backend Sync", "--backend", "auto, tensor, entry_point, sync"),
    Case("--env-id Blackjack-v1 --backend tensor", "--backend", "it has sync, async"),
    Case("--env-id Blackjack-v1 --backend entry_point", "--backend", "it has sync, async"),
    Case("--env-id Taxi-v4 --backend tensor", "--backend", "it has sync, async"),
    Case("--env-groups 2", "--env-groups", "needs --backend async or envpool"),
    Case("--env-groups 2 --backend sync", "--env-groups", "needs --backend async or envpool"),
    Case("--env-groups 5 --backend async --num-envs 4", "--env-groups", "4 environments can't be parted into 5"),
    # sizes that don't fit each other
    Case("--num-minibatches 5 --num-envs 2 --num-steps 2", "--num-minibatches", "at most 4 (num_envs x num_steps)"),
    Case("--num-minibatches 2049 --num-envs 64 --num-steps 32", "--num-minibatches", "at most 2048"),
    Case("--total-timesteps 2047 --num-envs 64 --num-steps 32", "--total-timesteps", "one iteration is 2048 steps"),
    Case("--total-timesteps 100 --num-envs 1 --num-steps 128", "--total-timesteps", "one iteration is 128 steps"),
    # the run folder; `FILE` is a regular file
    Case("--run-root FILE", "--run-root", "Not a directory"),
    Case("--run-root FILE/runs", "--run-root", "cannot make a folder in"),
    Case(f"--run-root {'x' * 300}", "--run-root", "cannot make a folder in"),
    # a run to go on with
    Case("--resume nowhere", "--resume", "nowhere is neither a run folder, a checkpoint file nor 'latest'"),
    Case("--resume FILE", "--resume", "FILE: truncated, or not a checkpoint of ppo_fast (4 bytes)"),
    Case("--resume latest", "--resume", "no run with a valid checkpoint below runs"),
    Case("--resume latest --run-root FILE", "--resume", "no run with a valid checkpoint below FILE"),
    Case("--resume .", "--resume", "no checkpoint here"),
]


def refused(
    line: str, flag: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the program in this process and check that it refuses a command line as it should."""
    monkeypatch.setattr(sys, "argv", ["train", *line.split(" ")])
    with pytest.raises(SystemExit) as stop:
        cli.run(train, Args, "test")
    assert stop.value.code == 2, line
    out, err = capsys.readouterr()
    assert_one_line(out, err, flag, says)


def assert_one_line(out: str, err: str, flag: str, says: str) -> None:
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n") and err.startswith("error: ")
    assert err.startswith(f"error: {flag}"), f"{flag} is not what the line begins with: {err}"
    assert says in err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


CASES = {"values": wrong_values, "names": wrong_names, "environments": lambda: ENVIRONMENTS, "others": lambda: OTHERS}


@pytest.mark.parametrize("kind", CASES)
def test_one_line_status_2_nothing_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("kept")
    for case in CASES[kind]():
        refused(*case, monkeypatch, capsys)
        assert list(tmp_path.iterdir()) == [tmp_path / "FILE"] and (tmp_path / "FILE").read_text() == "kept", case


def test_every_flag_whose_value_can_be_wrong_is_among_them() -> None:
    tried = {f"--{flag}" for flags in BAD_WORDS for flag in flags}
    assert tried == {
        name for name, flag in flags_of(Args).items() if flag.kind is not str or flag.choices or flag.pairs
    }


# checkpoints


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
        "it has no agent.normalize_obs.shift",
    ),
    "other layers": (with_flag("hidden_sizes", (9,)), "its theta does not fit"),
    "env_id by number": (with_flag("env_id", 5), "holds a wrong --env-id: must be a text, got 5"),
    "a boolean as text": (with_flag("norm_obs", "yes"), "holds a wrong --norm-obs: must be True or False, got 'yes'"),
    "num_envs as text": (
        with_flag("num_envs", "2"),
        "holds a wrong --num-envs: must be a whole number of at least 1, got '2'",
    ),
    "num_envs below 1": (
        with_flag("num_envs", -2),
        "holds a wrong --num-envs: must be a whole number of at least 1, got -2",
    ),
    "gamma is NaN": (
        with_flag("gamma", math.nan),
        "holds a wrong --gamma: must be a finite number from 0 to 1, got nan",
    ),
    "target_kl as text": (
        with_flag("target_kl", "x"),
        "holds a wrong --target-kl: must be a finite number above 0, or None, got 'x'",
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
def test_a_checkpoint_that_cannot_be_gone_on_from(
    copied: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named by its run folder or as a file."""
    paths = list((copied / "checkpoints").glob("*.pt"))
    for path in paths:
        if kind in DAMAGES:
            damage(path, kind)
        else:
            spoil(path, CHECKPOINTS[kind][0])
    before = contents(copied.parent)
    says = CHECKPOINTS[kind][1] if kind in CHECKPOINTS else ".pt: "
    named = says.partition(":")[0] if says.startswith("--") else "--resume"
    for spec in (copied, paths[-1]):
        refused(f"--resume {spec} --quiet", named, says, monkeypatch, capsys)
    assert contents(copied.parent) == before, "something was written"


def spoil(path: Path, change: Spoil) -> None:
    """A whole checkpoint with a right checksum, changed."""
    payload = checkpoint.load(path)
    change(payload)
    checkpoint.write(path, payload)


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


def test_a_flag_that_would_make_it_another_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied.parent)
    for flag, value in CHANGED.items():
        says = f"in {copied} and can't change when a run goes on"
        refused(f"--resume {copied} {flag} {value}", flag, says, monkeypatch, capsys)
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
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    command = [sys.executable, *program, *line.split(" ")]
    before = os.times()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    after = os.times()
    return done, sum(after[2:4]) - sum(before[2:4])


def test_from_the_shell_it_takes_seconds_and_shows_no_traceback(tmp_path: Path) -> None:
    done, seconds = in_a_shell("--resume nowhere", tmp_path)
    assert done.returncode == 2
    assert_one_line(done.stdout, done.stderr, "--resume", "nowhere")
    assert list(tmp_path.iterdir()) == []
    # Nearly all of it is the import of torch.
    assert seconds < 10


@pytest.mark.thorough
def test_all_of_it_from_the_shell(finished: Path, tmp_path: Path) -> None:
    times = []
    (tmp_path / "FILE").write_text("kept")
    for line, flag, says in [case for cases in CASES.values() for case in cases()]:
        done, seconds = in_a_shell(line, tmp_path)
        assert done.returncode == 2, line
        assert_one_line(done.stdout, done.stderr, flag, says)
        assert contents(tmp_path) == {"FILE": b"kept"}
        times.append(seconds)
    for kind, (change, says) in CHECKPOINTS.items():
        run = tmp_path / kind.replace(" ", "-")
        shutil.copytree(finished, run)
        for path in (run / "checkpoints").glob("*.pt"):
            spoil(path, change)
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
