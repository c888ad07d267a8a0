"""Seeds of N environments from the one seed of a run, fresh ones after a restart, and whatever else an environment may
draw from: the generators that a whole process shares, those of its spaces."""

import contextlib
import random
from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding


def spread_seeds(seed: int, num_envs: int) -> list[int]:
    """N seeds from one, none of them shared with its neighbours' (numpy.random.SeedSequence).

    With Gymnasium's seed, seed + 1, ... neighbouring seeds would share most of their episodes.

    Raises:
        ValueError: for a negative one.
    """
    if seed < 0:
        raise ValueError(f"--seed: must be 0 or more, got {seed}")
    return [_positive(word) for word in np.random.SeedSequence(seed).generate_state(num_envs)]


def restart_seed(seed: int | list[int], restarts: int) -> int:
    """The seed of a restart, from the seed or seeds that began the run and how often it was restarted until now."""
    seeds = seed if isinstance(seed, list) else [seed]
    return _mixed([*seeds, restarts])


def process_seed(seeds: Sequence[int | None], first: int) -> int | None:
    """The seed of a worker's shared generators, from those of its environments; None where they have none.

    Args:
        seeds: one for each of its environments.
        first: the index of the first of them, which tells workers apart whose environments have equal seeds.
    """
    given = [seed for seed in seeds if seed is not None]
    return _mixed([first, *given]) if given else None


def drawn_seeds(number: int) -> list[int]:
    """So many seeds drawn from NumPy's shared generator: equal where that was seeded equally, never the same twice."""
    return spread_seeds(int(np.random.randint(2**31)), number)


def seed_process(seed: int) -> None:
    """Seed the generators that all code of a process shares: those of `random`, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_spaces(env: gymnasium.Env, seed: int | None) -> None:
    """Seed what `env.reset(seed=seed)` leaves to chance: the spaces, which an environment may sample from, and
    `np_random` of one whose reset forgets to call its parent's. Without a seed nothing changes."""
    if seed is None:
        return
    env.action_space.seed(_mixed([seed, 1]))
    env.observation_space.seed(_mixed([seed, 2]))
    with contextlib.suppress(AttributeError):  # an environment may have an np_random of its own
        env.unwrapped.np_random, _ = seeding.np_random(seed)


def _mixed(words: Sequence[int]) -> int:
    """One seed from several numbers."""
    (word,) = np.random.SeedSequence(words).generate_state(1)
    return _positive(word)


def _positive(word: np.uint32) -> int:
    """A 32-bit word as a seed that fits a signed 32-bit number."""
    return int(word) >> 1
