"""Runs in processes that may have no children of their own, as the workers of multiprocessing.Pool."""

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast.engine import process
from ppo_fast.envs import make
from ppo_fast.envs.singles import SingleVectorEnv
from ppo_fast.run.beside import Beside
from ppo_fast.train import Args, train


def small(root: Path, **more: Any) -> Args:
    flags = {"num_envs": 4, "num_steps": 16, "total_timesteps": 320, "eval_episodes": 4, "quiet": True, "cuda": False}
    return Args(**{**flags, "run_root": str(root), **more})  # type: ignore[arg-type]


def assert_complete(root: Path, count: int) -> None:
    folders = list(root.iterdir())
    assert len(folders) == count
    for folder in folders:
        assert {"checkpoints", "curves.png", "metrics.jsonl", "policy.safetensors"} < {x.name for x in folder.iterdir()}
        assert "eval/mean_return" in json.loads((folder / "result.json").read_text())


def in_worker(args: Args) -> float:
    return train(args)["eval/mean_return"]


@pytest.mark.slow  # starts processes, which import torch
def test_a_pool_trains_ten_times(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        returns = pool.map(in_worker, [small(tmp_path, seed=seed) for seed in range(10)])
    assert len(returns) == 10
    assert_complete(tmp_path, 10)


@pytest.fixture
def daemonic(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as a daemonic one, which multiprocessing lets start no other."""
    current: Any = multiprocessing.current_process()
    monkeypatch.setitem(current._config, "daemon", True)
    with pytest.raises(AssertionError, match="daemonic processes are not allowed to have children"):
        multiprocessing.Process().start()


@pytest.mark.full_end
def test_everything_is_done_in_a_daemonic_process(daemonic: None, tmp_path: Path) -> None:
    train(small(tmp_path, capture_video=True))
    assert_complete(tmp_path, 1)
    assert (next(tmp_path.iterdir()) / "videos" / "greedy.mp4").is_file()


@pytest.mark.parametrize("groups", [1, 2])
def test_workers_are_done_without(daemonic: None, groups: int) -> None:
    with pytest.warns(UserWarning, match="--backend async: a daemonic process can't start workers"):
        envs = make("CartPole-v1", 4, backend="async", groups=groups)
    alone = make("CartPole-v1", 4, backend="sync")
    action = torch.tensor([0, 1, 0, 1])
    assert isinstance(envs.parts[0].envs if groups == 1 else envs.parts[0].envs.envs, SingleVectorEnv)  # type: ignore[union-attr]
    assert torch.equal(envs.reset(seed=3)[0], alone.reset(seed=3)[0])
    assert torch.equal(envs.step(action)[0], alone.step(action)[0])
    envs.close()
    alone.close()


@pytest.mark.parametrize("refused", ["pipe", "fork"])
def test_where_the_system_has_no_process_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(*((os, "fork") if refused == "fork" else (multiprocessing, "Pipe")), lambda *_, **__: refuse())
    work = Beside(lambda: (tmp_path / "a").write_text(str(os.getpid())), "test")
    assert work.wait() is None and (tmp_path / "a").read_text() == str(os.getpid())


def train_where_threads_hang(args: Args, threads: Any) -> None:
    threads.send(process.threads_work())
    threads.send(train(args)["eval/mean_return"])


@pytest.mark.full_end
@pytest.mark.skipif(torch.get_num_threads() == 1, reason="needs two CPUs")
def test_a_fork_of_a_process_that_has_used_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Pool's on Linux: torch would wait forever there for the threads of its parent."""
    monkeypatch.setattr(process, "TRIAL_SECONDS", 0.5)
    torch.ones(1_000_000).exp_()
    assert process.threads_work()
    ours, theirs = multiprocessing.Pipe()
    args = (small(tmp_path), theirs)
    child = multiprocessing.get_context("fork").Process(target=train_where_threads_hang, args=args, daemon=True)
    child.start()
    try:
        assert ours.poll(60) and ours.recv() is False
        assert ours.poll(60) and ours.recv() > 0
    finally:
        child.kill()
        child.join()
    assert_complete(tmp_path, 1)
