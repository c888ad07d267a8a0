"""The process-wide random generators: seeded by --seed, put back, and going on where they were, through a file too."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from victims import only_run, timeless, whole_rows

from ppo_fast import evaluate
from ppo_fast.run import checkpoint, randomness
from ppo_fast.train import Args, train


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


def small(root: Path, **flags: Any) -> Args:
    values: dict[str, Any] = {"env_id": "odd_envs:Shared-v0", "num_envs": 4, "num_steps": 8, "total_timesteps": 96}
    values |= {"eval_episodes": 4, "compile": "off", "quiet": True, "run_root": str(root)}
    return Args(**{**values, **flags})


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_equal_seeds_give_equal_runs_with_environments_that_draw_from_shared_generators(
    backend: str, tmp_path: Path
) -> None:
    """Whatever was drawn before; and the policy that was left plays as it did, too."""
    rows, evaluated = [], []
    for number, seed in enumerate((1, 1, 2)):
        draws()
        result = train(small(tmp_path / str(number), backend=backend, seed=seed))
        folder = only_run(tmp_path / str(number))
        rows.append(timeless(whole_rows(folder)[0]))
        played = evaluate.evaluate(evaluate.Args(str(folder), episodes=4, backend="sync", json=True))
        evaluated.append([result["eval/mean_return"], result["eval/sampled_mean_return"]])
        assert [played["greedy"]["mean_return"], played["sampled"]["mean_return"]] == evaluated[-1]
    assert rows[0] == rows[1] != rows[2]
    assert evaluated[0] == evaluated[1] != evaluated[2]


def test_a_run_leaves_its_callers_generators_as_they_were(tmp_path: Path) -> None:
    state = randomness.rng_state()
    expected = draws()
    randomness.set_rng_state(state)
    train(small(tmp_path))
    evaluate.evaluate(evaluate.Args(str(only_run(tmp_path)), episodes=2, json=True))
    assert draws() == expected
