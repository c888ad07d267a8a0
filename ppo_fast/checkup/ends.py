"""The episodes of a record: how they ended, and ends that are not what they are called."""

import dis
import itertools
import re
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from ppo_fast.checkup.findings import Findings
from ppo_fast.checkup.record import Episode, Record

ENOUGH = 3  # episodes that say something about all
MANY = 5  # that say it where nothing else does
LONG = 20  # steps from which on the same length again and again is no game with so many moves
UNLIKELY = 1e-3  # chance at which something is no chance
OFTEN = 0.5  # share of episodes
FEW_ZEROS = 0.01  # share of zeros in rewards that are hardly ever zero
# How limits of time are called by those who write environments.
LIMIT_NAME = re.compile(
    r"(max|limit|total|episode|ep|game|time)_?.*(steps?|len(gth)?|time(steps?)?|limit|moves|turns|ticks|frames)$"
    r"|^_*(horizon|timeout|max_?t|num_?steps|n_?steps|step_?limit|deadline)$",
    re.IGNORECASE,
)


class Ends(NamedTuple):
    """The episodes of a record in figures."""

    episodes: int
    steps: int
    mean_length: float
    min_length: int
    max_length: int
    terminated: float  # share
    truncated: float


def ends_of(record: Record) -> Ends | None:
    """The figures; None where no episode has ended."""
    episodes = record.episodes()
    if not episodes:
        return None
    lengths = [episode.length for episode in episodes]
    return Ends(
        len(episodes),
        int(record.valid.sum()),
        float(np.mean(lengths)),
        min(lengths),
        max(lengths),
        float(np.mean([episode.terminated for episode in episodes])),
        float(np.mean([episode.truncated for episode in episodes])),
    )


class KnownLimits(NamedTuple):
    """Numbers that may be an environment's limit of time."""

    spec: int | None  # max_episode_steps
    named: Mapping[str, int]  # attributes that are called like one
    written: frozenset[int]  # that its code compares something with


def limits_of(env: Any, spec_limit: int | None) -> KnownLimits:
    """What a single environment, reset and not yet stepped, has of such numbers."""
    inner = env.unwrapped
    named: dict[str, int] = {}
    owners = [owner for owner in type(inner).__mro__ if owner.__module__ != gymnasium.Env.__module__]
    shared = {name: value for owner in reversed(owners) for name, value in vars(owner).items()}
    for name, value in {**shared, **getattr(inner, "__dict__", {})}.items():
        if _is_whole(value) and LIMIT_NAME.search(name):
            named[f"self.{name}"] = int(value)
    written: set[int] = set()
    for method in shared.values():
        code = getattr(method, "__code__", None)
        if isinstance(code, CodeType):
            numbers, names = _compared_in(code)
            written |= numbers
            values = {name: method.__globals__.get(name) for name in names}
            named |= {name: x for name, x in values.items() if _is_whole(x) and LIMIT_NAME.search(name)}
            written |= {x for x in values.values() if _is_whole(x)}
    return KnownLimits(spec_limit, named, frozenset(written))


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _compared_in(code: CodeType) -> tuple[set[int], set[str]]:
    """Whole numbers that a function compares with, and names of its module that it does."""
    instructions = list(dis.get_instructions(code))
    numbers, names = set(), set()
    for loading, following in itertools.pairwise(instructions):
        if following.opname != "COMPARE_OP":
            continue
        if loading.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and _is_whole(loading.argval):
            numbers.add(loading.argval)
        elif loading.opname == "LOAD_GLOBAL":
            names.add(loading.argval)
    return numbers, names


SET_LIMIT = "--env-kwargs max_episode_steps=1000"


def look_at_ends(record: Record, limits: KnownLimits, found: Findings) -> None:
    """Episodes that never end, limits of time that are called terminations, resets that are none."""
    episodes = record.episodes()
    _look_beyond_limit(record, episodes, limits, found)
    if not episodes:
        _look_at_no_end(record, limits, found)
        return
    if limits.spec is None and not any(episode.truncated for episode in episodes):
        what = "no limit of time: neither max_episode_steps nor an episode that was truncated"
        advice = "where episodes may become long, register it with max_episode_steps or train with "
        found.note("no-limit", "", what, advice + SET_LIMIT)
    _look_at_limit(record, episodes, limits, found)
    _look_at_last_rewards(record, episodes, found)


def _look_at_no_end(record: Record, limits: KnownLimits, found: Findings) -> None:
    steps = int(record.running().max()) if len(record) else 0
    if limits.spec is not None:
        what = f"no episode ended within {steps:,} steps; its max_episode_steps is {limits.spec:,}"
        found.note("no-end", "", what, "--steps looks further")
        return
    what = f"no episode ended within {steps:,} steps, and there is no max_episode_steps"
    advice = "without ends there are no returns: register it with max_episode_steps or train with "
    found.warn("no-end", "", what, advice + SET_LIMIT)


def _look_at_limit(record: Record, episodes: Sequence[Episode], limits: KnownLimits, found: Findings) -> None:
    """A limit of time that is reported as terminated."""
    longest = max(episode.length for episode in episodes)
    at_longest = [episode for episode in episodes if episode.length == longest]
    all_the_same = len(at_longest) == len(episodes)
    is_limit = longest > 1 and len(at_longest) >= ENOUGH and all(episode.terminated for episode in at_longest)
    if not is_limit:
        return
    name = _name_of(longest, limits)
    clock = _clock_of(record, at_longest)
    these = f"{'all' if all_the_same else 'the longest'} {len(at_longest)} episodes end after {longest} steps"
    advice = "a limit of time is truncated=True, terminated=False: the value of what would have come is lost otherwise"
    if name and clock is None:
        found.error("time-limit", "", f"{these}, which is {name}, with terminated=True", advice)
    elif all_the_same and len(episodes) >= MANY:
        what = f"{these}, with terminated=True"
        compared = limits.written & {longest, longest - 1}  # >= one, > the other
        if clock is None and longest >= LONG and compared:
            found.warn("time-limit", "", f"{what}, and its code compares with {max(compared)}", advice)
        else:
            seen = f"; {clock} tells the time" if clock else ""
            advice = f"right where nothing can be gained after that; else {advice}"
            found.note("time-limit", "", f"{what}{seen}", advice)


def _name_of(length: int, limits: KnownLimits) -> str | None:
    """Which limit a length is, in words."""
    if limits.spec == length:
        return "max_episode_steps"
    for name, value in limits.named.items():
        if value in (length, length - 1, length + 1):
            return f"{name} = {value}"
    return None


def _clock_of(record: Record, episodes: Sequence[Episode]) -> str | None:
    """The name of a number that grows or falls in every one of these equally long episodes alike; None without one."""
    obs = record.obs
    runs = np.stack([obs[episode.first : episode.last + 1, episode.env] for episode in episodes])  # (E, L, D)
    if runs.shape[1] < 3 or len(runs) < 2:
        return None
    alike = np.ptp(runs, axis=0).max(0) <= 1e-6 * (1 + np.abs(runs).max((0, 1)))
    steps = np.diff(runs[0], axis=0)
    ordered = (steps >= 0).all(0) | (steps <= 0).all(0)
    moving = (steps != 0).mean(0) > 0.5
    for column in np.flatnonzero(alike & ordered & moving):
        return record.columns.names[int(column)]
    return None


def _look_beyond_limit(record: Record, episodes: Sequence[Episode], limits: KnownLimits, found: Findings) -> None:
    longest = max([*(episode.length for episode in episodes), int(record.running().max())])
    if limits.spec is not None and longest > limits.spec:
        what = f"an episode has {longest} steps, beyond its max_episode_steps of {limits.spec}"
        found.warn("limit-ignored", "", what, "its vector environment has to keep the limit itself")


def _look_at_last_rewards(record: Record, episodes: Sequence[Episode], found: Findings) -> None:
    """Rewards of the last step that are often 0 where others hardly ever are."""
    reward = record.reward
    last = np.array([reward[episode.last, episode.env] for episode in episodes])
    is_last = np.zeros(reward.shape, bool)
    for episode in episodes:
        is_last[episode.last, episode.env] = True
    others = reward[record.valid & ~is_last]
    lost = last == 0
    if len(last) < MANY or not len(others) or lost.mean() < OFTEN or (others == 0).mean() > FEW_ZEROS:
        return
    what = f"the last reward of {lost.sum()} of {len(last)} episodes is 0, and hardly any other is"
    if any(episode.truncated for episode, is_lost in zip(episodes, lost, strict=True) if is_lost):
        found.warn("last-reward", "", what, "give the reward of the step that ends an episode, too")
    else:
        found.note("last-reward", "", what, "right where ending is worth nothing; else the last reward is lost")


def look_at_resets(record: Record, found: Findings) -> None:
    """Resets that return the last observation of the episode before."""
    stale, possible = 0, 0
    episodes = record.episodes()
    obs = record.obs
    for episode in episodes:
        start = record.start_at(episode.last + 1, episode.env)
        if start is not None:
            possible += 1
            stale += bool(np.array_equal(start, obs[episode.last, episode.env], equal_nan=True))
    if possible < ENOUGH or stale < possible:
        return
    same = (obs[1:] == obs[:-1]).all(-1)
    if float(same.mean()) ** possible < UNLIKELY:
        what = f"in all {possible} resets the observation is the last one of the episode before"
        found.error("stale-reset", "", what, "reset has to make the new state first, and return what it shows")
