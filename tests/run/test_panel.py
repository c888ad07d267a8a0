"""The live panel: what it shows, at any width, and that it leaves a clean screen."""

import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
from rich.live import Live
from screens import CLEAR_LINE, HIDE_CURSOR, RESULT, ROW, SHOW_CURSOR, WARNING, Rows, Terminal, without_colour

from ppo_fast.run import panel
from ppo_fast.run.console import Console
from ppo_fast.run.panel import LivePanel, Screen


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    return Terminal()


def shown(terminal: Terminal) -> str:
    """What one row with a warning looks like."""
    with Console(500_000, title="CartPole-v1 [seed 1]", stream=terminal) as voice:
        voice.start([])
        terminal.clear()
        voice.update(ROW, [WARNING])
        return without_colour(terminal.getvalue())


def test_a_panel_shows_the_row_and_fits(terminal: Terminal) -> None:
    text = shown(terminal)
    for part in (
        "CartPole-v1 [seed 1]",
        "50 %",
        "0:01 left",
        "250,000",
        "212.3",
        "231,042   collect 38 % · learn 57 % · other 5 %",
        "training",
        "▲ clip fraction 0.37",
    ):
        assert part in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= 97


def test_lights_stand_for_what_is_watched(terminal: Terminal) -> None:
    text = shown(terminal)
    for light in ("▲ clip fraction", "● approx KL", "● explained variance", "● entropy"):
        assert light in text
    assert text.count("▲") == 2  # the light, and the words


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 79, 100, 200])
def test_a_panel_has_whole_borders_at_any_width(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = re.split(r"[\r\n]+", shown(terminal).partition("╰")[0])
    assert len({len(line) for line in lines if line.startswith("│")}) == 1
    assert all(line.endswith("│") for line in lines if line.startswith("│"))


@pytest.mark.parametrize("columns", [50, 60, 79, 100, 200])
def test_the_shares_are_whole_where_they_have_room_for_a_line(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    (line,) = (line for line in shown(terminal).splitlines() if "collect" in line)
    assert re.search(r" collect 38 % · learn 57 % · other 5 % +│$", line)
    assert ("steps/s" in line) == (columns >= 79)


def test_the_first_row_ends_the_phase_before_it(terminal: Terminal) -> None:
    with Console(1000, stream=terminal) as voice:
        for show, phase in ((lambda: voice.phase("compiling"), "compiling"), (lambda: voice.update(ROW), "training")):
            voice.start([])
            terminal.clear()
            show()
            assert re.search(rf"phase +{phase} ", without_colour(terminal.getvalue()))
            voice.printer.close()


@pytest.mark.parametrize("widths", [(100, 60), (100, 40, 90, 31), (80, 200, 79), (60, 59, 58, 57)])
def test_a_panel_leaves_nothing_behind_when_the_terminal_is_resized(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, widths: tuple[int, ...]
) -> None:
    rows = Rows()
    monkeypatch.setattr(terminal, "write", rows.write)
    monkeypatch.setenv("COLUMNS", str(widths[0]))
    with Console(500_000, title="title", stream=terminal) as voice:
        assert isinstance(voice.printer, LivePanel)
        voice.start(["header"])
        for before, now in pairwise(widths):
            clock.seconds += 1
            voice.update(ROW, [WARNING])
            voice.printer.screen.width = now
            if now < before:
                rows.narrow(now)
            clock.seconds += 1
            voice.update(ROW, [WARNING])
            header, *drawn = (row for row in rows.rows if row.strip())
            assert header == "header"
            assert [row[0] for row in drawn] == ["╭", *"│" * (len(drawn) - 2), "╰"]
    assert [row for row in rows.rows if row.strip()] == ["header"]


def test_a_panel_is_drawn_at_most_a_few_times_a_second(terminal: Terminal, clock: SimpleNamespace) -> None:
    draws = 0
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        for step in range(1000):
            clock.seconds = 1000.0 + step * 0.01  # ten seconds
            before = len(terminal.getvalue())
            voice.update({**ROW, "global_step": step})
            draws += len(terminal.getvalue()) > before
    assert 30 <= draws <= 10 * panel.DRAWS_PER_SECOND + 1


def test_an_interrupted_panel_leaves_a_clean_screen(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), Console(500_000, stream=terminal) as voice:
        voice.start([])
        voice.update(ROW)
        raise KeyboardInterrupt
    text = terminal.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    after_panel = text[text.rindex("╯") :]
    assert after_panel.count(CLEAR_LINE) >= 8  # every line of the panel is erased
    assert without_colour(after_panel).strip().splitlines()[-1].startswith("step=250000")


@pytest.mark.parametrize("part", ["start", "stop", "refresh", "clear_live", "pop_render_hook"])
def test_an_interrupt_while_the_panel_opens_or_closes_leaves_the_cursor(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A second Ctrl-C comes at any moment."""
    owner: type = Live if part in ("start", "stop", "refresh") else Screen
    original = getattr(owner, part)

    def interrupted(*args: object, **kwargs: object) -> None:
        if part == "start":
            original(*args, **kwargs)
        if HIDE_CURSOR in terminal.getvalue():
            raise KeyboardInterrupt
        original(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt), Console(500_000, stream=terminal) as voice:
        voice.start([])
        monkeypatch.setattr(owner, part, interrupted)
        if part == "start":
            voice.printer.close()
            voice.start([])
    text = terminal.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)


def test_messages_stand_above_the_panel(terminal: Terminal) -> None:
    with Console(500_000, stream=terminal) as voice:
        voice.start([])
        voice.message("warning: [brackets] stay as they are")
        text = without_colour(terminal.getvalue())
    assert text.index("[brackets]") < text.rindex("╭")


def test_a_header_is_wrapped_between_words(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "runs/" + "x" * 60
    with Console(1000, stream=terminal) as voice:
        voice.start(["device        cpu (2 threads; no CUDA device found); eager", f"run folder    {path}"])
    lines = without_colour(terminal.getvalue()).splitlines()
    assert lines[:2] == ["device        cpu (2 threads; no CUDA", " " * 14 + "device found); eager"]
    assert any(line.endswith(path) for line in lines)


def test_a_summary_wraps_advice_and_never_a_command(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = "python -m ppo_fast.evaluate runs/" + "x" * 100
    Console(1, stream=terminal).summary(RESULT, [WARNING], commands=[command])
    lines = without_colour(terminal.getvalue()).splitlines()
    advice = next(index for index, line in enumerate(lines) if line.startswith("health"))
    assert lines[advice:] == [
        "health      ▲ clip fraction 0.37 (>",
        "              0.2): lower --clip-coef",
        f"next        {command}",
    ]


def test_memory_of_this_process() -> None:
    text = panel.memory_in_use()
    assert re.fullmatch(r"\d+\.\d\d GB", text)
    assert 0.01 < float(text.split()[0]) < 20
