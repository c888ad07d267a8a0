"""The process-wide random generators, seeded and as data: what an environment or a library draws from unasked."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ppo_fast.envs.seeds import seed_process


def rng_state() -> dict[str, Any]:
    """The state of the process-wide generators, in types that `save` takes: torch CPU and CUDA, NumPy's, Python's.

    Generators that a program made itself (`torch.Generator.get_state()`) are its own to save.
    """
    version, numbers, gauss = random.getstate()
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    return {
        "torch": torch.get_rng_state(),
        # Asking a process that never used CUDA would start CUDA in it, for nothing.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": _listed(numpy_state),
        "python": [version, list(numbers), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned. CUDA states go to the devices present here, in order; others are left out."""
    torch.set_rng_state(state["torch"])
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, index)
    np.random.set_state(state["numpy"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The process-wide generators begin from `seed` inside, and go on where they were afterwards."""
    before = rng_state()
    seed_process(seed)
    try:
        yield
    finally:
        set_rng_state(before)
        if not before["cuda"]:  # what CUDA would begin with, if it had not been used inside
            torch.cuda.manual_seed_all(torch.initial_seed())


class Apart:
    """Code of somebody else's, which draws from generators of its own: `with apart: ...`, any number of times.

    They begin where the process-wide ones stand, go on from one block to the next, and leave those as they were.
    """

    def __init__(self) -> None:
        self._own: dict[str, Any] | None = None
        self._before: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._before = rng_state()
        if self._own is not None:
            set_rng_state(self._own)

    def __exit__(self, *error: object) -> None:
        self._own = rng_state()
        set_rng_state(self._before)


def _listed(value: Any) -> Any:
    """Arrays as lists: an ndarray is not loadable with weights_only."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
