"""A policy plays with the action bounds and the hidden numbers that it was trained with, wherever it plays."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast import evaluate, replay, train as program
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.ranks import Ranks
from ppo_fast.run import beside, checkpoint, clipped, film
from ppo_fast.run.policy import load_policy, save_policy
from ppo_fast.train import Args, train

DIAL = "odd_envs:Dial-v0"


def small(root: Path, **flags: Any) -> Args:
    values: dict[str, Any] = {"env_id": DIAL, "num_envs": 4, "num_steps": 16, "total_timesteps": 256, "compile": "off"}
    values |= {"hidden_sizes": (8,), "eval_episodes": 5, "quiet": True, "run_root": str(root), "save_interval": 2}
    return Args(**{**values, **flags})


def trained(root: Path, **flags: Any) -> tuple[Path, dict[str, Any]]:
    result = train(small(root, **flags))
    (folder,) = root.iterdir()
    return folder, result


def without(payload: dict[str, Any], *names: str) -> dict[str, Any]:
    """Flags as an earlier version would have saved them."""
    return {name: value for name, value in payload.items() if name not in names}


def test_bounds_far_from_the_policys_range_are_learned(tmp_path: Path) -> None:
    """Of [100, 200] the middle is the best; clipped, every action is 100 and costs 1 a step."""
    _, mapped = trained(tmp_path / "mapped", num_envs=16, num_steps=32, total_timesteps=8192, learning_rate=1e-2)
    _, cut = trained(tmp_path / "cut", action_bounds="clip")
    assert mapped["eval/mean_return"] > -2 and cut["eval/mean_return"] == cut["eval/sampled_mean_return"] == -8


@pytest.mark.parametrize("bounds", ["auto", "clip"])
def test_the_evaluation_is_that_of_the_training(bounds: Any, tmp_path: Path) -> None:
    """From the policy file and from a checkpoint; and of what has numbers hidden."""
    folder, result = trained(tmp_path, action_bounds=bounds, hide=(1,))
    assert json.loads((folder / "config.json").read_text())["action_bounds"] == bounds
    for file in (folder, max((folder / "checkpoints").glob("checkpoint-*.pt"))):
        found = evaluate.evaluate(evaluate.Args(run=str(file), episodes=5, cuda=False))
        assert found["greedy"]["mean_return"] == result["eval/mean_return"]
        assert found["sampled"]["mean_return"] == result["eval/sampled_mean_return"]


def test_the_rollout_keeps_what_the_policy_drew(tmp_path: Path) -> None:
    """Else its probability would be that of another action."""
    args = small(tmp_path)
    envs, agent, learner = program.setup(args, torch.device("cpu"))
    iteration = program.make_iteration(args, envs, agent, learner, Engine(args, Ranks(torch.device("cpu")), "eager"))
    iteration.collect()
    rollout = iteration.state.rollout
    envs.close()
    assert -4 < rollout["action"].min() < -1 < 1 < rollout["action"].max() < 4
    wanted = -(50 * rollout["action"].clamp(-1, 1)).abs()[..., 0] / 50
    torch.testing.assert_close(rollout["reward"], wanted)


def test_films_show_the_actions_of_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those while training and evaluate's, of policies that say 0: mapped it is 150, shown as 100; clipped it is 100,
    shown as 0."""
    frames: list[int] = []

    def record(envs: Any, agent: Any, seed: int, path: Path, max_steps: int = 0) -> Path:
        obs = envs.reset(seed=seed)[0]
        envs.step(0 * agent.act(obs, None)[0])
        frames.append(int(envs.render()[0].mean()))
        envs.close()
        return path

    monkeypatch.setattr(film, "record", record)
    monkeypatch.setattr(beside, "CAN_FORK", False)
    for bounds in ("auto", "clip"):
        folder, _ = trained(tmp_path / bounds, action_bounds=bounds, capture_video=True)
        evaluate.evaluate(evaluate.Args(run=str(folder), episodes=1, video=True, cuda=False))
    assert frames == 5 * [100] + 5 * [0]


def test_runs_of_before_clip_as_they_did(tmp_path: Path) -> None:
    """A policy file, a checkpoint and a crash file that say nothing of it."""
    folder, result = trained(tmp_path, action_bounds="clip")
    weights, facts = load_policy(folder)
    old = save_policy(tmp_path / "old", weights, without(facts, "action_bounds", "hide"))
    found = evaluate.evaluate(evaluate.Args(run=str(old), episodes=5, cuda=False))
    assert found["greedy"]["mean_return"] == result["eval/mean_return"] == -8

    last = max((folder / "checkpoints").glob("checkpoint-*.pt"))
    payload = checkpoint.load(last)
    payload["flags"] = without(payload["flags"], "action_bounds", "hide")
    checkpoint.write(last, payload)
    found = evaluate.evaluate(evaluate.Args(run=str(last), episodes=5, cuda=False))
    assert found["greedy"]["mean_return"] == -8
    with pytest.raises(ValueError, match=r"--hide: is \(\) in .* can't change"):
        train(small(tmp_path, resume=str(folder), hide=(2,)))
    train(small(tmp_path, resume=str(folder), total_timesteps=384))
    config = json.loads((folder / "config.json").read_text())
    assert config["action_bounds"] == "clip" and config["hide"] == []


def test_a_crash_of_before_is_replayed_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Args] = []
    setup = program.setup

    def watched(args: Args, device: torch.device) -> Any:
        seen.append(args)
        return setup(args, device)

    args = small(tmp_path, env_id="odd_envs:NanReward-v0", backend="sync", num_envs=2)
    with pytest.raises(FloatingPointError):
        train(args)
    (file,) = tmp_path.glob("*/crash-*.pt")
    payload = checkpoint.load(file)
    payload["flags"] = without(payload["flags"], "action_bounds", "hide")
    monkeypatch.setattr(program, "setup", watched)
    assert any("update reproduced" in line for line in replay.replay(payload))
    assert (seen[0].action_bounds, seen[0].hide) == ("clip", ())


def test_a_run_with_hidden_numbers_goes_on_bit_for_bit(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"env_id": "Pendulum-v1", "hide": (2,), "anneal_lr": False}
    straight, result = trained(tmp_path / "straight", **flags, total_timesteps=512)
    parts, _ = trained(tmp_path / "parts", **flags)
    again = train(small(tmp_path / "parts", resume="latest", **{**flags, "total_timesteps": 512}))
    assert again["eval/mean_return"] == result["eval/mean_return"]
    wanted, weights = load_policy(straight)[0], load_policy(parts)[0]
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_a_first_rollout_that_is_clipped_throughout_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path / "clip", action_bounds="clip")
    said = capsys.readouterr()
    assert "warning: 100% of the first rollout's actions were beyond [100, 200]" in said.out + said.err
    assert "--action-bounds rescale" in said.out + said.err
    trained(tmp_path / "rescale")
    trained(tmp_path / "pendulum", env_id="Pendulum-v1", action_bounds="clip")
    trained(tmp_path / "discrete", env_id="CartPole-v1", action_bounds="clip")
    said = capsys.readouterr()
    assert "rollout's actions" not in said.out + said.err


def test_which_dimension_is_clipped() -> None:
    from gymnasium import spaces

    space = spaces.Box(torch.tensor([-1.0, 5.0]).numpy(), torch.tensor([1.0, torch.inf]).numpy())
    text = clipped.words(torch.zeros(4, 3, 2), space, "rescale")
    assert text is not None and "[5, inf] (action 1)" in text and "--log-std-init" in text
    assert clipped.words(torch.full((4, 3, 2), 6.0), spaces.Box(-9.0, 9.0, (2,)), "clip") is None


def test_flags_that_can_not_be(tmp_path: Path) -> None:
    for flags, said in (
        ({"hide": (-1,)}, "--hide: must be"),
        ({"action_bounds": "squash"}, "--action-bounds: must be"),
    ):
        with pytest.raises(ValueError, match=said):
            train(dataclasses.replace(small(tmp_path), **flags))
    with pytest.raises(ValueError, match="--hide: an observation's numbers are 0 to 2, got 3"):
        train(small(tmp_path, hide=(3,)))
    assert not list(tmp_path.iterdir())
