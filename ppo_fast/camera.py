"""Episodes filmed beside the training: each in a forked process of the lowest priority, which takes the time that the
training leaves. Where a system can't fork safely, an episode is filmed at once.

    with Camera(record, say) as camera:
        camera.film(done, make, agent, seed, path, max_steps)   # returns at once; done() when the film is there
        camera.wait()                                           # until all are there
"""

import contextlib
import copy
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

CAN_FORK = sys.platform == "linux"
CLOSING = 2.0  # seconds that films which are under way get at the end of a run that was stopped


class _Film(NamedTuple):
    """One that is under way."""

    process: Any
    answer: Connection  # None when the film is there, else what was wrong in words
    path: Path
    done: Callable[[], object]


class Camera:
    """Films under way; a context manager that leaves no process behind.

    Args:
        record: `record(envs, agent, seed, path, max_steps)` makes a film, as `play.record` does. What it has not
            finished lies beside `path`, under a name that begins with a dot and goes on with the film's.
        say: takes a line about a film that can't be made.
    """

    def __init__(self, record: Callable[..., object], say: Callable[[str], object]) -> None:
        self._record, self._say = record, say
        self._films: list[_Film] = []

    def film(
        self,
        done: Callable[[], object],
        make: Callable[[], Any],
        agent: Any,
        seed: int,
        path: Path,
        max_steps: int,
        niceness: int = 19,
    ) -> None:
        """Hand over the films that are ready, and begin to record an episode.

        Args:
            done: called by the next `film` or `wait` once the film is there.
            make: makes the one environment, on the CPU; it is called in the other process.
            agent: as it is now; the training may go on with it.
            niceness: of the process: 19 leaves the CPU to everything else, 0 takes its share.
        """
        self._finish([film for film in self._films if film.answer.poll()])
        if next(agent.parameters()).is_cuda:
            agent = copy.deepcopy(agent).cpu()  # a forked process must not touch the GPU
        work = (self._record, make, agent, seed, path, max_steps)
        if not CAN_FORK:
            return self._hand_over(_recorded(*work), done)
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(theirs, niceness, *work), name="camera", daemon=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the process uses none of what they hold
            process.start()
        theirs.close()
        self._films.append(_Film(process, ours, path, done))

    def wait(self) -> None:
        """Hand over all films, when they are ready."""
        self._finish(list(self._films))

    def close(self) -> None:
        """Give what is under way CLOSING seconds, then end it. Nothing is handed over any more."""
        for film in self._films:
            film.process.join(CLOSING)
            film.process.kill()
            film.process.join()
            film.answer.close()
            _clear(film.path)
        self._films.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _finish(self, films: list[_Film]) -> None:
        for film in films:
            try:
                problem = film.answer.recv()
            except EOFError:  # killed
                film.process.join()
                problem = f"its process ended with exit code {film.process.exitcode}"
                _clear(film.path)
            film.process.join()
            film.answer.close()
            self._films.remove(film)
            self._hand_over(problem, film.done)

    def _hand_over(self, problem: str | None, done: Callable[[], object]) -> None:
        if problem is None:
            done()
        else:
            self._say(f"warning: no video: {problem}")


def _clear(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}*"):
        left.unlink(missing_ok=True)


def _recorded(record: Callable[..., object], make: Callable[[], Any], *arguments: Any) -> str | None:
    """None when the film has been made, else what was wrong, in words."""
    try:
        record(make(), *arguments)
    except Exception as problem:  # the renderer's own, ffmpeg's, a full disk: no reason to lose a run
        return (str(problem).strip() or type(problem).__name__).splitlines()[0]
    return None


def _work(answer: Connection, niceness: int, *arguments: Any) -> None:
    """The life of the other process."""
    os.nice(niceness)
    torch.set_num_threads(1)  # the threads of the pool did not come along
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what renderers and encoders say would land in the panel
        os.dup2(silence, stream)
    with contextlib.suppress(OSError):  # nobody listens any more
        answer.send(_recorded(*arguments))
