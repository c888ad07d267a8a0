"""For tests of recordings: numbers, and threads."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal ones, the same for equal seeds."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call work(0), work(1), ... at the same time, and wait for all."""
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
