"""The training program from end to end: on the command line, and as a function."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from odd_envs import LENGTH
from torch import Tensor

from ppo_fast import envs as environments, train as program, train_lstm
from ppo_fast.algorithm.adam import Learner
from ppo_fast.pictures import panels
from ppo_fast.run import cli
from ppo_fast.run.play import play
from ppo_fast.run.policy import load_policy
from ppo_fast.run.tracking import read_metrics
from ppo_fast.train import Agent, Args, Batch, train

TESTS = Path(__file__).parent
LOSSES = ("value_loss", "policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "explained_variance")
EPISODES = {"charts/episodic_return", "charts/episodic_length"}  # in a row only where an episode ended
COLUMNS = {"global_step", "charts/SPS", "charts/learning_rate", *(f"losses/{name}" for name in LOSSES)}
HEALTH = {f"health/{name}" for name in ("clip_fraction", "approx_kl", "explained_variance", "entropy", "not_finite")}
CLOCK = ("charts/SPS", "time/")  # columns that no two runs share
CPU = torch.device("cpu")

# Enough for a few updates in well under a second.
TINY = Args(
    num_envs=4, num_steps=16, total_timesteps=256, cuda=False, compile="off", eval_episodes=3, quiet=True, seed=7
)

# Every flag of CleanRL's ppo.py, each with a value that is not our default.
CLEANRL = {
    "exp_name": "ppo",
    "seed": 3,
    "torch_deterministic": False,
    "cuda": False,
    "track": False,
    "wandb_project_name": "cleanRL",
    "wandb_entity": "someone",
    "capture_video": False,
    "env_id": "CartPole-v1",
    "total_timesteps": 512,
    "learning_rate": 2.5e-4,
    "num_envs": 2,
    "num_steps": 128,
    "anneal_lr": False,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "num_minibatches": 8,
    "update_epochs": 2,
    "norm_adv": False,
    "clip_coef": 0.1,
    "clip_vloss": False,
    "ent_coef": 0.02,
    "vf_coef": 0.25,
    "max_grad_norm": 1.0,
    "target_kl": 0.05,
}


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "ppo_fast.train", *argv]


def environment() -> dict[str, str]:
    """Variables of a process that finds the package and the tests' environments.

    Without W&B's: one of them leads to the service of the process that set it, an earlier test in this one.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {**kept, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}


def run_program(cwd: Path, line: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The training program in a process of its own."""
    done = subprocess.run(
        command(*line.split()), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    return done


class Said(NamedTuple):
    """What a program printed."""

    out: str
    err: str


Here = Callable[..., Said]  # (line, status=0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a command line of the training program in this process, below tmp_path: no Python starts, no torch loads."""

    def run(line: str, status: int = 0) -> Said:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train", *line.split()])
        found: Any = 0
        try:
            cli.run(train, Args, "test")
        except SystemExit as stop:
            found = stop.code
        out, err = capsys.readouterr()
        assert found == status, err
        return Said(out, err)

    return run


def only_run(root: Path) -> Path:
    """The one run folder below `root`."""
    [folder] = (root / "runs").iterdir()
    return folder


def run_here(root: Path, args: Args = TINY, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict]:
    """Rows of metrics, weights and result of a run in this process."""
    result = train(replace(args, run_root=str(root / "runs"), **changes))
    folder = max((root / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return read_metrics(folder), load_policy(folder)[0], result


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: x for name, x in row.items() if not name.startswith(CLOCK)} for row in rows]


def assert_complete(folder: Path, line: str) -> None:
    """The run folder holds all that DESIGN promises, and its parts agree with each other."""
    config = json.loads((folder / "config.json").read_text())
    assert {field.name for field in fields(Args)} <= set(config)
    assert {"batch_size", "num_iterations", "versions", "device", "backend_used"} <= set(config)
    assert config["batch_size"] == config["num_envs"] * config["num_steps"]
    assert {"python", "torch", "gymnasium", "numpy"} <= set(config["versions"])
    assert folder.name.startswith(f"{config['env_id'].replace(':', '-')}__{config['exp_name']}__{config['seed']}__")

    rows = read_metrics(folder)
    assert len(rows) == config["num_iterations"] >= 1, line
    for row in rows:
        assert set(row) >= COLUMNS | HEALTH
        assert all(row[name] is not None for name in COLUMNS - {"losses/explained_variance"})
        assert (set(row) >= EPISODES) == bool(EPISODES & set(row))
    steps = [row["global_step"] for row in rows]
    assert steps == sorted(set(steps))

    result = json.loads((folder / "result.json").read_text())
    assert result["global_step"] == steps[-1] <= config["total_timesteps"]
    assert result["sps"] > 0
    assert {"startup", "compile", "train", "eval"} <= set(result["seconds"])
    assert all(seconds >= 0 for seconds in result["seconds"].values())
    assert result["eval/episodes"] == result["eval/sampled_episodes"] == config["eval_episodes"]
    for name in ("mean_return", "std_return"):
        assert math.isfinite(result[f"eval/{name}"]) and math.isfinite(result[f"eval/sampled_{name}"])

    weights, meta = load_policy(folder)
    agent = Agent(environments.make(config["env_id"], 1), Args(**{f.name: config[f.name] for f in fields(Args)}))
    agent.load_state_dict(weights)
    assert sum(x.numel() for x in agent.parameters()) == config["parameters"]
    assert meta


COMMAND_LINES = [
    "--num-envs 4 --num-steps 32 --total-timesteps 512 --shared-backbone --hidden-sizes 32",
    "--num-envs 4 --num-steps 32 --total-timesteps 384 --env-id MountainCarContinuous-v0 --eval-episodes 2",
    "--num-envs 3 --num-steps 20 --total-timesteps 240 --env-id odd_envs:NextStep-v0",
    "--num-envs 4 --num-steps 32 --total-timesteps 384 --backend entry_point --target-kl 0.01",
    "--num-envs 2 --num-steps 32 --total-timesteps 128 --backend async",
    "--num-envs 13 --num-steps 10 --total-timesteps 400 --num-minibatches 4",
    "--num-envs 4 --num-steps 16 --total-timesteps 256 --env-id odd_envs:TwoDials-v0 --no-anneal-lr",
    "--num-envs 4 --num-steps 32 --total-timesteps 256 --env-id Acrobot-v1 --eval-episodes 2 --quiet",
    "--num-envs 4 --num-steps 32 --total-timesteps 256 --env-id Taxi-v4 --eval-episodes 2 --no-norm-adv",
    "--num-envs 1 --num-steps 1 --num-minibatches 1 --total-timesteps 8 --eval-episodes 2",
]
PROCESSES = [
    "--num-envs 1 --num-steps 64 --total-timesteps 256",
    "--num-envs 4 --num-steps 32 --total-timesteps 384 --backend sync --num-minibatches 3 --quiet",
    "--num-envs 3 --num-steps 20 --total-timesteps 240 --env-id odd_envs:NextStep-v0 --track --wandb-mode offline",
]


def assert_ran_to_the_end(root: Path, line: str, out: str, err: str) -> None:
    """The run folder is complete, and what was printed names it."""
    assert err == ""
    folder = only_run(root)
    assert str(folder.relative_to(root)) in out
    assert_complete(folder, line)
    if "--quiet" in line:
        assert out.count("\n") == 1
    else:
        assert "evaluation" in out and "steps/s" in out


def with_few_episodes(line: str) -> str:
    return line if "--eval-episodes" in line else f"{line} --eval-episodes 5"


@pytest.mark.parametrize("line", COMMAND_LINES, ids=lambda line: line[:70])
def test_a_command_line_runs_to_the_end(line: str, here: Here, tmp_path: Path) -> None:
    assert_ran_to_the_end(tmp_path, line, *here(with_few_episodes(line)))


@pytest.mark.parametrize("line", PROCESSES, ids=lambda line: line[:70])
def test_a_process_of_its_own_runs_to_the_end(line: str, tmp_path: Path) -> None:
    done = run_program(tmp_path, with_few_episodes(line))
    assert_ran_to_the_end(tmp_path, line, done.stdout, done.stderr)
    folder = only_run(tmp_path)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == ("--track" in line)


def test_lunar_lander_runs_to_the_end(here: Here, tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    here("--env-id LunarLander-v3 --num-envs 2 --num-steps 16 --total-timesteps 64 --eval-episodes 2")
    assert_complete(only_run(tmp_path), "LunarLander-v3")


@pytest.mark.parametrize("spelling", ["--{} {}", "--{}={}"])
def test_every_cleanrl_flag_is_accepted_and_reaches_the_run(spelling: str, here: Here, tmp_path: Path) -> None:
    ours = {field.name: field.default for field in fields(Args)}
    same = {name for name, value in CLEANRL.items() if value == ours[name]}
    assert same == {"track", "capture_video", "env_id"}, "a flag that keeps its default shows nothing"
    hyphens = spelling == "--{} {}"
    words = [spelling.format(name.replace("_", "-") if hyphens else name, value) for name, value in CLEANRL.items()]
    line = " ".join(words)
    here(f"{line} --eval-episodes 2 --quiet")
    assert_complete(only_run(tmp_path), line)
    config = json.loads((only_run(tmp_path) / "config.json").read_text())
    assert {name: config[name] for name in CLEANRL} == CLEANRL


def test_advice_is_said_and_kept(here: Here, tmp_path: Path) -> None:
    sizes = "--num-envs 8 --num-steps 32 --num-minibatches 4 --update-epochs 8 --total-timesteps 5120"
    said = here(f"{sizes} --learning-rate 0.05 --no-anneal-lr --no-preset --eval-episodes 2")
    assert "health: clip fraction" in said.out and "--clip-coef" in said.out
    rows = read_metrics(only_run(tmp_path))
    assert any(row["health/clip_fraction"] for row in rows)
    assert not any(row["health/not_finite"] for row in rows)


# Ends that are no ends


def test_a_nan_reward_ends_training_with_one_line_and_status_3(here: Here, tmp_path: Path) -> None:
    line = "--env-id odd_envs:NanReward-v0 --num-envs 2 --num-steps 8 --total-timesteps 800 --compile off"
    said = here(line, status=3)
    assert said.err.startswith("error: step 32: reward of environment 0 is nan") and said.err.count("\n") == 1
    assert "python -m ppo_fast.replay" in said.err
    folder = only_run(tmp_path)
    rows = read_metrics(folder)
    # Steps 1 to 8 and 9 to 16 of both environments are well; step 20 falls into the third iteration.
    assert [row["health/not_finite"] for row in rows] == [0, 0] and (folder / "crash-32.pt").is_file()
    assert not (folder / "result.json").exists() and not (folder / "policy.safetensors").exists()


# Runs that are compared


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"env_id": "Pendulum-v1", "num_minibatches": 3},
        {"backend": "sync", "shared_backbone": True},
        {"backend": "entry_point"},
        {"env_id": "odd_envs:NextStep-v0"},
        {"env_id": "odd_envs:TwoDials-v0"},
    ],
    ids=str,
)
def test_equal_seeds_give_equal_runs_and_others_do_not(changes: dict[str, Any], tmp_path: Path) -> None:
    short = {"total_timesteps": 128, "eval_episodes": 1}
    first, again, other = (run_here(tmp_path, **short, **changes, seed=seed) for seed in (1, 1, 2))
    assert timeless(first[0]) == timeless(again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    evaluations = [{k: v for k, v in run[2].items() if k.startswith("eval/")} for run in (first, again)]
    assert evaluations[0] == evaluations[1]
    assert timeless(first[0]) != timeless(other[0])
    assert not any(torch.equal(first[1][name], other[1][name]) for name in first[1] if name.endswith("weight"))


def test_rows_count_every_environment_step(tmp_path: Path) -> None:
    rows, _, result = run_here(tmp_path, total_timesteps=300)
    assert [row["global_step"] for row in rows] == [64, 128, 192, 256] and result["global_step"] == 256


def test_the_halves_of_an_iteration_fill_no_more_than_the_time_that_passes(tmp_path: Path) -> None:
    rows, _, _ = run_here(tmp_path)
    for before, now in pairwise([{"time/elapsed": 0.0}, *rows]):
        assert min(now["time/collect"], now["time/learn"]) > 0
        assert now["time/collect"] + now["time/learn"] <= now["time/elapsed"] - before["time/elapsed"]


class Update(NamedTuple):
    """What an update was made with."""

    rate: float
    minibatch: Batch


def spy_on_updates(monkeypatch: pytest.MonkeyPatch, change: Callable[[Batch], Batch] = lambda x: x) -> list[Update]:
    """Every update of the runs that follow; `change` may alter the batch before an epoch."""
    updates: list[Update] = []
    minibatches: list[Batch] = []
    shuffled, loss, descend = program.shuffled, program.loss, program.descend

    def changed(args: Args, reduce: Any, batch: Batch, order: Tensor) -> Batch:
        return shuffled(args, reduce, change(batch), order)

    def seen(agent: Agent, args: Args, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        minibatches.append(minibatch)  # eagerly it has one part
        return loss(agent, args, minibatch)

    def made(args: Args, learner: Learner, gradient: Tensor, losses: Tensor) -> Tensor:
        updates.append(Update(float(learner.learning_rate), minibatches[-1]))
        return descend(args, learner, gradient, losses)

    monkeypatch.setattr(program, "shuffled", changed)
    monkeypatch.setattr(program, "loss", seen)
    monkeypatch.setattr(program, "descend", made)
    return updates


@pytest.mark.parametrize("anneal", [True, False])
def test_the_learning_rate_falls_linearly(anneal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = spy_on_updates(monkeypatch)
    rows, _, _ = run_here(tmp_path, anneal_lr=anneal, learning_rate=0.01, update_epochs=1, num_minibatches=1)
    expected = [0.01, 0.0075, 0.005, 0.0025] if anneal else [0.01] * 4
    assert [row["charts/learning_rate"] for row in rows] == pytest.approx(expected, rel=1e-7)
    assert [update.rate for update in updates] == pytest.approx(expected, rel=1e-6)


def test_a_learning_rate_of_0_leaves_the_first_weights(tmp_path: Path) -> None:
    _, weights, _ = run_here(tmp_path, learning_rate=0.0)
    first = Agent(environments.make("CartPole-v1", 4), TINY, torch.Generator().manual_seed(TINY.seed))
    assert weights.keys() == first.state_dict().keys()
    assert all(torch.equal(weights[name], x) for name, x in first.state_dict().items())


@pytest.mark.parametrize("minibatches", [1, 7])
def test_an_epoch_takes_every_row_once(minibatches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbered(batch: Any) -> Any:
        return batch._replace(returns=torch.arange(64.0))

    updates = spy_on_updates(monkeypatch, numbered)
    run_here(tmp_path, num_minibatches=minibatches, total_timesteps=64, update_epochs=3)
    taken = [update.minibatch.returns for update in updates]
    assert len(taken) == 3 * minibatches
    epochs = [torch.cat(taken[i : i + minibatches]) for i in range(0, len(taken), minibatches)]
    assert all(torch.equal(epoch.sort().values, torch.arange(64.0)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    sizes = [len(rows) for rows in taken]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("target_kl", "epochs"), [(1e9, 4), (1e-12, 1)])
def test_target_kl_ends_the_epochs_of_an_iteration(
    target_kl: float, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = spy_on_updates(monkeypatch)
    rows, _, _ = run_here(tmp_path, target_kl=target_kl, num_minibatches=2, update_epochs=4)
    assert len(updates) == len(rows) * epochs * 2


def test_the_first_update_of_an_iteration_sees_the_policy_that_acted(tmp_path: Path) -> None:
    # One minibatch, one epoch: the only update is the first one, where the ratio is 1.
    rows, _, _ = run_here(tmp_path, num_minibatches=1, update_epochs=1, total_timesteps=128)
    assert all(abs(row["losses/approx_kl"]) < 1e-6 and row["losses/clipfrac"] == 0 for row in rows)
    assert all(abs(row["losses/old_approx_kl"]) < 1e-6 for row in rows)


# NEXT_STEP environments: the junk row after each episode's end

JUNK = replace(TINY, env_id="odd_envs:NextStep-v0", num_envs=3, num_steps=20, total_timesteps=240)


def test_junk_rows_are_not_counted(tmp_path: Path) -> None:
    rows, _, result = run_here(tmp_path, JUNK)
    steps = [20 * (i + 1) for i in range(4)]  # of each environment, the junk rows among them
    expected = [3 * (count - count // (LENGTH + 1)) for count in steps]
    assert [row["global_step"] for row in rows] == expected
    assert [row["charts/episodic_length"] for row in rows] == [LENGTH] * 4
    assert all(row["charts/episodic_return"] <= LENGTH for row in rows)
    assert result["eval/mean_length"] == LENGTH and result["eval/max_return"] <= LENGTH


def test_junk_rows_enter_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(batch: Any) -> Any:
        """The batch with nonsense in its junk rows."""
        wild = {
            name: torch.where(batch.valid, x, 50.0 * torch.ones_like(x))
            for name, x in batch._asdict().items()
            if name in ("log_prob", "advantage", "returns", "value")
        }
        wild["obs"] = torch.where(batch.valid[:, None], batch.obs, -30.0)
        wild["action"] = torch.where(batch.valid, batch.action, 1 - batch.action)
        return batch._replace(**wild)

    clean = run_here(tmp_path, JUNK)
    updates = spy_on_updates(monkeypatch, poison)
    poisoned = run_here(tmp_path, JUNK)
    masks = [update.minibatch.valid for update in updates]
    junk = sum(int((~valid).sum()) for valid in masks if valid is not None) / len(updates)
    assert junk * JUNK.num_minibatches > 3, "no junk row came by"
    assert timeless(poisoned[0]) == timeless(clean[0])
    assert all(torch.equal(clean[1][name], x) for name, x in poisoned[1].items())


def test_the_policy_of_a_next_step_environment_is_learned(tmp_path: Path) -> None:
    changes = {"num_envs": 8, "num_steps": 24, "total_timesteps": 4000, "num_minibatches": 4, "learning_rate": 5e-3}
    _, _, result = run_here(tmp_path, JUNK, **changes)
    assert result["eval/mean_return"] == LENGTH


def test_both_dials_are_learned(tmp_path: Path) -> None:
    changes = {"env_id": "odd_envs:TwoDials-v0", "num_envs": 16, "total_timesteps": 12_000, "learning_rate": 0.01}
    _, _, result = run_here(tmp_path, **changes, eval_episodes=50)
    # Chance gives 8 · (1/2 · 1/3 + 1/2 · 1/4) = 2.3, one dial alone at most 4 + 4/3 = 5.3, both 8.
    assert result["eval/mean_return"] > 5.5


# Learning


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict]:
    """Rows, weights and result of a run that learns."""
    args = Args(total_timesteps=100_000, cuda=False, compile="off", quiet=True)
    return run_here(tmp_path_factory.mktemp("cartpole"), args)


def test_cartpole_is_learned_in_seconds(cartpole: tuple[list[dict[str, Any]], dict[str, Tensor], dict]) -> None:
    rows, _, result = cartpole
    # A random policy gets 22.
    assert rows[0]["charts/episodic_return"] < 50
    assert result["eval/mean_return"] > 200 and result["eval/sampled_mean_return"] > 150


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(1, 11))
def test_the_default_run_solves_cartpole(seed: int, tmp_path: Path) -> None:
    run_program(tmp_path, f"--num-envs 64 --seed {seed} --quiet")
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["eval/episodes"] == 100 and result["eval/mean_return"] >= 475


# The same policy everywhere


def falling_side(obs: Tensor) -> Tensor:
    """Push to where the pole is falling: 200 steps with a deviation of 40, so that differences show."""
    return (obs[:, 3] > 0).long()


def returns_of(backend: str, act: Callable[[Tensor], Tensor], seeds: range, num_envs: int) -> Tensor:
    envs = environments.make("CartPole-v1", num_envs, CPU, backend)
    assert envs.backend == backend
    episodes = [play(envs, act, seed) for seed in seeds]
    envs.close()
    return torch.cat([played.returns for played in episodes])


def test_a_policy_does_equally_well_on_every_backend() -> None:
    reference = returns_of("tensor", falling_side, range(1), 2000)
    assert 190 < reference.mean() < 210 and reference.std() > 30
    for backend in ("entry_point", "sync", "async"):
        returns = returns_of(backend, falling_side, range(4), 16)
        error = float(reference.std()) / math.sqrt(len(returns))
        assert abs(float(returns.mean() - reference.mean())) < 4 * error, backend


@pytest.mark.slow
def test_a_trained_policy_does_equally_well_on_every_backend(
    cartpole: tuple[list[dict[str, Any]], dict[str, Tensor], dict],
) -> None:
    agent = Agent(environments.make("CartPole-v1", 1), TINY)
    agent.load_state_dict(cartpole[1])

    def act(obs: Tensor) -> Tensor:
        return agent.act(obs, None)[0]

    reference = returns_of("tensor", act, range(1), 500)
    for backend in ("entry_point", "sync"):
        returns = returns_of(backend, act, range(1), 50)
        error = float(reference.std()) / math.sqrt(len(returns))
        assert abs(float(returns.mean() - reference.mean())) <= 4 * error + 1, backend


def test_runs_that_are_not_compiled_do_not_load_the_compiler(tmp_path: Path) -> None:
    """Its import takes longer than a default run's first thousand updates."""
    code = """
import sys
from ppo_fast.train import Args, train
sizes = {"num_envs": 4, "num_steps": 4, "num_minibatches": 1, "update_epochs": 1, "eval_episodes": 2}
for compile, iterations in (("off", 4), ("auto", 30)):  # eager, recorded
    train(Args(**sizes, compile=compile, total_timesteps=16 * iterations, quiet=True, run_root=sys.argv[1]))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    configs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/config.json"))]
    assert sorted(config["execution"].split()[0] for config in configs) == ["eager", "recorded"]


@pytest.mark.parametrize("here", [True, False])
def test_a_picture_that_fails_in_its_process_is_drawn_in_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: bool
) -> None:
    """And where that fails as well, it is a warning and no more."""
    own = os.getpid()

    def draw(folder: Path, rows: Sequence[Any]) -> None:
        if os.getpid() != own or not here:
            raise OSError("no font")
        (folder / "curves.png").write_text(str(len(rows)))

    monkeypatch.setattr(panels, "plot_curves", draw)
    result = train(replace(TINY, run_root=str(tmp_path), eval_episodes=1))
    (folder,) = tmp_path.iterdir()
    assert result["eval/episodes"] == 1 and (folder / "result.json").exists()
    assert (folder / "curves.png").exists() == here
    assert ("curves.png was not drawn: no font" in capsys.readouterr().err) != here


@pytest.mark.parametrize("kind", [program, train_lstm])
def test_advantages_are_divided_by_a_least_deviation(kind: ModuleType) -> None:
    advantage = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 10.0, 20.0, 30.0])  # deviations of 1.3 and 12.9
    batch = kind.Batch._make(None for _ in kind.Batch._fields)._replace(advantage=advantage)
    args = kind.Args(num_minibatches=2, adv_std_min=4.0)
    rows = kind.shuffled(args, None, batch, torch.arange(8)).advantage.view(2, 4)
    torch.testing.assert_close(rows[0], (advantage[:4] - 1.5) / 4)
    torch.testing.assert_close(rows[1], (advantage[4:] - 15) / advantage[4:].std())
