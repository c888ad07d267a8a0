"""What a command of ppo_fast needs before anything else is imported, which takes seconds: Ctrl-C and standard streams.

`python -m ppo_fast.train` imports the package first, and that calls `register_command`. Only the standard library is
imported here.
"""

import gc
import os
import signal
import sys
import threading
from types import FrameType

COLLECTOR_WAITS = threading.Event()
"""Python's garbage collector is off until `imported`."""
AGAIN_SECONDS = 0.01  # after which a KeyboardInterrupt that was lost is raised again


def register_command() -> None:
    """Prepare the process where it is to run a program of ppo_fast; any other is left alone.

    Until `imported`, Ctrl-C ends it in one line. Python's own way is a traceback through whatever is being imported.
    """
    if not _is_command():
        return
    open_standard_streams()
    if gc.isenabled():  # to look through torch's half a million objects takes 0.1 s, and finds nothing
        gc.disable()
        COLLECTOR_WAITS.set()
    # One that is ignored, as for a job in the background of a script, stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def _is_command() -> bool:
    """Whether the process was started as `python -m ppo_fast.train`, as `python -m ppo_fast` or as `ppo_fast`."""
    if sys.argv[:1] == ["-m"]:
        return any(word == "ppo_fast" or word.startswith("ppo_fast.") for word in sys.orig_argv)
    return os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe") == "ppo_fast"


def open_standard_streams() -> list[int]:
    """Open those of the descriptors 0, 1 and 2 that are closed, on nothing; returns them.

    Otherwise the next file that is opened would be standard output to every library and every child process.
    """
    opened = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened.append(os.open(os.devnull, os.O_RDWR))  # the lowest one that is free
            os.set_inheritable(opened[-1], True)
    return opened


def imported() -> None:
    """The program begins: Ctrl-C raises KeyboardInterrupt, and a second one ends it where it stands."""
    if COLLECTOR_WAITS.is_set():
        COLLECTOR_WAITS.clear()
        gc.enable()
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = say_or_interrupt_again


def was_interrupted() -> bool:
    """Whether the program has had its first Ctrl-C, whatever a library made of it, such as an ImportError."""
    return signal.getsignal(signal.SIGINT) is interrupt_again


def finished() -> None:
    """Nothing is left to do but to leave: Ctrl-C ends the process at once, and without a word."""
    # A KeyboardInterrupt that has passed through an `exec` of a text, as in SciPy's import, would make Python end the
    # process by SIGINT instead of its exit status, whoever caught it. One that ends well makes Python forget it.
    exec("")
    if signal.getsignal(signal.SIGINT) in (interrupt, interrupt_again, leave):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The first Ctrl-C of a command."""
    signal.signal(signal.SIGINT, interrupt_again)
    raise KeyboardInterrupt


def interrupt_again(signum: int, frame: FrameType | None) -> None:
    """The second one."""
    leave(signum, frame)


def leave(signum: int, frame: FrameType | None) -> None:
    """End the process in one line. Imports have nothing to lose, and might catch an exception."""
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(128 + signum)


def say_or_interrupt_again(problem: "sys.UnraisableHookArgs") -> None:
    """What Python does with an exception that nobody can catch, such as one in a callback of its garbage collector. A
    KeyboardInterrupt would be lost there: it is raised again."""
    if problem.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGINT, interrupt)
        main = threading.main_thread().ident
        again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))  # now it would be lost again
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(problem)
