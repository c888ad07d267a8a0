"""Closing environments of others: one that raises in its close() or hangs there keeps nothing from ending.

close_all(envs)                          # neither raises nor hangs
call_within(60.0, lambda: play(envs))    # raises TimeoutError
"""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from ppo_fast.names import kind_and_line
from ppo_fast.stops import is_of_code

CLOSING = 5.0  # seconds that the environments of one process get to close
LEAST = 0.05  # seconds that each gets, also after another one has hung
AGAIN = 0.5  # seconds after which a call that did not end is interrupted again


class _TooLong(BaseException):
    """Raised in the midst of a call that takes too long; nothing that code usually catches."""

    is_of_signal = True  # see stops.py


def close_all(envs: Sequence[Any], seconds: float = CLOSING) -> None:
    """Close all of these, whatever their close() raises. One that hangs is given up. Either is a warning.

    Args:
        envs: environments.
        seconds: that all of them together may take. Each gets LEAST, also when they are over.
    """
    end = time.monotonic() + seconds
    for env in envs:
        name = type(getattr(env, "unwrapped", env)).__name__
        try:
            call_within(max(LEAST, end - time.monotonic()), env.close)
        except TimeoutError:
            _warn(f"{name} did not close within {seconds:g} s")
        except BaseException as problem:
            if not is_of_code(problem):
                raise
            _warn(f"{name} did not close: {kind_and_line(problem)}")


def _warn(text: str) -> None:
    """A warning, which Python shows once: all are of this line."""
    warnings.warn(text, stacklevel=1)


def call_within(seconds: float, function: Callable[[], Any]) -> Any:
    """What `function` returns. It is interrupted where it takes longer.

    The main thread calls it itself, as windows and connections ask for, and is interrupted by a signal: wherever Python
    code runs, sleeps, or waits for a lock, a socket or a process; not within a library that does not come back. Another
    thread, which no signal reaches, lets one of its own call it, which is left behind.

    Raises:
        TimeoutError: it took longer.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill"):
        before = signal.getsignal(signal.SIGALRM)
        if before is not None:  # else it is not Python's, and could not be put back
            return _interrupted(seconds, function, before)
    return _left_behind(seconds, function)


def _interrupted(seconds: float, function: Callable[[], Any], before: Any) -> Any:
    """Call a function in this thread, the main one; `before` is how SIGALRM is handled."""
    over = threading.Event()
    done = threading.Event()

    def alarm(signum: int, frame: FrameType | None) -> None:
        if over.is_set() and not done.is_set():
            raise _TooLong
        if callable(before):  # an alarm of somebody else
            before(signum, frame)

    def watch() -> None:
        wait = min(seconds, threading.TIMEOUT_MAX)
        while not done.wait(wait):
            over.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            wait = AGAIN

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    try:
        signal.signal(signal.SIGALRM, alarm)
        watcher.start()
        return function()
    except _TooLong:
        raise TimeoutError(f"not done within {seconds:g} s") from None
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGALRM, before)


def _left_behind(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own, and wait for so long."""
    results: list[Any] = []
    problems: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as problem:
            problems.append(problem)

    caller = threading.Thread(target=call, name="time limit", daemon=True)
    caller.start()
    caller.join(min(seconds, threading.TIMEOUT_MAX))
    if problems:
        raise problems[0]
    if not results:
        raise TimeoutError(f"not done within {seconds:g} s")
    return results[0]
