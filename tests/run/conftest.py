"""Fixtures of the tests of what surrounds a run."""

from types import SimpleNamespace

import pytest

from ppo_fast.run import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: now.seconds)
    return now
