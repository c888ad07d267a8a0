"""Environments that are handed to train() in Python, without being registered."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from test_env_view import small

import ppo_fast
from examples.point_mass import TensorPointMass
from ppo_fast import evaluate, train_lstm
from ppo_fast.envs import EnvironmentFault
from ppo_fast.replay import replay
from ppo_fast.run import checkpoint
from ppo_fast.train import Args, train

SHORT = {"max_episode_steps": 12}


class Corridor(gymnasium.Env):
    """So many cells; the way out is to the right."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, length: int = 8, render_mode: str | None = None, nan_at: int = -1) -> None:
        self.length, self.render_mode, self.nan_at = length, render_mode, nan_at
        self.cell = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cell = 0
        return self.seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.cell = max(0, self.cell + (1 if action else -1))
        self.steps += 1
        reward = float("nan") if self.steps == self.nan_at else -0.1
        return self.seen(), reward, self.cell == self.length, False, {}

    def seen(self) -> np.ndarray:
        return np.array([self.cell / self.length], np.float32)

    def render(self) -> np.ndarray:
        return np.full((64, 64, 3), 10 * self.cell, np.uint8)


def limited() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(Corridor(), 12)


def vector(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([limited] * num_envs)


def run(root: Path, program: Any = train, args: dict[str, Any] | None = None, **own: Any) -> tuple[dict, dict]:
    """What config.json and result.json of a small run hold."""
    flags = {"env_id": "CartPole-v1", "total_timesteps": 128, "eval_max_steps": 100, **(args or {})}
    if program is train_lstm.train:
        known = dataclasses.asdict(small(root, **flags))
        names = {field.name for field in dataclasses.fields(train_lstm.Args)}
        program(train_lstm.Args(**{name: value for name, value in known.items() if name in names}), **own)
    else:
        program(small(root, **flags), **own)
    (folder,) = root.iterdir()
    return json.loads((folder / "config.json").read_text()), json.loads((folder / "result.json").read_text())


MAKERS: dict[str, tuple[Any, str, str]] = {
    "class": (Corridor, "own/Corridor", "sync"),
    "function": (limited, "own/Corridor", "sync"),
    "lambda": (lambda: gymnasium.make("Acrobot-v1"), "own/Acrobot-v1", "sync"),
    "vector": (vector, "own/Corridor", "entry_point"),
    "vector of n": (lambda n: vector(n), "own/Corridor", "entry_point"),
    "ready": (vector(4), "own/Corridor", "entry_point"),
    "tensors": (TensorPointMass, "own/TensorPointMass", "tensor"),
    "tensors made": (lambda num_envs, device: TensorPointMass(num_envs, 12, device), "own/TensorPointMass", "tensor"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_is_trained_and_evaluated(kind: str, tmp_path: Path) -> None:
    envs, env_id, backend = MAKERS[kind]
    kwargs = {} if kind in ("vector", "vector of n", "ready", "tensors made") else SHORT
    before = set(gymnasium.registry)
    config, result = run(tmp_path, args={"env_kwargs": kwargs}, envs=envs)
    assert (config["env_id"], config["backend_used"], config["num_envs"]) == (env_id, backend, 4)
    assert set(config["handed_in"]) == {"envs"} and result["eval/mean_length"] <= 12
    assert set(gymnasium.registry) == before
    if kind == "ready":
        assert not envs.closed
        envs.close()


def test_the_recurrent_program_takes_them(tmp_path: Path) -> None:
    config, _ = run(tmp_path, train_lstm.train, {"env_kwargs": SHORT}, envs=Corridor)
    assert config["env_id"] == "own/Corridor"


def test_wrappers(tmp_path: Path) -> None:
    """Around a registered environment and one that is handed in, outside the limit of steps, the first one first."""
    wrappers = [gymnasium.wrappers.TimeAwareObservation, gymnasium.wrappers.FlattenObservation]
    for name, args, own in (
        ("registered", {"env_id": "Pendulum-v1"}, {}),
        ("own", {"backend": "async"}, {"envs": Corridor}),
    ):
        config, result = run(tmp_path / name, args={"env_kwargs": SHORT, **args}, wrappers=wrappers, **own)
        assert [path.rpartition(".")[2] for path in config["handed_in"]["wrappers"]] == [w.__name__ for w in wrappers]
        assert config["observation_space"].count("(4,)" if name == "registered" else "(2,)") == 1
        assert result["eval/mean_length"] <= 12


def test_keywords_reach_them_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    assert run(tmp_path, args={"env_kwargs": {**SHORT, "length": 2}}, envs=Corridor)[1]["eval/max_return"] > -1.2
    with pytest.raises(ValueError, match=r"^--env-kwargs: own/Corridor does not take breadth; it takes length, "):
        train(small(tmp_path, env_kwargs={"breadth": 2}, env_id="CartPole-v1"), envs=Corridor)


def test_what_a_run_left_asks_for_them_again(tmp_path: Path) -> None:
    run(tmp_path, args={"env_kwargs": SHORT}, envs=Corridor)
    (folder,) = tmp_path.iterdir()
    longer = Args(resume=str(folder), total_timesteps=256)
    with pytest.raises(ValueError, match=r"^--env-id: own/Corridor .* hand it in again"):
        train(longer)
    assert train(longer, envs=lambda: Corridor())["eval/mean_length"] <= 12
    play = evaluate.Args(run=str(folder), episodes=2, cuda=False)
    with pytest.raises(ValueError, match=r"^--env-id: own/Corridor .* hand it in again"):
        evaluate.evaluate(play)
    assert evaluate.evaluate(play, envs=Corridor)["greedy"]["mean_length"] <= 12
    assert ppo_fast.load(folder)([0.5]) in (0, 1)
    with pytest.raises(ValueError, match="does not fit"):
        train(longer, envs=lambda: gymnasium.make("Acrobot-v1"))


def test_a_registered_run_goes_on_without(tmp_path: Path) -> None:
    run(tmp_path)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=r"--resume: .*its environment is CartPole-v1, and none was handed in then"):
        train(Args(resume=str(folder), total_timesteps=256), envs=Corridor)


def test_films(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    run(tmp_path, args={"env_kwargs": SHORT, "capture_video": True}, envs=Corridor)
    assert list(tmp_path.glob("*/videos/greedy.mp4"))


def test_a_crash_file_is_replayed(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        run(tmp_path, args={"env_kwargs": {**SHORT, "nan_at": 20}}, envs=Corridor)
    (file,) = tmp_path.glob("*/crash-*.pt")
    assert "update reproduced" in "\n".join(replay(checkpoint.load(file), envs=Corridor))


def test_both_paths_of_a_verification_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(args: Args, setup: Any, make_iteration: Any, device: torch.device) -> dict[str, Any]:
        return {"made": [setup(args, device)[0].backend for _ in range(2)]}

    monkeypatch.setattr("ppo_fast.train.compare_paths", twice)
    args = small(tmp_path, verify=1, env_id="CartPole-v1", env_kwargs=SHORT)
    assert train(args, envs=Corridor)["made"] == ["sync", "sync"]


@pytest.mark.parametrize(
    ("own", "flags", "words"),
    [
        ({"envs": 3}, {}, "envs: a callable that makes an environment"),
        ({"envs": Corridor()}, {}, "envs: training makes several"),
        ({"envs": TensorPointMass(4)}, {}, "envs: a tensor environment is made on the run's device"),
        ({"envs": lambda: vector(4)}, {}, "envs: .* makes a vector without being told how many"),
        ({"envs": lambda num_envs: Corridor()}, {}, "envs: .* makes none"),
        ({"envs": vector(4)}, {"num_envs": 3}, "--num-envs: is 3, and envs is a vector of 4"),
        ({"envs": vector(4)}, {"verify": 2}, "--verify: needs more environments"),
        ({"envs": vector, "wrappers": [Corridor]}, {}, "wrappers: they are for single environments"),
        ({"wrappers": Corridor}, {}, "wrappers: a list of what takes an environment and gives one"),
        ({"wrappers": [3]}, {}, "wrappers: each takes an environment and gives one, got 3"),
        ({"wrappers": [Corridor]}, {"env_id": "Nowhere-v0"}, "--env-id: no environment 'Nowhere-v0'"),
        ({"wrappers": [Corridor]}, {"env_id": "ppo_fast/MemoryChain-v0"}, "wrappers: they are for single environments"),
    ],
)
def test_what_is_no_environment_is_one_line(own: Any, flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        train(small(tmp_path, **{"env_id": "CartPole-v1", **flags}), **own)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_environment_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    def broken() -> gymnasium.Env:
        raise OSError("no simulator")

    with pytest.raises(EnvironmentFault, match="environment 0 raised OSError: no simulator"):
        train(small(tmp_path, env_id="CartPole-v1"), envs=broken)
