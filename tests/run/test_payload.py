"""What a checkpoint holds: a layout that stays readable, and which checkpoint was the best."""

from typing import Any

import pytest
import torch

from ppo_fast.run import resume
from ppo_fast.run.payload import FORMAT, Checkpoint, Progress, RankState, Score, policy_in

# As every version has written it.
FILE: dict[str, Any] = {
    "program": "ppo_fast.train",
    "format": FORMAT,
    "flags": {"env_id": "CartPole-v1", "num_envs": 4},
    "progress": {
        "iteration": 7,
        "global_step": 112,
        "rollbacks": 1,
        "elapsed": 2.5,
        "rate_factor": 0.5,
        "best": 31.0,
        "first_seconds": 0.25,
        "recent": [40.0, 2.0],
        "wandb_id": "abc",
    },
    "ranks": [{"tensors": {"theta": torch.zeros(3)}, "generators": [torch.zeros(2)], "rng": {"cuda": []}}],
}


def test_the_layout_of_the_file_stays() -> None:
    assert resume.reason_against(FILE, "ppo_fast.train") is None
    read = Checkpoint.from_plain(FILE)
    assert read.to_plain() == FILE
    assert read.progress == Progress(7, 112, 2.5, 0.25, 1, 0.5) and read.score == Score(31.0, 40.0, 2.0)
    assert read.wandb_id == "abc" and read.ranks[0].generators == FILE["ranks"][0]["generators"]


def test_a_new_run_can_be_gone_on_from() -> None:
    state = RankState({"theta": torch.zeros(3)}, [], {})
    made = Checkpoint("ppo_fast.train", {}, Progress(), Score(), [state]).to_plain()
    assert resume.reason_against(made, "ppo_fast.train") is None


def test_a_policy_is_read_from_checkpoints_of_any_version() -> None:
    old = {**FILE, "format": 1, "progress": {}}
    tensors, facts = policy_in(old)
    assert tensors is FILE["ranks"][0]["tensors"]
    assert facts == {**FILE["flags"], "program": "ppo_fast.train"}
    with pytest.raises(KeyError, match="ranks"):
        policy_in({"flags": {}, "program": "x"})


def test_the_best_checkpoint_is_that_after_the_best_mean_return() -> None:
    score = Score()
    marked = []
    for returns, episodes in ((20.0, 2), (0.0, 0), (27.0, 3), (44.0, 4)):
        score = score.after(returns, episodes)
        marked.append(score.is_best())
        score = score.judged()
    assert marked == [True, False, False, True] and score == Score(11.0)


def test_episodes_count_until_a_checkpoint_is_due() -> None:
    score = Score(10.0).after(8.0, 1).after(16.0, 1)
    assert score.is_best() and score.judged() == Score(12.0)
