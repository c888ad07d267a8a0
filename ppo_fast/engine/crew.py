"""The threads of a CPU, each at work on rows of its own with a function that itself uses one thread.

    crew = Crew(device, parallel=True, started=True)
    sizes = crew.sizes(rows, FEW_ROWS)
    results = crew.side_by_side(function)([(part,) for part in x.split(sizes)])

Sharing out every single operation instead, as OpenMP does, means dozens of barriers in an update. They cost more than
a small operation takes, and where another process takes a core each of them waits for the scheduler, spinning. Here the
threads meet once a function, and sleep while they wait.
"""

import atexit
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch

from ppo_fast.algorithm.ppo import even_sizes

# Fewer environments, or rows of a minibatch, than this are not worth a thread of their own (benchmarks/LOG.md).
FEW_ENVS, FEW_ROWS = 64, 256


class Crew:
    """As many threads as torch has for one operation (`torch.get_num_threads()`); on a GPU, or eagerly, one.

    Eagerly, threads would mostly wait for Python's lock, and parameters take part in one gradient at a time. The sums
    over rows depend on how many threads there are: equal runs need an equal number of them.

    Attributes:
        started: false until every function has compiled; until then they run one after the other.
    """

    def __init__(self, device: torch.device, parallel: bool, started: bool = False) -> None:
        self.threads = torch.get_num_threads() if parallel and device.type == "cpu" else 1
        self.started = started
        self._jobs: list[SimpleQueue] = []  # of each further thread

    def sizes(self, rows: int, few: int) -> list[int]:
        """How to part so many rows: evenly, a part for each thread that gets at least `few`, or one."""
        parts = max(1, min(self.threads, rows // few))
        return even_sizes(rows, parts)

    def side_by_side(self, function: Callable[..., Any]) -> Callable[[Sequence[tuple]], list]:
        """Calls of a function, given as a sequence of their arguments, at the same time; results in order.

        An exception in one of them is raised here once all are done.
        """

        def together(calls: Sequence[tuple]) -> list:
            if len(calls) <= 1 or not self.started:
                return [function(*call) for call in calls]
            while len(self._jobs) < len(calls) - 1:
                self._hire()
            # Answers go into queues of this call: one that is interrupted leaves nothing behind for the next.
            answers = [SimpleQueue() for _ in calls[1:]]
            for jobs, call, answer in zip(self._jobs, calls[1:], answers, strict=False):
                jobs.put((function, call, answer))
            found = [_attempt(function, calls[0]), *(answer.get() for answer in answers)]
            for _, problem in found:
                if problem is not None:
                    raise problem
            return [result for result, _ in found]

        return together

    def _hire(self) -> None:
        """Start one more thread; it ends with this object."""
        jobs: SimpleQueue = SimpleQueue()  # written in C: a future costs several times as much
        thread = threading.Thread(target=_work, args=(jobs,), name="crew", daemon=True)
        thread.start()
        weakref.finalize(self, jobs.put, None).atexit = False  # _end_all does it there
        HIRED[thread] = jobs
        _watch_the_end()
        self._jobs.append(jobs)


def _attempt(function: Callable[..., Any], call: tuple) -> tuple[Any, BaseException | None]:
    try:
        return function(*call), None
    except BaseException as problem:
        return None, problem


def _work(jobs: SimpleQueue) -> None:
    """What a thread does: call by call, until there is None."""
    torch.set_num_threads(1)
    with torch.no_grad():  # both are a thread's own settings
        while True:
            job = jobs.get()
            if job is None:
                return
            function, call, answer = job
            answer.put(_attempt(function, call))
            del job, function, call, answer  # what they hold on to would live until the next one


# The threads of all crews, each with its jobs.
HIRED: weakref.WeakKeyDictionary[threading.Thread, SimpleQueue] = weakref.WeakKeyDictionary()


@functools.cache
def _watch_the_end() -> None:
    """Once a process: a crew of each run would leave something there."""
    atexit.register(_end_all)


def _end_all() -> None:
    """At the end of the process: a thread that is there while the interpreter goes takes the process down with it.

    Only there they are waited for. A crew may be let go of by the garbage collector, which may run where Python holds
    its lock over all threads, without which none can end.
    """
    for thread, jobs in list(HIRED.items()):
        jobs.put(None)
        thread.join()
