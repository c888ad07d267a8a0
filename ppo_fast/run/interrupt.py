"""Clean stops: a signal sets a flag, the training loop leaves at its next iteration boundary.

    with StopSignal() as stop:
        while training and not stop.requested:
            ...
    save()
    sys.exit(stop.exit_status)

| signal  | who sends it                                   | exit status |
|---------|------------------------------------------------|-------------|
| SIGINT  | Ctrl-C                                         | 130         |
| SIGTERM | kill, SLURM's scancel, Kubernetes, torchrun    | 143         |
| SIGHUP  | a terminal or a connection that closes         | 129         |
| SIGUSR1 | SLURM's --signal=USR1@60, ahead of a time limit | 138 (Linux) |
| SIGUSR2 | Grid Engine's -notify, ahead of SIGKILL        | 140 (Linux) |
| SIGXCPU | the system, at `ulimit -St` seconds of CPU time | 152 (Linux) |

The status is 128 + the signal's number, what a shell shows for a process that the signal killed: a batch script sees
the same number whether the run stopped cleanly or not, and result.json tells the two apart. A signal that was ignored
when the program started, as SIGHUP is under nohup, stays ignored; only SIGINT does not, which a shell script's `&`
ignores though Ctrl-C is meant for all of it.

Nothing is done inside the handler itself: a signal may land in the middle of a save, of a collective, of a lock. Only
where nothing is at stake, before the first iteration and after the last save, may the first signal leave at once.
"""

import functools
import os
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from ppo_fast.stops import Stopped, interrupt

Handler = Callable[[int, FrameType | None], Any] | int | None  # as `signal.signal` takes and returns them
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(signum for signum in signal.Signals if signum.name in NAMES)  # Windows has two of them


class StopSignal:
    """Context manager that turns SIGNALS into `requested`.

    A second SIGINT leaves at once: it raises KeyboardInterrupt where the program stands, which Python ends with exit
    status 130. From then on SIGINT has the system's default action, so that a third one ends even a hung clean-up.

    Handlers are installed in the main thread only, the one place Python allows; elsewhere the flag just stays down.
    The earlier handlers come back at exit. Processes forked inside the block (environment workers) get the earlier
    handler of SIGTERM too, so that `Process.terminate()` works on them. They ignore the other signals: a terminal and
    SLURM signal the whole group, and the workers must live until the iteration is over.
    """

    marks_interrupts = True  # any other KeyboardInterrupt is of the code that was running, see stops.py

    def __init__(self) -> None:
        self.signum: int | None = None
        """The number of the first signal that asked for a stop."""
        self.at_once = False
        """While this is on, a first signal raises Stopped: there is nothing to save, and what goes on may take long."""
        self._interrupts = 0
        self._earlier: dict[int, Handler] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signum == signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN:
                    self._earlier[signum] = signal.signal(signum, self._note)
            LISTENING.add(self)
            _watch_forks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def requested(self) -> bool:
        """True once a signal asked for a stop."""
        return self.signum is not None

    @property
    def name(self) -> str | None:
        """The first signal's name, such as "SIGTERM"; None before one came."""
        return None if self.signum is None else signal.Signals(self.signum).name

    @property
    def exit_status(self) -> int:
        """128 + the first signal's number; 0 before one came."""
        return 0 if self.signum is None else 128 + self.signum

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
        if signum == signal.SIGINT:
            self._interrupts += 1
        if self._interrupts == 2:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise interrupt()
        if self.at_once:
            self.at_once = False
            raise Stopped(self.exit_status)

    def _restore(self) -> None:
        while self._earlier:
            signum, handler = self._earlier.popitem()
            # None: the handler was not installed from Python and can't be put back from here.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


# Those that may have handlers in place.
LISTENING: weakref.WeakSet[StopSignal] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    """Once a process: what forks call can't be taken back."""
    os.register_at_fork(after_in_child=_leave_in_child)


def _leave_in_child() -> None:
    """In a process just forked: as if no run had ever been, but deaf to what is sent to a whole process group."""
    for stop in [stop for stop in LISTENING if stop._earlier]:
        stop._restore()
        for signum in SIGNALS:
            if signum != signal.SIGTERM:
                signal.signal(signum, signal.SIG_IGN)
