"""Something done beside the program: in a forked process, which finds all as it is at that moment, and changes nothing.

work = Beside(lambda: draw(folder), "picture")    # returns at once
...
problem = work.wait()                             # None, or what was wrong in a line
"""

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from ppo_fast import names
from ppo_fast.stops import is_of_code

CAN_FORK = sys.platform == "linux"


class Beside:
    """A function that leaves files, called in another process; where none can be had, in this one, at once.

    None can be had where a system can't fork safely, in a daemonic process (a worker of multiprocessing.Pool is one),
    and where the system refuses one more.

    Args:
        function: must not touch a GPU, and may not count on threads that are there now.
        name: of the process.
        niceness: of the process: 19 leaves the CPU to everything else, 0 takes its share.
        seconds: that one waits for it before it is ended; None for as long as it takes.

    Attributes:
        process: the other process; None once it has ended, and where there is none.
    """

    def __init__(
        self, function: Callable[[], object], name: str, niceness: int = 0, seconds: float | None = None
    ) -> None:
        self.process: BaseProcess | None = None
        self._function = function
        self._seconds = seconds
        self._problem: str | None = None
        if CAN_FORK and not multiprocessing.current_process().daemon:
            with contextlib.suppress(OSError):  # too many processes, files, or too little memory
                self.process = self._start(name, niceness)
        if self.process is None:
            self._problem = _attempt(function)

    def _start(self, name: str, niceness: int) -> BaseProcess:
        """The other process, at work; OSError where the system has none left."""
        self._answer, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(theirs, niceness, self._function), name=name, daemon=True
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # of threads: the process uses none of what they hold
                process.start()
        except OSError:
            self._answer.close()
            raise
        finally:
            theirs.close()
        return process

    def ready(self) -> bool:
        """Whether `wait` returns at once."""
        return self.process is None or self._answer.poll()

    def wait(self) -> str | None:
        """Wait until it is done; may be called again.

        Returns:
            None when all went well, else what was wrong, in a line.
        """
        if self.process is None:
            return self._problem
        try:
            if self._answer.poll(self._seconds):
                self._problem = self._answer.recv()
            else:
                self._problem = f"not done in {self._seconds} s"
        except EOFError:  # killed
            self.process.join()
            self._problem = f"its process ended with exit code {self.process.exitcode}"
        self.end(None if self._problem is None else 0.0)
        return self._problem

    def insist(self) -> None:
        """Wait, and where that failed do it here, which raises what is wrong."""
        if self.wait() is not None:
            self._function()

    def end(self, seconds: float | None) -> None:
        """Give it so many seconds, None for as many as it takes, then end it."""
        if self.process is not None:
            self.process.join(seconds)
            self.process.kill()
            self.process.join()
            self._answer.close()
            self.process = None


def _attempt(function: Callable[[], object]) -> str | None:
    """None when it went well, else what was wrong, in a line."""
    try:
        function()
    except BaseException as problem:  # a renderer's own, an encoder's, a full disk, a sys.exit() in an environment
        if not is_of_code(problem):
            raise
        return names.first_line(problem)
    return None


def _work(answer: Connection, niceness: int, function: Callable[[], object]) -> None:
    """The life of the other process."""
    os.nice(niceness)
    torch.set_num_threads(1)  # the threads of the pool did not come along
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what renderers and encoders say would land in the panel
        os.dup2(silence, stream)
    with contextlib.suppress(OSError):  # nobody listens any more
        answer.send(_attempt(function))
