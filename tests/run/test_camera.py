"""Films made beside the training: of the policy as it was, in a process that neither disturbs nor outlives the run."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppo_fast.run import beside, camera, film
from ppo_fast.run.camera import Camera

forks = pytest.mark.skipif(not beside.CAN_FORK, reason="films are made in this process here")


def write(envs: Any, agent: nn.Linear, seed: int, path: Path, max_steps: int) -> None:
    """A film of words: who made it, with which priority, and of what."""
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    path.write_text(
        f"{os.getpid()} {priority} {torch.get_num_threads()} {agent.weight.item()} {envs} {seed} {max_steps}"
    )


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films are of words, unless a test wants others."""
    monkeypatch.setattr(film, "record", write)


@pytest.fixture
def agent() -> nn.Linear:
    agent = nn.Linear(1, 1).requires_grad_(False)
    agent.weight.fill_(0.25)
    return agent


def env() -> str:
    return "env"


def nothing() -> None:
    pass


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@forks
def test_a_film_shows_the_policy_as_it_was_and_is_handed_over(tmp_path: Path, agent: nn.Linear) -> None:
    ready: list[str] = []
    with Camera(pytest.fail) as films:
        for name in ("a", "b"):
            films.film(env, agent, 3, tmp_path / name, 9, lambda name=name: ready.append(name))
            agent.weight.add_(1.0)
            wait_for(films._films[-1].work.ready)
            assert ready == ["a"] * (name == "b")  # handed over by the next call, not by the other process
        films.wait()
        assert ready == ["a", "b"]
        films.wait()
    assert ready == ["a", "b"]
    told = [(tmp_path / name).read_text().split() for name in ready]
    assert [words[1:] for words in told] == [["19", "1", weight, "env", "3", "9"] for weight in ("0.25", "1.25")]
    assert len({os.getpid(), *(int(words[0]) for words in told)}) == 3


@forks
def test_the_film_that_a_run_waits_for_takes_its_share(tmp_path: Path, agent: nn.Linear) -> None:
    with Camera(pytest.fail) as films:
        films.film(env, agent, 3, tmp_path / "a", 9, nothing, niceness=0)
        films.wait()
    assert int((tmp_path / "a").read_text().split()[1]) == os.getpriority(os.PRIO_PROCESS, 0)


def test_without_fork_it_is_made_at_once(tmp_path: Path, agent: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "CAN_FORK", False)
    ready: list[int] = []
    with Camera(pytest.fail) as films:
        films.film(env, agent, 3, tmp_path / "a", 9, lambda: ready.append(1))
        assert ready == [1] and (tmp_path / "a").read_text().startswith(f"{os.getpid()} ")


@pytest.mark.parametrize("fork", [pytest.param(True, marks=forks), False])
def test_what_goes_wrong_is_one_warning(
    tmp_path: Path, agent: nn.Linear, monkeypatch: pytest.MonkeyPatch, fork: bool
) -> None:
    monkeypatch.setattr(beside, "CAN_FORK", fork)
    said: list[str] = []

    def refuse() -> None:
        raise OSError("no screen\nand a second line")

    with Camera(said.append) as films:
        films.film(refuse, agent, 3, tmp_path / "a", 9, pytest.fail)
        films.film(env, agent, 3, tmp_path / "no folder" / "a", 9, pytest.fail)
        films.wait()
    assert said[0] == "warning: no video: no screen" and "No such file" in said[1] and len(said) == 2


@forks
def test_the_other_process_says_nothing(
    tmp_path: Path, agent: nn.Linear, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def loud(*_: Any) -> None:
        os.write(1, b"encoding\n")
        os.write(2, b"error: no sound card\n")

    monkeypatch.setattr(film, "record", loud)
    with Camera(pytest.fail) as films:
        films.film(env, agent, 3, tmp_path / "a", 9, nothing)
        films.wait()
    assert capfd.readouterr() == ("", "")


def endless(envs: Any, agent: Any, seed: int, path: Path, max_steps: int) -> None:
    path.with_name(f".{path.name}.part.mp4").write_text("half")
    while True:
        time.sleep(1)


@forks
def test_a_killed_process_is_told(tmp_path: Path, agent: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "record", endless)
    said: list[str] = []
    with Camera(said.append) as films:
        films.film(env, agent, 3, tmp_path / "a", 9, pytest.fail)
        wait_for(lambda: bool(list(tmp_path.iterdir())))
        process = films._films[0].work.process
        assert process is not None and process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        films.wait()
    assert said == ["warning: no video: its process ended with exit code -9"] and not list(tmp_path.iterdir())


@forks
def test_the_end_of_a_run_leaves_neither_process_nor_half_a_film(
    tmp_path: Path, agent: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "record", endless)
    monkeypatch.setattr(camera, "CLOSING", 0.1)
    with Camera(pytest.fail) as films:
        films.film(env, agent, 3, tmp_path / "a", 9, pytest.fail)
        process = films._films[0].work.process
        wait_for(lambda: bool(list(tmp_path.iterdir())))
    assert process is not None and process.exitcode == -signal.SIGKILL and not list(tmp_path.iterdir())
