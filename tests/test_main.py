"""The command `ppo_fast`: the list of programs, and each of them."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_begin import PROGRAMS

import ppo_fast
from ppo_fast import __main__ as command

ROOT = Path(__file__).parent.parent
SMALL = "--num-envs 2 --num-steps 8 --total-timesteps 32 --num-minibatches 1 --eval-episodes 1 --compile off --quiet"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `ppo_fast` with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["ppo_fast", *words])
    try:
        command.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_it_lists_the_programs_with_a_line_each(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(name for name, _ in lines) == PROGRAMS == sorted(command.PROGRAMS)
    assert all(caption.endswith(".") for _, caption in lines)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith(f"ppo_fast {ppo_fast.__version__} (torch ")


@pytest.mark.parametrize(("word", "advice"), [("tran", "did you mean train?"), ("zzz", "ppo_fast lists them")])
def test_a_program_that_there_is_not(
    word: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, word) == 2
    assert capsys.readouterr().err == f"error: no program {word!r}; {advice}\n"


def test_the_console_command_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ppo_fast": "ppo_fast.__main__:main"}


def test_it_runs_a_program_as_its_own_command_would(tmp_path: Path) -> None:
    """Flags, exit status, configuration, and workers that import the main module again."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "ppo_fast", "train", *SMALL.split(), "--lr", "1e-3", "--backend", "async"]
    done = subprocess.run([*line, "--run-root", str(tmp_path)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    [folder] = tmp_path.iterdir()
    assert '"program": "ppo_fast.train"' in (folder / "config.json").read_text()
    line = [sys.executable, "-m", "ppo_fast", "evaluate", "--episodes", "0"]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: --episodes: must be")
