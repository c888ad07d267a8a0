"""The changes that docs/extend.md shows, each applied to a copy of train.py and run."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

import ppo_fast
from examples.point_mass import TensorPointMass
from ppo_fast import evaluate
from ppo_fast.envs import make
from ppo_fast.envs.faults import EnvironmentFault

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
DIFFS = dict(re.findall(r"^```diff\n# (\w+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
TINY: dict[str, Any] = {"num_envs": 4, "num_steps": 16, "hidden_sizes": (8,), "num_minibatches": 2, "quiet": True}
TINY |= {"total_timesteps": 256, "eval_episodes": 3, "compile": "off"}


class Levels(gymnasium.Env):
    """A Dict observation of which the policy sees a part; it keeps the levels that it was set to."""

    observation_space = spaces.Dict({"policy": spaces.Box(-1, 1, (2,)), "secret": spaces.Box(-1, 1, (3,))})
    action_space = spaces.Discrete(2)
    levels: ClassVar[list[float]] = []

    def set_level(self, level: float) -> float:
        if level < 0:
            raise ValueError("below 0")
        self.levels.append(level)
        return level

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        return self.seen(), float(action), bool(self.np_random.random() < 0.1), False, {}

    def seen(self) -> dict[str, np.ndarray]:
        return {"policy": np.zeros(2, np.float32), "secret": np.ones(3, np.float32)}


class Levelled(TensorPointMass):
    """A tensor environment whose reward is its level."""

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 100, device: torch.device | str = "cpu") -> None:
        super().__init__(num_envs, max_episode_steps, device)
        self.level = torch.zeros((), device=device)

    def set_level(self, level: float) -> None:
        self.level.fill_(level)

    def transition(self, state: Any, action: torch.Tensor, noise: torch.Tensor) -> Any:
        state, obs, reward, terminated, truncated = super().transition(state, action, noise)
        return state, obs, torch.zeros_like(reward) + self.level, terminated, truncated


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    Levels.levels.clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def applied(name: str) -> ModuleType:
    """A copy of train.py with the diff of this name, as a module. What a hunk replaces has to be there, once."""
    source = Path(ppo_fast.__file__).with_name("train.py").read_text()
    for hunk in re.split(r"^@@\n", DIFFS[name], flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    Path(f"my_{name}.py").write_text(source)
    importlib.invalidate_caches()
    return importlib.import_module(f"my_{name}")


def trained(name: str, **flags: Any) -> tuple[ModuleType, list[dict[str, Any]]]:
    """The changed program, and the rows of a short run of it; its policy has been played."""
    own = applied(name)
    known = {"envs": flags.pop("envs")} if "envs" in flags else {}
    own.train(own.Args(**{**TINY, **flags}), **known)
    (run,) = Path("runs").iterdir()
    played = evaluate.evaluate(evaluate.Args(run=str(run), episodes=2, cuda=False), **known)
    assert played["greedy"]["episodes"] == 2
    return own, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_page_has_five() -> None:
    assert set(DIFFS) == {"network", "loss", "number", "critic", "curriculum"}


def test_network() -> None:
    own, _ = trained("network")
    (run,) = Path("runs").iterdir()
    assert ppo_fast.load(run)([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    assert isinstance(own.setup(own.Args(**TINY), torch.device("cpu"))[1].actor[1], torch.nn.SiLU)


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_loss(compile: str) -> None:
    rows = trained("loss", compile=compile, drift_coef=0.5)[1]
    assert all(row["losses/drift"] >= 0 for row in rows) and any(row["losses/drift"] > 0 for row in rows)


def test_number() -> None:
    assert {row["charts/reward_of_a_step"] for row in trained("number")[1]} == {1.0}


def test_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret moves the value and no action."""
    own, _ = trained("critic", envs=Levels, env_kwargs={"max_episode_steps": 20})
    spec = EnvSpec("Levels-v0", lambda **kwargs: Levels(**kwargs))
    monkeypatch.setitem(gymnasium.registry, "Levels-v0", spec)
    agent = own.setup(own.Args(**TINY, env_id="Levels-v0"), torch.device("cpu"))[1]
    before = torch.zeros(1, 5)
    after = before.clone()
    after[:, 2:] = 1.0
    assert agent.value(before) != agent.value(after)
    assert torch.equal(agent.act(before, None)[1], agent.act(after, None)[1])


@pytest.mark.parametrize("envs", [Levels, Levelled])
def test_curriculum(envs: Any) -> None:
    flags = {"env_kwargs": {"max_episode_steps": 5}, "total_timesteps": 512, "compile": "auto"}
    rows = trained("curriculum", envs=envs, **flags)[1]
    expected = [min(1.0, 2 * i / 8) for i in range(8)]
    if envs is Levels:
        assert Levels.levels == [level for level in [0.0, *expected] for _ in range(4)]
    else:
        returns = [row["charts/episodic_return"] / row["charts/episodic_length"] for row in rows]
        assert returns[0] == 0 and returns[-1] == pytest.approx(1) and returns == sorted(returns)


def test_a_curriculum_goes_on_where_it_was() -> None:
    """The first episodes after --resume have the level of their iteration, too."""
    own = applied("curriculum")
    flags = {**TINY, "total_timesteps": 512, "env_kwargs": {"max_episode_steps": 5}}
    own.train(own.Args(**flags), on_iteration=lambda now: now.stop() if now.iteration == 3 else None, envs=Levels)
    Levels.levels.clear()
    own.train(own.Args(resume="latest"), envs=Levels)
    assert Levels.levels[:4] == [2 * 3 / 8] * 4


@pytest.mark.parametrize(("backend", "groups"), [("sync", 1), ("async", 1), ("async", 2)])
def test_a_method_of_every_environment_is_called(backend: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EnvSpec("Levels-v0", lambda **kwargs: Levels(**kwargs))
    monkeypatch.setitem(gymnasium.registry, "Levels-v0", spec)
    envs = make("Levels-v0", 3, backend=backend, groups=groups)
    try:
        envs.reset(seed=1)
        assert envs.call("set_level", 0.5) == (0.5, 0.5, 0.5)
        with pytest.raises(EnvironmentFault, match="below 0"):
            envs.call("set_level", -1.0)
    finally:
        envs.close()
    again = make("Levels-v0", 2)
    with pytest.raises(EnvironmentFault, match="no_such_method"):
        again.call("no_such_method")
    assert make("CartPole-v1", 2, backend="entry_point").call("close_extras") == (None,)
