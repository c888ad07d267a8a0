"""--eval-every: the training's numbers are those without it, the best policy is kept, and nothing ends a run for it."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from odd_envs import TwoDials
from victims import only_run

import ppo_fast
from ppo_fast import evaluate, export, names, train, train_lstm
from ppo_fast.run import find, midway
from ppo_fast.run.best import best_in
from ppo_fast.run.policy import load_policy, save_policy
from ppo_fast.run.rows import read_metrics

BATCH = 4 * 16
INCIDENTAL = ("time/", "charts/SPS", "eval/")


class Noisy(TwoDials):
    """TwoDials that draws from every process-wide generator, and does `does` in its steps of an evaluation."""

    does: Any = None
    made = 0
    of_training: int | None = None  # how many were made before the first step of all

    def __init__(self) -> None:
        self.number = Noisy.made
        Noisy.made += 1
        random.random()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        Noisy.of_training = Noisy.of_training or Noisy.made
        if Noisy.does is not None and self.number >= Noisy.of_training:
            Noisy.does()
        return obs, reward + float(np.random.random()) + random.random(), terminated, truncated, info


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(gymnasium.registry, "Noisy-v0", EnvSpec("Noisy-v0", entry_point=f"{__name__}:Noisy"))
    for name in ("does", "made", "of_training"):
        monkeypatch.setattr(Noisy, name, vars(Noisy)[name])
    return monkeypatch


def run(root: Path, program: Any = train, iterations: int = 6, **more: Any) -> dict[str, Any]:
    flags = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 1, "cuda": False}
    flags |= {
        "total_timesteps": BATCH * iterations,
        "eval_episodes": 0,
        "compile": "off",
        "quiet": True,
        "run_root": str(root),
    }
    return program.train(program.Args(**{**flags, "eval_every_episodes": 3, **more}))


def rows_of(root: Path, *but: str) -> list[dict[str, Any]]:
    """Rows without what depends on the clock."""
    rows = read_metrics(only_run(root))
    return [{name: x for name, x in row.items() if not name.startswith(but or INCIDENTAL)} for row in rows]


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        (train, {"norm_obs": True, "norm_reward": True, "compile": "auto"}),
        (train, {"env_id": "Noisy-v0"}),
        (train, {"env_id": "Noisy-v0", "backend": "async"}),
        (train, {"env_id": "CartPole-v1", "backend": "envpool"}),
        (train, {"env_id": "odd_envs:NextStep-v0"}),
        (train_lstm, {"env_id": "Noisy-v0"}),
    ],
)
def test_the_training_has_the_numbers_that_it_has_without(
    noisy: pytest.MonkeyPatch, tmp_path: Path, program: Any, flags: dict[str, Any]
) -> None:
    run(tmp_path / "without", program, **flags)
    result = run(tmp_path / "with", program, eval_every=40, **flags)
    with_it = read_metrics(only_run(tmp_path / "with"))
    assert all(row[names.EPISODES] == 3 and row[names.EVAL_TIME] > 0 for row in with_it) and len(with_it) == 6
    assert rows_of(tmp_path / "with") == rows_of(tmp_path / "without")
    weights = [load_policy(only_run(tmp_path / name))[0] for name in ("with", "without")]
    assert all((weights[0][name] == x).all() for name, x in weights[1].items())
    assert result["best_policy"] == names.BEST_POLICY_FILE


def test_it_is_due_where_a_multiple_is_passed(tmp_path: Path) -> None:
    run(tmp_path, eval_every=100)
    steps = [row[names.GLOBAL_STEP] for row in read_metrics(only_run(tmp_path)) if names.MEAN_RETURN in row]
    assert steps == [128, 256, 320]  # the first iterations that end at or behind 100, 200 and 300 steps of 384


def test_the_best_one_is_kept_and_found(tmp_path: Path) -> None:
    result = run(tmp_path, eval_every=BATCH, iterations=12, learning_rate=0.02)
    folder = only_run(tmp_path)
    means = [row[names.MEAN_RETURN] for row in read_metrics(folder)]
    best = max(means)
    assert result["best_mean_return"] == best and means.index(best) < 11  # else nothing is tried out here
    assert result["best_step"] == BATCH * (means.index(best) + 1)
    assert json.loads((folder / "result.json").read_text())["best_policy"] == "best.safetensors"
    file = folder / "best.safetensors"
    weights, facts = load_policy(file)
    assert facts[names.MEAN_RETURN] == best and facts[names.GLOBAL_STEP] == result["best_step"]
    policy = ppo_fast.load(file)
    assert policy([0.0] * 4) in (0, 1) and policy.path == file
    again = evaluate.evaluate(
        evaluate.Args(run=str(file), episodes=3, policy="greedy", backend="tensor", seed=1 + midway.MIDWAY_SEED - 10**6)
    )
    assert again["greedy"]["mean_return"] == best
    export.export(export.Args(run=str(file), to="torch", output=str(tmp_path / "best.pt2")))
    assert (tmp_path / "best.pt2").exists()
    assert not all((weights[name] == x).all() for name, x in load_policy(folder)[0].items())


def test_a_resumed_run_has_the_same_rows_and_the_same_best(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"eval_every": 2 * BATCH, "norm_obs": True, "learning_rate": 0.02}
    whole = run(tmp_path / "whole", iterations=9, **flags)
    run(tmp_path / "parts", iterations=9, max_runtime=1e-9, **flags)
    parts: dict[str, Any] = {"stopped": ""}
    stops = 0
    while "stopped" in parts:
        limit = 1e-9 if stops < 4 else None
        parts = train.train(train.Args(resume=str(only_run(tmp_path / "parts")), max_runtime=limit, quiet=True))
        stops += 1
    assert stops == 5
    assert rows_of(tmp_path / "parts", "time/", "charts/SPS") == rows_of(tmp_path / "whole", "time/", "charts/SPS")
    assert {name: x for name, x in parts.items() if "best" in name} == {
        name: x for name, x in whole.items() if "best" in name
    }
    files = [load_policy(only_run(tmp_path / name) / names.BEST_POLICY_FILE)[0] for name in ("whole", "parts")]
    assert all((files[0][name] == x).all() for name, x in files[1].items())


def test_the_best_of_a_lost_future_stays_the_best_and_a_strangers_is_none(tmp_path: Path) -> None:
    run(tmp_path, eval_every=BATCH, max_runtime=1e-9)
    folder = only_run(tmp_path)
    file = folder / names.BEST_POLICY_FILE
    weights, facts = load_policy(file)
    of_later = {**facts, names.MEAN_RETURN: 400.0, names.GLOBAL_STEP: 10**6}
    save_policy(folder, weights, of_later, names.BEST_POLICY_FILE)  # as a kill before the next checkpoint leaves it
    result = train.train(train.Args(resume=str(folder), quiet=True))
    assert (result["best_mean_return"], result["best_step"]) == (400.0, 10**6)
    save_policy(folder, weights, {**of_later, names.RUN_ID: "another"}, names.BEST_POLICY_FILE)
    assert best_in(folder, facts[names.RUN_ID]) is None
    file.write_bytes(b"half")
    assert best_in(folder, facts[names.RUN_ID]) is None
    result = train.train(train.Args(resume=str(folder), total_timesteps=BATCH * 8, quiet=True))
    best = best_in(folder, facts[names.RUN_ID])
    assert best is not None and best.mean_return == result["best_mean_return"] < 400


def test_ctrl_c_cuts_it_short_and_loses_nothing(noisy: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt() -> None:
        noisy.setattr(Noisy, "does", None)  # a second one would leave at once
        os.kill(os.getpid(), signal.SIGINT)

    noisy.setattr(Noisy, "does", staticmethod(interrupt))
    result = run(tmp_path, env_id="Noisy-v0", eval_every=BATCH)
    folder = only_run(tmp_path)
    assert result["stopped"] == "SIGINT" and result["exit_status"] == 130 and result["global_step"] == BATCH
    [row] = read_metrics(folder)
    assert names.MEAN_RETURN not in row and not (folder / names.BEST_POLICY_FILE).exists()
    assert find.find_in(folder).payload["progress"]["global_step"] == BATCH
    assert train.train(train.Args(resume=str(folder), quiet=True))["global_step"] == 6 * BATCH


def crash() -> None:
    raise RuntimeError("the simulator has crashed\nand a second line")


@pytest.mark.parametrize(
    ("does", "reason", "said"),
    [
        (crash, "environment 0 raised RuntimeError: the simulator has crashed", 2),
        (lambda: time.sleep(600), "not done within 0.2 s", 1),
    ],
)
def test_one_that_fails_is_said_and_training_goes_on(
    noisy: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], does: Any, reason: str, said: int
) -> None:
    noisy.setattr(Noisy, "does", staticmethod(does))
    noisy.setattr("ppo_fast.envs.closing.close_all.__defaults__", (0.1,))
    result = run(tmp_path, env_id="Noisy-v0", eval_every=BATCH, eval_seconds=0.1)
    assert result["global_step"] == 6 * BATCH and "best_policy" not in result and "stopped" not in result
    lines = [line for line in capsys.readouterr().err.splitlines() if "no evaluation by --eval-every" in line]
    assert len(lines) == said and reason in lines[0] and "no more are tried" in lines[-1]


def test_its_time_is_none_of_the_trainings(noisy: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noisy.setattr(Noisy, "does", staticmethod(lambda: time.sleep(0.02)))
    result = run(tmp_path, env_id="Noisy-v0", eval_every=3 * BATCH, eval_every_episodes=4)
    rows = read_metrics(only_run(tmp_path))
    spent = sum(row.get(names.EVAL_TIME, 0.0) for row in rows)
    assert spent > 0.5 and result["seconds"]["eval"] >= spent
    elapsed = result["global_step"] / result["sps"]
    assert elapsed < result["seconds"]["train"] + 0.2 and rows[-1][names.ELAPSED] < elapsed
    assert elapsed + spent < sum(result["seconds"].values())


def test_an_episode_that_never_ends_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, eval_every=3 * BATCH, eval_max_steps=5, quiet=False)
    rows = [row for row in read_metrics(only_run(tmp_path)) if names.MEAN_RETURN in row]
    assert [row["eval/unfinished"] for row in rows] == [3, 3] and rows[0][names.MEAN_RETURN] == 5
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation")]
    assert said[0] == "evaluation    step 192: 5.00 +- 0.00 over 3 episodes, 3 did not end, the best so far"
    assert said[1] == "evaluation    step 384: 5.00 +- 0.00 over 3 episodes, 3 did not end"
