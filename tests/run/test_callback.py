"""train(args, on_iteration=f): f sees every iteration, logs and stops; what it does wrong costs the run nothing."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_envs import Shared
from victims import only_run, timeless

from ppo_fast import names, train, train_lstm
from ppo_fast.run import find
from ppo_fast.run.callback import Callback, Moment
from ppo_fast.run.payload import Progress
from ppo_fast.run.policy import load_policy
from ppo_fast.run.rows import read_metrics

BATCH = 4 * 16


def args(root: Path, program: Any = train, **more: Any) -> Any:
    flags = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 1, "cuda": False}
    flags |= {"total_timesteps": BATCH * 5, "eval_episodes": 0, "compile": "off", "quiet": True, "run_root": str(root)}
    return program.Args(**{**flags, **more})


@pytest.mark.parametrize("program", [train, train_lstm])
def test_it_sees_every_iteration_in_plain_numbers(tmp_path: Path, program: Any) -> None:
    seen: list[Moment] = []
    program.train(args(tmp_path, program, eval_every=2 * BATCH, eval_every_episodes=2), on_iteration=seen.append)
    assert [(now.iteration, now.global_step) for now in seen] == [(i, i * BATCH) for i in range(1, 6)]
    for now, row in zip(seen, read_metrics(only_run(tmp_path)), strict=True):
        assert all(type(x) in (int, float) for x in now.metrics.values())
        assert names.jsonable(now.metrics) == row
    assert [now.iteration for now in seen if names.MEAN_RETURN in now.metrics] == [2, 4]
    with pytest.raises(TypeError):
        seen[0].metrics["losses/entropy"] = 0.0  # type: ignore[index]


def test_its_agent_acts_and_is_a_copy(tmp_path: Path) -> None:
    agents: list[Any] = []

    def spoil(now: Moment) -> None:
        with torch.no_grad():
            action, _ = now.agent.act(torch.zeros(3, 4), None)
            assert action.shape == (3,)
            agents.append({name: x.clone() for name, x in now.agent.state_dict().items()})
            for parameter in now.agent.parameters():
                parameter.fill_(float("nan"))

    train.train(args(tmp_path / "with", norm_obs=True), on_iteration=spoil)
    train.train(args(tmp_path / "without", norm_obs=True))
    left, _ = load_policy(only_run(tmp_path / "without"))
    assert all((agents[-1][name] == x).all() for name, x in left.items())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "odd_envs:Shared-v0"])
def test_what_it_draws_is_not_the_trainings(tmp_path: Path, env_id: str) -> None:
    assert Shared.draw
    drawn: list[float] = []

    def draws(now: Moment) -> None:
        drawn.extend([random.random(), float(np.random.random()), float(torch.rand(()))])

    for name, function in (("with", draws), ("without", None)):
        train.train(args(tmp_path / name, env_id=env_id), on_iteration=function)
    rows = [read_metrics(only_run(tmp_path / name)) for name in ("with", "without")]
    assert timeless(rows[0]) == timeless(rows[1]) and len(set(drawn)) == 15


def test_what_it_logs_stands_in_the_row(tmp_path: Path) -> None:
    def logs(now: Moment) -> None:
        now.log({"my/half": now.iteration / 2, "my/tensor": torch.tensor(3.0)})  # type: ignore[dict-item]
        now.log({"my/nan": float("nan")})

    train.train(args(tmp_path), on_iteration=logs)
    rows = read_metrics(only_run(tmp_path))
    assert [row["my/half"] for row in rows] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert rows[0]["my/tensor"] == 3.0 and rows[0]["my/nan"] is None and rows[0][names.NOT_FINITE] == 0


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"losses/entropy": 1.0}, "'losses/entropy' is a name of the run's own"),
        ({"global_step": 1.0}, "'global_step' is a name of the run's own"),
        ({"my/x": "much"}, "my/x is a str, no number"),
        ({"my/x": torch.zeros(2)}, "my/x is a Tensor, no number"),
        ({3: 1.0}, "3 is a name"),
    ],
)
def test_what_can_not_be_logged(numbers: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"log: {reason}"):
        Moment(Progress(), {}, torch.nn.Linear(1, 1)).log(numbers)


def test_it_stops_the_run_which_goes_on_later(tmp_path: Path) -> None:
    result = train.train(args(tmp_path), on_iteration=lambda now: now.stop() if now.iteration == 2 else None)
    assert result["stopped"] == "on_iteration" and result["exit_status"] == 0 and result["global_step"] == 2 * BATCH
    folder = only_run(tmp_path)
    assert json.loads((folder / "result.json").read_text())["stopped"] == "on_iteration"
    again = train.train(train.Args(resume="auto", run_root=str(tmp_path), quiet=True), on_iteration=lambda now: None)
    assert again["global_step"] == 5 * BATCH and "stopped" not in again and only_run(tmp_path) == folder


@pytest.mark.parametrize("problem", [KeyError("oops"), SystemExit(3), KeyboardInterrupt(), ValueError("--env-id: no")])
@pytest.mark.parametrize("at", [1, 5])
def test_its_exception_reaches_the_caller_of_a_run_that_is_saved(
    tmp_path: Path, problem: BaseException, at: int
) -> None:
    calls = []

    def fails(now: Moment) -> None:
        calls.append(now.iteration)
        if now.iteration == at:
            raise problem

    with pytest.raises(type(problem)) as caught:
        train.train(args(tmp_path), on_iteration=fails)
    assert caught.value is problem and calls == list(range(1, at + 1))
    folder = only_run(tmp_path)
    assert find.find_in(folder).payload["progress"]["global_step"] == at * BATCH
    result = json.loads((folder / "result.json").read_text())
    assert result["stopped"].startswith(f"on_iteration raised {type(problem).__name__}")
    assert len(read_metrics(folder)) == at and (folder / names.POLICY_FILE).exists()
    assert train.train(train.Args(resume=str(folder), quiet=True))["global_step"] == 5 * BATCH


def test_without_a_function_nothing_is_called() -> None:
    assert Callback(None).call(Progress(), {}, torch.nn.Linear(1, 1)) == {}
