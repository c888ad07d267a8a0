"""The console: which way of showing it chooses, plain lines that grep can read, and no cost in between."""

import io
import math
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from screens import RESULT, ROW, WARNING, Terminal

from ppo_fast.run.console import Console


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def tell_everything(voice: Console) -> None:
    with voice:
        voice.start(["header ± 1"])
        tell_the_rest(voice)


def tell_the_rest(voice: Console) -> None:
    voice.phase("compiling")
    voice.update({**ROW, "global_step": 1})
    voice.update(ROW, [WARNING])
    voice.message("W&B: offline")
    voice.message("warning: disk full")
    voice.phase("evaluating")
    voice.summary(RESULT, [WARNING], "runs/x", ["first command", "second command"])


def test_plain_lines_say_everything_in_ascii(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    tell_everything(Console(500_000, stream=stream))
    lines = stream.getvalue().splitlines()
    assert [line.partition(" percent")[0] for line in lines] == [
        "header +- 1",
        "compiling ...",
        "step=1",
        "W&B: offline",
        "warning: disk full",
        "step=250000",  # it was too early for, and stands before what comes after it
        "health: clip fraction 0.37 (> 0.2): lower --clip-coef",
        "evaluating ...",
        "",
        "evaluation  greedy   499.50 +- 1.25  over 100 episodes",
        "            sampled  480.00 +- 9.00  over 100 episodes",
        "speed       231,042 steps/s, 500,000 steps",
        "seconds     startup 1.0   compile 4.0   train 2.5   eval 0.5   total 8.0",
        "run folder  runs/x",
        "health      ! clip fraction 0.37 (> 0.2): lower --clip-coef",
        "next        first command",
        "            second command",
    ]
    assert capsys.readouterr() == ("", "")


def test_quiet_says_warnings_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    tell_everything(Console(1000, quiet=True, stream=stream))
    assert stream.getvalue() == "return=499.50 std=1.25 sps=231042 folder=runs/x\n"
    assert capsys.readouterr().err == "warning: disk full\n"


def test_silent_says_nothing_at_all(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    tell_everything(Console(1000, stream=terminal, silent=True))
    assert terminal.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_panel(terminal: Terminal) -> None:
    tell_everything(Console(1000, stream=terminal))
    assert "╭" in terminal.getvalue()


@pytest.mark.parametrize("reason", ["no terminal", "dumb terminal", "no UTF-8"])
def test_plain_lines_where_a_panel_cannot_be_shown(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    elif reason == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    else:
        terminal.encoding = "ascii"
    tell_everything(Console(500_000, stream=terminal))
    assert "\x1b" not in terminal.getvalue()
    assert "step=250000" in terminal.getvalue()


def test_plain_lines_come_at_most_every_two_seconds(clock: SimpleNamespace) -> None:
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    for step in range(100):
        clock.seconds = 1000.0 + step * 0.1
        voice.update({"global_step": step})
    assert re.findall(r"step=(\d+)", stream.getvalue()) == ["0", "20", "40", "60", "80"]


def test_the_last_row_is_shown_before_the_summary(clock: SimpleNamespace) -> None:
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    for step in (1, 2, 3):
        voice.update({"global_step": step})
    voice.summary({})
    assert [line.partition(" ")[0] for line in stream.getvalue().splitlines()] == ["step=1", "step=3", "", "health"]


def test_advice_is_said_once_while_it_lasts(clock: SimpleNamespace) -> None:
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    for _ in range(5):
        voice.update(ROW, [WARNING])
        clock.seconds += 3.0
    assert stream.getvalue().count("health: clip fraction 0.37") == 1


def test_rows_of_before_are_taken_in_without_a_line() -> None:
    stream = io.StringIO()
    voice = Console(1_000_000, stream=stream)
    voice.update({**ROW, "charts/episodic_return": 100.0}, draw=False)
    assert stream.getvalue() == ""
    voice.update({**ROW, "charts/episodic_return": 300.0, "global_step": 300_000, "time/elapsed": 4.0})
    (line,) = stream.getvalue().splitlines()
    assert "step=300000" in line and "return=200.00" in line and "left=" in line


def test_text_that_the_stream_cannot_encode_is_spelled() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(1000, stream=stream).start(["discount γ, ± 1"])
    assert stream.buffer.getvalue() == b"discount gamma, +- 1\n"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("live", "error"), [(False, BrokenPipeError()), (True, OSError(5, "Input/output error"))])
def test_a_reader_that_has_gone_does_not_stop_training(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    live: bool,
    error: OSError,
) -> None:
    def gone(_: str) -> int:
        raise error

    monkeypatch.setattr(terminal, "isatty", lambda: live)
    with Console(1000, stream=terminal) as voice:
        voice.start(["header"])
        monkeypatch.setattr(terminal, "write", gone)
        tell_the_rest(voice)
    assert capsys.readouterr().err == "warning: disk full\n"


def test_a_pipe_closed_early_leaves_no_error_at_exit() -> None:
    code = """
from ppo_fast.run.console import Console
voice = Console(1000)
for _ in range(20_000):
    voice.message("x" * 100)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_update_costs_nothing_between_drawings(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        monkeypatch.setattr(type(voice.printer), "seconds_between_rows", math.inf)
        voice.update(ROW)
        start = time.perf_counter()
        for _ in range(2000):
            voice.update(ROW)
        assert (time.perf_counter() - start) / 2000 < 30e-6


def test_names_out_of_files_move_no_cursor():
    """A resumed run says texts of a checkpoint: what would steer a terminal is shown as text."""
    stream = io.StringIO()
    with Console(10, stream=stream) as console:
        console.start(["resumed       from a\x1b[2J\ud800"])
        console.message("warning: \x1b]0;owned\x07")
        console.summary({}, folder="runs/\x1b[31m\nb")
    said = stream.getvalue()
    assert not set(said) & set("\x1b\x07") and r"a\x1b[2J" in said and r"runs/\x1b[31m\nb" in said
