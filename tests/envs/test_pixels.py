"""Images are refused in a line; Atari's ids are found without an import, and its memory can be trained on."""

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from ppo_fast import envs as environments, train, train_lstm
from ppo_fast.envs import factory

IMAGE = spaces.Box(0, 255, (96, 96, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,))


class Shows(gymnasium.Env):
    """Shows something of the space that it is made with."""

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space
        self.action_space = spaces.Discrete(2)

    def reset(self, **options: Any) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, True, False, {}


def args(program: Any, tmp_path: Any, space: spaces.Space, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = EnvSpec("Shows-v0", entry_point=f"{__name__}:Shows", kwargs={"space": space}, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, "Shows-v0", spec)
    flags = {"num_envs": 2, "num_steps": 4, "num_minibatches": 1, "total_timesteps": 8, "eval_episodes": 0}
    return program.Args(env_id="Shows-v0", compile="off", cuda=False, quiet=True, run_root=str(tmp_path / "r"), **flags)


@pytest.mark.parametrize("program", [train, train_lstm])
@pytest.mark.parametrize(
    "space",
    [
        IMAGE,
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Box(0, 255, (64, 64), np.uint8),
        spaces.Box(0.0, 255.0, (96, 96, 3), np.float32),
        spaces.Dict(camera=IMAGE, speed=VECTOR),
        spaces.Tuple((VECTOR, IMAGE)),
    ],
    ids=str,
)
def test_images_are_refused_in_a_line(
    program: Any, space: spaces.Space, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"\A--env-id: Shows-v0 shows images \([\d, ]+\), which need [^\n]*\Z"):
        program.train(args(program, tmp_path, space, monkeypatch))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 255, (128,), np.uint8), spaces.Box(0, 255, (7, 7, 3), np.uint8), spaces.Box(-1.0, 1.0, (32, 32))],
    ids=str,
)
def test_what_is_no_image_is_trained(space: spaces.Space, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of an Atari machine, a grid of symbols, a map of heights."""
    assert train.train(args(train, tmp_path, space, monkeypatch))["global_step"] == 8


def test_ids_of_atari_are_found_without_an_import() -> None:
    pytest.importorskip("ale_py")
    code = (
        "from ppo_fast import envs\n"
        "made = envs.make('ALE/Breakout-v5', 2, 'cpu', 'sync', env_kwargs={'obs_type': 'ram'})\n"
        "print(tuple(made.reset(seed=1)[0].shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "(2, 128)", done.stderr


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factory.PACKAGES, "ALE", "ale_py_that_is_missing")
    monkeypatch.delitem(gymnasium.registry, "ALE/Pong-v5", raising=False)
    with pytest.raises(ValueError, match=r"--env-id: ALE/Pong-v5 needs [^\n]*; pip install ale-py-that-is-missing\Z"):
        environments.make("ALE/Pong-v5", 1, "cpu", "sync")
