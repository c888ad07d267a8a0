"""How a run ended, as the lines that are printed below it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppo_fast import names
from ppo_fast.run.figures import number, show
from ppo_fast.run.health import Advice


class Ending(NamedTuple):
    """What there is to say when a run has ended."""

    result: Mapping[str, Any]  # what result.json holds; what is absent is left out
    advice: Sequence[Advice] = ()  # of the diagnostics; none means that all is well
    folder: str | os.PathLike[str] = ""  # of the run
    commands: Sequence[str] = ()  # what the user may type next
    measured: Sequence[str] = ()  # lines of the speed report


class Line(NamedTuple):
    """One line: its label, "" where that is the same as above, and its text."""

    label: str
    text: str
    severity: str = ""  # of advice: "ok", "warn" or "stop"


def lines_of(ending: Ending) -> list[Line]:
    """The whole summary: evaluation, speed, time, folder, diagnostics, what to do next."""
    lines = _result_lines(ending.result)
    if ending.folder:
        lines.append(Line("run folder", os.fspath(ending.folder)))
    lines += [Line("measured", text) for text in ending.measured]
    lines += [Line("health", item.text, item.severity) for item in ending.advice]
    if not ending.advice:
        lines.append(Line("health", "no advice", "ok"))
    lines += [Line("next", command) for command in ending.commands]
    return _each_label_once(lines)


def one_line_of(ending: Ending) -> str:
    """The summary for --quiet, as `name=value` pairs."""
    result = ending.result
    mean = show(result.get(names.MEAN_RETURN), ".2f")
    std = show(result.get(names.STD_RETURN), ".2f")
    sps = show(result.get("sps"), ".0f")
    return f"return={mean} std={std} sps={sps} folder={os.fspath(ending.folder)}"


def _result_lines(result: Mapping[str, Any]) -> list[Line]:
    lines: list[Line] = []
    steps = f"{result.get(names.GLOBAL_STEP, 0):,}"
    episodes = result.get(names.EPISODES)
    over = f"  over {episodes} episodes" if episodes else ""
    greedy = (names.MEAN_RETURN, names.STD_RETURN)
    sampled = (names.SAMPLED_MEAN_RETURN, names.SAMPLED_STD_RETURN)
    for kind, (mean, std) in {"greedy": greedy, "sampled": sampled}.items():
        if result.get(mean) is not None:
            figures = f"{show(result[mean], '.2f')} ± {show(result.get(std), '.2f')}"
            lines.append(Line("evaluation", f"{kind:<9}{figures}{over}"))
    if "best_policy" in result:
        best = f"{show(result['best_mean_return'], '.2f')} at step {result['best_step']:,}"
        lines.append(Line("best", f"{best}: {result['best_policy']}"))
    if "stopped" in result:
        saved = "the run is saved" if "not_saved" not in result else "NOT saved"
        lines.append(Line("stopped", f"{result['stopped']}, at step {steps}; {saved}"))
    if "sps" in result:
        lines.append(Line("speed", f"{show(result['sps'], ',.0f')} steps/s, {steps} steps"))
    seconds = result.get("seconds")
    if seconds:
        parts = [f"{name} {show(value, '.1f')}" for name, value in seconds.items()]
        parts.append(f"total {sum(number(value) for value in seconds.values()):.1f}")
        lines.append(Line("seconds", "   ".join(parts)))
    return lines


def _each_label_once(lines: Sequence[Line]) -> list[Line]:
    above = ""
    result = []
    for line in lines:
        result.append(line._replace(label="") if line.label == above else line)
        above = line.label
    return result
