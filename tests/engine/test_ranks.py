"""Two processes on gloo: the same bits on both, and one that fails or dies ends the other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from victims import REPOSITORY, SIGKILL, Pair, Victim, start_scripts, wait_until

from ppo_fast.engine import heart, ranks

HEAD = """
import os, signal, sys, time
import torch
from ppo_fast.engine.ranks import LostRank, RankGroup, init
def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # one write, so that two ranks' lines don't mix
    sys.stdout.flush()
"""


# ---------------------------------------------------------------- one process


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with ranks.init(torch.device("cpu")) as alone:
        assert (alone.rank, alone.local_rank, alone.world_size, alone.is_main) == (0, 0, 1, True)
        assert alone.device == torch.device("cpu")
        tensor = torch.tensor([1.5, float("nan")])
        before = tensor.clone()
        for method in (alone.average_, alone.sum_, alone.broadcast_):
            assert method(tensor) is tensor
        torch.testing.assert_close(tensor, before, rtol=0, atol=0, equal_nan=True)
        assert alone.any_(True) is True and alone.any_(False) is False
        assert alone.gather(3) == [3]
        alone.barrier()
    alone.shutdown()
    assert not torch.distributed.is_initialized()


def test_torchrun_with_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert type(ranks.init(torch.device("cpu"))) is ranks.Ranks


def test_alone_and_group_have_the_same_methods() -> None:
    public = {name for name in vars(ranks.Ranks) if not name.startswith("_")}
    assert public - {"is_main"} <= set(vars(ranks.RankGroup))
    assert {name for name in vars(ranks.RankGroup) if not name.startswith("_")} <= public


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
        ranks.init(torch.device("cpu"))


def test_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    variables = {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"LOCAL_RANK is 98, but this node has {count} CUDA devices"):
        ranks.init(torch.device("cuda"))


# ---------------------------------------------------------------- two processes


def end(both: tuple[Victim, Victim]) -> None:
    for rank in both:
        rank.send(SIGKILL)
        rank.wait()


def test_collectives_against_plain_arithmetic(pair: Pair, tmp_path: Path) -> None:
    """The same bits on both ranks, equal to what one process computes from both inputs."""
    script = f"""
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
    assert ranks.gather(ranks.rank) == ([0, 1] if ranks.is_main else [])
    time.sleep(0.2 * ranks.rank)
    ranks.barrier()
    torch.save(average, {str(tmp_path)!r} + f"/{{ranks.rank}}.pt")
ranks.shutdown()
"""
    for rank in start_scripts(pair, HEAD + script):
        assert rank.wait() == 0, rank.errors()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)


def test_an_error_on_one_rank_ends_the_other(pair: Pair) -> None:
    """Even when the failed process lives on, as it may with a slow clean-up."""
    script = """
try:
    with init(torch.device("cpu"), dead_after=2.0) as ranks:
        if ranks.rank == 1:
            raise ValueError("mine")
        ranks.barrier()
except ValueError:
    time.sleep(60)
"""
    both = start_scripts(pair, HEAD + script)
    try:
        assert both[0].wait() == heart.LOST_RANK_STATUS, both[0].errors()
    finally:
        end(both)


AVERAGING = """
ranks = init(torch.device("cpu"))
ranks.average_(torch.ones(10))
say("ready")
try:
    while True:
        ranks.average_(torch.ones(10))
        time.sleep(0.001 * ranks.rank)
except LostRank as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


@pytest.mark.thorough
def test_a_killed_rank_ends_the_other_often(pair: Pair, reliability_count: int) -> None:
    """Once a run is there to be lost, tests/test_torchrun.py kills ranks of it in every session."""
    times = []
    for attempt in range(max(20, reliability_count)):
        both = start_scripts(pair, HEAD + AVERAGING)
        victim, other = both[attempt % 2], both[1 - attempt % 2]
        try:
            for rank in both:
                wait_until(lambda rank=rank: rank.out.exists() and rank.out.read_text() == "ready\n")
            victim.send(SIGKILL)
            began = time.monotonic()
            assert other.wait() == 1, other.errors()
            times.append(time.monotonic() - began)
        finally:
            end(both)
        errors = other.errors()
        assert "Traceback" not in errors, errors
        assert "another rank is gone" in errors or "does not answer" in errors, errors
    print(f"{len(times)} ranks killed, the other went on for at most {max(times):.1f} s")
    assert max(times) < 30


@pytest.mark.slow
def test_torchrun_restarts_after_a_kill(tmp_path: Path) -> None:
    """A rank that catches SIGTERM, as training does, must still leave, or torchrun waits 30 s for it."""
    script = """
signal.signal(signal.SIGTERM, lambda *_: None)
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with init(torch.device("cpu")) as ranks:
    for step in range(20):
        ranks.average_(torch.ones(10))
        if attempt == 0 and step == 10 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
say(f"attempt {attempt}: rank {ranks.rank} done")
"""
    (tmp_path / "script.py").write_text(HEAD + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts=2", str(tmp_path / "script.py")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPOSITORY)}
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["attempt 1: rank 0 done", "attempt 1: rank 1 done"]
    assert time.monotonic() - began < 60
