"""The process-wide random generators go on where they were, through a file too."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_fast.run import checkpoint, randomness


def draws() -> list[float]:
    # An odd number of normal draws leaves half a pair cached, in Python's generator and in NumPy's.
    return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), *torch.randn(3).tolist()]


def test_generators_continue_after_a_file(tmp_path: Path) -> None:
    draws()
    path = checkpoint.save(tmp_path, 0, randomness.rng_state())
    expected = draws()
    draws()
    randomness.set_rng_state(checkpoint.load(path))
    assert draws() == expected
    assert draws() != expected


def test_cuda_generators_continue() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    torch.randn(3, device="cuda")
    state = randomness.rng_state()
    expected = torch.randn(5, device="cuda")
    randomness.set_rng_state(state)
    assert torch.equal(torch.randn(5, device="cuda"), expected)


def test_cuda_states_of_more_devices_than_here_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    state = randomness.rng_state()
    state["cuda"] = ["first", "second", "third"]
    given = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: given.append(arguments))
    randomness.set_rng_state(state)
    assert given == [("first", 0), ("second", 1)]
