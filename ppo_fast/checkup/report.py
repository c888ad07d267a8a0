"""A diagnosis in lines, and as plain data."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ppo_fast.checkup.examination import Diagnosis, Facts
from ppo_fast.checkup.findings import SEVERITIES, Finding
from ppo_fast.checkup.numbers import Figures
from ppo_fast.names import jsonable

ROWS = 12  # of numbers that are shown


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis in types of strict JSON, named tuples as objects."""
    found = {field.name: _plain(getattr(diagnosis, field.name)) for field in dataclasses.fields(diagnosis)}
    return jsonable({**found, "counts": counts(diagnosis)})


def _plain(value: Any) -> Any:
    """Dataclasses and named tuples as dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        return {name: _plain(item) for name, item in zip(fields, value, strict=True)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def counts(diagnosis: Diagnosis) -> dict[str, int]:
    """How many findings there are of each severity."""
    return {name: sum(finding.severity == name for finding in diagnosis.findings) for name in SEVERITIES}


def lines_of(diagnosis: Diagnosis) -> list[str]:
    """The whole diagnosis as a table."""
    limit = diagnosis.max_episode_steps
    said = [
        f"environment     {diagnosis.env_id}, max_episode_steps {limit if limit else 'none'}",
        f"backends        {', '.join(diagnosis.backends) or 'none'}; auto takes {diagnosis.auto or 'none'}",
    ]
    if diagnosis.training:
        said += ["", "what training sets where you name nothing", *(f"  {line}" for line in diagnosis.training)]
    for facts in diagnosis.facts:
        said += ["", facts.subject, *(f"  {name:<14}{text}" for name, text in _rows(facts)), *_numbers(facts)]
    if diagnosis.paces:
        said += ["", "steps per second with random actions, all environments together"]
    for pace in diagnosis.paces:
        reached = f"{pace.steps_per_second:>12,.0f}   made and reset in {pace.start_seconds:.2f} s"
        said.append(f"  {pace.backend:<14}{pace.num_envs:>3} environments {pace.problem or reached}")
    said += ["", *_findings(diagnosis)]
    said += [f"not looked at: {what}" for what in diagnosis.left_out]
    return said


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """Label and text of what is known of one form."""
    if facts.observation_space:
        yield "observations", facts.observation_space
        yield "actions", facts.action_space
    if facts.seen_observations and facts.seen_observations != facts.observation_space:
        yield "a policy sees", facts.seen_observations
    if facts.seen_actions and facts.seen_actions != facts.action_space:
        yield "and does", facts.seen_actions
    yield "action masks", facts.masks or "none"
    if facts.autoreset:
        yield "autoreset", facts.autoreset
    if facts.render_modes:
        yield "render modes", facts.render_modes
    x = facts.ends
    if x is not None:
        lengths = f"length {x.mean_length:.1f} ({x.min_length} to {x.max_length})"
        ends = f"terminated {x.terminated:.0%}, truncated {x.truncated:.0%}"
        yield "episodes", f"{x.episodes} in {x.steps:,} steps, {lengths}, {ends}"
    elif facts.steps:
        yield "episodes", f"none ended in {facts.steps:,} steps"
    if facts.reward is not None:
        yield "reward", f"{_figures(facts.reward)}, {facts.reward.zeros:.0%} zeros"
    if facts.seconds is not None:
        s = facts.seconds
        yield "a step", f"{_time(s.median_step)}, the longest {_time(s.longest_step)}"
        yield "a reset", f"{_time(s.median_reset)}, the longest {_time(s.longest_reset)}"


def _numbers(facts: Facts) -> list[str]:
    """A row for each number of the observation, the first ones."""
    rows = [f"  {name:<14}{_figures(figures)}" for name, figures in list(facts.numbers.items())[:ROWS]]
    more = len(facts.numbers) - len(rows)
    return [*rows, f"  and {more} more (--json shows all)"] if more > 0 else rows


def _figures(x: Figures) -> str:
    return f"mean {x.mean:.4g}, deviation {x.std:.3g}, {x.min:.4g} to {x.max:.4g}"


def _time(seconds: float) -> str:
    """A duration with a unit that fits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _findings(diagnosis: Diagnosis) -> list[str]:
    """The findings, the worst first, and how many there are."""
    said: list[str] = []
    for severity in SEVERITIES:
        for finding in diagnosis.findings:
            if finding.severity == severity:
                said += _finding(finding)
    number = counts(diagnosis)
    total = ", ".join(f"{number[name]} {name}{'s' if number[name] != 1 else ''}" for name in SEVERITIES)
    return [*said, f"in all          {total}"]


def _finding(finding: Finding) -> list[str]:
    lines = [f"{finding.severity:<8}{finding.key}: {finding.where}: {finding.what}"]
    if finding.advice:
        lines.append(f"        -> {finding.advice}")
    return [*lines, *(f"        | {line}" for line in finding.trace.splitlines())]
