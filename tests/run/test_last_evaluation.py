"""No final evaluation decides whether a finished run has a result, and none goes on without end."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from odd_envs import TwoDials
from victims import SMALL, Forge, only_run, wait_until

from ppo_fast import evaluate, names
from ppo_fast.envs.closing import close_all
from ppo_fast.run import ending, find
from ppo_fast.train import Args, train

STEPS = 4 * 16 * 5  # of the training


def hang() -> None:
    while True:
        time.sleep(3600)


def crash() -> None:
    raise RuntimeError("the simulator has crashed\nand a second line")


class Late(TwoDials):
    """TwoDials until its class's `does` is called at `where`, in the evaluation; at most `most` live at a time."""

    most = 10**9
    where = ""
    does: Any = staticmethod(crash)
    ends = True
    alive = 0
    over = False  # the training
    seen: Any = None  # called by the first reset after the training

    def __init__(self) -> None:
        if Late.alive >= Late.most:
            raise RuntimeError("another instance is running (port 5005 is in use)")
        Late.alive += 1
        self._is_open = True
        self.trouble("make")

    def trouble(self, where: str) -> None:
        if Late.where == where and Late.over:
            Late.does()

    def reset(self, **options: Any) -> tuple[np.ndarray, dict]:
        if Late.over and Late.seen is not None:
            Late.seen()
            Late.seen = None
        self.trouble("reset")
        return super().reset(**options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.trouble("step")
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated and Late.ends, truncated, info

    def close(self) -> None:
        if self._is_open:
            Late.alive -= 1
            self._is_open = False
        self.trouble("close")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    spec = EnvSpec("Late-v0", entry_point=f"{__name__}:Late")
    monkeypatch.setitem(gymnasium.registry, "Late-v0", spec)
    for name in ("most", "where", "does", "ends", "alive", "over", "seen"):
        monkeypatch.setattr(Late, name, vars(Late)[name])
    monkeypatch.setattr(close_all, "__defaults__", (0.2,))
    evaluate_after_training = ending.evaluate

    def begin(*arguments: Any) -> Any:
        Late.over = True
        return evaluate_after_training(*arguments)

    monkeypatch.setattr(ending, "evaluate", begin)
    return monkeypatch


def run(root: Path, **more: Any) -> dict[str, Any]:
    flags = {"env_id": "Late-v0", "num_envs": 4, "num_steps": 16, "total_timesteps": STEPS, "cuda": False}
    return train(Args(**{**flags, "compile": "off", "eval_episodes": 6, "run_root": str(root), **more}))


def assert_complete(root: Path, result: dict[str, Any]) -> None:
    folder = only_run(root)
    written = json.loads((folder / "result.json").read_text())
    assert written.pop(names.RUN_ID) and written == names.jsonable(result)
    assert "stopped" not in result and "exit_status" not in result and result["global_step"] == STEPS
    assert all((folder / name).is_file() for name in ("policy.safetensors", "curves.png", "metrics.jsonl"))


def warnings_in(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("warning")]


@pytest.mark.full_end
@pytest.mark.parametrize(
    ("where", "does", "reason"),
    [
        ("make", crash, "the simulator has crashed"),
        ("reset", crash, "RuntimeError: the simulator has crashed"),
        ("step", crash, "environment 0 raised RuntimeError: the simulator has crashed"),
        ("step", sys.exit, "environment 0 raised SystemExit"),
        ("step", hang, "not done within 0.6 s"),
        ("reset", hang, "not done within 0.6 s"),
    ],
)
def test_one_that_fails_is_one_warning(
    late: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    does: Callable[[], object],
    reason: str,
) -> None:
    late.setattr(Late, "where", where)
    late.setattr(Late, "does", staticmethod(does))
    result = run(tmp_path, eval_seconds=0.3)
    assert_complete(tmp_path, result)
    assert reason in result["no_evaluation"] and names.MEAN_RETURN not in result
    [line] = warnings_in(capsys.readouterr().out)
    assert "no evaluation" in line and f"python -m ppo_fast.evaluate {only_run(tmp_path)}" in line


def test_result_and_policy_are_there_before_it(late: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there: list[dict[str, Any]] = []

    def look() -> None:
        folder = only_run(tmp_path)
        there.append(json.loads((folder / "result.json").read_text()))
        assert (folder / "policy.safetensors").is_file()

    late.setattr(Late, "seen", staticmethod(look))
    result = run(tmp_path)
    [before] = there
    assert before["global_step"] == STEPS and names.MEAN_RETURN not in before
    assert before["sps"] == result["sps"] and names.MEAN_RETURN in result


def test_a_kill_during_it_leaves_the_result(eager: Forge, tmp_path: Path) -> None:
    flags = [*SMALL[:-1], "--total-timesteps", "48", "--eval-episodes", "100000", "--run-root", str(tmp_path)]
    victim = eager.start(*flags)
    wait_until(lambda: victim.out.exists() and "evaluating" in victim.out.read_text())
    victim.send(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    folder = only_run(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["global_step"] == 48 and result["stopped"] == "a kill during the last evaluation"
    assert (folder / "policy.safetensors").is_file()
    assert find.resolve("latest", tmp_path).run == folder  # `--resume latest` makes up for the evaluation


def test_one_whose_environments_do_not_close(late: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late.setattr(Late, "where", "close")
    late.setattr(Late, "does", staticmethod(hang))
    with pytest.warns(UserWarning, match=r"Late did not close within 0.2 s"):
        result = run(tmp_path)
    assert names.MEAN_RETURN in result


@pytest.mark.parametrize("most", [4, 5, 7])
def test_a_simulator_that_allows_only_so_many(
    late: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    """Those of the training are closed then; the greedy episodes are the ones that six would have played."""
    free = run(tmp_path / "free")
    Late.over = False
    late.setattr(Late, "most", most)
    result = run(tmp_path / "few")
    assert Late.alive == 0 and not warnings_in(capsys.readouterr().out)
    assert result["eval/episodes"] == result["eval/sampled_episodes"] == 6
    assert result[names.MEAN_RETURN] == pytest.approx(free[names.MEAN_RETURN])
    late.setattr(Late, "most", 4)
    again = evaluate.evaluate(evaluate.Args(run=str(only_run(tmp_path / "few")), episodes=6))
    assert again["greedy"]["mean_return"] == result[names.MEAN_RETURN] and Late.alive == 0


@pytest.mark.parametrize("limit", [{"eval_max_steps": 30}, {"eval_seconds": 0.4}])
def test_episodes_that_never_end(
    late: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: dict[str, Any]
) -> None:
    late.setattr(Late, "ends", False)
    began = time.monotonic()
    result = run(tmp_path, **limit)
    assert time.monotonic() - began < 20
    assert result["eval/unfinished"] == result["eval/sampled_unfinished"] == 6 == result["eval/episodes"]
    assert result["eval/mean_length"] == 30 or "eval_seconds" in limit
    trained, evaluated = warnings_in(capsys.readouterr().out)
    assert "no episode has ended" in trained
    assert "6 of 6 greedy and 6 of 6 sampled episodes did not end" in evaluated
    flags: dict[str, Any] = {"max_steps": 25} if "eval_max_steps" in limit else {"seconds": 0.2}
    again = evaluate.evaluate(evaluate.Args(run=str(only_run(tmp_path)), episodes=3, **flags))
    assert again["greedy"]["unfinished"] == 3
    assert "unfinished 3" in capsys.readouterr().out


def test_it_says_how_far_it_is(late: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late.setattr("ppo_fast.run.play.SECONDS_BETWEEN_TELLS", 0.0)
    run(tmp_path)
    assert "evaluating 0/6, step 7 ..." in capsys.readouterr().out
    evaluate.evaluate(evaluate.Args(run=str(only_run(tmp_path)), episodes=6, policy="greedy"))
    assert "greedy: 0 of 6 episodes are over, the others at step 7" in capsys.readouterr().err


def test_a_run_in_a_thread(late: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No signal reaches it there, which would interrupt what hangs."""
    results: list[dict[str, Any]] = []
    late.setattr(Late, "where", "step")
    late.setattr(Late, "does", staticmethod(lambda: time.sleep(3)))
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, eval_seconds=0.2)))
    thread.start()
    thread.join(60)
    assert results[0]["no_evaluation"] == "not done within 0.4 s"


def test_an_agent_that_cannot_be_played(late: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late.setattr(ending.play, "evaluate", lambda *_: 1 / 0)
    assert run(tmp_path)["no_evaluation"] == "ZeroDivisionError: division by zero"
    assert os.path.exists(only_run(tmp_path) / "policy.safetensors")
