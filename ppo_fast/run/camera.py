"""Episodes filmed beside the training: each in a process of its own and of the lowest priority, which takes the time
that the training leaves.

    with Camera(record, say, Beside) as camera:     # ppo_fast.run.beside
        camera.film(done, make, agent, seed, path, max_steps)   # returns at once; done() when the film is there
        camera.wait()                                           # until all are there
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

CLOSING = 2.0  # seconds that films which are under way get at the end of a run that was stopped


class _Film(NamedTuple):
    """One that is under way."""

    work: Any
    path: Path
    done: Callable[[], object]


class Camera:
    """Films under way; a context manager that leaves no process behind.

    Args:
        record: `record(envs, agent, seed, path, max_steps)` makes a film, as `play.record` does. What it has not
            finished lies beside `path`, under a name that begins with a dot and goes on with the film's.
        say: takes a line about a film that can't be made.
        begin: `begin(function, name, niceness)` runs a function in another process, as `beside.Beside` does.
    """

    def __init__(self, record: Callable[..., object], say: Callable[[str], object], begin: Callable[..., Any]) -> None:
        self._record, self._say, self._begin = record, say, begin
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
        self._hand_over([film for film in self._films if film.work.ready()])
        if next(agent.parameters()).is_cuda:
            agent = copy.deepcopy(agent).cpu()  # a forked process must not touch the GPU
        work = self._begin(lambda: self._record(make(), agent, seed, path, max_steps), "camera", niceness)
        self._films.append(_Film(work, path, done))
        if work.process is None:  # it was made at once
            self._hand_over(self._films[-1:])

    def wait(self) -> None:
        """Hand over all films, when they are ready."""
        self._hand_over(list(self._films))

    def close(self) -> None:
        """Give what is under way CLOSING seconds, then end it. Nothing is handed over any more."""
        for film in self._films:
            film.work.end(CLOSING)
            _clear(film.path)
        self._films.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hand_over(self, films: list[_Film]) -> None:
        for film in films:
            problem = film.work.wait()
            self._films.remove(film)
            if problem is None:
                film.done()
            else:
                _clear(film.path)  # where its process was killed
                self._say(f"warning: no video: {problem}")


def _clear(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}*"):
        left.unlink(missing_ok=True)
