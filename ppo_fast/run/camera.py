"""Episodes filmed beside the training: each in a process of its own and of the lowest priority, which takes the time
that the training leaves.

    with Camera(say) as camera:
        camera.film(make, agent, seed, path, max_steps, done)   # returns at once; done() when the film is there
        camera.wait()                                           # until all are there
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import nn

from ppo_fast.run import film
from ppo_fast.run.beside import Beside

FILM_SECONDS = 600.0  # that the end of a run waits for a film
CLOSING = 2.0  # seconds that films which are under way get at the end of a run that was stopped


class _UnderWay(NamedTuple):
    """A film that is being made."""

    work: Beside
    path: Path
    done: Callable[[], object]


class Camera:
    """Films under way; a context manager that leaves no process behind.

    Args:
        say: takes a line about a film that can't be made.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._films: list[_UnderWay] = []

    def film(
        self,
        make: Callable[[], Any],
        agent: nn.Module,
        seed: int,
        path: Path,
        max_steps: int,
        done: Callable[[], object],
        niceness: int = 19,
    ) -> None:
        """Hand over the films that are ready, and begin to record an episode as `film.record` does.

        Args:
            make: makes the one environment, on the CPU; it is called in the other process.
            agent: as it is now; the training may go on with it.
            seed, path, max_steps: see `film.record`.
            done: called by the next `film` or `wait` once the film is there.
            niceness: of the process: 19 leaves the CPU to everything else, 0 takes its share.
        """
        self._hand_over([under_way for under_way in self._films if under_way.work.ready()])
        actor: Any = agent
        if next(agent.parameters()).is_cuda:
            actor = copy.deepcopy(agent).cpu()  # a forked process must not touch the GPU
        work = Beside(lambda: film.record(make(), actor, seed, path, max_steps), "camera", niceness, FILM_SECONDS)
        self._films.append(_UnderWay(work, path, done))
        if work.process is None:  # it was made at once
            self._hand_over(self._films[-1:])

    def wait(self) -> None:
        """Hand over all films, when they are ready."""
        self._hand_over(list(self._films))

    def close(self) -> None:
        """Give what is under way CLOSING seconds, then end it. Nothing is handed over any more."""
        for under_way in self._films:
            under_way.work.end(CLOSING)
            _clear(under_way.path)
        self._films.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hand_over(self, films: list[_UnderWay]) -> None:
        for under_way in films:
            problem = under_way.work.wait()
            self._films.remove(under_way)
            if problem is None:
                under_way.done()
            else:
                _clear(under_way.path)  # where its process was killed
                self._say(f"warning: no video: {problem}")


def _clear(path: Path) -> None:
    """Delete what an unfinished film has left."""
    for left in path.parent.glob(f".{path.name}*"):
        left.unlink(missing_ok=True)
