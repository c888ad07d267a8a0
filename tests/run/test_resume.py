"""A run that was killed or stopped goes on as if nothing had been: bit for bit, no row twice, none missing."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from victims import (
    BATCH,
    SMALL,
    Forge,
    assert_equal_ends,
    difference,
    forge,
    newest,
    only_run,
    wait_until,
    whole_rows,
)

from ppo_fast.run import checkpoint, find, session
from ppo_fast.train import Args, train

SIGKILL, SIGTERM, SIGUSR1 = 9, 15, 10


def iterations(count: int) -> tuple[str, str]:
    return "--total-timesteps", str(count * BATCH)


# ---------------------------------------------------------------- kill -9


def run_with_checkpoints(root: Path) -> Path | None:
    return next(iter(path.parent for path in root.glob("*/checkpoints") if list(path.glob("checkpoint-*.pt"))), None)


def assert_nothing_is_lost(run: Path, before: int, interval: int) -> tuple[int, int]:
    """After a kill: (step of the newest checkpoint, torn rows)."""
    rows, torn = whole_rows(run)
    assert torn <= 1
    steps = [row["global_step"] for row in rows]
    assert steps == [BATCH * (i + 1) for i in range(len(steps))], "a row is there twice, or missing"
    _, payload, skipped = find.latest(run / "checkpoints")
    assert skipped == [], "a torn checkpoint"
    saved = payload["progress"]["global_step"]
    assert saved >= before, "a checkpoint is lost"
    assert saved <= steps[-1] + BATCH * torn, "a checkpoint has rows that the file has not"
    assert steps[-1] - saved <= interval * BATCH, "more than one interval is lost"
    return saved, torn


# A save takes a millisecond, too short to be hit: here the file lies there, not yet renamed, for 50.
SLOW_DISK = """
import os, time
real = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.05), real(descriptor))
"""


def in_a_save(root: Path, pid: int) -> bool:
    """Whether this process has a checkpoint half written, of a run that has a whole one."""
    run = run_with_checkpoints(root)
    return run is not None and any(f".{pid}." in path.name for path in run.glob("checkpoints/.*tmp"))


def kill_at_random_moments(forge: Forge, folder: Path, count: int, more: tuple[str, ...] = ()) -> None:
    interval, choose = 2, random.Random(count)
    flags = [*SMALL, *more, "--save-interval", str(interval), *iterations(20 * count)]
    forge.run(*flags, "--run-root", str(folder / "whole"))
    root = folder / "killed"
    flags += ["--run-root", str(root), "--resume", "auto"]
    saved = kills = during = torn_rows = 0
    while kills < count:
        slow_disk = kills % 3 == 2
        victim = forge.start(*flags, before=SLOW_DISK if slow_disk else "")
        time.sleep(choose.uniform(0, 0.5))
        deadline = time.monotonic() + 10 * slow_disk
        while time.monotonic() < deadline and not in_a_save(root, victim.pid):
            time.sleep(0.001)
        victim.send(SIGKILL)
        if victim.wait() == 0:
            break
        assert victim.status == -SIGKILL, victim.errors()
        kills += 1
        run = run_with_checkpoints(root)
        if run is not None:
            during += in_a_save(root, victim.pid)
            saved, torn = assert_nothing_is_lost(run, saved, interval)
            torn_rows += torn
    assert kills >= count // 2, "the run was over too soon for this many kills"
    assert during > 0, "no kill has hit a save"
    last = forge.run(*flags)
    assert last.status == 0, last.errors()
    run = run_with_checkpoints(root)
    assert run is not None
    assert_equal_ends(run, only_run(folder / "whole"))
    assert not list(run.rglob("*tmp*"))
    print(f"{kills} kills, {during} during a save, 0 checkpoints lost, {torn_rows} torn rows, end bit-equal")


def test_kill_at_random_moments(eager: Forge, tmp_path: Path, reliability_count: int) -> None:
    kill_at_random_moments(eager, tmp_path, reliability_count)


@pytest.mark.thorough
def test_kill_at_random_moments_often(eager: Forge, tmp_path: Path, reliability_count: int) -> None:
    kill_at_random_moments(eager, tmp_path, max(100, reliability_count))


# ---------------------------------------------------------------- resume against the uninterrupted run

CONFIGURATIONS = {
    "annealing, KL stop, normalisation": (),
    "adaptive rate": ("--lr-schedule", "kl"),
    "continuous, shared backbone": ("--env-id", "Pendulum-v1", "--no-preset", "--shared-backbone", "--no-norm-obs"),
}


def resume_at_random_iterations(forge: Forge, folder: Path, flags: tuple[str, ...], count: int, length: int) -> None:
    every = [*SMALL, *flags, *iterations(length), "--save-interval", "1", "--keep-checkpoints", str(length)]
    done = forge.run(*every, "--run-root", str(folder / "whole"))
    assert done.status == 0, done.errors()
    whole = only_run(folder / "whole")
    rows = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    for at in random.Random(1).sample(range(1, length), count):
        part = folder / f"at {at}"
        (part / "checkpoints").mkdir(parents=True)
        shutil.copy(whole / "checkpoints" / f"checkpoint-{at * BATCH:012d}.pt", part / "checkpoints")
        # As a kill leaves it: rows beyond the checkpoint, the last of them torn.
        (part / "metrics.jsonl").write_text("".join(rows[: at + 3])[:-7])
        done = forge.run("--resume", str(part), "--quiet")
        assert done.status == 0, done.errors()
        assert_equal_ends(part, whole)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_resume_is_bit_exact(eager: Forge, tmp_path: Path, name: str) -> None:
    resume_at_random_iterations(eager, tmp_path, CONFIGURATIONS[name], count=2, length=12)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_resume_is_bit_exact_often(eager: Forge, tmp_path: Path, name: str) -> None:
    resume_at_random_iterations(eager, tmp_path, CONFIGURATIONS[name], count=20, length=60)


MEMORY = ("--lstm-hidden-size", "8", "--sequence-length", "2")


@pytest.fixture
def remembering(tmp_path: Path) -> Iterator[Forge]:
    with forge(tmp_path / "forge", PROGRAM="ppo_fast.train_lstm") as made:
        yield made


def test_a_memory_is_resumed_bit_by_bit(remembering: Forge, tmp_path: Path) -> None:
    resume_at_random_iterations(remembering, tmp_path, MEMORY, count=2, length=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptive rate", "continuous"])
def test_a_memory_is_resumed_bit_by_bit_often(remembering: Forge, tmp_path: Path, name: str) -> None:
    flags = {"adaptive rate": ("--lr-schedule", "kl"), "continuous": ("--env-id", "Pendulum-v1", "--norm-obs")}[name]
    resume_at_random_iterations(remembering, tmp_path, (*MEMORY, *flags), count=20, length=60)


@pytest.mark.slow
def test_a_memory_outlives_kills(remembering: Forge, tmp_path: Path) -> None:
    kill_at_random_moments(remembering, tmp_path, 20, MEMORY)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_resume_is_bit_exact_compiled(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, reliability_count: int
) -> None:
    """One compiler cache for all: only the first run compiles C++, the others trace and load."""
    cache = tmp_path_factory.getbasetemp() / "inductor"
    with forge(tmp_path / "forge", TORCHINDUCTOR_CACHE_DIR=str(cache), TORCHINDUCTOR_COMPILE_THREADS="1") as compiled:
        flags = ("--compile", "on", *CONFIGURATIONS[name])
        resume_at_random_iterations(compiled, tmp_path, flags, max(20, reliability_count), length=30)


# ---------------------------------------------------------------- preemptions


def preempt(forge: Forge, folder: Path, count: int) -> None:
    flags = [*SMALL, *iterations(30 * count), "--save-interval", "7"]
    assert forge.run(*flags, "--run-root", str(folder / "whole")).status == 0
    root, choose = folder / "preempted", random.Random(3)
    flags += ["--run-root", str(root), "--resume", "auto"]
    reasons: list[str] = []
    for attempt in range(count):
        kind = ("SIGTERM", "SIGUSR1", "max_runtime")[attempt % 3]
        limit = ("--max-runtime", f"{choose.uniform(0.05, 0.3):.3f}") if kind == "max_runtime" else ()
        victim = forge.start(*flags, *limit)
        if not limit:
            seen = len(whole_rows(only_run(root))[0]) if attempt else 0
            wait_until(lambda seen=seen: root.exists() and has_more_rows(root, seen))
            time.sleep(choose.uniform(0, 0.05))
            victim.send({"SIGTERM": SIGTERM, "SIGUSR1": SIGUSR1}[kind])
        assert victim.wait() == {"SIGTERM": 143, "SIGUSR1": 138, "max_runtime": 5}[kind], victim.errors()
        result = json.loads((only_run(root) / "result.json").read_text())
        assert result["stopped"] == kind and result["exit_status"] == victim.status
        rows, torn = whole_rows(only_run(root))
        assert torn == 0 and newest(only_run(root))["progress"]["global_step"] == rows[-1]["global_step"]
        reasons.append(kind)
    done = forge.run(*flags)
    assert done.status == 0, done.errors()
    assert_equal_ends(only_run(root), only_run(folder / "whole"))
    assert "stopped" not in json.loads((only_run(root) / "result.json").read_text())
    print(f"{len(reasons)} preemptions in one run, end bit-equal")


def has_more_rows(root: Path, seen: int) -> bool:
    return any(len(whole_rows(run)[0]) > seen for run in root.iterdir())


def test_preemptions(eager: Forge, tmp_path: Path) -> None:
    preempt(eager, tmp_path, 3)


@pytest.mark.thorough
def test_preemptions_often(eager: Forge, tmp_path: Path, reliability_count: int) -> None:
    preempt(eager, tmp_path, max(20, reliability_count))


# ---------------------------------------------------------------- what goes on, and what begins anew


def tiny(root: Path, **flags: Any) -> Args:
    small: dict[str, Any] = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "update_epochs": 1}
    small |= {"num_minibatches": 1, "eval_episodes": 0, "compile": "off", "quiet": True, "run_root": str(root)}
    return Args(**{**small, "total_timesteps": 16 * 6, **flags})


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each iteration of a run starts from."""
    seen, iterations = [], session.Session.iterations

    def watched(run: session.Session, iteration: Any) -> Iterator[int]:
        for i in iterations(run, iteration):
            seen.append(checkpoint.plain(iteration.saved()))
            yield i

    monkeypatch.setattr(session.Session, "iterations", watched)
    return seen


@pytest.mark.parametrize("backend", ["sync", "entry_point"])
def test_host_environments_begin_anew_and_it_is_said(
    tmp_path: Path, backend: str, states: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(tmp_path, backend=backend, norm_obs=True, norm_reward=True, quiet=False))
    run = only_run(tmp_path)
    saved = newest(run)["ranks"][0]
    states.clear()
    capsys.readouterr()
    train(Args(resume=str(run), total_timesteps=16 * 8))
    assert (
        "episodes      begin anew: only tensor environments can be put back where they were" in capsys.readouterr().out
    )
    episodes = ("obs", "carry_return", "carry_length", "agent.normalize_reward.carry")
    learned = {name: x for name, x in saved["tensors"].items() if name not in (*episodes, "learning_rate")}
    assert difference({name: states[0]["tensors"][name] for name in learned}, learned) is None
    assert difference(states[0]["generators"], saved["generators"]) is None
    assert not torch.equal(states[0]["tensors"]["obs"], saved["tensors"]["obs"])
    assert all(not states[0]["tensors"][name].any() for name in episodes[1:])


def test_process_wide_generators_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an environment draws without being asked: Python's, NumPy's and torch's own generators."""
    drawn, iterations = [], session.Session.iterations

    def draws(run: session.Session, iteration: Any) -> Iterator[int]:
        for i in iterations(run, iteration):
            drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
            yield i

    monkeypatch.setattr(session.Session, "iterations", draws)
    train(tiny(tmp_path, save_interval=2, keep_checkpoints=9))
    older = only_run(tmp_path) / "checkpoints" / f"checkpoint-{16 * 4:012d}.pt"
    train(Args(resume=str(older)))
    assert drawn[6:] == drawn[4:6]


def test_auto_starts_goes_on_and_starts_anew(tmp_path: Path) -> None:
    first = train(tiny(tmp_path, resume="auto", max_runtime=1e-9))
    assert first["stopped"] == "max_runtime" and first["exit_status"] == 5 and first["global_step"] == 16
    # The limit was that process's own.
    run = only_run(tmp_path)
    # Another seed is another run.
    train(tiny(tmp_path, resume="auto", seed=2))
    assert len(list(tmp_path.iterdir())) == 2
    second = train(tiny(tmp_path, resume="auto"))
    assert second["global_step"] == 96 and "stopped" not in second
    assert "stopped" not in json.loads((run / "result.json").read_text())
    # The run is over, so the same command starts a new one.
    train(tiny(tmp_path, resume="auto"))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kind", ["another program", "no flags", "damaged", "finished", "result is no object"])
def test_auto_passes_over_what_is_not_its_own(tmp_path: Path, kind: str) -> None:
    train(tiny(tmp_path, max_runtime=1e-9))
    other = only_run(tmp_path)
    path, payload, _ = find.latest(other / "checkpoints")
    if kind == "damaged":
        path.write_bytes(b"")
    elif kind == "finished":
        (other / "result.json").write_text('{"global_step": 16}')
    elif kind == "result is no object":
        (other / "result.json").write_text("[1]")
    else:
        changed = {"program": "ppo_fast.train_x"} if kind == "another program" else {"flags": [1]}
        checkpoint.write(path, {**payload, **changed})
    assert train(tiny(tmp_path, resume="auto"))["global_step"] == 96
    assert len(list(tmp_path.iterdir())) == 2 and len(whole_rows(other)[0]) == 1


def test_a_run_that_was_made_longer_is_unfinished_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(tmp_path))
    run = only_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(Args(resume=str(run), total_timesteps=16 * 9))
    assert not (run / "result.json").exists()
    result = train(tiny(tmp_path, resume="auto", total_timesteps=16 * 9))
    assert result["global_step"] == 16 * 9 and only_run(tmp_path) == run
    assert [row["global_step"] for row in whole_rows(run)[0]] == [16 * (i + 1) for i in range(9)]


def test_a_run_that_is_complete_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(tiny(tmp_path, eval_episodes=3, profile=True))
    run = only_run(tmp_path)
    rows, _ = whole_rows(run)
    capsys.readouterr()
    again = train(Args(resume=str(run)))
    said = capsys.readouterr().out
    assert "complete      nothing is left to train; a larger --total-timesteps goes on" in said
    assert "step=16 " not in said and "speed" not in again  # neither an old row nor a speed of no iteration
    assert whole_rows(run)[0] == rows and again["eval/mean_return"] == first["eval/mean_return"]
    # Of the process before, not of the run: it was quiet and profiled.
    assert "evaluation  greedy" in said and "profile" not in said
    train(Args(resume=str(run), total_timesteps=16 * 9))
    assert "complete      nothing" not in capsys.readouterr().out


def test_going_back_and_being_killed_at_once_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed from an older checkpoint, the rows after it go; a later checkpoint must not be found any more then."""
    train(tiny(tmp_path, save_interval=1, keep_checkpoints=9))
    run = only_run(tmp_path)
    older = run / "checkpoints" / f"checkpoint-{32:012d}.pt"
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(Args(resume=str(older)))
    assert find.latest(run / "checkpoints")[0] == older
    assert len(list((run / "checkpoints").glob("superseded-*"))) == 4
    train(Args(resume=str(run)))
    assert [row["global_step"] for row in whole_rows(run)[0]] == [16 * (i + 1) for i in range(6)]
    # Those of the other future are gone, once this one has come as far.
    assert not list((run / "checkpoints").glob("superseded-*"))


def test_the_best_mark_survives(tmp_path: Path) -> None:
    """A checkpoint knows that it was the best: the run that goes on from it marks no worse one."""
    train(tiny(tmp_path, save_interval=1, keep_checkpoints=40, total_timesteps=16 * 30))
    run = only_run(tmp_path)
    returns = [row.get("charts/episodic_return") or -1.0 for row in whole_rows(run)[0]]
    at = max(range(25), key=lambda i: returns[i])
    kept = checkpoint.load(run / "checkpoints" / f"checkpoint-{16 * (at + 1):012d}.pt")
    assert kept["progress"]["best"] == pytest.approx(returns[at])
    train(Args(resume=str(run / "checkpoints" / f"checkpoint-{16 * (at + 1):012d}.pt")))
    assert newest(run)["progress"]["best"] == pytest.approx(max(returns))


def test_a_checkpoint_that_is_damaged_is_named_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(tmp_path, save_interval=1))
    run = only_run(tmp_path)
    damaged = find.latest(run / "checkpoints")[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    result = train(Args(resume=str(run), quiet=True))
    assert result["global_step"] == 96
    assert f"warning: passed over {damaged}: truncated" in capsys.readouterr().err
    assert [row["global_step"] for row in whole_rows(run)[0]] == [16 * (i + 1) for i in range(6)]


# ---------------------------------------------------------------- full disk


FULL = """
import os, random
choose, real = random.Random({seed}), os.fsync
def fsync(descriptor):
    if choose.random() < {share}:
        raise OSError(28, "No space left on device")
    real(descriptor)
os.fsync = fsync
"""


def fill_the_disk(forge: Forge, folder: Path, count: int) -> None:
    failed = 0
    for seed in range(count):
        root = folder / str(seed)
        flags = [*SMALL, *iterations(6), "--save-interval", "1", "--keep-checkpoints", "9", "--run-root", str(root)]
        done = forge.run(*flags, before=FULL.format(seed=seed, share=0.5))
        run = only_run(root)
        assert len(whole_rows(run)[0]) == 6
        steps = {int(path.stem.split("-")[1]) // BATCH for path in (run / "checkpoints").glob("checkpoint-*.pt")}
        is_saved = 6 in steps or (run / "policy.safetensors").exists()
        assert done.status == (0 if is_saved else 7), done.errors()
        failed += (missing := 6 - len(steps))
        assert done.errors().count("warning: no checkpoint was saved") == bool(missing)
        assert "training goes on" in done.errors() or not missing
        if steps:
            _, payload, skipped = find.latest(run / "checkpoints")
            assert skipped == [] and payload["progress"]["global_step"] == max(steps) * BATCH
        assert not list(run.rglob("*tmp*"))
    assert failed > 0
    print(f"{count} runs, {failed} saves on a full disk: each run went on, one warning, earlier checkpoints intact")


def test_a_full_disk(eager: Forge, tmp_path: Path) -> None:
    fill_the_disk(eager, tmp_path, 2)


@pytest.mark.thorough
def test_a_full_disk_often(eager: Forge, tmp_path: Path, reliability_count: int) -> None:
    fill_the_disk(eager, tmp_path, max(20, reliability_count))


# ---------------------------------------------------------------- memory


# Notes how many frames torch.compile has looked at, at the thousandth iteration and at the last one.
COUNT_FRAMES = """
import sys, torch
record, seen = train.session.Session.record, []
def counted(run, iteration, metrics):
    record(run, iteration, metrics)
    if run.progress.iteration in (1000, 101_000):
        seen.append(dict(torch._dynamo.utils.counters["frames"]))
        print("frames", seen, file=sys.stderr, flush=True)
train.session.Session.record = counted
"""


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["off", "on"])
def test_a_hundred_thousand_iterations_take_no_memory(eager: Forge, tmp_path: Path, mode: str) -> None:
    flags = ["--num-envs", "1", "--num-steps", "2", "--update-epochs", "1", "--num-minibatches", "1", "--quiet"]
    flags += ["--hidden-sizes", "8", "--eval-episodes", "0", "--compile", mode, "--total-timesteps", "202000"]
    flags += ["--norm-obs", "--norm-reward", "--save-interval", "100", "--run-root", str(tmp_path)]
    victim = eager.start(*flags, before=COUNT_FRAMES)
    sizes = {}
    for at in (5_000, 25_000, 50_000, 75_000, 100_000):
        wait_until(lambda at=at: rows_at_least(tmp_path, at), seconds=1500)
        status = Path(f"/proc/{victim.pid}/status").read_text()
        sizes[at] = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert victim.wait() == 0, victim.errors()
    early, late = eval(victim.errors().splitlines()[-1].removeprefix("frames "))
    growth = sizes[100_000] / sizes[5_000] - 1
    print(f"--compile {mode}: RSS {sizes[5_000] / 1024:.1f} MiB after 5,000 iterations,", end=" ")
    print(f"{growth:+.2%} after 100,000; frames compiled {early} and {late}")
    assert growth < 0.01 and early == late and bool(early) is (mode == "on")


def rows_at_least(root: Path, count: int) -> bool:
    """Whether the run has that many rows, without reading all of them."""
    time.sleep(0.5)
    for path in root.glob("*/metrics.jsonl"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            lines = file.read().splitlines()
            return (
                len(lines) > 1 and json.loads(lines[-2 if lines[-1][-1:] != b"}" else -1])["global_step"] >= 2 * count
            )
    return False
