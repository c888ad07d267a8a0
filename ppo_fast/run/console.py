"""What a run says while it trains and when it has ended: a live panel in a terminal, plain lines anywhere else.

    with Console(total_steps, title="CartPole-v1, seed 1") as console:
        console.start(["environment  CartPole-v1 (tensor)", "device       cpu"])
        console.update(row, advice)            # as often as you like: it draws at most DRAWS_PER_SECOND times a second
        console.summary(result, advice, run_folder, next_commands)

Plain lines are ASCII `name=value` pairs, which `grep`, `awk` and log files can read.
"""

import math
import os
import sys
import textwrap
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Self, TextIO

DRAWS_PER_SECOND = 4.0  # a drawing costs about 1 ms in the training thread
SECONDS_BETWEEN_LINES, PANEL_WIDTH = 2.0, 100
RECENT_ROWS = 10  # return and length are means over the last ten rows in which an episode ended
SPARKS = "▁▂▃▄▅▆▇█"
# Readable on light and on dark terminals and apart from each other without colour vision; the sign says it once more.
COLOURS = {"ok": "#0a84c6", "warn": "#d55e00", "stop": "bold #d55e00"}
SIGNS = {"ok": "●", "warn": "▲", "stop": "✖"}
# Name in a plain line, name in the panel, column, number format.
LOSSES = (
    ("policy_loss", "policy loss", "losses/policy_loss", ".4f"),
    ("value_loss", "value loss", "losses/value_loss", ".4g"),
    ("entropy", "entropy", "losses/entropy", ".3f"),
    ("approx_kl", "approx KL", "losses/approx_kl", ".4f"),
    ("clipfrac", "clip fraction", "losses/clipfrac", ".3f"),
    ("explained_variance", "expl. variance", "losses/explained_variance", ".3f"),
)
LIGHTS = ("clip_fraction", "approx_kl", "explained_variance", "entropy")  # keys of the advice that has a light
LABEL_WIDTH = 12  # of the summary
Advice = Any  # has a key, a severity ("warn" or "stop") and a text


class Console:
    """The voice of one run.

    Args:
        total_steps: environment steps of the whole run, all environments together.
        quiet: say nothing but warnings (to stderr) and one line at the end.
        title: what runs, shown above the panel's border.
        stream: where to write, stdout by default. It gets the live panel if it is a terminal that can show one.
        silent: say nothing at all, as every rank of a distributed run but the first.
    """

    def __init__(
        self,
        total_steps: int,
        quiet: bool = False,
        title: str = "ppo_fast",
        stream: TextIO | None = None,
        silent: bool = False,
    ) -> None:
        self.total_steps = total_steps
        self.quiet, self.silent, self.title = quiet or silent, silent, title
        self._stream = sys.stdout if stream is None else stream
        self._live = self._screen = None
        if not self.quiet and _can_draw(self._stream):
            from rich.console import Console as RichConsole

            self._screen = RichConsole(file=self._stream)
        self._shape = (0, 0)  # columns and rows of the panel as it was last drawn
        self._interval = SECONDS_BETWEEN_LINES if self._screen is None else 1.0 / DRAWS_PER_SECOND
        self._next_draw, self._phase = 0.0, "starting"
        self._row: Mapping[str, Any] = {}
        self._advice: Sequence[Advice] = ()
        self._drawn, self._said = True, set[str]()
        self._spent = [0.0, 0.0, 0.0]  # seconds in collect, in learn and in all, of the rows that say it
        self._episodes = deque[tuple[float, float]](maxlen=RECENT_ROWS)
        self._returns, self._pending, self._drawings_per_point = list[float](), list[float](), 1

    def start(self, lines: Sequence[str]) -> None:
        """Print the header and open the live panel."""
        if self.quiet:
            return
        for part in (part for line in lines for part in self._wrapped(line, 0, 14)):
            self._print(part)
        if self._screen is not None:
            from rich.live import Live

            # Drawn by update() alone: a second thread would take the interpreter lock in the middle of an iteration.
            self._live = Live(self._panel(), console=self._screen, auto_refresh=False, transient=True)
            self._live.start(refresh=True)

    def phase(self, name: str) -> None:
        """Say at once what goes on now ("compiling", "training", "evaluating")."""
        if self._live is not None:
            self._phase = name
            self._refresh()
        elif not self.quiet:
            if not self._drawn:
                self._draw()
            self._print(f"{name} ...")

    def update(self, row: Mapping[str, Any], advice: Sequence[Advice] = (), draw: bool = True) -> None:
        """Take in the newest row of metrics, and `draw` it where it is time to; else this takes a microsecond."""
        if "time/collect" in row:  # an older run's rows, which a resumed one goes on with, lack it
            elapsed = row["time/elapsed"] - self._row.get("time/elapsed", 0.0)
            took = (row["time/collect"], row["time/learn"], elapsed)
            self._spent = [sum(pair) for pair in zip(self._spent, took, strict=True)]
        self._row, self._advice, self._drawn = row, advice, False
        episodic_return = row.get("charts/episodic_return")
        if episodic_return is not None and episodic_return == episodic_return:  # NaN: no episode ended
            self._episodes.append((episodic_return, _number(row.get("charts/episodic_length"))))
        now = time.perf_counter()
        if now < self._next_draw or self.quiet or not draw:
            return
        self._draw()
        self._next_draw = time.perf_counter() + self._interval

    def message(self, text: str) -> None:
        """Print a line of its own, above the live panel. In quiet mode warnings alone come through, on stderr."""
        if not self.quiet:
            self._print(text)
        elif text.startswith(("warning", "error")) and not self.silent:
            print(text, file=sys.stderr, flush=True)

    def summary(
        self,
        result: Mapping[str, Any],
        advice: Sequence[Advice] = (),
        folder: str | os.PathLike[str] = "",
        commands: Sequence[str] = (),
        measured: Sequence[str] = (),
    ) -> None:
        """Close the live panel and print how the run ended.

        Args:
            result: what result.json holds; what is absent is left out.
            advice: what the diagnostics say of the run; none means that all is well.
            folder: of the run.
            commands: what the user may type next.
            measured: lines of the speed report.
        """
        if self.quiet:
            mean, std = (_show(result.get(f"eval/{name}_return"), ".2f") for name in ("mean", "std"))
            self._print(f"return={mean} std={std} sps={_show(result.get('sps'), '.0f')} folder={os.fspath(folder)}")
            return
        if not self._drawn and self._screen is None:
            self._draw()
        self.close()
        self._print("")
        findings = [(f"{SIGNS[item.severity]} {item.text}", COLOURS[item.severity]) for item in advice]
        findings = findings or [(f"{SIGNS['ok']} no advice", COLOURS["ok"])]
        lines = [(label, text, "") for label, text in _summary_lines(result, folder)]
        lines += [("measured", text, "") for text in measured]
        lines += [("health", part, colour) for text, colour in findings for part in self._wrapped(text)]
        lines += [("next", command, "") for command in commands]
        for (above, *_), (label, text, colour) in pairwise([("", "", ""), *lines]):
            self._print(f"{'' if label == above else label:<{LABEL_WIDTH}}{text}", label, colour)

    def close(self) -> None:
        """Take the live panel away and give the terminal its cursor back. May be called again."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        was_live = self._live is not None
        self.close()
        if kind is not None and self._row and was_live:
            self._print(self._plain_line())  # the panel is gone: say where the run stood

    def _draw(self) -> None:
        self._drawn, self._phase = True, "training"  # what rows come from
        if self._live is not None:
            self._refresh()
            return
        self._print(self._plain_line())
        for item in self._advice:
            if item.key not in self._said:
                self._print(f"health: {item.text}")
        self._said |= {item.key for item in self._advice}

    def _print(self, text: str, label: str = "", style: str = "") -> None:
        """One line, never wrapped, so that commands and paths can be copied. `label` is bold, the rest in `style`."""
        if self.silent:
            return
        try:
            if self._screen is not None:
                from rich.text import Text

                line = Text(text)
                line.stylize("bold", 0, len(label))
                line.stylize(style, LABEL_WIDTH, None)
                self._screen.print(line, soft_wrap=True)
                return
            encoding = self._stream.encoding or "ascii"
            self._stream.write(_plain(text).encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except OSError:
            self.quiet = True  # the reader has gone (`| head`, a lost connection), the training has not

    def _refresh(self) -> None:
        assert self._live is not None
        try:
            self._unwrap()
            self._live.update(self._panel(), refresh=True)
        except OSError:
            self.quiet = True

    def _unwrap(self) -> None:
        """Erase what a terminal that became narrower has wrapped into more lines than rich would erase."""
        columns, rows = self._shape
        lines = rows * -(-columns // self._screen.width)  # pyright: ignore[reportOptionalMemberAccess]
        if lines > rows:  # and end up where rich takes the panel's end to be
            self._stream.write(f"\r\x1b[{lines - 1}A\x1b[J" + "\n" * (rows - 1))

    def _wrapped(self, text: str, beside: int = LABEL_WIDTH, indent: int = 2) -> list[str]:
        """`text` in the lines that fit beside a label in this terminal; one line where there is no terminal."""
        if self._screen is None:
            return [text]
        width = max(20, min(PANEL_WIDTH, self._screen.width) - beside)
        return textwrap.TextWrapper(width, "", " " * indent, break_on_hyphens=False, break_long_words=False).wrap(text)

    def _recent(self, which: int) -> float:
        """Mean return (0) or length (1) of recent episodes; NaN before the first has ended."""
        values = [pair[which] for pair in self._episodes]
        return sum(values) / len(values) if values else math.nan

    def _percent(self) -> float:
        return min(100.0, 100.0 * self._row.get("global_step", 0) / max(1, self.total_steps))

    def _seconds_left(self) -> float:
        sps = _number(self._row.get("charts/SPS"))
        return (self.total_steps - self._row.get("global_step", 0)) / sps if sps > 0 else math.nan

    def _split(self) -> dict[str, int]:
        """Percent of the time that steps/s counts, where known. Other: logging, checkpoints, waiting for a GPU."""
        collect, learn, total = self._spent
        if not total:
            return {}
        first, both = round(100 * collect / total), round(100 * (collect + learn) / total)
        return {"collect": first, "learn": both - first, "other": 100 - both}

    def _plain_line(self) -> str:
        row = self._row
        parts = [
            f"step={row.get('global_step', 0)} percent={self._percent():.1f} sps={_show(row.get('charts/SPS'), '.0f')}",
            *(f"{name}={share}%" for name, share in self._split().items()),
            f"return={_show(self._recent(0), '.2f')} length={_show(self._recent(1), '.1f')}",
            f"left={_duration(self._seconds_left())}",
        ]
        return " ".join(parts + [f"{name}={_show(row.get(column), form)}" for name, _, column, form in LOSSES])

    def _panel(self) -> Any:
        """The live panel for the newest row."""
        from rich.panel import Panel
        from rich.text import Text

        assert self._screen is not None
        # Three columns stay free: the terminal's own "^C" would otherwise begin a line that nothing erases.
        width = max(20, min(PANEL_WIDTH, self._screen.width - 3) - 4)
        self._remember_return(self._recent(0))
        label = f" {self._percent():3.0f} %   {_duration(self._seconds_left())} left"
        length = max(0, width - len(label))
        done, body = round(length * self._percent() / 100), Text(no_wrap=True, overflow="ellipsis")
        body.append("━" * done, COLOURS["ok"]).append("━" * (length - done), "dim").append(label + "\n\n")
        columns = 3 if width >= 75 else 2 if width >= 50 else 1
        for index, (name, value) in enumerate(self._facts()):
            body.append(f"{name:<15}", "dim").append(value.ljust(width // columns - 15), "bold")
            body.append("\n" if index % columns == columns - 1 else "")
        body.append("\n" if body.plain[-1] != "\n" else "")
        speed, split = _show(self._row.get("charts/SPS"), ",.0f"), self._split().items()
        shares = " · ".join(f"{name} {share} %" for name, share in split)
        gap = "   " if 18 + len(speed + shares) <= width else "\n" + " " * max(0, min(15, width - len(shares)))
        body.append(f"{'steps/s':<15}", "dim").append(speed, "bold").append(gap + shares + "\n")
        body.append(f"{'return so far':<15}", "dim").append(_sparkline(self._returns, width - 15), COLOURS["ok"])
        body.append("\n\n").append_text(self._health(width))
        self._shape = (width + 4, min(body.plain.count("\n") + 3, self._screen.height))
        return Panel(body, title=Text(self.title), title_align="left", border_style="dim", width=width + 4)

    def _health(self, width: int) -> Any:
        """A light for each condition that is watched, and the advice in words."""
        from rich.text import Text

        severities, text = {item.key: item.severity for item in self._advice}, Text()
        columns = 4 if width >= 75 else 2 if width >= 50 else 1
        for index, key in enumerate(LIGHTS):
            severity, end = severities.get(key, "ok"), "\n" if index % columns == columns - 1 else ""
            text.append(SIGNS[severity], COLOURS[severity])
            text.append(f" {key.replace('_', ' ').replace('kl', 'KL')}".ljust(width // columns - 1) + end)
        for item in self._advice:
            for line in self._wrapped(f"{SIGNS[item.severity]} {item.text}", 7):
                text.append(line + "\n", COLOURS[item.severity])
        text.right_crop(1)
        return text

    def _facts(self) -> list[tuple[str, str]]:
        """The named figures of the panel, in rows of three, two or one."""
        row = self._row
        return [
            ("step", f"{row.get('global_step', 0):,}"),
            ("of", f"{self.total_steps:,}"),
            ("phase", self._phase),
            ("return", _show(self._recent(0), ".2f")),
            ("length", _show(self._recent(1), ".1f")),
            ("training for", _duration(_number(row.get("time/elapsed")))),
            ("learning rate", _show(row.get("charts/learning_rate"), ".2e")),
            ("memory", _memory()),
            *((name, _show(row.get(column), form)) for _, name, column, form in LOSSES),
        ]

    def _remember_return(self, value: float) -> None:
        """Keep the curve of the whole run in under 200 points, each the mean of equally many drawings."""
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) < self._drawings_per_point:
            return
        self._returns.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self._returns) >= 200:
            pairs = zip(self._returns[::2], self._returns[1::2], strict=True)
            self._returns = [(first + second) / 2 for first, second in pairs]
            self._drawings_per_point *= 2


def _can_draw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that moves its cursor and shows the signs the panel is made of."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    return stream.isatty() and encoding.startswith("utf") and os.environ.get("TERM", "dumb") != "dumb"


def _memory() -> str:
    """What this process holds, on the host and, where CUDA is in use, on the GPU; "-" where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return "-"
    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.memory_reserved() if torch is not None and torch.cuda.is_initialized() else 0
    return f"{held / 1e9:.2f} GB" + (f" + {on_gpu / 1e9:.2f} GPU" if on_gpu else "")


def _sparkline(values: Sequence[float], width: int) -> str:
    """`values` as one line of blocks from their lowest to their highest; means of neighbours where they don't fit."""
    if not values:
        return "no episode has ended yet"
    count = max(1, min(width, len(values)))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def _summary_lines(result: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
    lines, episodes = [], result.get("eval/episodes")
    for kind, prefix in (("greedy", "eval/"), ("sampled", "eval/sampled_")):
        mean, std = result.get(f"{prefix}mean_return"), result.get(f"{prefix}std_return")
        if mean is not None:
            over = f"  over {episodes} episodes" if episodes else ""
            lines.append(("evaluation", f"{kind:<9}{_show(mean, '.2f')} ± {_show(std, '.2f')}{over}"))
    if "stopped" in result:
        lines.append(("stopped", f"{result['stopped']}, at step {result.get('global_step', 0):,}; the run is saved"))
    if "sps" in result:
        lines.append(("speed", f"{_show(result['sps'], ',.0f')} steps/s, {result.get('global_step', 0):,} steps"))
    if seconds := result.get("seconds"):
        parts = [f"{name} {_show(value, '.1f')}" for name, value in seconds.items()]
        lines.append(("seconds", "   ".join([*parts, f"total {sum(map(_number, seconds.values())):.1f}"])))
    if folder:
        lines.append(("run folder", os.fspath(folder)))
    return lines


def _plain(text: str) -> str:
    """`text` for a log file: the signs that ASCII lacks, written in ASCII."""
    return text.replace("±", "+-").replace("● ", "").replace("▲ ", "! ").replace("✖ ", "!! ")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _show(value: Any, form: str) -> str:
    """`value` in the number format `form`, "-" where there is none."""
    number = _number(value)
    return "-" if math.isnan(number) else format(number, form)


def _duration(seconds: float) -> str:
    """Seconds as 0:04, 12:30 or 3:05:00; "-:--" when unknown."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
