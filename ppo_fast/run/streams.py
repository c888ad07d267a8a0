"""Standard output and error as they are: missing, closed, full, without a reader, ASCII.

    say("written: plot.png")          # what a program answers; nothing where there is no stdout
    complain("warning: disk full")    # on stderr, where somebody listens
    prepare()                         # of a command: what libraries print is readable, too
    with stand_ins(): ...             # of a program called from Python

pythonw and `>&-` leave no stream at all, a log file may take nothing but ASCII, `| head` goes, a disk fills up.
"""

import codecs
import io
import locale
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from ppo_fast import begin, names

READABLE = "ppo_fast.readable"  # how a stream handles what its encoding lacks
# What an encoding lacks, in ASCII. Greek letters are spelled and accents left out without a table.
SPELLED = {
    **{"±": "+-", "×": "x", "÷": "/", "·": "*", "•": "*", "…": "...", "–": "-", "—": "-", "→": "->"},
    **{"≤": "<=", "≥": ">=", "≠": "!=", "²": "^2", "√": "sqrt ", "∞": "inf", "ß": "ss", "λ": "lambda", "Λ": "Lambda"},
    **{"‘": "'", "’": "'", "“": '"', "”": '"'},
}


class OutputLost(OSError):
    """Standard output takes nothing, such as a file on a full disk: what a program had to say is lost."""


class ReaderGone(OutputLost):
    """Its reader has seen enough: `| head`."""


def say(*lines: str) -> None:
    """Print lines, each of which may hold names out of files. Nothing is done where there is no standard output.

    Raises:
        OutputLost: it takes nothing.
    """
    if lines:
        show("\n".join(map(names.printable, lines)))


def show(text: str) -> None:
    """Print a text as it is, with what sets colours in it. Otherwise as `say`."""
    if is_open(sys.stdout):
        with told_apart():
            write_line(sys.stdout, text)


def flush() -> None:
    """Let standard output go out now. OutputLost where it takes nothing: Python would say so only at its end."""
    if is_open(sys.stdout):
        with told_apart():
            sys.stdout.flush()


@contextmanager
def told_apart() -> Iterator[None]:
    """Whatever goes wrong with standard output inside is an OutputLost, unlike other faults of the system."""
    try:
        yield
    except BrokenPipeError as problem:
        raise ReaderGone(str(problem)) from problem
    except OSError as problem:
        raise OutputLost(f"standard output takes nothing: {problem.strerror or problem}") from problem


def complain(text: str) -> None:
    """Print lines that may hold names out of files on stderr, if that can be done."""
    with suppress(OSError):
        write_line(sys.stderr, printable_lines(text))


def write_line(stream: TextIO | None, text: str) -> None:
    """Write a text and the end of its line, readably whatever the stream's encoding.

    Raises:
        OSError: nobody reads: there is no such stream, it is closed, its reader has gone, its disk is full.
    """
    if stream is None or not is_open(stream):
        raise OSError("there is no such stream")
    if getattr(stream, "errors", None) != READABLE:
        text = readable(text, getattr(stream, "encoding", None) or "ascii")
    stream.write(text + "\n")
    stream.flush()


def is_open(stream: TextIO | None) -> bool:
    """Whether there is a stream that takes what is written."""
    return stream is not None and not getattr(stream, "closed", False)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether what is written to a stream is seen at once."""
    return stream is not None and is_open(stream) and stream.isatty()


def printable_lines(text: str) -> str:
    """Text of one or several lines that may hold names out of files, as a terminal can show it without harm."""
    return "\n".join(names.printable(line) for line in text.split("\n"))


def readable(text: str, encoding: str) -> str:
    """The text with all that an encoding lacks spelled in ASCII: gamma, +-, "e" for "é", "?" for what has no name."""
    _register()
    return text.encode(encoding, READABLE).decode(encoding, "replace")


def prepare() -> None:
    """Prepare the process of a command: it has all standard streams, they spell what they lack, and files are UTF-8."""
    _stand_in(ExitStack())  # which is never closed: until the process ends
    # Libraries read their own files, which are UTF-8, in the encoding of the locale; that of "C" is ASCII.
    if codecs.lookup(locale.getpreferredencoding(False)).name == "ascii":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    _register()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # its descriptor leads elsewhere now, from a file to a terminal
                stream.reconfigure(errors=READABLE)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Standard streams that are missing or closed lead nowhere inside: libraries take it that there are some."""
    with ExitStack() as stack:
        _stand_in(stack)
        yield


def _stand_in(stack: ExitStack) -> None:
    """Open the standard streams that are missing; `stack` gets what undoes it."""
    for descriptor in begin.open_standard_streams():
        stack.callback(os.close, descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if not is_open(getattr(sys, name)):
            stack.callback(setattr, sys, name, getattr(sys, name))
            nothing = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - `stack` closes it
            setattr(sys, name, stack.enter_context(nothing))


def _register() -> None:
    codecs.register_error(READABLE, _spell_error)


def _spell_error(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands in for signs that an encoding lacks. Bytes that are no text, as in names of files, are left alone."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    if all("\udc80" <= sign <= "\udcff" for sign in signs):
        return signs.encode("ascii", "surrogateescape"), error.end
    return "".join(map(spelled, signs)), error.end


def spelled(sign: str) -> str:
    """A sign in ASCII: "γ" is gamma, "─" is -, "é" is e, and what has no such name is "?"."""
    if sign in SPELLED:
        return SPELLED[sign]
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK CAPITAL LETTER"):
        return name.split()[3].capitalize()
    if name.startswith("GREEK SMALL LETTER"):
        return name.split()[3].lower()
    if name.startswith("BOX DRAWINGS"):
        return {"HORIZONTAL": "-", "VERTICAL": "|"}.get(name.split(maxsplit=3)[-1], "+")
    letters = "".join(part for part in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(part))
    return letters if letters.isascii() else "?"
