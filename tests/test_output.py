"""What each program prints, where it takes ASCII only, or nothing, or nobody reads it."""

import errno
import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_begin import PROGRAMS

from ppo_fast.run import cli
from ppo_fast.train import Args, train

# How a program is called by its last lines, where its function does not have its name.
FUNCTIONS = {"train_lstm": "train", "replay": "main"}


class Full(io.StringIO):
    """A file on a full disk, or a pipe without a reader."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, _: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def run(program: str, *words: str) -> int:
    """The exit status of a program that is called as a command of these words."""
    module: Any = import_module(f"ppo_fast.{program}")
    sys.argv[:] = [program, *words]
    try:
        cli.run(getattr(module, FUNCTIONS.get(program, program)), module.Args, module.__doc__)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if getattr(stream, "name", None) == os.devnull:  # stands in for one that was missing
                stream.close()
    return 0


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `run` changes is put back."""
    monkeypatch.setattr(sys, "argv", ["program"])
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command line of each program, with runs for those that read some. There is no crash file."""
    root = tmp_path_factory.mktemp("runs")
    small = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "num_minibatches": 1, "eval_episodes": 1}
    for number in (1, 2):
        flags: Any = {**small, "cuda": False, "quiet": True, "exp_name": f"größe{number}", "run_root": str(root)}
        train(Args(**flags))
    one, two = map(str, sorted(root.iterdir()))
    training = [f"--{name.replace('_', '-')}={value}" for name, value in small.items()]
    training += ["--no-cuda", f"--run-root={root / 'more'}", "--exp-name=größe"]
    return {
        "train": training,
        "train_lstm": training,
        "evaluate": [one, "--episodes=1", "--no-cuda"],
        "plot": [one, f"--out={root / 'größe.png'}"],
        "compare": [one, "--", two],
        "export": [one, "--to=torch", f"--output={root / 'größe.pt2'}"],
        "doctor": ["CartPole-v1", "--steps=50", "--no-pace"],
        "replay": [str(root / "größe.pt")],
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_in_ascii(program: str, words: dict[str, list[str]]) -> None:
    for line in (["--help"], words[program]):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
        sys.stdout, sys.stderr = out, err
        status = run(program, *line)
        said: Any = (out.buffer, err.buffer)
        printed = b"".join(buffer.getvalue() for buffer in said).decode("ascii")
        assert status == (2 if program == "replay" and line != ["--help"] else 0)
        assert printed and "?" not in printed.replace("better than A?", "")


@pytest.mark.parametrize("stream", ["missing", "closed"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_without_any_stream(program: str, stream: str, words: dict[str, list[str]]) -> None:
    for line in (["--help"], words[program], ["--no-such-flag"]):
        nothing: Any = None
        if stream == "closed":
            nothing = io.StringIO()
            nothing.close()
        sys.stdin = sys.stdout = sys.stderr = nothing
        wrong = line == ["--no-such-flag"] or (program == "replay" and line != ["--help"])
        assert run(program, *line) == (2 if wrong else 0)


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 141), (errno.ENOSPC, 1)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_output_that_is_lost(
    program: str, number: int, status: int, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on, others leave; nobody ends in a traceback."""
    for line in (["--help"], words[program]):
        sys.stdout = Full(number)
        trains = program.startswith("train") and line != ["--help"]
        expected = 2 if program == "replay" and line != ["--help"] else 0 if trains else status
        assert run(program, *line) == expected
        assert capsys.readouterr().err.count("\n") <= 1


def test_every_program_is_here(words: dict[str, list[str]]) -> None:
    assert sorted(words) == PROGRAMS
    assert Path(words["compare"][0]).is_dir()
