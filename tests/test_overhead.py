"""benchmarks.overhead: both kinds of run are made as a user would, and a run that fails is no figure."""

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import overhead

TINY = "--num-steps 4 --num-minibatches 1 --update-epochs 1 --eval-episodes 1 --compile off --hidden-sizes 8"


def test_both_kinds_alternate_and_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[bool] = []

    def one_run(args: overhead.Args, watched: bool) -> float:
        order.append(watched)
        return 97.0 if watched else 100.0

    monkeypatch.setattr(overhead, "one_run", one_run)
    record = overhead.run(overhead.Args(rounds=3, out=tmp_path))
    assert order == [False, True, True, False, False, True]
    assert record["ratio"] == {"median": 0.97, "min": 0.97, "max": 0.97, "rounds": [0.97] * 3}
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["sps"] == {"quiet": [100.0] * 3, "watched": [97.0] * 3}
    assert "watched / quiet: 0.970" in capsys.readouterr().out


@pytest.mark.slow
def test_a_watched_run_has_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    terminal = overhead.on_terminal

    def listening(words: list[str]) -> tuple[int, str]:
        status, text = terminal(words)
        said.append(text)
        return status, text

    monkeypatch.setattr(overhead, "on_terminal", listening)
    args = overhead.Args(total_timesteps=64, num_envs=2, extra=TINY)
    assert overhead.one_run(args, watched=True) > 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said[0])
    assert "╭─ ppo_fast CartPole-v1" in plain and "W&B: offline" in plain
    assert overhead.one_run(args, watched=False) > 0
    assert not {*overhead.WATCHED} & {*overhead.command(args, Path("runs"), watched=False)}


def test_a_run_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="exit status 2: error: --num-steps"):
        overhead.one_run(overhead.Args(extra="--num-steps 0"), watched=False)


def test_a_terminal_is_a_terminal() -> None:
    told = "import os, sys; print(sys.stdout.isatty(), *os.get_terminal_size()); sys.exit(3)"
    assert overhead.on_terminal([sys.executable, "-c", told]) == (3, "True 100 30\r\n")
