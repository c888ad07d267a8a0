"""Options and fixtures for all tests."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module  # of what imports torch, since tests that need none should not wait for it
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import victims


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reliability-count",
        type=int,
        default=5,
        help="how often each fault (kill, full disk, lost rank) is injected; the slow tests take at least 100",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run the tests: as many as there are CPUs for all of them, for some none but this one."""
    some = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword
    slow = not str(config.option.markexpr).startswith("not slow")  # they start processes of their own, and time them
    return 0 if some or slow else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def pytest_configure(config: pytest.Config) -> None:
    # What is started with & or nohup is born deaf to these, and so are the processes that tests send them to.
    for signum, hears in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, hears)
    config.addinivalue_line("markers", "fitted: runs in this process get the preset or the recipe of their environment")
    config.addinivalue_line("markers", "full_end: a run in this process measures its speed and draws its picture")
    # What the compiler has made is found again by the next session, and a user's own cache is left alone.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"ppo_fast-tests-{os.getuid()}"))


@pytest.fixture
def reliability_count(request: pytest.FixtureRequest) -> int:
    """How often a test injects its fault."""
    return int(request.config.getoption("--reliability-count") or 0)


@pytest.fixture(scope="session")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator["victims.Forge"]:
    """Forks training processes; see `victims`."""
    with import_module("victims").forge(tmp_path_factory.mktemp("forge")) as made:
        yield made


@pytest.fixture(scope="session")
def pair(eager: "victims.Forge", tmp_path_factory: pytest.TempPathFactory) -> Iterator["victims.Pair"]:
    """Forks two ranks that train together."""
    with import_module("victims").forge(tmp_path_factory.mktemp("forge")) as made:
        yield eager, made


@pytest.fixture(scope="session", autouse=True)
def short_ends() -> Iterator[pytest.MonkeyPatch]:
    """Runs in this process end without speed report and picture, those of fixtures too; see `short_end`."""
    with pytest.MonkeyPatch.context() as patch:
        if "ppo_fast.run.session" in sys.modules:  # or no test of this session trains
            leave_out(patch)
        yield patch


@pytest.fixture(scope="session", autouse=True)
def flags_as_they_are() -> Iterator[pytest.MonkeyPatch]:
    """Runs in this process, those of fixtures too, have the flags that they are given, which are small, without preset
    and recipe; see `fitted`."""
    with pytest.MonkeyPatch.context() as patch:
        if "ppo_fast.run.settle" in sys.modules:  # or no test of this session trains
            take_as_they_are(patch)
        yield patch


@pytest.fixture(autouse=True)
def fitted(request: pytest.FixtureRequest, flags_as_they_are: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests that are marked `fitted` get the preset or the recipe of their environment."""
    if request.node.get_closest_marker("fitted") is None:
        yield
        return
    flags_as_they_are.undo()
    yield
    take_as_they_are(flags_as_they_are)


def take_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """Leave preset and recipe out until `patch` is undone."""
    settle = import_module("ppo_fast.run.settle")
    patch.setattr(settle, "_fitted", lambda args, given: (args, ()))


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
    import_module("short_end").leave_out(patch.setattr)
