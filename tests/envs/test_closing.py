"""Environments whose close() raises, hangs or tries to leave keep nothing from ending."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from odd_envs import TwoDials

from ppo_fast.envs import make
from ppo_fast.envs.closing import call_within, close_all
from ppo_fast.stops import Stopped


def hang() -> None:
    while True:
        time.sleep(3600)


def hang_and_catch() -> None:
    while True:
        with contextlib.suppress(Exception):
            hang()


def spin() -> None:
    while True:
        pass


HANGS: dict[str, Callable[[], object]] = {
    "sleeps": hang,
    "catches": hang_and_catch,
    "spins": spin,
    "lock": lambda: [lock := threading.Lock(), lock.acquire(), lock.acquire()],
    "event": lambda: threading.Event().wait(),
}


@pytest.mark.parametrize("how", HANGS)
def test_a_call_that_hangs_is_interrupted(how: str) -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done within 0.1 s"):
        call_within(0.1, HANGS[how])
    assert time.monotonic() - began < 2 and signal.getsignal(signal.SIGALRM) is before


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(10)
    return found[0]


def test_it_returns_and_raises_what_the_function_does() -> None:
    def outcome() -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            call_within(60.0, lambda: sys.exit(3))
        return call_within(60.0, lambda: 7), str(left.value)

    assert outcome() == in_a_thread(outcome) == (7, "3")


def test_a_thread_does_not_wait_either() -> None:
    def outcome() -> str:
        with pytest.raises(TimeoutError) as late:
            call_within(0.1, lambda: threading.Event().wait(30))
        return str(late.value)

    assert in_a_thread(outcome) == "not done within 0.1 s"


def test_somebody_elses_alarm_still_rings() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: rang.append(signum))
    try:
        call_within(60.0, lambda: signal.raise_signal(signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rang == [signal.SIGALRM]


class Closing(TwoDials):
    """Counts how often it was closed, and does something then."""

    closed = 0
    does: Any = staticmethod(lambda: None)

    def close(self) -> None:
        Closing.closed += 1
        Closing.does()


class ClosingVector(SyncVectorEnv):
    """A vector of somebody else's."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([Closing] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.fixture
def closing_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(gymnasium.registry, "Closing-v0", EnvSpec("Closing-v0", entry_point=f"{__name__}:Closing"))
    spec = EnvSpec("ClosingVector-v0", vector_entry_point=f"{__name__}:ClosingVector")
    monkeypatch.setitem(gymnasium.registry, "ClosingVector-v0", spec)
    monkeypatch.setattr(Closing, "closed", 0)
    monkeypatch.setattr(close_all, "__defaults__", (0.2,))
    return monkeypatch


@pytest.mark.parametrize("env_id", ["Closing-v0", "ClosingVector-v0"])
@pytest.mark.parametrize(
    ("does", "said"),
    [(hang, "did not close within 0.2 s"), (sys.exit, "did not close: SystemExit"), (lambda: 1 / 0, "ZeroDivision")],
)
def test_all_are_closed_whatever_they_do(
    closing_env: pytest.MonkeyPatch, env_id: str, does: Callable[[], object], said: str
) -> None:
    """The one that was looked at first, and then the others."""
    closing_env.setattr(Closing, "does", staticmethod(does))
    is_ours = env_id == "Closing-v0"
    began = time.monotonic()
    with pytest.warns(UserWarning, match=said):
        envs = make(env_id, 3)
        envs.close()
    assert Closing.closed == (4 if is_ours else 1)  # a foreign vector stops at the first
    assert time.monotonic() - began < 5


def test_a_stop_within_close_is_a_stop(closing_env: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise Stopped(143)

    closing_env.setattr(Closing, "does", staticmethod(stop))
    with pytest.raises(Stopped):
        make("Closing-v0", 1)
