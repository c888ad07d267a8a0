"""The fast path beside the eager one, from the same state and the same noise: how far do they part, and may they?

Both are an `Iteration`. Each update starts both from the eager one's state, so a deviation is that of one update, never
a sum. Letters: T steps, N envs.

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

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine.iteration import Iteration, TrainState

# Relative error of one rounding, by `--precision`.
ROUNDING = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-9}

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
STEADY = ("advantage", "carry_return", "carry_length", "step")  # of no chain of Adam steps


@dataclass
class Figure:
    """One line of the table: the deviation in each update, and what is allowed in the middle and the worst one."""

    name: str
    middle: float
    worst: float
    why: str
    deviations: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)

    def add(self, deviation: float, reference: float | None = None) -> None:
        """Book one update: how far the paths parted and, where it is known, the eager path from itself."""
        self.deviations.append(deviation)
        if reference is not None:
            self.references.append(reference)

    def seen(self) -> tuple[float, float]:
        """The deviation in the middle update (the lower one of two) and in the worst one."""
        return statistics.median_low(self.deviations), max(self.deviations, key=_nan_is_most)

    def allowed(self) -> tuple[float, float]:
        """The tolerances, raised to FACTOR times what the eager path deviates from itself."""
        if not self.references:
            return self.middle, self.worst
        middle = statistics.median_high(self.references)
        worst = max(self.references)
        return max(self.middle, FACTOR * middle), max(self.worst, min(FACTOR * worst, 1.0))

    def holds(self) -> bool:
        """Whether both are within tolerance; NaN never is."""
        return all(seen <= allowed for seen, allowed in zip(self.seen(), self.allowed(), strict=True))


class Collected(NamedTuple):
    """How two rollouts from the same start part."""

    deviations: dict[str, float]  # by column: beyond GROWTH times the one before it, relative to 1 + |x|
    flips: float  # rows that flipped, the first one of each environment
    likely_flips: float
    rows: float  # that were compared


class Table:
    """The figures of a comparison, in the order in which they were first booked."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def figure(self, name: str, middle: float, worst: float, why: str) -> Figure:
        """The figure of this name, made where there is none; the limits are those of its first update."""
        return self._figures.setdefault(name, Figure(name, middle, worst, why))

    def figures(self) -> list[Figure]:
        """All of them."""
        return list(self._figures.values())


def compare(
    fast: Iteration, eager: Iteration, updates: int, say: Callable[[str], None], rounding: float = ROUNDING["fp32"]
) -> bool:
    """Run `updates` iterations of both paths and print a table of how far they part; False when that is too far.

    Both are left where the eager path stands in the end. Environments on the host must stand at the same point of the
    same episodes; after a flipped action they no longer do, and from there on the updates alone are compared.

    Args:
        say: takes a line of the table.
        rounding: relative error of one rounding of the fast path; see ROUNDING.
    """
    table = Table()
    flips = expected = rows = 0.0
    copied = eager.restart is None  # the environments' state is part of what is copied from path to path
    lockstep = True
    for update in range(updates):
        _go_on_from(fast, eager)
        if lockstep:
            fast.collect()
        eager.collect()
        if lockstep:
            found = collected(fast.state, eager.state, rounding)
            flips += found.flips
            expected += found.likely_flips
            rows += found.rows
            limit = STEP * rounding
            for name, x in found.deviations.items():
                table.figure(name, limit, limit, "rounding of one step of policy and env").add(x)
            lockstep = copied or not found.flips
        _learn_both(table, fast, eager, update, rounding)
    _go_on_from(fast, eager)
    figures = table.figures()
    if rows:
        most = (CHANCE + expected) / rows
        share = Figure("flips, share of rows", most, most, "draws and thresholds within a rounding")
        share.add(flips / rows)
        figures.insert(0, share)
    for line in lines(figures, updates):
        say(line)
    if not lockstep:
        say("an action flipped: the environments went apart, and from there on only the updates were compared")
    return all(figure.holds() for figure in figures)


def collected(fast: TrainState, eager: TrainState, rounding: float) -> Collected:
    """How far two rollouts from the same start part; see `Collected`."""
    # What `learn` shows is not of this rollout.
    columns = {name: x for name, x in eager.rollout.items() if name not in STEADY}
    discrete = [name for name, x in columns.items() if not x.is_floating_point()]
    flip = torch.stack([_per_row(fast.rollout[name] != eager.rollout[name]).bool() for name in discrete]).any(0)
    flips = flip.long().cumsum(0)  # (T, N)
    flips_before = flips - flip.long()
    agreeing = flips == 0
    reached = flips_before == 0

    given = torch.where(reached, deviation(fast.rollout["obs"], eager.rollout["obs"]), 0.0)
    drift = given.cummax(0).values  # all that a row can have inherited
    before = torch.cat([torch.zeros_like(drift[:1]), drift[:-1]])
    found = {"obs": (given - GROWTH * before).max()}
    for name in columns:
        if name not in discrete and name != "obs":
            beyond = deviation(fast.rollout[name], eager.rollout[name]) - GROWTH * drift
            found[name] = torch.where(agreeing, beyond, 0.0).max()
    for name, x in eager.environments.items():
        beyond = deviation(fast.environments[name][None], x[None])[0] - GROWTH * drift[-1]
        found[f"next {name}"] = torch.where(agreeing[-1], beyond, 0.0).max()
    likely = (FLIP * rounding + SLOPE * drift).clamp(max=1.0)[reached].sum()
    numbers = {name: x.item() for name, x in found.items()}
    deviations = {name: x if math.isnan(x) else max(x, 0.0) for name, x in numbers.items()}
    return Collected(deviations, (flip & reached).sum().item(), likely.item(), reached.sum().item())


def deviation(a: Tensor, b: Tensor) -> Tensor:
    """The largest |a - b| / (1 + |b|) of each row, (T, N, ...) -> (T, N); infinite where either is NaN."""
    a, b = a.double(), b.double()
    return _per_row(((a - b).abs() / (1 + b.abs())).nan_to_num(nan=torch.inf))


class Learned(NamedTuple):
    """Copies of what an iteration learned."""

    tensors: dict[str, Tensor]  # of its state, and what it shows of its rollout
    metrics: dict[str, float]


def learn(path: Iteration) -> Learned:
    """Run the second half of an iteration."""
    metrics = path.learn()
    numbers = _numbers(metrics)
    shown = {name: x for name, x in path.state.rollout.items() if name in STEADY}
    tensors = path.state.saved() | shown
    return Learned({name: x.clone() for name, x in tensors.items()}, numbers)


def _numbers(metrics: Metrics) -> dict[str, float]:
    named = metrics.means | metrics.sums
    values = torch.stack([x.double() for x in named.values()]).tolist()
    return dict(zip(named, values, strict=True))


def learned(fast: Learned, eager: Learned, before: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """How far two updates from the same start part: of tensors by name, and of metrics by name.

    Parameters relative to the distance that the eager path moved them (and 1e-4 of their length, so that a learner at
    rest divides by something), Adam's second moment, which shows a gradient of the wrong size where Adam hides it,
    relative to its length, metrics relative to their size. A metric that is NaN in both is undefined there and counts
    as equal; parameters never may be.

    Args:
        before: theta (P,) that both started from.
    """
    theta = eager.tensors["theta"].double()
    moved = (theta - before.double()).norm()
    moment = eager.tensors["moment2"].double()
    found = {
        "parameters": (fast.tensors["theta"].double() - theta).norm() / (moved + 1e-4 * theta.norm()),
        "Adam's second moment": (fast.tensors["moment2"].double() - moment).norm() / (moment.norm() + 1e-12),
    }
    for name in STEADY:
        if name in eager.tensors:
            parted = deviation(fast.tensors[name].reshape(1, -1), eager.tensors[name].reshape(1, -1))
            found[name] = parted.max()
    metrics = {name: _parted(fast.metrics[name], x) for name, x in eager.metrics.items()}
    return {name: x.item() for name, x in found.items()}, metrics


def _parted(fast: float, eager: float) -> float:
    if math.isnan(fast) and math.isnan(eager):
        return 0.0
    parted = abs(fast - eager) / (abs(eager) + SCALE)
    return math.inf if math.isnan(parted) else parted


def lines(figures: Sequence[Figure], updates: int) -> list[str]:
    """The table: deviation in the middle and the worst update, what is allowed, and why; what is equal in one line."""
    equal = [figure.name for figure in figures if not any(figure.deviations)]
    rest = [figure for figure in figures if figure.name not in equal]
    width = max((len(figure.name) for figure in rest), default=0)
    text = [f"the fast path beside the eager one, {updates} updates, each from the same state and noise"]
    text.append(f"  {'':<{width}}  middle (allowed)     worst (allowed)")
    for figure in rest:
        middle, worst = figure.seen()
        middle_allowed, worst_allowed = figure.allowed()
        told = f"{middle:7.1e} ({middle_allowed:.1e})   {worst:7.1e} ({worst_allowed:.1e})"
        text.append(f"  {figure.name:<{width}}  {told}  {figure.why if figure.holds() else 'DIVERGED'}")
    if equal:
        text.append(f"  equal: {', '.join(equal)}")
    bad = [figure.name for figure in figures if not figure.holds()]
    text.append(f"error: the fast path diverges in {', '.join(bad)}" if bad else "the two paths agree")
    return text


def _learn_both(table: Table, fast: Iteration, eager: Iteration, update: int, rounding: float) -> None:
    """Learn from the eager path's rollout in both, and in the eager one again from parameters moved by one rounding."""
    start = _saved(eager)
    _restore(fast, start)
    before = start.tensors["theta"]
    fast_learned, eager_learned = learn(fast), learn(eager)
    after = _saved(eager)
    tensors, metrics = learned(fast_learned, eager_learned, before)

    _restore(eager, start)
    draw = torch.Generator().manual_seed(update)
    sign = torch.randint(0, 2, before.shape, generator=draw).mul(2).sub(1).to(before.device)
    theta = eager.state.learned["theta"]
    theta.copy_(theta.double() * (1 + rounding * sign))
    reference_tensors, reference_metrics = learned(learn(eager), eager_learned, before)
    _restore(eager, after)

    why = f"{FACTOR:.0f} x the eager path moved by a rounding"
    middle = min(MIDDLE * rounding, MOST)
    slack = STEP * rounding
    for name, x in tensors.items():
        limits = (slack, slack) if name in STEADY else (middle, WORST + slack)
        table.figure(name, *limits, why).add(x, reference_tensors[name])
    for name, x in metrics.items():
        table.figure(name, middle, WORST_METRIC + slack, why).add(x, reference_metrics[name])


class Start(NamedTuple):
    """Where a path stands: copies."""

    tensors: dict[str, Tensor]
    rollout: dict[str, Tensor]
    streams: list[Tensor]


def _saved(path: Iteration) -> Start:
    tensors = {name: x.clone() for name, x in path.state.saved().items()}
    rollout = {name: x.clone() for name, x in path.state.rollout.items()}
    return Start(tensors, rollout, [draw.get_state() for draw in path.generators])


def _restore(path: Iteration, start: Start) -> None:
    """Put a path into a saved state, in place."""
    mine = path.state.saved()
    for name, x in start.tensors.items():
        mine[name].copy_(x)
    for name, x in start.rollout.items():
        if name in path.state.rollout:  # what `learn` shows is there after its first call
            path.state.rollout[name].copy_(x)
    for generator, stream in zip(path.generators, start.streams, strict=True):
        generator.set_state(stream)


def _go_on_from(path: Iteration, other: Iteration) -> None:
    _restore(path, _saved(other))


def _per_row(x: Tensor) -> Tensor:
    """The largest of what stands behind the first two dimensions: (T, N, ...) -> (T, N)."""
    return x if x.ndim == 2 else x.flatten(2).amax(-1)


def _nan_is_most(x: float) -> float:
    return math.inf if math.isnan(x) else x
