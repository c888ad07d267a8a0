"""Work done in a process of its own, so that its death is an answer and not an end."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, Any, NamedTuple

import torch

from ppo_fast.checkup.findings import Tell
from ppo_fast.names import kind_and_line
from ppo_fast.stops import is_of_code

CAN_FORK = sys.platform == "linux"
MOST_LINES = 12  # that are shown of where it was


class Death(NamedTuple):
    """How the process ended before it answered."""

    place: str  # what it was at
    how: str
    trace: str  # Python's lines at that moment, where they are known; "" where not


def apart(work: Callable[[Tell], Any], seconds: float) -> Any:
    """What `work` returns in a forked process; a Death where there is no answer; what it raises.

    Where a system can't fork safely it is called here.

    Args:
        work: gets a function that notes what it is at. Its result travels by pickle.
        seconds: after which it is killed.
    """
    if not CAN_FORK or multiprocessing.current_process().daemon:
        return work(lambda place: None)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryFile() as stack:
        process = multiprocessing.get_context("fork").Process(target=_work, args=(theirs, stack, work))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the process has no use for
            process.start()
        theirs.close()
        try:
            return _answer_of(process, ours, stack, time.monotonic() + seconds)
        finally:
            process.kill()
            process.join()
            ours.close()


def _answer_of(process: Any, ours: Connection, stack: IO[bytes], end: float) -> Any:
    place = "the start"
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            kind, value = ours.recv()
            if kind == "at":
                place = value
            elif kind == "raised":
                raise value
            else:
                return value
        return Death(place, "did not come back in time", "")
    except EOFError:
        process.join()
        stack.seek(0)
        lines = stack.read().decode(errors="replace").splitlines()
        return Death(place, _how(process.exitcode), "\n".join(lines[:MOST_LINES]))


def _how(code: int) -> str:
    if code >= 0:
        return f"ended its process with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"ended its process by {signal.Signals(-code).name}"
    return f"ended its process by signal {-code}"


def _work(theirs: Connection, stack: IO[bytes], work: Callable[[Tell], Any]) -> None:
    """The life of the other process."""
    torch.set_num_threads(1)  # the threads of the pool did not come along
    os.dup2(2, 1)  # what an environment prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, which ends this process
    faulthandler.enable(stack, all_threads=False)
    try:
        answer = ("done", work(lambda place: theirs.send(("at", place))))
    except BaseException as problem:
        if not is_of_code(problem):
            raise
        answer = ("raised", problem if isinstance(problem, ValueError) else RuntimeError(kind_and_line(problem)))
    theirs.send(answer)
