"""The fast path beside the eager one, from the same state and the same noise: how far do they part, and may they?

Both paths are objects with `collect()`, `learn() -> metrics`, `state` (every tensor they change in place, by name) and
`generators`. Each update starts both from the eager one's state, so a deviation is that of one update, never a sum.
Letters: T steps, N envs.

What rounding may do, and so how each figure is judged:

- A rollout may part by a few roundings a step, and a step may enlarge what it was given: each row is judged by what
  it deviates beyond GROWTH times the deviation of the observations before it. So a chaotic environment passes, and a
  reward that is wrong by 1e-4 in a first step does not.
- An action is drawn by comparing a uniform number with cumulative probabilities, an episode ends at a threshold: a
  difference of one rounding flips one now and then, about once in 1e6 rows. The rows of that environment part there
  and are left out from there on; the flips are counted and judged by their number.
- An update is a chain of Adam steps. Adam divides a gradient by its own size, and a row at the edge of PPO's clip
  counts or not: a rounding may move some parameters by a visible part of the learning rate, in about one of 30
  updates of CartPole. No constant bounds that, so the eager path is also run against itself, from parameters moved by
  one rounding, and the fast path may deviate FACTOR times as much. The middle of all updates is judged strictly, the
  worst one loosely: a systematic fault shows in the middle. Three updates or more make one unlucky row harmless.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

# Measured on 5 environments, 6 seeds, 10 updates each, in roundings of float32: a rollout's columns part by at most 13
# beyond GROWTH times their input's deviation, parameters and metrics in the middle update by 5 to 40; in the worst of
# 60 updates of 128 large Adam steps, parameters by 7 % of the distance moved and metrics by 0.4 %. With bf16
# products that is 2 % in the middle update and 9 % in the worst one.
GROWTH = 16.0
STEP = 64  # roundings that one step of policy and environment may add, or a sum over an episode
FLIP, SLOPE = 16, 4.0  # probability that a row flips: in roundings, and per deviation of its observation
CHANCE = 3  # flips that are always allowed
MIDDLE, MOST = 400, 0.05  # roundings that the middle update may deviate by, and no more than this share
WORST, WORST_METRIC = 0.2, 0.05  # share that the worst update may deviate by, STEP roundings more
FACTOR = 4.0  # how much more than the eager path from itself
SCALE = 0.01  # metrics below this are judged as if they were this large
STEADY = ("value", "advantage", "returns", "carry_return", "carry_length", "step")  # of no chain of Adam steps


@dataclass
class Figure:
    """One line of the table: the deviation in each update, and what is allowed in the middle and the worst one."""

    name: str
    middle: float
    worst: float
    why: str
    deviations: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)

    def seen(self) -> tuple[float, float]:
        """The deviation in the middle update (the lower one of two) and in the worst one."""
        return statistics.median_low(self.deviations), max(self.deviations, key=_nan_is_most)

    def allowed(self) -> tuple[float, float]:
        """The tolerances, raised to FACTOR times what the eager path deviates from itself."""
        if not self.references:
            return self.middle, self.worst
        middle, worst = statistics.median_high(self.references), max(self.references)
        return max(self.middle, FACTOR * middle), max(self.worst, min(FACTOR * worst, 1.0))

    def holds(self) -> bool:
        """Whether both are within tolerance; NaN never is."""
        return all(seen <= allowed for seen, allowed in zip(self.seen(), self.allowed(), strict=True))


def compare(
    fast: Any,
    eager: Any,
    updates: int,
    say: Callable[[str], None],
    names: Sequence[str] = (),
    rounding: float = 2.0**-24,
) -> bool:
    """Run `updates` iterations of both paths and print a table of how far they part; False when that is too far.

    Both are left where the eager path stands in the end. Environments whose state is not among `eager.state` (host
    environments) must stand at the same point of the same episodes; after a flipped action they no longer do, and from
    there on the updates alone are compared.

    Args:
        fast, eager: the two paths, see the module.
        say: takes a line of the table.
        names: of the metrics that `learn` returns.
        rounding: relative error of one rounding of the fast path: 2^-24 for float32, 2^-11 for tf32, 2^-9 for bf16.
    """
    figures: dict[str, Figure] = {}
    flips = expected = rows = 0.0
    copied = any(name.startswith("env") for name in eager.state)
    lockstep = True
    for update in range(updates):
        start = _saved(eager)
        _restore(fast, start)
        if lockstep:
            fast.collect()
        eager.collect()
        if lockstep:
            deviations, flipped, likely, count = collected(fast.state, eager.state, rounding)
            flips, expected, rows = flips + flipped, expected + likely, rows + count
            _book(figures, deviations, {}, STEP * rounding, STEP * rounding, "rounding of one step of policy and env")
            lockstep = copied or not flipped
        _learn_both(figures, fast, eager, update, names, rounding)
    _restore(fast, _saved(eager))
    table = list(figures.values())
    if rows:
        most = (CHANCE + expected) / rows
        table.insert(0, Figure("flips, share of rows", most, most, "draws and thresholds within a rounding"))
        table[0].deviations.append(flips / rows)
    for line in lines(table, updates):
        say(line)
    if not lockstep:
        say("an action flipped: the environments went apart, and from there on only the updates were compared")
    return all(figure.holds() for figure in table)


def collected(fast: State, eager: State, rounding: float) -> tuple[dict[str, float], float, float, float]:
    """How far two rollouts from the same start part.

    Returns:
        The largest deviation by name beyond GROWTH times the one before it, relative to 1 + |x|; how many rows flipped,
        counting the first one of each environment; how many were likely to; and how many rows were compared.
    """
    names = [name for name in eager if name.startswith("rollout.")]
    discrete = [name for name in names if not eager[name].is_floating_point()]
    flip = torch.stack([_per_row(fast[name] != eager[name]).bool() for name in discrete]).any(0)  # (T, N)
    flips = flip.long().cumsum(0)
    agreeing, reached = flips == 0, flips - flip.long() == 0

    given = torch.where(reached, deviation(fast["rollout.obs"], eager["rollout.obs"]), 0.0)
    drift = given.cummax(0).values  # all that a row can have inherited
    before = torch.cat([torch.zeros_like(drift[:1]), drift[:-1]])
    found = {"obs": (given - GROWTH * before).max()}
    for name in names:
        if name not in discrete and name != "rollout.obs":
            beyond = deviation(fast[name], eager[name]) - GROWTH * drift
            found[name.removeprefix("rollout.")] = torch.where(agreeing, beyond, 0.0).max()
    for name in eager:
        if name == "obs" or name.startswith("env"):
            beyond = deviation(fast[name][None], eager[name][None])[0] - GROWTH * drift[-1]
            found[f"next {name}"] = torch.where(agreeing[-1], beyond, 0.0).max()
    likely = (FLIP * rounding + SLOPE * drift).clamp(max=1.0)[reached].sum()
    deviations = {name: max(x.item(), 0.0) if x == x else x.item() for name, x in found.items()}
    return deviations, (flip & reached).sum().item(), likely.item(), reached.sum().item()


def deviation(a: Tensor, b: Tensor) -> Tensor:
    """The largest |a - b| / (1 + |b|) of each row, (T, N, ...) -> (T, N); infinite where either is NaN."""
    a, b = a.double(), b.double()
    return _per_row(((a - b).abs() / (1 + b.abs())).nan_to_num(nan=torch.inf))


def learned(fast: State, eager: State, before: Tensor, fast_metrics: Tensor, eager_metrics: Tensor) -> dict[str, float]:
    """How far two updates from the same start part, by name; metric i is named by i.

    Parameters relative to the distance that the eager path moved them (and 1e-4 of their length, so that a learner at
    rest divides by something), Adam's second moment, which shows a gradient of the wrong size where Adam hides it,
    relative to its length, metrics relative to their size. A metric that is NaN in both is undefined there and counts
    as equal; parameters never may be.
    """
    theta, moved = eager["theta"].double(), (eager["theta"].double() - before.double()).norm()
    found = {"parameters": (fast["theta"].double() - theta).norm() / (moved + 1e-4 * theta.norm())}
    moment = eager["moment2"].double()
    found["Adam's second moment"] = (fast["moment2"].double() - moment).norm() / (moment.norm() + 1e-12)
    for name in STEADY:
        if name in eager:
            found[name] = deviation(fast[name].reshape(1, -1), eager[name].reshape(1, -1)).max()
    parted = (fast_metrics - eager_metrics).abs() / (eager_metrics.abs() + SCALE)
    parted = torch.where(fast_metrics.isnan() & eager_metrics.isnan(), 0.0, parted.nan_to_num(nan=torch.inf))
    metrics = {str(index): x for index, x in enumerate(parted.tolist())}
    return {name: x.item() for name, x in found.items()} | metrics


def lines(figures: Sequence[Figure], updates: int) -> list[str]:
    """The table: deviation in the middle and the worst update, what is allowed, and why; what is equal in one line."""
    equal = [figure.name for figure in figures if not any(figure.deviations)]
    rest = [figure for figure in figures if figure.name not in equal]
    width = max((len(figure.name) for figure in rest), default=0)
    text = [f"the fast path beside the eager one, {updates} updates, each from the same state and noise"]
    text.append(f"  {'':<{width}}  middle (allowed)     worst (allowed)")
    for figure in rest:
        (middle, worst), (usual, most) = figure.seen(), figure.allowed()
        told = f"{middle:7.1e} ({usual:.1e})   {worst:7.1e} ({most:.1e})"
        text.append(f"  {figure.name:<{width}}  {told}  {figure.why if figure.holds() else 'DIVERGED'}")
    text += [f"  equal: {', '.join(equal)}"] if equal else []
    bad = [figure.name for figure in figures if not figure.holds()]
    return [*text, f"error: the fast path diverges in {', '.join(bad)}" if bad else "the two paths agree"]


def _learn_both(
    figures: dict[str, Figure], fast: Any, eager: Any, update: int, names: Sequence[str], rounding: float
) -> None:
    """Learn from the eager path's rollout in both, and in the eager one again from parameters moved by one rounding."""
    start = _saved(eager)
    _restore(fast, start)
    before = start[0]["theta"]
    fast_metrics, metrics = fast.learn().double().clone(), eager.learn().double().clone()
    after = _saved(eager)
    deviations = learned(fast.state, after[0], before, fast_metrics, metrics)

    _restore(eager, start)
    draw = torch.Generator().manual_seed(update)
    sign = torch.randint(0, 2, before.shape, generator=draw).mul(2).sub(1).to(before.device)
    theta = eager.state["theta"]
    theta.copy_(theta.double() * (1 + rounding * sign))
    references = learned(eager.state, after[0], before, eager.learn().double().clone(), metrics)
    _restore(eager, after)

    def named(found: dict[str, float]) -> dict[str, float]:
        return {names[int(key)] if key.isdigit() and names else key: x for key, x in found.items()}

    why = f"{FACTOR:.0f} x the eager path moved by a rounding"
    middle, slack = min(MIDDLE * rounding, MOST), STEP * rounding
    for name, x in named(deviations).items():
        worst = WORST if name in ("parameters", "Adam's second moment") else WORST_METRIC
        limits = (slack, slack) if name in STEADY else (middle, worst + slack)
        _book(figures, {name: x}, named(references), *limits, why)


def _book(
    figures: dict[str, Figure], deviations: Mapping[str, float], references: Mapping[str, float], *how: Any
) -> None:
    for name, x in deviations.items():
        figure = figures.setdefault(name, Figure(name, *how))
        figure.deviations.append(x)
        figure.references += [references[name]] if name in references else []


def _saved(path: Any) -> tuple[State, list[Tensor]]:
    """Copies of a path's state and of its generators' states."""
    return {name: x.clone() for name, x in path.state.items()}, [draw.get_state() for draw in path.generators]


def _restore(path: Any, saved: tuple[State, list[Tensor]]) -> None:
    """Put a path into a saved state, in place."""
    for name, x in saved[0].items():
        path.state[name].copy_(x)
    for generator, stream in zip(path.generators, saved[1], strict=True):
        generator.set_state(stream)


def _per_row(x: Tensor) -> Tensor:
    """The largest of what stands behind the first two dimensions: (T, N, ...) -> (T, N)."""
    return x if x.ndim == 2 else x.flatten(2).amax(-1)


def _nan_is_most(x: float) -> float:
    return x if x == x else float("inf")
