"""The console: plain lines that grep can read, a live panel that leaves a clean screen, and no cost in between."""

import io
import math
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from ppo_fast.run import console
from ppo_fast.run.console import Console
from ppo_fast.run.health import Advice

ROW = {
    "global_step": 250_000,
    "charts/SPS": 231042.4,
    "charts/episodic_return": 212.345,
    "charts/episodic_length": 212.0,
    "losses/policy_loss": -0.0123,
    "losses/value_loss": 12.5,
    "losses/entropy": 0.512,
    "losses/approx_kl": 0.0081,
    "losses/clipfrac": 0.114,
    "losses/explained_variance": 0.93,
    "time/elapsed": 2.0,
    "time/collect": 0.76,
    "time/learn": 1.14,
}
RESULT = {
    "eval/mean_return": 499.5,
    "eval/std_return": 1.25,
    "eval/episodes": 100,
    "eval/sampled_mean_return": 480.0,
    "eval/sampled_std_return": 9.0,
    "global_step": 500_000,
    "sps": 231042.0,
    "seconds": {"startup": 1.0, "compile": 4.0, "train": 2.5, "eval": 0.5},
}
WARNING = Advice("clip_fraction", "warn", "clip fraction 0.37 (> 0.2): lower --clip-coef")
CLEAR_LINE, SHOW_CURSOR, HIDE_CURSOR = "\x1b[2K", "\x1b[?25h", "\x1b[?25l"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    return Terminal()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: now.seconds)
    return now


def without_colour(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_plain_line_has_every_figure_as_name_and_value():
    stream = io.StringIO()
    Console(500_000, stream=stream).update(ROW)
    (line,) = stream.getvalue().splitlines()
    assert dict(pair.split("=") for pair in line.split()) == {
        "step": "250000",
        "percent": "50.0",
        "sps": "231042",
        "collect": "38%",
        "learn": "57%",
        "other": "5%",
        "return": "212.34",
        "length": "212.0",
        "left": "0:01",
        "policy_loss": "-0.0123",
        "value_loss": "12.5",
        "entropy": "0.512",
        "approx_kl": "0.0081",
        "clipfrac": "0.114",
        "explained_variance": "0.930",
    }


def test_figures_that_are_missing_or_nan_show_as_a_dash():
    stream = io.StringIO()
    Console(1000, stream=stream).update({"global_step": 10, "charts/SPS": None, "charts/episodic_return": math.nan})
    assert "step=10 percent=1.0 sps=- return=- length=- left=-:--" in stream.getvalue()


def timed(elapsed, collect, learn):
    return {"global_step": 1, "time/elapsed": elapsed, "time/collect": collect, "time/learn": learn}


def test_the_split_is_of_the_time_since_training_began():
    voice = Console(1000, stream=io.StringIO())
    assert voice._split() == {}
    voice.update(timed(10.0, 1.0, 8.0))
    assert voice._split() == {"collect": 10, "learn": 80, "other": 10}
    voice.update(timed(20.0, 7.0, 1.0))  # a slow rollout, and a checkpoint
    assert voice._split() == {"collect": 40, "learn": 45, "other": 15}


def test_rows_that_do_not_say_what_the_phases_took_count_as_no_time():
    """A run of an older version that is gone on with."""
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    voice.update({"global_step": 1, "time/elapsed": 90.0})
    assert "sps=- return=-" in stream.getvalue()
    voice.update(timed(100.0, 6.0, 3.0))
    assert voice._split() == {"collect": 60, "learn": 30, "other": 10}


def test_shares_that_round_make_a_hundred():
    for collect in range(201):
        voice = Console(1000, stream=io.StringIO())
        voice.update(timed(1.0, collect / 200, 1 - collect / 200))
        split = voice._split()
        assert sum(split.values()) == 100 and min(split.values()) >= 0


def test_return_is_a_mean_over_ten_rows_in_which_episodes_ended(clock):
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    for step in range(30):
        ended = {"charts/episodic_return": float(step), "charts/episodic_length": 2.0 * step}
        nothing_ended = ({}, {"charts/episodic_return": None}, {"charts/episodic_return": math.nan})[step // 2 % 3]
        voice.update({"global_step": step, **(ended if step % 2 else nothing_ended)})
    clock.seconds += 3.0
    voice.update({"global_step": 30})
    assert "return=20.00 length=40.0" in stream.getvalue().splitlines()[-1]  # of 11, 13, ... 29


def test_the_first_row_ends_the_phase_before_it(terminal):
    with Console(1000, stream=terminal) as voice:
        voice.start([])
        voice.phase("compiling")
        assert voice._phase == "compiling"
        voice.update(ROW)
        assert voice._phase == "training"


def test_plain_lines_come_at_most_every_two_seconds(clock):
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    for step in range(100):
        clock.seconds = 1000.0 + step * 0.1
        voice.update({"global_step": step})
    assert re.findall(r"step=(\d+)", stream.getvalue()) == ["0", "20", "40", "60", "80"]


def test_plain_output_is_ascii_and_ends_with_the_last_row(clock):
    stream = io.StringIO()
    voice = Console(500_000, stream=stream)
    voice.start(["environment  CartPole-v1"])
    voice.update({"global_step": 1})
    voice.update(ROW, [WARNING])
    voice.summary(RESULT, [WARNING], "runs/x", ["python -m ppo_fast.evaluate runs/x"])
    lines = stream.getvalue().splitlines()
    assert stream.getvalue().isascii()
    assert lines[0] == "environment  CartPole-v1"
    assert [line for line in lines if line.startswith("step=")][-1].startswith("step=250000")


def test_advice_is_said_once_while_it_lasts(clock):
    stream = io.StringIO()
    voice = Console(1000, stream=stream)
    for _ in range(5):
        voice.update(ROW, [WARNING])
        clock.seconds += 3.0
    assert stream.getvalue().count("health: clip fraction 0.37") == 1


def summary(*args: Any) -> list[str]:
    """The lines of a summary, plain, without the empty one before it."""
    stream = io.StringIO()
    Console(500_000, stream=stream).summary(*args)
    first, *lines = stream.getvalue().splitlines()
    assert first == ""
    return lines


def test_summary_says_everything():
    assert summary(RESULT, [WARNING], "runs/x", ["first command", "second command"]) == [
        "evaluation  greedy   499.50 +- 1.25  over 100 episodes",
        "            sampled  480.00 +- 9.00  over 100 episodes",
        "speed       231,042 steps/s, 500,000 steps",
        "seconds     startup 1.0   compile 4.0   train 2.5   eval 0.5   total 8.0",
        "run folder  runs/x",
        "health      ! clip fraction 0.37 (> 0.2): lower --clip-coef",
        "next        first command",
        "            second command",
    ]


def test_the_last_row_stands_before_what_comes_after_it():
    stream = io.StringIO()
    voice = Console(1_000_000, stream=stream)
    voice.update(ROW)
    voice.update({**ROW, "global_step": 260_000})
    voice.phase("evaluating")
    voice.summary(RESULT)
    lines = stream.getvalue().splitlines()
    assert [line.partition(" ")[0] for line in lines[:4]] == ["step=250000", "step=260000", "evaluating", ""]


def test_summary_of_a_run_that_ended_before_its_evaluation():
    said = summary({"global_step": 5, "sps": math.nan})
    assert said == ["speed       - steps/s, 5 steps", "health      no advice"]


def test_summary_of_a_stop_says_where_and_that_it_is_saved():
    result = {"global_step": 8_863_744, "sps": 1000.0, "stopped": "SIGINT"}
    assert summary(result, (), "runs/x", ["python -m ppo_fast.train --resume runs/x"]) == [
        "stopped     SIGINT, at step 8,863,744; the run is saved",
        "speed       1,000 steps/s, 8,863,744 steps",
        "run folder  runs/x",
        "health      no advice",
        "next        python -m ppo_fast.train --resume runs/x",
    ]


def test_rows_of_before_are_taken_in_without_a_line():
    stream = io.StringIO()
    voice = Console(1_000_000, stream=stream)
    voice.update({**ROW, "charts/episodic_return": 100.0}, draw=False)
    assert stream.getvalue() == ""
    voice.update({**ROW, "charts/episodic_return": 300.0, "global_step": 300_000, "time/elapsed": 4.0})
    (line,) = stream.getvalue().splitlines()
    assert "step=300000" in line and "return=200.00" in line and "collect=38%" in line


def test_quiet_says_warnings_and_one_line(capsys):
    stream = io.StringIO()
    voice = Console(1000, quiet=True, stream=stream)
    with voice:
        voice.start(["header"])
        voice.phase("training")
        voice.update(ROW, [WARNING])
        voice.message("W&B: offline")
        voice.message("warning: disk full")
        voice.summary(RESULT, [WARNING], "runs/x", ["next"])
    assert stream.getvalue() == "return=499.50 std=1.25 sps=231042 folder=runs/x\n"
    assert capsys.readouterr().err == "warning: disk full\n"


def test_panel_shows_the_row_and_fits(terminal, clock):
    voice = Console(500_000, title="CartPole-v1 [seed 1]", stream=terminal)
    with voice:
        voice.start([])
        voice.phase("training")
        voice.update(ROW, [WARNING])
        text = without_colour(terminal.getvalue())
    for part in (
        "CartPole-v1 [seed 1]",
        "50 %",
        "0:01 left",
        "250,000",
        "212.3",
        "231,042   collect 38 % · learn 57 % · other 5 %",
        "training",
        "▲ clip fraction",
    ):
        assert part in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= 97


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 79, 100, 200])
def test_panel_has_whole_borders_at_any_width(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    voice = Console(500_000, title="a title that is far too long for a narrow terminal", stream=terminal)
    with voice:
        voice.start([])
        terminal.truncate(0)
        voice.update(ROW, [WARNING, WARNING])
    body = without_colour(terminal.getvalue()).partition("╰")[0]
    lines = re.split(r"[\r\n]+", body)
    assert len({len(line) for line in lines if line.startswith("│")}) == 1
    assert all(line.endswith("│") for line in lines if line.startswith("│"))


@pytest.mark.parametrize("columns", [50, 60, 79, 100, 200])
def test_the_split_is_whole_where_it_has_room_for_a_line(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        terminal.truncate(0)
        voice.update(ROW)
        text = without_colour(terminal.getvalue())
    (line,) = (line for line in text.splitlines() if "collect" in line)
    assert re.search(r" collect 38 % · learn 57 % · other 5 % +│$", line)
    assert ("steps/s" in line) == (columns >= 79)


class Rows:
    """The rows of a terminal that wraps what is written when it becomes narrower, as most of them do."""

    def __init__(self):
        self.rows, self.at, self.column = [""], 0, 0

    def write(self, text):
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.at, self.column = self.at + 1, 0
                self.rows += [""] * (self.at == len(self.rows))
            elif part.endswith("A"):
                self.at = max(0, self.at - int(part[2:-1]))
            elif part == "\x1b[J":
                self.rows[self.at :] = [self.rows[self.at][: self.column]]
            elif part == CLEAR_LINE:
                self.rows[self.at] = ""
            elif not part.startswith("\x1b"):
                row = self.rows[self.at].ljust(self.column)
                self.rows[self.at] = row[: self.column] + part + row[self.column + len(part) :]
                self.column += len(part)

    def narrow(self, columns):
        wrapped = [[row[i : i + columns] for i in range(0, max(1, len(row)), columns)] for row in self.rows]
        self.at = sum(map(len, wrapped[: self.at + 1])) - 1
        self.column = 0
        self.rows = [row for rows in wrapped for row in rows]


@pytest.mark.parametrize("widths", [(100, 60), (100, 40, 90, 31), (80, 200, 79), (60, 59, 58, 57)])
def test_a_panel_leaves_nothing_behind_when_the_terminal_is_resized(terminal, monkeypatch, clock, widths):
    rows = Rows()
    monkeypatch.setattr(terminal, "write", rows.write)
    monkeypatch.setenv("COLUMNS", str(widths[0]))
    with Console(500_000, title="title", stream=terminal) as voice:
        voice.start(["header"])
        for before, now in pairwise(widths):
            clock.seconds += 1
            voice.update(ROW, [WARNING])
            assert voice._screen is not None
            voice._screen.width = now
            if now < before:
                rows.narrow(now)
            clock.seconds += 1
            voice.update(ROW, [WARNING])
            header, *panel = (row for row in rows.rows if row.strip())
            assert header == "header"
            assert [row[0] for row in panel] == ["╭", *"│" * (len(panel) - 2), "╰"]
    assert [row for row in rows.rows if row.strip()] == ["header"]


def test_lights_stand_for_what_is_watched(terminal):
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        terminal.truncate(0)
        voice.update(ROW, [WARNING])
        text = without_colour(terminal.getvalue())
    for light in ("▲ clip fraction", "● approx KL", "● explained variance", "● entropy"):
        assert light in text
    assert text.count("▲") == 2  # the light, and the words


def test_memory_of_this_process():
    text = console._memory()
    assert re.fullmatch(r"\d+\.\d\d GB", text)
    assert 0.01 < float(text.split()[0]) < 20


def test_silent_says_nothing_at_all(terminal, capsys):
    voice = Console(1000, stream=terminal, silent=True)
    with voice:
        voice.start(["header"])
        voice.phase("training")
        voice.update(ROW, [WARNING])
        voice.message("warning: disk full")
        voice.summary(RESULT, [WARNING], "runs/x", ["next"])
    assert terminal.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_header_is_wrapped_between_words_in_a_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "runs/" + "x" * 60
    with Console(1000, stream=terminal) as voice:
        voice.start(["device        cpu (2 threads; no CUDA device found); eager", f"run folder    {path}"])
    lines = without_colour(terminal.getvalue()).splitlines()
    assert lines[:2] == ["device        cpu (2 threads; no CUDA", " " * 14 + "device found); eager"]
    assert any(line.endswith(path) for line in lines)


def test_panel_is_drawn_at_most_a_few_times_a_second(terminal, clock):
    voice = Console(500_000, stream=terminal)
    draws = 0
    with voice:
        voice.start([])
        for step in range(1000):
            clock.seconds = 1000.0 + step * 0.01  # ten seconds
            before = len(terminal.getvalue())
            voice.update({**ROW, "global_step": step})
            draws += len(terminal.getvalue()) > before
    assert 30 <= draws <= 10 * console.DRAWS_PER_SECOND + 1


def test_interrupted_panel_leaves_a_clean_screen(terminal):
    with pytest.raises(KeyboardInterrupt), Console(500_000, stream=terminal) as voice:
        voice.start([])
        voice.update(ROW)
        raise KeyboardInterrupt
    text = terminal.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    after_panel = text[text.rindex("╯") :]
    assert after_panel.count(CLEAR_LINE) >= 8  # every line of the panel is erased
    assert without_colour(after_panel).strip().splitlines()[-1].startswith("step=250000")


def test_messages_stand_above_the_panel(terminal):
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        voice.message("warning: [brackets] stay as they are")
        text = without_colour(terminal.getvalue())
    assert text.index("[brackets]") < text.rindex("╭")


def test_commands_in_the_summary_are_never_wrapped(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    command = "python -m ppo_fast.evaluate runs/" + "x" * 100
    Console(1, stream=terminal).summary({}, commands=[command])
    assert command in without_colour(terminal.getvalue())


def test_health_in_the_summary_is_wrapped_beside_its_label(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Console(1, stream=terminal).summary({}, [WARNING])
    assert max(len(line) for line in without_colour(terminal.getvalue()).splitlines()) <= 40


@pytest.mark.parametrize("reason", ["no terminal", "dumb terminal", "no UTF-8"])
def test_plain_lines_where_a_panel_cannot_be_shown(terminal, monkeypatch, reason):
    if reason == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    elif reason == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    else:
        terminal.encoding = "ascii"
    with Console(500_000, stream=terminal) as voice:
        voice.start(["a ± b"])
        voice.update(ROW)
    assert "\x1b" not in terminal.getvalue()
    assert "step=250000" in terminal.getvalue()


def test_text_that_the_stream_cannot_encode_is_replaced():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(1000, stream=stream).start(["gamma γ, ± 1"])
    assert stream.buffer.getvalue() == b"gamma ?, +- 1\n"


@pytest.mark.parametrize(("live", "error"), [(False, BrokenPipeError()), (True, OSError(5, "Input/output error"))])
def test_a_reader_that_has_gone_does_not_stop_training(terminal, monkeypatch, live, error):
    def gone(_):
        raise error

    monkeypatch.setattr(terminal, "isatty", lambda: live)
    with Console(1000, stream=terminal) as voice:
        voice.start(["header"])
        monkeypatch.setattr(terminal, "write", gone)
        voice.phase("training")
        voice.update(ROW)
        voice.message("hello")
        voice.summary(RESULT)


def test_a_pipe_closed_early_leaves_no_error_at_exit():
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


def test_update_costs_nothing_between_drawings(terminal):
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        voice.update(ROW)
        voice._next_draw = math.inf
        start = time.perf_counter()
        for _ in range(2000):
            voice.update(ROW)
        assert (time.perf_counter() - start) / 2000 < 30e-6


def test_the_curve_of_a_long_run_keeps_its_shape_in_little_memory(terminal):
    voice = Console(1, stream=terminal)
    for index in range(10_000):
        voice._remember_return(index / 100)
    assert len(voice._returns) < 200
    assert voice._returns == sorted(voice._returns)
    assert voice._returns[0] < 1.0 and voice._returns[-1] > 98.0


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, "no episode has ended yet"),
        ([3.0], 5, "▁"),
        ([1.0, 1.0, 1.0], 5, "▁▁▁"),
        ([0.0, 7.0], 5, "▁█"),
        (list(range(8)), 8, "▁▂▃▄▅▆▇█"),
        (list(range(16)), 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_sparkline(values, width, expected):
    assert console._sparkline(values, width) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00"), (4.4, "0:04"), (59.7, "1:00"), (750, "12:30"), (11100, "3:05:00"), (math.nan, "-:--"), (-3, "0:00")],
)
def test_duration(seconds, expected):
    assert console._duration(seconds) == expected
