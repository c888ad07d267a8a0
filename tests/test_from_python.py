"""Programs called from Python, in a process that goes on: what they take, and what they leave of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppo_fast import evaluate
from ppo_fast.train import Args, train


def small(root: Path, **flags: Any) -> Args:
    values: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "num_minibatches": 2}
    values |= {"update_epochs": 1, "hidden_sizes": (8,), "eval_episodes": 2, "quiet": True, "compile": "off"}
    return Args(**{**values, "run_root": str(root), **flags})


def test_numbers_of_numpy_and_torch_paths_and_lists_are_taken_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"num_envs": np.int64(4), "gamma": np.float32(0.5), "learning_rate": torch.tensor(1e-3)}
    given |= {"hidden_sizes": [np.int64(8), 8], "norm_obs": np.bool_(True), "total_timesteps": 64.0}
    given |= {"exp_name": np.str_("x"), "save_interval": np.uint8(1), "seed": np.array(3)}
    train(small(tmp_path, run_root=tmp_path, **given))
    [run] = tmp_path.iterdir()
    assert train(Args(resume=run, total_timesteps=np.int64(96), quiet=True))["global_step"] == 96  # type: ignore[arg-type]
    args: Any = {"run": run, "episodes": np.int64(2), "json": np.bool_(True)}
    assert evaluate.evaluate(evaluate.Args(**args))["greedy"]["episodes"] == 2
    capsys.readouterr()
