"""Files for other programs: run by somebody else, they give the policy's actions."""

import json
from pathlib import Path
from typing import Any

import made_policies as made
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ppo_fast
from ppo_fast import export as program
from ppo_fast.deploy import exported
from ppo_fast.export import Args, export

DICT = spaces.Dict(gear=spaces.Discrete(3, start=-1), speed=spaces.Box(-2, 2, (2, 2), np.float64))
CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "plain": (made.own_spaces(made.ACTIONS["discrete"]), "separate", {}),
    "masked": (made.own_spaces(made.ACTIONS["multi"], DICT, masked=True, hidden=(1,)), "shared", {"norm_obs": True}),
    "mapped": (made.own_spaces(made.ACTIONS["mapped"]), "separate", {"norm_obs": True}),
    "picture": (made.own_spaces(made.ACTIONS["clipped"], spaces.Box(0, 255, (3, 4), np.uint8)), "linear", {}),
    "lstm": (made.own_spaces(made.ACTIONS["discrete"], masked=True), "lstm", {"norm_obs": True}),
}


def run_onnx(path: Path, given: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Outputs by name, and the metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["ppo_fast"])
    return dict(zip(names, session.run(None, given), strict=True)), facts


def run_torch(path: Path, given: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same of a .pt2 file."""
    files = {"ppo_fast": ""}
    loaded = torch.export.load(path, extra_files=files).module()
    facts = json.loads(files["ppo_fast"])
    outputs = loaded(*(torch.tensor(given[port["name"]]) for port in facts["inputs"]))
    return {port["name"]: x.numpy() for port, x in zip(facts["outputs"], outputs, strict=True)}, facts


RUN = {"onnx": run_onnx, "torch": run_torch}
QUICK = [("masked", "onnx"), ("lstm", "onnx"), ("plain", "torch"), ("mapped", "torch")]
OTHERS = [(case, to) for case in CASES for to in RUN if (case, to) not in QUICK]


@pytest.mark.parametrize(("case", "to"), QUICK + [pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS])
def test_a_file_acts_as_the_policy_does(case: str, to: Any, tmp_path: Path, capsys: Any) -> None:
    """Another number of observations than it was made with; value and log-probability; what is remembered."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    own, kind, flags = CASES[case]
    agent = made.saved(tmp_path, own, kind, **flags)
    sampled = case in ("masked", "mapped", "lstm")
    result = export(Args(str(tmp_path), to=to, with_value=True, with_log_prob=sampled, sampled=sampled))
    path = tmp_path / f"policy{program.SUFFIXES[to]}"
    assert result["path"] == str(path) and [file.name for file in tmp_path.iterdir() if file.name[0] == "."] == []
    several = made.drawn(own.observation, 5, seed=3)
    rows = made.flat(own.observation, several)
    given = {"obs": rows.reshape(5, *result["inputs"][0]["shape"])}
    if own.masks.size:
        given["mask"] = np.ones((5, own.masks.size), np.float32)
        given["mask"][:, 0] = 0
    policy = ppo_fast.load(tmp_path, seed=7)
    if sampled:
        given["noise"] = policy.player.draw(np.random.default_rng(7), 5)
    given |= {f"memory_{i}": x for i, x in enumerate(policy.player.begin(5))}
    found, facts = RUN[to](path, given)
    memory = policy.memory(5)
    wanted = policy(made.batched(several), sampled=sampled, mask=given.get("mask"), memory=memory)
    np.testing.assert_allclose(found["action"], wanted, rtol=1e-4, atol=1e-5)
    assert found["action"].dtype == own.action.dtype and found["value"].shape == (5,)
    assert ("log_prob" in found) == sampled and facts["spaces"]["masks"]["sizes"] == list(own.masks.sizes)
    if kind == "lstm":
        np.testing.assert_allclose(found["next_memory_0"], memory.values[0], rtol=1e-4, atol=1e-5)
    assert "input        obs (N, " in capsys.readouterr().out
    del agent


def test_a_file_that_is_another_policy_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.saved(tmp_path, made.own_spaces(made.ACTIONS["mapped"]), "separate")
    monkeypatch.setattr(exported._PlainMLP, "forward", lambda self, x: 2 * self.layers[-1](x[..., :16].repeat(1, 4)))
    with pytest.raises(ValueError, match="--to: the file would give something else than the policy: action of 1"):
        export(Args(str(tmp_path), to="torch"))
    assert [file.name for file in tmp_path.iterdir()] == ["policy.safetensors"]


@pytest.mark.parametrize(
    ("flags", "args", "line"),
    [
        ({"precision": "bf16"}, {}, "--to: a policy of --precision bf16"),
        ({}, {"output": "nowhere/policy.pt2"}, "--output: can't write nowhere/policy.pt2"),
        ({}, {"run": "nowhere"}, "run: nowhere is neither"),
    ],
)
def test_mistakes_are_one_line(flags: dict, args: dict, line: str, tmp_path: Path) -> None:
    made.saved(tmp_path, made.own_spaces(made.ACTIONS["discrete"]), "separate", **flags)
    with pytest.raises(ValueError, match=line) as told:
        export(Args(**{"run": str(tmp_path), "to": "torch", **args}))
    assert "\n" not in str(told.value)
