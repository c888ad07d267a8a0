"""Durations of a run are of a clock that only goes forward."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppo_fast.run.stopwatch import Stopwatch
from ppo_fast.train import Args, train

HOUR = 3600.0


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 50 * 365 * 24 * HOUR])
def test_setting_the_clock_ends_no_run_and_changes_no_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jump: float
) -> None:
    """The clock is set after the run's folder was named, as summer time or a time server does."""
    real = time.time
    set_at = time.monotonic() + 0.02
    monkeypatch.setattr(time, "time", lambda: real() + (jump if time.monotonic() > set_at else 0.0))
    args = Args(
        num_envs=4, num_steps=16, total_timesteps=64 * 10, eval_episodes=0, cuda=False, compile="off", quiet=True
    )
    args.run_root, args.max_runtime = str(tmp_path), HOUR / 2
    result = train(args)
    assert "stopped" not in result and result["global_step"] == 640
    assert all(0.0 <= seconds < 60.0 for seconds in result["seconds"].values()), result["seconds"]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_max_runtime_still_ends_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jump: float) -> None:
    real = time.time
    args = Args(num_envs=4, num_steps=16, total_timesteps=10**9, eval_episodes=0, cuda=False, compile="off", quiet=True)
    args.run_root, args.max_runtime = str(tmp_path), 0.3
    watch = Stopwatch()
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert train(args, watch)["stopped"] == "max_runtime"
    assert watch.elapsed() < 30.0


def test_a_process_is_as_old_as_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Stopwatch.since_process_start().elapsed()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + HOUR)
    assert before - 0.1 < Stopwatch.since_process_start().elapsed() < before + 60.0


def test_what_a_shell_ran_before_is_no_part_of_a_run() -> None:
    """A shell becomes the last program of its line: the process is as old as the shell."""
    ask = "from ppo_fast.run.stopwatch import Stopwatch; print(Stopwatch.since_process_start().elapsed())"
    before = f"{sys.executable} -c 'import time; time.sleep(3)'"
    line = f"{before} && exec {sys.executable} -c '{ask}'"
    told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert 0.0 < float(told.stdout) < 2.5
