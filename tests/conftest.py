"""Options and fixtures for all tests."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reliability-count",
        type=int,
        default=10,
        help="how often each fault (kill, full disk, lost rank) is injected; the slow tests take at least 100",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full_end: a run in this process measures its speed and draws its picture")
    # What the compiler has made is found again by the next session, and a user's own cache is left alone.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"ppo_fast-tests-{os.getuid()}"))


@pytest.fixture
def reliability_count(request: pytest.FixtureRequest) -> int:
    """How often a test injects its fault."""
    return int(request.config.getoption("--reliability-count") or 0)


@pytest.fixture(scope="session", autouse=True)
def short_ends() -> Iterator[pytest.MonkeyPatch]:
    """Runs in this process end without speed report and picture, those of fixtures too; see `short_end`."""
    with pytest.MonkeyPatch.context() as patch:
        if "ppo_fast.run.session" in sys.modules:  # or no test of this session trains
            leave_out(patch)
        yield patch


@pytest.fixture(autouse=True)
def full_end(request: pytest.FixtureRequest, short_ends: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests that are marked `full_end` have speed report and picture."""
    if request.node.get_closest_marker("full_end") is None:
        yield
        return
    short_ends.undo()
    yield
    leave_out(short_ends)


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Leave speed report and picture out until `patch` is undone."""
    import short_end  # here, since tests that need no torch should not wait for it

    short_end.leave_out(patch.setattr)
