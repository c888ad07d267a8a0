"""policy.safetensors: what goes in comes out, and damage is told in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppo_fast.run.checkpoint import DamagedCheckpoint
from ppo_fast.run.policy import load_policy, read_policy, save_policy


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
        with pytest.raises(DamagedCheckpoint, match=r"\A[^\n]*policy.safetensors: [^\n]*no policy of ppo_fast"):
            load_policy(path)


ONE_LINE = r"\A[^\n]*policy.safetensors: [^\n]+\Z"


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    path = save_policy(tmp_path, {"w": torch.randn(20), "n": torch.arange(3)}, {"env_id": "CartPole-v1", "seed": 1})
    data = path.read_bytes()
    assert read_policy(path).is_checked
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1 << place % 8
        for damage in (bytes(altered), data[:place]):
            path.write_bytes(damage)
            with pytest.raises(DamagedCheckpoint, match=ONE_LINE):
                read_policy(path)
    path.write_bytes(data + b"x")
    with pytest.raises(DamagedCheckpoint, match=ONE_LINE):
        read_policy(path)


def test_it_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    weights = {"w": torch.randn(20), "nothing": torch.zeros(0), "one": torch.tensor(1.0)}
    loaded = load_file(save_policy(tmp_path, weights, {"env_id": '"sha256":' + "0" * 64}))
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], x) for name, x in weights.items())


def test_one_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    save_file({"w": torch.ones(3)}, path, {"env_id": json.dumps("CartPole-v1")})
    weights, facts, is_checked = read_policy(path)
    assert torch.equal(weights["w"], torch.ones(3)) and facts == {"env_id": "CartPole-v1"} and not is_checked


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_infinity_are_refused_by_name(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weights = {"good": torch.ones(9), "critic.bias": torch.tensor([1.0, value, 2.0], dtype=dtype)}
    path = save_policy(tmp_path, weights, {})
    with pytest.raises(DamagedCheckpoint, match=r"its critic.bias holds NaN or infinity\Z"):
        read_policy(path)


# Metadata that somebody made, or a later version.
STRANGE = {
    "deep": {"a": "[" * 100_000},
    "no JSON": {"a": "x"},
    "a later version": {"policy_format": "2", "a": "1"},
    "a wrong checksum": {"sha256": json.dumps("0" * 64)},
    "no checksum": {"policy_format": "1"},
    "a short checksum": {"sha256": '"0"', "policy_format": "1"},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_metadata_is_one_line(tmp_path: Path, kind: str) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "policy.safetensors", STRANGE[kind])
    with pytest.raises(DamagedCheckpoint, match=ONE_LINE):
        read_policy(tmp_path / "policy.safetensors")


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


HEADERS = {
    "of 10 GB": (header(w={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}), 10**10),
    "a header of 10 GB": ((10**10).to_bytes(8, "little") + b"{", 10**10 + 9),
    "deep": (len(b"[" * 100_000).to_bytes(8, "little") + b"[" * 100_000, 0),
    "no offsets": (header(w={"dtype": "F32", "shape": [1]}), 0),
    "texts": (header(w={"dtype": "F32", "shape": ["1"], "data_offsets": ["0", "4"]}), 0),
    "another kind of numbers": (header(w={"dtype": "F4_9", "shape": [1], "data_offsets": [0, 4]}), None),
    "a list": (header(__metadata__=[1], w={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}), None),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_strange_headers_are_one_line_and_no_gigabytes_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "policy.safetensors"
    start, size = HEADERS[kind]
    path.write_bytes(start + bytes(4))
    if size:
        os.truncate(path, size)  # without taking room on the disk
    try:
        weights, facts, _ = read_policy(path)
        assert kind == "a list" and facts == {} and weights["w"].tolist() == [0.0]
    except (DamagedCheckpoint, OSError) as problem:
        assert "\n" not in str(problem) and "policy.safetensors" in str(problem)
