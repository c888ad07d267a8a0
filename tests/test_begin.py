"""The start of a command: Ctrl-C while packages are imported, and standard streams that are not there."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_rules import is_program
from run_folders import config, write_run

import ppo_fast
from ppo_fast import begin

PACKAGE = Path(ppo_fast.__file__).parent
PROGRAMS = sorted(path.stem for path in PACKAGE.glob("*.py") if is_program(f"ppo_fast.{path.stem}"))
# A package of that name which is interrupted while it is imported, and takes the exception for its own business.
INTERRUPTED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
except BaseException:
    raise ImportError("broken package")
"""


def command(program: str, *words: str, path: Path | None = None, shell: str = "") -> subprocess.CompletedProcess[str]:
    """What a program of ppo_fast does as a command; `shell` is what a shell adds to the line."""
    paths = [str(folder) for folder in (path, PACKAGE.parent) if folder is not None]
    line = " ".join([sys.executable, "-m", f"ppo_fast.{program}", *words, shell])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        ["sh", "-c", f"exec {line}"], env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_during_the_imports_is_one_line(program: str, tmp_path: Path) -> None:
    (tmp_path / "gymnasium.py").write_text(INTERRUPTED)
    done = command(program, path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("package", ["torch", "tyro"])
def test_in_later_imports_too(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(INTERRUPTED)
    done = command("train", path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_ctrl_c_that_is_ignored_from_the_start_stays_so(tmp_path: Path) -> None:
    """As for a job in the background of a script."""
    (tmp_path / "gymnasium.py").write_text(INTERRUPTED.replace("sleep(20)", "sleep(0)"))
    with_ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = command("plot", path=tmp_path)
    finally:
        signal.signal(signal.SIGINT, with_ignored)
    assert done.returncode == 1 and "interrupted" not in done.stderr  # the stub is no gymnasium


# What SciPy's import does with an interrupt, and what an extension module makes of one.
SWALLOWED = """
import os, signal
exec("os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(20)")
"""
RENAMED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
except KeyboardInterrupt:
    raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
"""


@pytest.mark.parametrize("package", [SWALLOWED, RENAMED])
def test_in_imports_of_a_program_at_work_too(package: str, tmp_path: Path) -> None:
    """Status 130 is not the same as an end by SIGINT to who waits for the process, and not a missing package."""
    (tmp_path / "scipy.py").write_text(package)
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path, name, [{"global_step": 1, "charts/episodic_return": 1.0}], config(seed=seed))
    done = command("compare", str(tmp_path / "a"), "--", str(tmp_path / "b"), path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.fixture
def as_command(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this process had been started as `python -m ppo_fast.train`."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ppo_fast.train"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    assert gc.isenabled()
    yield
    signal.signal(signal.SIGINT, before)
    begin.COLLECTOR_WAITS.clear()
    gc.enable()


def test_another_process_is_left_alone(as_command: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    for argv, orig_argv in (
        (["x.py"], ["python", "x.py"]),
        (["-c"], ["python", "-c"]),
        (["-m"], ["python", "-m", "x"]),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", orig_argv)
        begin.register_command()
        begin.imported()
        begin.finished()
        assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("argv", "orig_argv"),
    [(["-m"], ["python", "-m", "ppo_fast"]), (["/usr/bin/ppo_fast"], ["python", "/usr/bin/ppo_fast", "train"])],
)
def test_the_command_of_all_programs_is_prepared(
    as_command: None, monkeypatch: pytest.MonkeyPatch, argv: list[str], orig_argv: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin.register_command()
    assert signal.getsignal(signal.SIGINT) is begin.leave


def test_the_garbage_collector_waits_for_the_imports_of_a_command(as_command: None) -> None:
    begin.register_command()
    assert not gc.isenabled()
    begin.imported()
    assert gc.isenabled()
    gc.disable()  # by somebody who wants it off
    begin.register_command()
    begin.imported()
    assert not gc.isenabled()


def test_an_interrupt_that_a_callback_swallows_comes_again(as_command: None) -> None:
    """Such as one of the garbage collector, which jax has."""
    calls = []

    def callback(*_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)

    begin.register_command()
    begin.imported()
    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()
            time.sleep(10)
    finally:
        gc.callbacks.remove(callback)


SMALL = "--num-envs 2 --num-steps 8 --total-timesteps 32 --num-minibatches 1 --eval-episodes 1 --compile off"


def test_a_run_without_standard_streams(tmp_path: Path) -> None:
    """The first file that is opened would otherwise be standard output, and what is printed would be in it."""
    shell = "<&- >&- 2>&-"
    done = command("train", SMALL, "--backend async --capture-video --run-root", str(tmp_path / "runs"), shell=shell)
    assert done.returncode == 0
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "result.json").exists() and list((run / "videos").glob("greedy.mp4"))
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and all(row.startswith('{"') for row in rows)


def test_help_in_ascii() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(PACKAGE.parent)}
    line = [sys.executable, "-m", "ppo_fast.train", "--help"]
    done = subprocess.run(line, env=env, capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr and done.stdout.isascii()
    assert b"discount gamma" in done.stdout and b"?" not in done.stdout
