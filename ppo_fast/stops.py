"""How a signal ends a program: what its handler raises, so that nothing else is blamed for it.

An environment may raise anything, `SystemExit` and `KeyboardInterrupt` too: that is a fault of the environment. What is
made here is none.

Only the standard library is imported here.
"""

import signal
import threading


class Stopped(SystemExit):
    """Raised by a first signal where there is nothing to save; its code is the exit status."""


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
