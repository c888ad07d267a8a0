"""Two processes train one policy: the same bits on both, what one process would do with all rows, and no rank alone."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from iterations import CPU, built, small
from victims import (
    BATCH,
    REPOSITORY,
    SMALL,
    Pair,
    Victim,
    assert_equal_ends,
    children_of,
    difference,
    end,
    is_alive,
    newest,
    only_run,
    start_pair,
    start_scripts,
    wait_until,
    whole_rows,
)

from ppo_fast import replay, train as program
from ppo_fast.algorithm import normalize, ppo
from ppo_fast.algorithm.adam import Learner
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.gradients import Gradient, LossModule, Part, part_gradient
from ppo_fast.engine.ranks import Ranks, init
from ppo_fast.run import checkpoint, find
from ppo_fast.train import Agent, Args


def finish(ranks: tuple[Victim, Victim], status: int = 0) -> None:
    for rank in ranks:
        assert rank.wait() == status, rank.errors()


def run(pair: Pair, *flags: str, before: str = "", status: int = 0) -> tuple[Victim, Victim]:
    ranks = start_pair(pair, *flags, before=before)
    finish(ranks, status)
    return ranks


@pytest.mark.slow
def test_the_first_rank_evaluates_and_the_training_is_as_without(pair: Pair, tmp_path: Path) -> None:
    """The other one waits; what both learn is the same as without evaluations."""
    for name, flags in (("with", ("--eval-every", str(BATCH), "--eval-every-episodes", "3")), ("without", ())):
        run(pair, *SMALL, *iterations(4), *flags, "--run-root", str(tmp_path / name))
    runs = [only_run(tmp_path / name) for name in ("with", "without")]
    rows = [whole_rows(path)[0] for path in runs]
    assert [row["eval/episodes"] for row in rows[0]] == [3] * 4 and (runs[0] / "best.safetensors").exists()
    assert difference(newest(runs[0])["ranks"], newest(runs[1])["ranks"]) is None


def iterations(count: int) -> tuple[str, str]:
    return "--total-timesteps", str(count * BATCH)


# ---------------------------------------------------------------- against one process that sees all rows

ROWS, HALF = 64, 32
MASKED = [True, False, True, True] * 4 + [True] * 16 + [False] * 20 + [True] * 12  # 28 valid rows, then 12
ARGS: dict[str, Any] = {"num_envs": 8, "num_steps": 8, "num_minibatches": 4, "update_epochs": 3, "hidden_sizes": (8,)}
ARGS |= {"compile": "off", "target_kl": 0.004, "learning_rate": 1e-2}


def rows(masked: bool) -> program.Batch:
    """One batch of ROWS rows; the halves differ in the size of their advantages and, masked, in how many count."""
    draw = torch.Generator().manual_seed(7)
    scale = torch.cat([torch.ones(HALF), torch.full((HALF,), 5.0)])
    numbers = [torch.randn(ROWS, generator=draw) for _ in range(4)]
    action = torch.randint(0, 2, (ROWS,), generator=draw)
    valid = torch.tensor(MASKED) if masked else None
    log_prob, advantage = -0.7 + 0.1 * numbers[0], scale * (numbers[1] + 1)
    obs = torch.randn(ROWS, 4, generator=draw)
    return program.Batch(obs, action, log_prob, advantage, numbers[2], numbers[3], valid)


def executables(args: Args, agent: Agent, learner: Learner, ranks: Ranks) -> program.Executables:
    """The functions of an iteration, eagerly."""
    engine = Engine(args, ranks, "eager")
    return program.Executables(
        value=agent.value,
        shuffled=engine.function(program.shuffled, args, engine.reduce),
        gradient=engine.gradient(program.loss, agent, args, learner.theta),
        descend=engine.function(program.descend, args),
        reduce=engine.reduce,
    )


def gradient_in(parts: int, args: Args, agent: Agent, learner: Learner, ranks: Ranks) -> Gradient:
    """The gradient of a minibatch that is worked through in so many parts."""
    module = LossModule(program.loss, agent, args)

    def in_turn(calls: list[tuple]) -> list[Part]:
        return [part_gradient(module, *call) for call in calls]

    return Gradient(in_turn, learner.theta, parts, ranks.world_size, ranks.sum_)


def see_half(folder: str) -> None:
    """What one of two ranks finds, which has one half of the rows; saved as <folder>/<rank>.pt."""
    args = Args(**ARGS)
    with init(CPU) as ranks:
        share = replace(args, num_envs=args.num_envs // 2)
        _, agent, learner = program.setup(replace(share, seed=1 + ranks.rank), CPU)
        ranks.broadcast_(learner.theta)
        own = slice(ranks.rank * HALF, (ranks.rank + 1) * HALF)
        saved = {}
        for masked in (False, True):
            batch = program.Batch._make(x if x is None else x[own] for x in rows(masked))
            whole = program.shuffled(replace(share, num_minibatches=1), ranks.sum_, batch, torch.arange(HALF))
            for parts in (1, 3):
                gradient, _ = gradient_in(parts, share, agent, learner, ranks)(whole)
                saved[f"gradient {masked} in {parts}"] = gradient

            before = [x.clone() for x in learner]
            draw = torch.Generator().manual_seed(ranks.rank)
            program.epochs(share, learner, batch, draw, executables(share, agent, learner, ranks))
            saved[f"theta {masked}"], saved[f"steps {masked}"] = learner.theta.clone(), learner.step.clone()
            for x, old in zip(learner, before, strict=True):
                x.copy_(old)

            obs, rewards = normalize.Observations(4), normalize.Rewards(4, 0.9)
            x, valid = batch.obs.view(8, 4, 4), None if batch.valid is None else batch.valid.view(8, 4)
            obs.update_(x, valid, reduce=ranks.sum_)
            obs.update_(x * 3 + 1, valid, reduce=ranks.sum_)
            scaled = rewards.update_(batch.returns.view(8, 4), x[..., 0] > 1, valid, reduce=ranks.sum_)
            saved[f"obs {masked}"] = moments_of(obs)
            saved[f"reward {masked}"] = moments_of(rewards)
            saved[f"scaled {masked}"] = scaled
        torch.save(saved, f"{folder}/{ranks.rank}.pt")


def moments_of(normaliser: normalize.Observations | normalize.Rewards) -> torch.Tensor:
    moments = normaliser.moments
    return torch.cat([moments.count.view(1), moments.mean.view(-1), moments.square.view(-1)])


@pytest.fixture(scope="module")
def halves(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What each of two ranks found, each with one half of the rows."""
    folder = tmp_path_factory.mktemp("halves")
    finish(start_scripts(pair, f"import test_torchrun; test_torchrun.see_half({str(folder)!r})"))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_and_statistics_are_those_of_all_rows(halves: list[dict[str, torch.Tensor]], masked: bool) -> None:
    args = Args(**{**ARGS, "num_minibatches": 1})
    _, agent, learner = program.setup(args, CPU)
    batch = program.Batch._make(x.double() if x is not None and x.is_floating_point() else x for x in rows(masked))
    whole = program.shuffled(args, None, batch, torch.arange(ROWS))
    expected, _ = executables(args, agent.double(), learner, Ranks(CPU)).gradient(whole)
    for name in (f"gradient {masked} in 1", f"gradient {masked} in 3"):
        first, second = (half[name] for half in halves)
        assert torch.equal(first, second)
        torch.testing.assert_close(first.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_kl_stop_comes_when_that_of_all_rows_does(halves: list[dict[str, torch.Tensor]], masked: bool) -> None:
    assert torch.equal(halves[0][f"theta {masked}"], halves[1][f"theta {masked}"])
    args = Args(**ARGS)
    _, agent, learner = program.setup(args, CPU)
    run = executables(args, agent, learner, Ranks(CPU))
    draws, batch = [torch.Generator().manual_seed(rank) for rank in range(2)], rows(masked)
    for _ in range(args.update_epochs):
        parts = [torch.randperm(HALF, generator=draw).split(HALF // args.num_minibatches) for draw in draws]
        # A minibatch of all rows is one of each process side by side.
        order = torch.cat([torch.cat([mine, other + HALF]) for mine, other in zip(*parts, strict=True)])
        for minibatch in ppo.split(run.shuffled(batch, order), [ROWS // args.num_minibatches] * args.num_minibatches):
            gradient, losses = run.gradient(minibatch)
            run.descend(learner, gradient, losses.numbers)
        assert args.target_kl is not None
        if losses["approx_kl"] > args.target_kl:
            break
    assert 0 < int(learner.step) < args.update_epochs * args.num_minibatches, "no KL stop was made"
    assert halves[0][f"steps {masked}"] == halves[1][f"steps {masked}"] == learner.step
    torch.testing.assert_close(halves[0][f"theta {masked}"], learner.theta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_normalisers_take_in_all_rows(halves: list[dict[str, torch.Tensor]], masked: bool) -> None:
    batch = rows(masked)
    obs, rewards = normalize.Observations(4), normalize.Rewards(8, 0.9)

    def both(x: torch.Tensor | None) -> torch.Tensor | None:  # (T, N) of each half side by side
        return x if x is None else torch.cat([half.unflatten(0, (8, 4)) for half in x.split(HALF)], 1)

    x, returns, valid = both(batch.obs), both(batch.returns), both(batch.valid)
    assert x is not None and returns is not None
    obs.update_(x, valid)
    obs.update_(x * 3 + 1, valid)
    scaled = rewards.update_(returns, x[..., 0] > 1, valid)
    for name, expected in {"obs": moments_of(obs), "reward": moments_of(rewards)}.items():
        assert torch.equal(halves[0][f"{name} {masked}"], halves[1][f"{name} {masked}"])
        torch.testing.assert_close(halves[0][f"{name} {masked}"], expected, rtol=1e-12, atol=1e-12)
    found = torch.cat([half[f"scaled {masked}"] for half in halves], 1)
    torch.testing.assert_close(found, scaled, rtol=1e-6, atol=1e-6)


def test_advantages_of_equal_rows_are_zero_everywhere() -> None:
    """Sums over processes leave a rounding error where there is no variance; it must not be taken for one."""
    advantage = torch.full((50,), 0.1)
    sums = ppo.advantage_sums(advantage) + ppo.advantage_sums(advantage)
    assert not ppo.normalize_advantage(advantage, None, sums).any()


# ---------------------------------------------------------------- whole runs


def shared(tensors: dict[str, Any]) -> dict[str, Any]:
    """Those tensors of a checkpoint that are equal in all processes: what is learned."""
    learned = built(small(norm_obs=True, norm_reward=True)).iteration.state.learned
    assert learned.keys() <= tensors.keys()
    return {name: tensors[name] for name in learned}


def test_parameters_stay_equal_seeds_differ_and_one_rank_writes(pair: Pair, tmp_path: Path) -> None:
    flags = [*SMALL[:-1], *iterations(12), "--run-root", str(tmp_path), "--eval-episodes", "3"]
    ranks = run(pair, *flags)
    folder = only_run(tmp_path)
    payload = newest(folder)
    first, second = payload["ranks"]
    assert len(shared(first["tensors"])) > 8 and int(first["tensors"]["step"]) >= 12
    assert difference(shared(first["tensors"]), shared(second["tensors"])) is None
    assert not torch.equal(first["tensors"]["obs"], second["tensors"]["obs"])
    for mine, other in zip(first["generators"], second["generators"], strict=True):
        assert not torch.equal(mine, other)
    assert first["tensors"]["obs"].shape == (2, 4), "--num-envs is of all processes together"
    written, torn = whole_rows(folder)
    assert torn == 0 and [row["global_step"] for row in written] == [BATCH * (i + 1) for i in range(12)]
    assert ranks[1].out.read_text() == ranks[1].errors() == ""
    result = json.loads((folder / "result.json").read_text())
    assert result["eval/episodes"] == 3 and result["global_step"] == 12 * BATCH
    assert json.loads((folder / "config.json").read_text())["world_size"] == 2


def resume_pairs(pair: Pair, folder: Path, count: int, length: int) -> None:
    flags = [*SMALL, *iterations(length), "--save-interval", "1", "--keep-checkpoints", str(length + 1)]
    run(pair, *flags, "--run-root", str(folder / "whole"))
    whole = only_run(folder / "whole")
    for at in random.Random(4).sample(range(1, length), count):
        part = folder / f"at {at}"
        (part / "checkpoints").mkdir(parents=True)
        shutil.copy(whole / "checkpoints" / f"checkpoint-{at * BATCH:012d}.pt", part / "checkpoints")
        shutil.copy(whole / "metrics.jsonl", part)
        run(pair, "--resume", str(part), "--quiet")
        assert_equal_ends(part, whole)


def test_resume_with_two_ranks_is_bit_exact(pair: Pair, tmp_path: Path) -> None:
    resume_pairs(pair, tmp_path, count=1, length=6)


@pytest.mark.thorough
def test_resume_with_two_ranks_is_bit_exact_often(pair: Pair, tmp_path: Path) -> None:
    resume_pairs(pair, tmp_path, count=20, length=40)


@pytest.mark.parametrize("backend", ["tensor", "sync"])
@pytest.mark.parametrize("numbers", ["one, then two", "two, then one"])
def test_resume_with_another_number_of_processes(pair: Pair, tmp_path: Path, backend: str, numbers: str) -> None:
    flags = [*SMALL, "--save-interval", "1", "--run-root", str(tmp_path), "--backend", backend]
    more = ["--resume", "latest", "--run-root", str(tmp_path), *iterations(7), "--no-quiet"]
    if numbers == "one, then two":
        assert pair[0].run(*flags, *iterations(4)).status == 0
        before = newest(only_run(tmp_path))
        said = run(pair, *more)[0].out.read_text()
    else:
        run(pair, *flags, *iterations(4))
        before = newest(only_run(tmp_path))
        done = pair[0].run(*more)
        assert done.status == 0, done.errors()
        said = done.out.read_text()
    after = newest(only_run(tmp_path))
    assert "episodes      begin anew: " in said
    assert after["progress"]["global_step"] == 7 * BATCH
    assert len(after["ranks"]) == (2 if numbers == "one, then two" else 1)
    tensors = after["ranks"][0]["tensors"]
    # Statistics go on counting, the optimiser goes on stepping.
    assert float(tensors["agent.normalize_obs.moments.count"]) == 7 * BATCH
    assert tensors["step"] > before["ranks"][0]["tensors"]["step"]
    if len(after["ranks"]) == 2:
        other = after["ranks"][1]
        assert difference(shared(tensors), shared(other["tensors"])) is None
        assert not torch.equal(after["ranks"][0]["generators"][0], other["generators"][0])
        assert not torch.equal(tensors["obs"], other["tensors"]["obs"])
    assert [row["global_step"] for row in whole_rows(only_run(tmp_path))[0]] == [BATCH * (i + 1) for i in range(7)]


def test_a_signal_to_one_rank_stops_both_at_the_same_iteration(pair: Pair, tmp_path: Path) -> None:
    ranks = start_pair(pair, *SMALL, *iterations(1_000_000), "--run-root", str(tmp_path))
    wait_until(lambda: has_rows(tmp_path, 2))
    ranks[1].send(signal.SIGUSR1)
    assert ranks[1].wait() == 138 and ranks[0].wait() == 143, ranks[0].errors()
    payload = newest(only_run(tmp_path))
    first, second = (shared(own["tensors"]) for own in payload["ranks"])
    assert difference(first, second) is None
    assert payload["progress"]["global_step"] == whole_rows(only_run(tmp_path))[0][-1]["global_step"]


def has_rows(root: Path, count: int) -> bool:
    return any(len(whole_rows(run)[0]) >= count for run in root.glob("*"))


POISON = """
import os
make = train.make_iteration
def poisoned(*args):
    iteration = make(*args)
    collect, calls = iteration.collect, []
    def collect_and_spoil():
        collect()
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            iteration.state.rollout["reward"][2, 1] = float("nan")
    iteration.collect = collect_and_spoil
    return iteration
train.make_iteration = poisoned
"""


@pytest.mark.parametrize("on_nan", ["stop", "rollback"])
def test_nan_on_another_rank(pair: Pair, tmp_path: Path, on_nan: str) -> None:
    flags = [*SMALL, *iterations(6), "--run-root", str(tmp_path), "--on-nan", on_nan]
    ranks = run(pair, *flags, before=POISON, status=3 if on_nan == "stop" else 0)
    folder = only_run(tmp_path)
    crash = folder / f"crash-{2 * BATCH}.pt"
    assert "reward of environment 1 is nan at rollout step 2 (rank 1)" in ranks[0].errors()
    said = replay.replay(checkpoint.load(crash))
    assert "reward of environment 1 is nan at rollout step 2" in said[2] and said[3].startswith("update reproduced")
    written = [row["global_step"] for row in whole_rows(folder)[0]]
    assert written == [BATCH * (i + 1) for i in range(2 if on_nan == "stop" else 6)]
    if on_nan == "rollback":
        first, second = (shared(own["tensors"]) for own in newest(folder)["ranks"])
        assert difference(first, second) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-envs", "5"), "--num-envs: 5 environments can't be divided among 2 processes"),
        (
            ("--num-envs", "2", "--num-steps", "4", "--num-minibatches", "5"),
            "--num-minibatches: each of 2 processes has 4",
        ),
    ],
)
def test_what_cannot_be_divided(pair: Pair, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    ranks = run(pair, *SMALL, *flags, *iterations(9), "--run-root", str(tmp_path / "runs"), status=2)
    for rank in ranks:
        assert rank.errors().startswith(f"error: {message}") and rank.errors().count("\n") == 1
    assert not (tmp_path / "runs").exists()


OTHER = """
import dataclasses, os
def settled(*words, settle=train.settle):
    args, beginning = settle(*words)
    if os.environ["RANK"] == "1":
        args = dataclasses.replace(args, gamma=0.9, stagger_resets=True)
    return args, beginning
train.settle = settled
"""


def test_processes_with_different_flags_do_not_train(pair: Pair, tmp_path: Path) -> None:
    ranks = run(pair, *SMALL, *iterations(9), "--run-root", str(tmp_path / "runs"), before=OTHER, status=2)
    for rank in ranks:
        said = rank.errors()
        assert said.startswith("error: --env-id: the processes have different flags") and len(said.splitlines()) == 1
        assert said.endswith("name --stagger-resets, --gamma\n")
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- a lost rank


def lose_a_rank(pair: Pair, root: Path, victim: int, pause: float) -> float:
    """Kill one rank of a run; returns how many seconds the other went on."""
    ranks = start_pair(pair, *SMALL, *iterations(1_000_000), "--save-interval", "2", "--run-root", str(root))
    try:
        wait_until(lambda: has_rows(root, 3))
        time.sleep(pause)
        ranks[victim].send(signal.SIGKILL)
        began = time.monotonic()
        other = ranks[1 - victim]
        wait_until(lambda: not is_alive(other.pid), 30)
        seconds = time.monotonic() - began
        assert other.wait() == 1, other.errors()
        assert "another rank is gone" in other.errors() or "does not answer" in other.errors(), other.errors()
    finally:
        for rank in ranks:
            rank.send(signal.SIGKILL)
            rank.wait()
    _, payload, skipped = find.latest(only_run(root) / "checkpoints")
    written, torn = whole_rows(only_run(root))
    assert skipped == [] and torn <= 1
    assert len(written) * BATCH - payload["progress"]["global_step"] <= 2 * BATCH
    return seconds


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other(pair: Pair, tmp_path: Path, victim: int) -> None:
    assert lose_a_rank(pair, tmp_path, victim, 0.0) < 30


@pytest.mark.thorough
def test_a_killed_rank_ends_the_other_often(pair: Pair, tmp_path: Path, reliability_count: int) -> None:
    count, choose = max(20, reliability_count), random.Random(6)
    seconds = [lose_a_rank(pair, tmp_path / str(i), i % 2, choose.uniform(0, 0.3)) for i in range(count)]
    print(f"{count} ranks killed, the other went on for at most {max(seconds):.1f} s")
    assert max(seconds) < 30


def torchrun(root: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "ppo_fast.train", *flags, "--run-root", str(root)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, cwd=root.parent, env=env, text=True, stderr=subprocess.PIPE)


def rank_of(pid: int) -> str:
    """RANK in a process's environment, "" where it has none."""
    with suppress(OSError):
        found = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
        return found[1].decode() if found else ""
    return ""


def restart_a_run(pair: Pair, root: Path, victim: int) -> float:
    """Kill one rank under torchrun; the run goes on by itself and ends as if nothing had been. Returns its seconds."""
    flags = [*SMALL, *iterations(40), "--save-interval", "5"]
    process, began = torchrun(root, *flags), time.monotonic()
    try:
        wait_until(lambda: has_rows(root, 7))
        [pid] = [pid for pid in children_of(process.pid) if rank_of(pid) == str(victim)]
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
    finally:
        end([process.pid, *children_of(process.pid)])
        process.wait()
    return time.monotonic() - began


def test_ranks_that_are_started_again_go_on_where_the_run_was(pair: Pair, tmp_path: Path) -> None:
    """As torchrun starts them after one of them died: with the same words, and the number of the attempt."""
    flags = [*SMALL, *iterations(40), "--save-interval", "5"]
    run(pair, *flags, "--run-root", str(tmp_path / "whole"))
    flags += ["--run-root", str(tmp_path / "runs")]
    ranks = start_pair(pair, *flags)
    wait_until(lambda: has_rows(tmp_path / "runs", 7))
    for rank in ranks:
        rank.send(signal.SIGKILL)
    finish(ranks, -signal.SIGKILL)
    finish(start_pair(pair, *flags, TORCHELASTIC_RESTART_COUNT="1"))
    assert_equal_ends(only_run(tmp_path / "runs"), only_run(tmp_path / "whole"))


@pytest.mark.thorough
def test_torchrun_restarts_a_run_where_it_was_often(pair: Pair, tmp_path: Path, reliability_count: int) -> None:
    run(pair, *SMALL, *iterations(40), "--save-interval", "5", "--run-root", str(tmp_path / "whole"))
    count = max(10, reliability_count)
    for attempt in range(count):
        (tmp_path / str(attempt)).mkdir()
        restart_a_run(pair, tmp_path / str(attempt) / "runs", attempt % 2)
        assert_equal_ends(only_run(tmp_path / str(attempt) / "runs"), only_run(tmp_path / "whole"), but=("rng",))
    print(f"{count} ranks killed under torchrun --max-restarts 1: each run resumed and ended bit-equal")
