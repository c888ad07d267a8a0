"""Seeds of N environments from the one seed of a run, and fresh ones after a restart."""

import numpy as np


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
    (word,) = np.random.SeedSequence([*seeds, restarts]).generate_state(1)
    return _positive(word)


def _positive(word: np.uint32) -> int:
    """A 32-bit word as a seed that fits a signed 32-bit number."""
    return int(word) >> 1
