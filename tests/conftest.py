"""Options and fixtures for all tests."""

import matplotlib.figure  # noqa: F401  what draws a run's picture is a fork of this process: it need not import it again
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reliability-count",
        type=int,
        default=10,
        help="how often each fault (kill, full disk, lost rank) is injected; the slow tests take at least 100",
    )


@pytest.fixture
def reliability_count(request: pytest.FixtureRequest) -> int:
    """How often a test injects its fault."""
    return int(request.config.getoption("--reliability-count") or 0)
