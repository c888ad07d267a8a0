"""Two processes on gloo: the same bits on both, and a dead one ends the other."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from ppo_fast.engine import distributed

REPOSITORY = Path(__file__).parents[2]
HEAD = """
import os, signal, sys, time
import torch
from ppo_fast.engine.distributed import LostRank, RankGroup, init
def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # one write, so that two ranks' lines don't mix
    sys.stdout.flush()
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def write(folder: Path, script: str) -> str:
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(script))
    return str(path)


def torchrun(folder: Path, script: str, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *flags]
    env = environment(PYTHONPATH=str(REPOSITORY))
    return subprocess.run([*command, write(folder, script)], capture_output=True, text=True, env=env, timeout=120)


def start_pair(folder: Path, script: str) -> list[subprocess.Popen]:
    """Two ranks without torchrun, which would end the second itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = write(folder, script)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(REPOSITORY)}
    return [
        subprocess.Popen(
            [sys.executable, path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
        )
        for rank in range(2)
    ]


def wait_for(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    got = process.stdout.readline()
    assert got == line + "\n", got + process.communicate(timeout=10)[1]


# ---------------------------------------------------------------- one process


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with distributed.init(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.local_rank, ranks.world_size, ranks.is_main) == (0, 0, 1, True)
        assert ranks.device == torch.device("cpu")
        tensor = torch.tensor([1.5, float("nan")])
        before = tensor.clone()
        for method in (ranks.average_, ranks.sum_, ranks.broadcast_):
            assert method(tensor) is tensor
        torch.testing.assert_close(tensor, before, rtol=0, atol=0, equal_nan=True)
        assert ranks.any_(True) is True and ranks.any_(False) is False
        ranks.barrier()
    ranks.shutdown()
    assert not torch.distributed.is_initialized()


def test_torchrun_with_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert type(distributed.init(torch.device("cpu"))) is distributed.Ranks


def test_alone_and_group_have_the_same_methods() -> None:
    public = {name for name in vars(distributed.Ranks) if not name.startswith("_")}
    assert public - {"is_main"} <= set(vars(distributed.RankGroup))
    assert {name for name in vars(distributed.RankGroup) if not name.startswith("_")} <= public


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is '', not a number: start several processes with torchrun"),
        ({"WORLD_SIZE": "x", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is 'x', not a number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR is not set: start several processes"),
    ],
)
def test_broken_launches_are_named(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.init(torch.device("cpu"))


def test_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    variables = {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"LOCAL_RANK is 98, but this node has {count} CUDA devices"):
        distributed.init(torch.device("cuda"))


# ---------------------------------------------------------------- two processes


def test_collectives_against_plain_arithmetic(tmp_path: Path) -> None:
    """The same bits on both ranks, equal to what one process computes from both inputs."""
    done = torchrun(
        tmp_path,
        f"""
        with init(torch.device("cpu")) as ranks:
            assert isinstance(ranks, RankGroup) and ranks.world_size == 2 and ranks.is_main == (ranks.rank == 0)
            def mine(rank):
                return torch.randn(4675, generator=torch.Generator().manual_seed(rank))
            average = ranks.average_(mine(ranks.rank))
            assert torch.equal(average, (mine(0) + mine(1)) / 2)
            total = ranks.sum_(torch.tensor([ranks.rank + 1, 10]))
            assert total.tolist() == [3, 20]
            assert torch.equal(ranks.broadcast_(mine(ranks.rank)), mine(0))
            flags = [ranks.any_(flag) for flag in (False, ranks.rank == 0, ranks.rank == 1, True)]
            assert flags == [False, True, True, True], flags
            time.sleep(ranks.rank)
            ranks.barrier()
            torch.save(average, {str(tmp_path)!r} + f"/{{ranks.rank}}.pt")
        ranks.shutdown()
        """,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)


AVERAGING = """
    ranks = init(torch.device("cpu"), dead_after={dead_after})
    ranks.average_(torch.ones(10))
    say("ready")
    try:
        while True:
            ranks.average_(torch.ones(10))
            time.sleep({pause} * ranks.rank)
    except LostRank as error:
        print(error, file=sys.stderr)
        sys.exit(1)
"""


def lose_a_rank(folder: Path, victim: int) -> float:
    """Kill one of two ranks; returns how many seconds the other went on."""
    ranks = start_pair(folder, AVERAGING.format(dead_after=15.0, pause=0.001))
    try:
        for rank in ranks:
            wait_for(rank, "ready")
        ranks[victim].kill()
        started = time.monotonic()
        _, error = ranks[1 - victim].communicate(timeout=30)
        elapsed = time.monotonic() - started
        assert ranks[1 - victim].returncode == 1 and "Traceback" not in error, error
        assert f"rank {1 - victim} of 2: another rank is gone" in error or "does not answer" in error, error
        return elapsed
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other(tmp_path: Path, victim: int) -> None:
    assert lose_a_rank(tmp_path, victim) < 30


@pytest.mark.slow
def test_a_killed_rank_ends_the_other_often(tmp_path: Path, reliability_count: int) -> None:
    times = [lose_a_rank(tmp_path, attempt % 2) for attempt in range(reliability_count)]
    print(f"{len(times)} ranks killed, the other went on for at most {max(times):.1f} s")
    assert max(times) < 30


def test_a_frozen_rank_ends_the_other(tmp_path: Path) -> None:
    """No connection closes here: only the missing heartbeat tells."""
    ranks = start_pair(tmp_path, AVERAGING.format(dead_after=2.0, pause=0.001))
    try:
        for rank in ranks:
            wait_for(rank, "ready")
        time.sleep(2)
        ranks[1].send_signal(signal.SIGSTOP)
        _, error = ranks[0].communicate(timeout=10)
        assert ranks[0].returncode == distributed.LOST_RANK_STATUS
        assert "ppo_fast: rank 1 gave no sign of life for 2 s; rank 0 leaves." in error
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_a_slow_rank_is_not_taken_for_dead(tmp_path: Path) -> None:
    """One rank computes for twice `dead_after` while the other waits, in the loop and at the end."""
    ranks = start_pair(
        tmp_path,
        """
        with init(torch.device("cpu"), dead_after=2.0) as ranks:
            for worker in (1, 0):
                end = time.monotonic() + 4
                while ranks.rank == worker and time.monotonic() < end:
                    sum(range(1000))
                if worker == 1:
                    ranks.barrier()
        say("done")
        """,
    )
    try:
        for rank in ranks:
            output, error = rank.communicate(timeout=60)
            assert (rank.returncode, output) == (0, "done\n"), error
    finally:
        for rank in ranks:
            rank.kill()


def test_an_error_on_one_rank_ends_the_other(tmp_path: Path) -> None:
    """Even when the failed process lives on, as it may with a slow clean-up."""
    ranks = start_pair(
        tmp_path,
        """
        try:
            with init(torch.device("cpu"), dead_after=2.0) as ranks:
                if ranks.rank == 1:
                    raise ValueError("mine")
                ranks.barrier()
        except ValueError:
            time.sleep(60)
        """,
    )
    try:
        _, error = ranks[0].communicate(timeout=20)
        assert ranks[0].returncode == distributed.LOST_RANK_STATUS, error
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_torchrun_restarts_after_a_kill(tmp_path: Path) -> None:
    """A rank that catches SIGTERM, as training does, must still leave, or torchrun waits 30 s for it."""
    started = time.monotonic()
    done = torchrun(
        tmp_path,
        """
        signal.signal(signal.SIGTERM, lambda *_: None)
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        with init(torch.device("cpu")) as ranks:
            for step in range(20):
                ranks.average_(torch.ones(10))
                if attempt == 0 and step == 10 and ranks.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
        say(f"attempt {attempt}: rank {ranks.rank} done")
        """,
        "--max-restarts=2",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["attempt 1: rank 0 done", "attempt 1: rank 1 done"]
    assert time.monotonic() - started < 60
