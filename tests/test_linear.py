"""`--hidden-sizes` without a value, a policy without hidden layers: a run to its very end, and all that follows one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast import evaluate, plot, replay
from ppo_fast.algorithm.mlp import MLP
from ppo_fast.run import checkpoint
from ppo_fast.train import Args, train


def linear(root: Path, **flags: Any) -> Args:
    small: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "num_minibatches": 2}
    small |= {"update_epochs": 1, "eval_episodes": 2, "quiet": True, "compile": "off", "run_root": str(root)}
    return Args(**{**small, "hidden_sizes": (), **flags})


@pytest.mark.full_end
@pytest.mark.parametrize("shared", [False, True])
def test_a_linear_policy_is_trained_resumed_played_and_drawn(
    shared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(linear(tmp_path, shared_backbone=shared, norm_obs=True))
    assert result["speed"]["ceiling_flops"] > 0
    [run] = tmp_path.iterdir()
    assert train(Args(resume=str(run), total_timesteps=96, quiet=True))["global_step"] == 96
    figures = evaluate.evaluate(evaluate.Args(run=str(run), episodes=2))
    assert figures["greedy"]["episodes"] == 2
    assert plot.plot(plot.Args(runs=(str(run),))) == [run / "plot.png"]
    capsys.readouterr()


def test_what_breaks_down_is_found_again(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"python -m ppo_fast\.replay"):
        train(linear(tmp_path, learning_rate=1e38, total_timesteps=320))
    [crash] = tmp_path.glob("*/crash-*.pt")
    assert "update reproduced" in "\n".join(replay.replay(checkpoint.load(crash)))


def test_recorded_as_well(tmp_path: Path) -> None:
    result = train(linear(tmp_path, compile="auto", total_timesteps=32 * 25, shared_backbone=True))
    assert result["execution"] == "recorded, 5 of 5 functions"


def test_a_network_without_layers_gives_back_what_it_gets() -> None:
    x = torch.rand(3, 4)
    assert MLP([4], 1.0, activate_last=True)(x) is x
