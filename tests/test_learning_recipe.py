"""benchmarks.learning_recipe: its tasks, the words of its sides, and figures over tasks and seeds."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import learning, learning_recipe
from benchmarks.learning import Task
from benchmarks.learning_recipe import (
    FEWER_EPISODES,
    Args,
    Group,
    Ledger,
    lead,
    lines_of,
    main,
    overall,
    random_return,
    scores,
)
from benchmarks.tasks import Walk

pytest.importorskip("scipy")


def found(**greedy: list[float]) -> dict[str, Any]:
    """What is found of a task, in which random actions get 10."""
    return {
        "family": "tables",
        "random": 10.0,
        "greedy": greedy,
        "lead": {side: lead(greedy["recipe"], greedy[side]) for side in ("former", "cleanrl")},
        "seconds_of_1m_steps": dict.fromkeys(greedy, 100.0),
    }


def test_a_score_is_0_for_random_actions_and_1_for_the_best_mean() -> None:
    made = scores(found(recipe=[100.0, 120.0], former=[10.0, 21.0], cleanrl=[0.0, 10.0]))
    assert made["recipe"].tolist() == [0.9, 1.1] and made["former"].tolist() == [0.0, 0.11]
    assert made["cleanrl"].tolist() == [-0.1, 0.0]
    nothing = scores(found(recipe=[10.0], former=[10.0], cleanrl=[9.0]))
    assert nothing["recipe"].tolist() == nothing["cleanrl"].tolist() == [0.0]


def test_an_interval_over_tasks_holds_the_middle() -> None:
    drawn = np.random.default_rng(1)
    tasks = [{"recipe": drawn.normal(place, 0.1, 5)} for place in (0.8, 1.0, 1.2)]
    middle, low, high = overall(tasks, "recipe")
    assert low is not None and high is not None
    assert 0.85 < low < middle < high < 1.15
    same = [{"recipe": np.array([0.5, 0.5])}]
    assert overall(same, "recipe") == (0.5, 0.5, 0.5)


def test_one_seed_has_no_interval() -> None:
    assert lead([3.0], [1.0]) == (2.0, None, None)
    assert lead([3.0, 3.0], [1.0, 1.0]) == (2.0, 2.0, 2.0)
    assert overall([{"recipe": np.array([0.5])}, {"recipe": np.array([0.7])}], "recipe") == (0.6, None, None)
    lines = lines_of({"A-v0": found(recipe=[100.0], former=[10.0], cleanrl=[110.0])})
    assert lines[1].split()[6:8] == ["90", "-10"]
    assert "over former: better in 1 of 1 (clearly in 0), equal in 0; clearly worse in 0" in lines


def test_a_table_counts_what_is_better_and_what_is_clearly_worse() -> None:
    tasks = {
        "A-v0": found(recipe=[100.0, 101.0, 99.0], former=[10.0, 11.0, 9.0], cleanrl=[110.0, 111.0, 109.0]),
        "benchmarks.tasks:B-v0": found(recipe=[20.0, 40.0, 30.0], former=[30.0, 10.0, 25.0], cleanrl=[30.0] * 3),
        "C-v0": {**found(recipe=[50.0] * 3, former=[50.0] * 3, cleanrl=[20.0] * 3), "family": "games"},
    }
    lines = lines_of(tasks)
    assert "over former: better in 2 of 3 (clearly in 1), equal in 1; clearly worse in 0" in lines
    assert "over cleanrl: better in 1 of 3 (clearly in 1), equal in 1; clearly worse in 1" in lines
    names = [line.partition("  ")[0] for line in lines[8:]]
    assert lines[2].startswith("B-v0 ") and names == ["all", "tables", "games", "all but tables", "all but games"]
    without_tables = lines[8 + names.index("all but tables")]
    assert without_tables.split()[3:] == lines[8 + names.index("games")].split()[1:]


@pytest.mark.parametrize(("env_id", "low", "high"), [("CartPole-v1", 15, 30), ("benchmarks.tasks:Walk-v0", 10, 18)])
def test_random_actions_are_played_by_their_mask(env_id: str, low: float, high: float) -> None:
    assert low < random_return(Task(env_id, 1, "tensor" if env_id == "CartPole-v1" else "sync", None)) < high


def test_a_walk_visits_each_field_once_and_can_visit_all() -> None:
    env = Walk()
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        assert obs["fields"][:25].sum() == obs["fields"][25:].sum() == 1
        steps, over = 0, False
        while not over:
            assert steps < 24
            assert env.observation_space.contains(obs)
            action = int(np.flatnonzero(obs["action_mask"])[seed % obs["action_mask"].sum()])
            obs, reward, over, _, _ = env.step(action)
            steps += 1
            assert reward == 1 and obs["fields"][:25].sum() == steps + 1
    obs, _ = env.reset(seed=next(seed for seed in range(99) if env.reset(seed=seed)[0]["fields"][25] == 1))
    rows = [1, 1, 1, 1, 2, 3, 3, 3, 3, 2, 1, 1, 1, 1, 2, 3, 3, 3, 3, 2, 1, 1, 1, 1]  # right, right, ..., down, left
    assert [env.step(action)[2] for action in rows] == [False] * 23 + [True]


class FakeTraining:
    """Stands in for subprocess.run, as a training that gets 30 by the recipe and 20 otherwise."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, words: list[str], **_: Any) -> subprocess.CompletedProcess:
        """The call."""
        self.calls.append(words)
        if "-1" in words:
            return subprocess.CompletedProcess(words, 3, "", "error: NaN")
        folder = Path(words[words.index("--run-root") + 1]) / "run"
        folder.mkdir()
        greedy = 30.0 if "--recipe" in words else 20.0
        result = {"eval/mean_return": greedy, "eval/sampled_mean_return": greedy - 1, "eval/episodes": 100}
        (folder / "result.json").write_text(json.dumps(result | {"sps": 5000.0, "global_step": 1000}))
        (folder / "config.json").write_text(json.dumps({"versions": {}, "threads": 1, "execution": "eager"}))
        (folder / "metrics.jsonl").write_text(json.dumps({"global_step": 500, "charts/episodic_return": 7.0}))
        return subprocess.CompletedProcess(words, 0, "", "")


@pytest.mark.fitted
def test_all_sides_are_run_at_the_same_steps_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {1000: "CartPole-v1", 2000: "Pendulum-v1"}
    groups = tuple(Group("tensor", steps, (env_id,), FEWER_EPISODES) for steps, env_id in tasks.items())
    monkeypatch.setattr(learning_recipe, "FAMILIES", {"classic": groups})
    training = FakeTraining()
    monkeypatch.setattr(learning.subprocess, "run", training)
    args = Args(seeds="1-2", run_root=tmp_path, out=tmp_path / "found.json")
    main(args)
    assert len(training.calls) == 12
    for words in training.calls:
        assert words.count("--env-id") == words.count("--total-timesteps") == 1 and "--eval-episodes" in words
        assert tasks[int(words[words.index("--total-timesteps") + 1])] in words
    theirs = [words for words in training.calls if "--recipe" not in words and "--learning-rate" in words]
    lines = {words[words.index("--env-id") + 1]: words for words in theirs}
    assert len(theirs) == 4 and "--action-bounds" in lines["Pendulum-v1"] and "--norm-obs" not in lines["CartPole-v1"]
    said = capsys.readouterr().out
    assert "over former: better in 2 of 2 (clearly in 2), equal in 0; clearly worse in 0" in said
    written = json.loads(args.out.read_text(), parse_constant=pytest.fail)["tasks"]["Pendulum-v1"]
    assert written["greedy"] == {"recipe": [30.0] * 2, "former": [20.0] * 2, "cleanrl": [20.0] * 2}
    assert written["set_by_the_recipe"]["gamma"] == 0.95 and str(tmp_path) not in args.out.read_text()
    main(args)
    assert len(training.calls) == 12
    elsewhere = replace(args, run_root=tmp_path / "elsewhere", seeds="2-3", family=("classic", "classic"))
    main(elsewhere)  # seed 2 is known from the JSON file, which keeps seed 1
    kept = json.loads(args.out.read_text())
    assert len(training.calls) == 18 and len(kept["records"]) == 18
    assert kept["tasks"]["Pendulum-v1"]["greedy"]["recipe"] == [30.0] * 3
    assert kept["tasks"]["Pendulum-v1"]["seeds"] == [1, 2, 3]
    args.out.write_text("[]")
    with pytest.raises(ValueError, match=r"--out: .* is no result of"):
        main(args)
    with pytest.raises(ValueError, match=r"--family: .* is none of classic"):
        main(Args(family=("robot",)))


@pytest.mark.fitted
def test_records_of_another_recipe_are_forgotten_for_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = tuple(Group("tensor", 1000, (env_id,)) for env_id in ("CartPole-v1", "Pendulum-v1"))
    monkeypatch.setattr(learning_recipe, "FAMILIES", {"classic": groups[:1], "robots": groups[1:]})
    monkeypatch.setattr(learning.subprocess, "run", FakeTraining())
    args = Args(seeds="1-3", run_root=tmp_path, out=tmp_path / "found.json")
    main(args)
    found = json.loads(args.out.read_text())
    del found["tasks"]["Pendulum-v1"]
    args.out.write_text(json.dumps(found))
    main(replace(args, family=("classic",)))  # tells of robots, too, which it does not run
    found = json.loads(args.out.read_text())
    assert list(found["tasks"]) == ["CartPole-v1", "Pendulum-v1"]
    for record in found["records"]:
        if record["side"] == "recipe" and record["env_id"] == "Pendulum-v1":
            record["preset"]["gamma"] = 0.5
    args.out.write_text(json.dumps(found))
    ledger = Ledger(args.out)
    ledger.drop_outdated(learning_recipe.jobs_of(("classic", "robots"), [0]))
    assert list(ledger.tasks()) == ["CartPole-v1"]  # no summary of runs that are gone
    capsys.readouterr()
    main(replace(args, seeds="1", run_root=tmp_path / "elsewhere", family=("classic",)))
    assert list(json.loads(args.out.read_text())["tasks"]) == ["CartPole-v1"]  # also where another family is run
    main(replace(args, seeds="1", run_root=tmp_path / "elsewhere", family=("robots",)))
    found = json.loads(args.out.read_text())
    assert found["tasks"]["CartPole-v1"]["seeds"] == [1, 2, 3]
    assert found["tasks"]["Pendulum-v1"]["seeds"] == [1]  # those that all sides have
    assert len(found["records"]) == 16
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("CartPole-v1 ", "Pend"))]
    assert [words[1] for words in lines if words[1] not in learning_recipe.SIDES][-2:] == ["3", "1"]


def test_a_run_that_fails_ends_it_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Group("tensor", 1000, ("CartPole-v1",), "--num-envs -1")
    monkeypatch.setattr(learning_recipe, "FAMILIES", {"classic": (broken,)})
    for module in (learning, learning_recipe):
        monkeypatch.setattr(module, "what_is_set", lambda _: {})
    monkeypatch.setattr(learning.subprocess, "run", FakeTraining())
    with pytest.raises(RuntimeError, match="CartPole-v1, recipe, seed 1: exit status 3: error: NaN"):
        main(Args(seeds="1", run_root=tmp_path, out=tmp_path / "found.json"))


def test_what_was_done_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        learning_recipe,
        "FAMILIES",
        {
            "classic": (Group("tensor", 1000, ("CartPole-v1",)),),
            "games": (Group("tensor", 1000, ("Acrobot-v1",), "--num-envs -1"),),
        },
    )
    for module in (learning, learning_recipe):
        monkeypatch.setattr(module, "what_is_set", lambda _: {})
    training = FakeTraining()
    monkeypatch.setattr(learning.subprocess, "run", training)
    for root in ("first", "second"):
        with pytest.raises(RuntimeError, match="Acrobot-v1, recipe, seed 1"):
            main(Args(seeds="1", run_root=tmp_path / root, out=tmp_path / "found.json"))
        kept = json.loads((tmp_path / "found.json").read_text())["records"]
        assert [record["side"] for record in kept] == ["cleanrl", "former", "recipe"]
        assert all(record["machine"]["cores"] > 0 for record in kept)
    assert sum("CartPole-v1" in words for words in training.calls) == 3
