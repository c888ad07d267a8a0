"""Stops of every kind, in every phase: saved, quick, with the documented status, and nothing left behind."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from victims import (
    BATCH,
    REPOSITORY,
    SMALL,
    Forge,
    Victim,
    children_of,
    end,
    is_alive,
    newest,
    only_run,
    wait_until,
    whole_rows,
)

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGHUP: 129}
LONG = ("--total-timesteps", str(BATCH * 1_000_000))
# The promise is one iteration and 5 s; an iteration of these runs takes milliseconds.
SECONDS = 5.0


def says(victim: Victim, words: str) -> bool:
    return victim.out.exists() and words in victim.out.read_text()


def rows_of(root: Path) -> int:
    return max((len(whole_rows(run)[0]) for run in root.glob("*")), default=0)


def timed_stop(victim: Victim, signum: int) -> float:
    """Send the signal; returns the seconds until the process, and all that it had started, are gone."""
    below, began = children_of(victim.pid), time.monotonic()
    victim.send(signum)
    victim.wait()
    seconds = time.monotonic() - began
    try:
        wait_until(lambda: not any(map(is_alive, below)), SECONDS)
    finally:
        end([pid for pid in below if is_alive(pid)])
    return seconds


def assert_saved(root: Path, stopped: str, status: int) -> None:
    run = only_run(root)
    result, (rows, torn) = json.loads((run / "result.json").read_text()), whole_rows(run)
    assert (result["stopped"], result["exit_status"], torn) == (stopped, status, 0)
    assert newest(run)["progress"]["global_step"] == rows[-1]["global_step"] == result["global_step"]
    assert (run / "policy.safetensors").exists() and not list(run.rglob("*tmp*"))


# ---------------------------------------------------------------- one signal, any phase


def stop_in_startup(forge: Forge, root: Path, signum: signal.Signals, wait: float) -> float:
    """Nothing has been made, so nothing need be saved; the signal may arrive before anybody listens for it."""
    victim = forge.start(*SMALL, *LONG, "--run-root", str(root))
    time.sleep(wait * 0.02)
    seconds = timed_stop(victim, signum)
    if (rows := rows_of(root)) == 0:
        assert victim.status in (STATUS[signum], -signum), victim.errors()
        assert not list(root.glob("*/checkpoints/*"))
    else:
        assert victim.status == STATUS[signum] and rows, victim.errors()
        assert_saved(root, signum.name, STATUS[signum])
    return seconds


def stop_in_compilation(forge: Forge, root: Path, signum: signal.Signals, wait: float) -> float:
    flags = [flag for flag in SMALL if flag not in ("off", "--compile", "--quiet")]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(root / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    victim = forge.start(*flags, *LONG, "--compile", "on", "--run-root", str(root / "runs"), **cache)
    wait_until(lambda: says(victim, "compiling"))
    time.sleep(wait * 4)
    seconds = timed_stop(victim, signum)
    assert victim.status == STATUS[signum], victim.errors()
    if rows_of(root / "runs"):
        assert_saved(root / "runs", signum.name, STATUS[signum])
    else:
        assert says(victim, f"stopped by {signum.name} before the first iteration: there was nothing to save")
        assert not list((root / "runs").iterdir())
    return seconds


def stop_in_training(forge: Forge, root: Path, signum: signal.Signals, wait: float) -> float:
    victim = forge.start(*SMALL, *LONG, "--run-root", str(root))
    wait_until(lambda: rows_of(root) > 0)
    time.sleep(wait * 0.2)
    seconds = timed_stop(victim, signum)
    assert victim.status == STATUS[signum], victim.errors()
    assert_saved(root, signum.name, STATUS[signum])
    return seconds


def stop_in_evaluation(forge: Forge, root: Path, signum: signal.Signals, wait: float) -> float:
    flags = [*SMALL[:-1], "--total-timesteps", str(BATCH * 3), "--eval-episodes", "100000"]
    victim = forge.start(*flags, "--run-root", str(root))
    wait_until(lambda: says(victim, "evaluating"))
    time.sleep(wait * 0.3)
    seconds = timed_stop(victim, signum)
    assert victim.status == STATUS[signum], victim.errors()
    assert_saved(root, signum.name, STATUS[signum])
    assert "eval/mean_return" not in (only_run(root) / "result.json").read_text()
    return seconds


PHASES = {
    "startup": stop_in_startup,
    "compiling": stop_in_compilation,
    "training": stop_in_training,
    "evaluating": stop_in_evaluation,
}


@pytest.mark.parametrize(("phase", "signum"), list(zip(PHASES, STATUS, strict=True)))
def test_one_signal_in_any_phase(eager: Forge, tmp_path: Path, phase: str, signum: signal.Signals) -> None:
    assert PHASES[phase](eager, tmp_path, signum, 0.3) < SECONDS


@pytest.mark.thorough
@pytest.mark.parametrize("signum", STATUS, ids=lambda signum: signum.name)
def test_one_signal_in_any_phase_often(
    eager: Forge, tmp_path: Path, signum: signal.Signals, reliability_count: int
) -> None:
    choose, slowest = random.Random(int(signum)), dict.fromkeys(PHASES, 0.0)
    count = max(50, reliability_count)
    for attempt in range(count):
        phase = list(PHASES)[attempt % len(PHASES)]
        seconds = PHASES[phase](eager, tmp_path / str(attempt), signum, choose.random())
        slowest[phase] = max(slowest[phase], seconds)
        assert seconds < SECONDS, phase
    print(f"{count} x {signum.name}: slowest exits " + ", ".join(f"{k} {x:.2f} s" for k, x in slowest.items()))


def test_a_second_interrupt_leaves_in_the_middle_of_an_iteration(eager: Forge, tmp_path: Path) -> None:
    flags = [*SMALL, "--num-steps", "30000", "--total-timesteps", "1000000", "--run-root", str(tmp_path)]
    victim = eager.start(*flags)
    wait_until(lambda: bool(list(tmp_path.glob("*/metrics.jsonl"))))
    time.sleep(0.3)
    victim.send(signal.SIGINT)
    time.sleep(0.3)
    assert is_alive(victim.pid), "the first one waits for the end of the iteration"
    assert timed_stop(victim, signal.SIGINT) < 2
    assert victim.status == 130 and victim.errors() == "error: interrupted\n"


def test_from_the_shell(tmp_path: Path) -> None:
    """In a process of its own from its first moment on: the imports, too."""
    command = [sys.executable, "-m", "ppo_fast.train", *SMALL, *LONG, "--run-root", str(tmp_path / "runs")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: rows_of(tmp_path / "runs") > 0)
    process.send_signal(signal.SIGTERM)
    # Not within SECONDS: it draws its curves as well, and for the first time, beside other tests on a slow machine.
    assert process.wait(6 * SECONDS) == 143, process.communicate()
    process.communicate()
    assert_saved(tmp_path / "runs", "SIGTERM", 143)


@pytest.mark.thorough
def test_from_the_shell_at_random_moments(tmp_path: Path, reliability_count: int) -> None:
    choose, slowest = random.Random(5), 0.0
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for attempt in range(max(20, reliability_count)):
        root, signum = tmp_path / str(attempt), choose.choice([signal.SIGTERM, signal.SIGUSR1])
        command = [sys.executable, "-m", "ppo_fast.train", *SMALL, *LONG, "--run-root", str(root)]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        time.sleep(choose.uniform(0, 5))
        began = time.monotonic()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
        slowest = max(slowest, time.monotonic() - began)
        assert process.returncode in (STATUS[signum], -signum), errors
        if rows_of(root):
            assert_saved(root, signum.name, STATUS[signum])
    assert slowest < SECONDS
    print(f"stopped from the shell at random moments: slowest exit {slowest:.2f} s")


# ---------------------------------------------------------------- the terminal


@pytest.mark.parametrize("interrupts", [1, 2])
def test_the_terminal_is_left_clean(eager: Forge, tmp_path: Path, interrupts: int) -> None:
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    flags = [*(flag for flag in SMALL if flag != "--quiet"), "--run-root", str(tmp_path)]
    steps = ["--num-steps", "4000", "--total-timesteps", "1000000"] if interrupts == 2 else LONG
    victim = eager.start(*flags, *steps, terminal=os.ttyname(terminal), TERM="xterm")
    output = b""
    os.set_blocking(controller, False)
    deadline = time.monotonic() + 60
    sent = 0
    while is_alive(victim.pid) and time.monotonic() < deadline:
        with suppress(BlockingIOError):
            output += os.read(controller, 1 << 16)
        if sent < interrupts and list(tmp_path.glob("*/metrics.jsonl")) and b"\x1b[?25l" in output:
            time.sleep(0.2)
            victim.send(signal.SIGINT)
            sent += 1
        time.sleep(0.01)
    assert victim.wait() == 130
    with suppress(BlockingIOError):
        while chunk := os.read(controller, 1 << 16):
            output += chunk
    after = termios.tcgetattr(terminal)
    os.close(controller)
    os.close(terminal)
    assert after == before
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l"), "the cursor stays hidden"
    assert b"\x1b[?1049h" not in output or output.rindex(b"\x1b[?1049l") > output.rindex(b"\x1b[?1049h")


def test_a_terminal_that_closes_loses_nothing(eager: Forge, tmp_path: Path) -> None:
    """The system sends SIGHUP, and nothing can be written to the terminal any more."""
    controller, terminal = pty.openpty()
    flags = [*(flag for flag in SMALL if flag != "--quiet"), *LONG, "--run-root", str(tmp_path)]
    victim = eager.start(*flags, terminal=os.ttyname(terminal), TERM="xterm")
    wait_until(lambda: rows_of(tmp_path) > 0)
    os.close(terminal)
    os.close(controller)
    victim.send(signal.SIGHUP)  # which the system sends to a session of its own
    assert victim.wait() == 129
    assert_saved(tmp_path, "SIGHUP", 129)


# ---------------------------------------------------------------- workers


WORKERS = (*SMALL, *LONG, "--backend", "async", "--env-timeout", "1")
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def start_with_workers(forge: Forge, root: Path, *flags: str) -> tuple[Victim, list[int]]:
    victim = forge.start(*WORKERS, *flags, "--run-root", str(root))
    wait_until(lambda: rows_of(root) > 0 or not is_alive(victim.pid))
    workers = children_of(victim.pid)
    assert workers, victim.errors()
    return victim, workers


@linux
@pytest.mark.parametrize(
    "how", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGKILL", "SIGINT twice", "group", "max_runtime"]
)
def test_no_worker_survives(eager: Forge, tmp_path: Path, how: str) -> None:
    limit = ("--max-runtime", "0.3") if how == "max_runtime" else ()
    victim, workers = start_with_workers(eager, tmp_path, *limit)
    if how == "group":  # as a terminal's Ctrl-C
        os.killpg(victim.pid, signal.SIGINT)
    elif how == "SIGINT twice":
        victim.send(signal.SIGINT)
        victim.send(signal.SIGINT)
    elif not limit:
        victim.send(getattr(signal, how))
    victim.wait()
    expected = {"SIGKILL": -9, "SIGTERM": 143, "SIGUSR1": 138, "SIGHUP": 129, "max_runtime": 5}.get(how, 130)
    assert victim.status == expected, victim.errors()
    try:
        wait_until(lambda: not any(map(is_alive, workers)), 5)
    finally:
        end([pid for pid in workers if is_alive(pid)])


def lose_a_worker(forge: Forge, root: Path, signum: signal.Signals) -> float:
    """Kill or freeze a worker; returns the seconds until the run has ended, saved."""
    victim, workers = start_with_workers(forge, root)
    began = time.monotonic()
    os.kill(workers[-1], signum)
    assert victim.wait() == 6, victim.errors()
    seconds = time.monotonic() - began
    text = "died (exit code -9)" if signum == signal.SIGKILL else "gave no answer for 1 s"
    result = json.loads((only_run(root) / "result.json").read_text())
    assert result["stopped"].startswith("environment ") and text in result["stopped"]
    assert result["stopped"] in victim.errors() and "the run is saved and stops" in victim.errors()
    assert_saved(root, result["stopped"], 6)
    assert not any(map(is_alive, workers))
    return seconds


@linux
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_lost_worker_ends_the_run_which_can_go_on(eager: Forge, tmp_path: Path, signum: signal.Signals) -> None:
    assert lose_a_worker(eager, tmp_path, signum) < 1 + SECONDS
    step = newest(only_run(tmp_path))["progress"]["global_step"]
    flags = ["--resume", "latest", "--run-root", str(tmp_path), "--total-timesteps", str(step + BATCH)]
    done = eager.run(*flags, "--quiet")
    assert done.status == 0, done.errors()
    rows, _ = whole_rows(only_run(tmp_path))
    assert [row["global_step"] for row in rows] == [BATCH * (i + 1) for i in range(len(rows))]


@linux
@pytest.mark.thorough
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_lost_worker_often(eager: Forge, tmp_path: Path, signum: signal.Signals, reliability_count: int) -> None:
    count = max(10, reliability_count)
    seconds = [lose_a_worker(eager, tmp_path / str(attempt), signum) for attempt in range(count)]
    print(f"{count} workers lost by {signum.name}: ended and saved within {max(seconds):.2f} s (--env-timeout 1)")
    assert max(seconds) < 1 + SECONDS


@linux
def test_lost_workers_are_started_again(eager: Forge, tmp_path: Path) -> None:
    victim, workers = start_with_workers(eager, tmp_path, "--env-restarts", "2")
    for attempt in (1, 2):
        seen = rows_of(tmp_path)
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda attempt=attempt: f"environments are started again ({attempt})" in victim.errors())
        wait_until(lambda seen=seen: rows_of(tmp_path) > seen + 1)
        workers = children_of(victim.pid)
    os.kill(workers[0], signal.SIGKILL)
    assert victim.wait() == 6 and "the run is saved and stops" in victim.errors()
    rows, torn = whole_rows(only_run(tmp_path))
    assert torn == 0 and [row["global_step"] for row in rows] == [BATCH * (i + 1) for i in range(len(rows))]
