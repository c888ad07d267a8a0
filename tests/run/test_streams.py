"""Standard streams in every state: what is printed arrives readably, or nothing happens."""

import errno
import io
import os
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from ppo_fast.run import cli, streams
from ppo_fast.run.console import Console
from ppo_fast.run.streams import OutputLost, ReaderGone, complain, readable, say, show, stand_ins


def encoded(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


def written(stream: io.TextIOWrapper) -> bytes:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, _: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("discount γ, λ, ε, Δ", "discount gamma, lambda, epsilon, Delta"),
        ("1 ± 2 × 3 · 4 – 5 … → ≤ ²", "1 +- 2 x 3 * 4 - 5 ... -> <= ^2"),
        ("╭─ title ─╮│", "+- title -+|"),
        ("größe é ñ", "grosse e n"),
        ("日本 ½", "?? ?"),
        ("plain", "plain"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(text: str, shown: str) -> None:
    assert readable(text, "ascii") == shown
    assert readable(text, "utf-8") == text


def test_what_it_has_is_left() -> None:
    assert readable("größe γ", "latin-1") == "größe gamma"


def test_lines_are_printed_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = encoded("ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("γ \x1b[2J\nname", "next")
    show("\x1b[1mbold\x1b[0m\nnext")
    assert written(stream) == b"gamma \\x1b[2J\\nname\nnext\n\x1b[1mbold\x1b[0m\nnext\n"


@pytest.mark.parametrize("stream", [None, "closed"])
def test_nothing_is_said_where_there_is_nobody(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream is not None:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    say("text")
    complain("text")
    for quiet in (False, True):
        with Console(1000, quiet=quiet) as console:
            console.start(["header"])
            console.update({"global_step": 10})
            console.message("warning: x")
            console.summary({})


def test_the_ways_in_which_output_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    with pytest.raises(ReaderGone):
        say("text")
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    with pytest.raises(OutputLost, match=r"^standard output takes nothing: No space left on device$"):
        say("text")
    monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC))
    complain("text")


@dataclass
class Args:
    """No flags."""


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(errno.EPIPE, 141, ""), (errno.ENOSPC, 1, "error: standard output takes nothing: No space left on device\n")],
)
def test_a_program_whose_output_is_lost_ends_in_a_line_or_none(
    number: int, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["program"], ["program", "--help"]):
        monkeypatch.setattr(sys, "argv", argv)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "stdout", Broken(number))
            cli.run(lambda args: say("text"), Args, "test")
        assert stop.value.code == status
        assert capsys.readouterr().err == line


def test_other_broken_pipes_are_faults_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(args: Args) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(BrokenPipeError):
        cli.run(program, Args, "test")


def test_missing_streams_are_stood_in_for_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    monkeypatch.setattr(sys, "stdout", None)
    with stand_ins():
        print("nobody hears this")
        assert sys.stdin.read() == "" and not sys.stdout.isatty()
    assert sys.stdin is closed and sys.stdout is None


def test_streams_of_a_command_spell_what_libraries_print(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = encoded("ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    streams.prepare()
    print("γ", b"\xff".decode("utf-8", "surrogateescape"), flush=True)
    assert written(stream) == b"gamma \xff\n"
    print("goes nowhere", file=sys.stderr)
    sys.stderr.close()
