"""Environments that raise, die or hang: told in time and by index, restarted, and never left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from odd_envs import Fragile

from ppo_fast.envs import EnvironmentFault, make
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.singles import SingleVectorEnv, find_kind
from ppo_fast.envs.workers import WorkerVectorEnv

N, BAD = 5, 3
TIMEOUT = 0.4
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def fragile(backend, workers=2, timeout=TIMEOUT, bad=BAD, **fault):
    """N environments, of which `bad` has the fault the first time that they are made."""
    made = []

    def remake():
        makers = [Fragile] * N
        if not made:
            makers = [partial(Fragile, **fault) if i == bad else Fragile for i in range(N)]
        made.append(1)
        kind = find_kind(Fragile)
        if backend == "sync":
            return SingleVectorEnv(makers, kind)
        return WorkerVectorEnv(makers, kind, workers, timeout)

    return HostVectorEnv(remake(), "cpu", backend, "Fragile-v0", remake)


def step(env):
    return env.step(torch.zeros(N, 2).long())


def alive(pid):
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid=None):
    """Ids of the living children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == (pid or os.getpid()) and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def vanish(pids, seconds=5.0):
    """Whether all of these processes end in time."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


REASONS = {
    "raise": "raised ValueError: a screw is loose",
    "exit": "died (exit code 3)",
    "kill": "died (exit code -9)",
    "hang": "gave no answer for 0.4 s",
}


@linux
@pytest.mark.parametrize("workers", [N, 2])
@pytest.mark.parametrize("how", REASONS)
def test_a_fault_names_the_environment(how, workers):
    env: Any = fragile("async", workers, how=how, after=4)
    env.reset(seed=0)
    pids = [process.pid for process in env.envs.processes]
    for _ in range(3):
        step(env)
    started = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        step(env)
    assert time.monotonic() - started < TIMEOUT + 5
    shared = "" if workers == N or how == "raise" else "; its worker runs environments 2 to 4"
    assert str(caught.value) == f"environment {BAD} {REASONS[how]}{shared}"
    assert (caught.value.index, caught.value.reason) == (BAD, REASONS[how] + shared)
    with pytest.raises(EnvironmentFault, match=re.escape(REASONS[how])):
        step(env)
    with pytest.raises(EnvironmentFault):
        env.reset(seed=0)
    started = time.monotonic()
    env.close()
    env.close()
    assert time.monotonic() - started < 5
    assert vanish(pids)


def test_an_exception_in_this_process_names_the_environment_too():
    env: Any = fragile("sync", how="raise", after=2)
    env.reset(seed=0)
    step(env)
    with pytest.raises(EnvironmentFault, match=r"^environment 3 raised ValueError: a screw is loose$") as caught:
        step(env)
    assert isinstance(caught.value.__cause__, ValueError)
    env.close()


def test_where_a_worker_raised_is_in_the_notes():
    env: Any = fragile("async", how="raise")
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault) as caught:
        step(env)
    assert "odd_envs.py" in caught.value.__notes__[0] and "in _fail" in caught.value.__notes__[0]
    env.close()


FAULTS_BEFORE_STEPS = [("sync", "raise"), ("async", "raise"), ("async", "hang"), ("async", "exit")]


@linux
@pytest.mark.parametrize(("backend", "how"), FAULTS_BEFORE_STEPS)
def test_a_fault_while_they_are_made_leaves_no_process(backend, how):
    before = children()
    with pytest.raises(EnvironmentFault, match=f"^environment 3 {re.escape(REASONS[how])}"):
        fragile(backend, how=how, when="start")
    assert set(children()) <= set(before)


@pytest.mark.parametrize(("backend", "how"), FAULTS_BEFORE_STEPS)
def test_a_fault_at_a_reset(backend, how):
    env: Any = fragile(backend, how=how, when="reset", after=2)
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=f"^environment 3 {re.escape(REASONS[how])}"):
        env.reset(seed=0)
    env.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_restart_makes_everything_anew(backend):
    """Equal runs restart equally; no restart repeats the episodes of the first start or of another restart."""

    def run():
        env: Any = fragile(backend, how="raise", after=3)
        seen = [env.reset(seed=11)[0]]
        for _ in range(2):
            step(env)
        with pytest.raises(EnvironmentFault):
            step(env)
        for _ in range(2):
            seen.append(env.restart())
            seen += [step(env)[0] for _ in range(20)]
        again = env.reset(seed=11)[0]
        assert torch.equal(again, seen[0]), "the seed itself is as it was"
        env.close()
        return seen

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(torch.unique(torch.stack([first[0], first[1], first[22]]), dim=0)) == 3


def test_restart_without_a_seed_and_after_next_step_ends():
    env: Any = make("CartPole-v1", 3, "cpu", "async", num_workers=2)
    env.reset()
    first, second = env.restart(), env.restart()
    assert not torch.equal(first, second)
    *_, info = env.step(torch.zeros(3).long())
    assert info["valid"].all()
    env.close()


@linux
def test_a_worker_killed_between_steps_is_told_and_close_survives_it():
    env: Any = make("CartPole-v1", 4, "cpu", "async", num_workers=2)
    env.reset(seed=0)
    first, second = env.envs.processes
    os.kill(second.pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match=r"died \(exit code -9\); its worker runs environments 2 to 3"):
        for _ in range(2):  # the first message may still find an open pipe
            env.step(torch.zeros(4).long())
    env.close()
    assert vanish([first.pid, second.pid])


class Slow(Fragile):
    def step(self, action):
        time.sleep(TIMEOUT / 2)
        return super().step(action)


def test_a_slow_worker_is_no_fault():
    """Its four environments take twice the timeout together, each only half of it."""
    env = WorkerVectorEnv([Slow] * 4, find_kind(Slow), 1, TIMEOUT)
    env.reset(seed=1)
    env.step(np.zeros((4, 2), np.int64))
    env.close()


@linux
@pytest.mark.parametrize(("how", "reason"), [("hang", "gave no answer"), ("exit", "died")])
def test_what_a_failed_environment_started_ends_with_it(how, reason, tmp_path):
    """Also that the child holds the pipe of its dead parent open hides nothing."""
    env: Any = fragile("async", how=f"{how} with child", path=str(tmp_path / "pid"))
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=reason):
        step(env)
    child = int((tmp_path / "pid").read_text())
    assert alive(child)
    env.close()
    assert vanish([child])


@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_for_the_trainer_do_not_end_the_workers(name):
    """A scheduler sends them to every process of a run, and the run saves before it ends."""
    env: Any = fragile("async")
    env.reset(seed=0)
    for process in env.envs.processes:
        os.kill(process.pid, getattr(signal, name))
    time.sleep(0.05)
    step(env)
    assert all(process.is_alive() for process in env.envs.processes)
    env.close()


@linux
@pytest.mark.parametrize("end", ["raise KeyError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_workers_end_with_their_parent(end):
    """Nobody calls close(), and one worker hangs."""
    code = f"""
import os, signal, sys, threading, time
from functools import partial
import numpy as np
from odd_envs import Fragile
from ppo_fast.envs.singles import find_kind
from ppo_fast.envs import workers
from ppo_fast.envs.workers import WorkerVectorEnv
workers.CLOSING = 0.3
env = WorkerVectorEnv([Fragile, partial(Fragile, how="hang")], find_kind(Fragile), 2)
env.reset(seed=0)
env.step_async(np.zeros((2, 2), np.int64))
time.sleep(0.2)
print(*[process.pid for process in env.processes], flush=True)
{end}
"""
    # Output goes on through a pipe that the workers hold open too, if they live.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert done.returncode == (1 if end == "raise KeyError" else -9), done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and vanish(pids)


class KeepsAction(gymnasium.Env):
    """Observes the action of the step before, which it only keeps a reference to."""

    observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Box(-9, 9, (2,), np.float32)
    kept = np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        before, self.kept = self.kept, action
        return before, 0.0, False, False, {}


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_may_keep_its_action(backend):
    makers, kind = [KeepsAction] * 3, find_kind(KeepsAction)
    env: Any = HostVectorEnv(SingleVectorEnv(makers, kind) if backend == "sync" else WorkerVectorEnv(makers, kind, 2))
    env.reset(seed=0)
    actions = torch.arange(24.0).view(4, 3, 2) % 7
    seen = [env.step(action)[0] for action in actions]
    assert all(torch.equal(a, b) for a, b in zip(seen[1:], actions, strict=False))
    env.close()


def repeat(how, count):
    """The fault `count` times, at random steps of random environments: each is named in time, and leaves no process."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        bad, after, workers = int(rng.integers(N)), int(rng.integers(1, 30)), int(rng.integers(1, N + 1))
        env: Any = fragile("async", workers, bad=bad, how=how, after=after)
        pids = [process.pid for process in env.envs.processes]
        env.reset(seed=0)
        started = time.monotonic()
        with pytest.raises(EnvironmentFault) as caught:
            for _ in range(after):
                started = time.monotonic()
                step(env)
        assert caught.value.index == bad and caught.value.reason.startswith(REASONS[how])
        assert time.monotonic() - started < TIMEOUT + 5
        env.restart()
        pids += [process.pid for process in env.envs.processes]
        step(env)
        env.close()
        assert vanish(pids)


@linux
@pytest.mark.parametrize("how", ["kill", "hang"])
def test_faults_at_random(how):
    repeat(how, 2)


@linux
@pytest.mark.thorough
@pytest.mark.parametrize("how", ["kill", "hang", "exit", "raise"])
def test_many_faults_at_random(how, reliability_count):
    repeat(how, max(20, reliability_count))
