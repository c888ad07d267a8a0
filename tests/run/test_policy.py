"""policy.safetensors: what goes in comes out, and damage is told in one line."""

from pathlib import Path

import pytest
import torch

from ppo_fast.run.checkpoint import DamagedCheckpoint
from ppo_fast.run.policy import load_policy, save_policy


def test_policy_round_trip(tmp_path: Path) -> None:
    theta = torch.randn(20)
    weights = {
        "actor.weight": theta[:12].view(3, 4).T,
        "shared": theta,
        "count": torch.tensor(3),
        "b": theta.bfloat16(),
    }
    meta = {"action_space": {"n": 2}, "low": [-1.5, 2], "env_id": "CartPole-v1"}
    path = save_policy(tmp_path, weights, meta)
    for source in (path, tmp_path):
        loaded, loaded_meta = load_policy(source)
        assert loaded_meta == meta and loaded.keys() == weights.keys()
        for name, tensor in weights.items():
            assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.safetensors"]


def test_policy_of_a_module(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    path = save_policy(tmp_path, module.state_dict(), {})
    module.load_state_dict(load_policy(path)[0])


def test_policy_meta_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_policy(tmp_path, {}, {"space": object()})


def test_damaged_policy(tmp_path: Path) -> None:
    path = save_policy(tmp_path, {"w": torch.zeros(100)}, {})
    data = path.read_bytes()
    for damage in (b"", data[:50], data[:-1], b"\xff" * len(data), b"PK" + data):
        path.write_bytes(damage)
        with pytest.raises(DamagedCheckpoint, match=r"\A[^\n]*policy.safetensors: no policy of ppo_fast [^\n]*\Z"):
            load_policy(path)
