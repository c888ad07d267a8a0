"""What ends a program from outside: a signal, or an environment that fails.

An environment may raise anything, `SystemExit` and `KeyboardInterrupt` too: that is an EnvironmentFault. What a handler
of a signal raises is made here, so that nothing else is blamed for it.

Only the standard library is imported here.
"""

import signal
import threading


class Stopped(SystemExit):
    """Raised by a first signal where there is nothing to save; its code is the exit status."""


class EnvironmentFault(RuntimeError):
    """An environment died, hung or raised; nothing can be done with its vector but `restart` or `close`.

    Attributes:
        index: of the environment in its vector; None where only the whole vector is known.
        reason: what happened, e.g. "died (exit code -9)", "gave no answer for 60 s", "raised ValueError: ...".
        trace: where the environment's code raised, as Python shows it; "" where nothing was raised.
    """

    def __init__(self, index: int | None, reason: str, trace: str = "") -> None:
        super().__init__(index, reason, trace)  # the arguments themselves: it travels between processes
        self.index = index
        self.reason = reason
        self.trace = trace

    def __str__(self) -> str:
        who = "the vector environment" if self.index is None else f"environment {self.index}"
        return f"{who} {self.reason}"


def interrupt() -> KeyboardInterrupt:
    """What a second Ctrl-C raises, which leaves at once. No class of its own: Python would not end by SIGINT then."""
    made = KeyboardInterrupt()
    made.is_of_signal = True  # type: ignore[attr-defined]
    return made


def is_of_code(problem: BaseException) -> bool:
    """Whether the code that was running raised it, and not a signal or Python's own answer to Ctrl-C."""
    if isinstance(problem, Stopped) or getattr(problem, "is_of_signal", False):
        return False
    return not isinstance(problem, KeyboardInterrupt) or not _ctrl_c_raises()


def _ctrl_c_raises() -> bool:
    """Whether Ctrl-C may raise a KeyboardInterrupt in this thread that is not of `interrupt`.

    Not where the handler is a method of an object that says by `marks_interrupts` that it raises those alone, nor in a
    worker that ignores Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    marks = getattr(getattr(handler, "__self__", None), "marks_interrupts", False)
    return is_main and handler is not signal.SIG_IGN and not marks
