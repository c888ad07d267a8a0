"""ppo_fast.run.beside: work in a forked process finds things as they were, is waited for, ended, or done again here."""

import os
import time
from pathlib import Path

import pytest

from ppo_fast.run import beside
from ppo_fast.run.beside import Beside

forks = pytest.mark.skipif(not beside.CAN_FORK, reason="everything is done in this process here")


@forks
def test_it_happens_elsewhere_with_what_there_was(tmp_path: Path) -> None:
    there = ["then"]
    work = Beside(lambda: (tmp_path / "a").write_text(f"{os.getpid()} {there}"), "test")
    there.append("later")
    assert work.wait() is None and work.wait() is None and work.ready()
    pid, _, words = (tmp_path / "a").read_text().partition(" ")
    assert words == "['then']" and int(pid) != os.getpid()
    work.insist()
    assert (tmp_path / "a").read_text().startswith(pid)  # not done again


def refuse() -> None:
    raise OSError("no room\nand a second line")


@pytest.mark.parametrize("fork", [pytest.param(True, marks=forks), False])
def test_what_goes_wrong_is_told_and_raised_when_insisted_on(monkeypatch: pytest.MonkeyPatch, fork: bool) -> None:
    monkeypatch.setattr(beside, "CAN_FORK", fork)
    work = Beside(refuse, "test")
    assert work.wait() == "no room" == work.wait()
    with pytest.raises(OSError, match="no room"):
        work.insist()


def test_without_fork_it_is_done_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "CAN_FORK", False)
    work = Beside(lambda: (tmp_path / "a").write_text(str(os.getpid())), "test")
    assert work.ready() and (tmp_path / "a").read_text() == str(os.getpid())
    assert work.wait() is None
    work.end(0.0)


@forks
def test_what_takes_too_long_is_ended_and_done_here(tmp_path: Path) -> None:
    here = os.getpid()

    def slow() -> None:
        if os.getpid() != here:
            time.sleep(600)
        (tmp_path / "a").write_text("here")

    work = Beside(slow, "test", seconds=0.2)
    process = work.process
    assert work.wait() == "not done in 0.2 s" and process is not None and process.exitcode == -9
    work.insist()
    assert (tmp_path / "a").read_text() == "here"


@forks
def test_a_process_that_dies_is_noticed() -> None:
    assert Beside(lambda: os._exit(3), "test").wait() == "its process ended with exit code 3"
