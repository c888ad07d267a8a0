"""An iteration: two halves, and the seconds that each takes."""

from types import SimpleNamespace

import pytest
import torch

from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine import iteration
from ppo_fast.engine.iteration import Iteration, TrainState


def test_the_seconds_are_those_of_each_half(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(iteration, "time", SimpleNamespace(perf_counter=lambda: now.seconds))

    def collect() -> None:
        now.seconds += 2.0

    def learn() -> Metrics:
        now.seconds += 3.0
        return Metrics({}, {})

    halves = Iteration(collect, learn, TrainState({}, {}, {}), [torch.Generator()])
    halves.collect()
    halves.learn()
    assert halves.seconds == {"collect": 2.0, "learn": 3.0}
    halves.collect()
    assert halves.seconds == {"collect": 2.0, "learn": 3.0}, "of the last one, not of all"
