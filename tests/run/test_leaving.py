"""An environment that ends its program, or tries to, is a fault of that environment: the run is saved, and says so."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from odd_envs import TwoDials

from ppo_fast.envs import EnvironmentFault, make
from ppo_fast.run import find
from ppo_fast.run.beside import Beside
from ppo_fast.run.interrupt import StopSignal
from ppo_fast.stops import Stopped
from ppo_fast.train import Args, train


class Panic(BaseException):
    """As bindings of other languages raise, which no `except Exception` sees."""


WAYS: dict[str, Callable[[], object]] = {
    "SystemExit": sys.exit,
    "SystemExit: 3": lambda: sys.exit(3),
    "SystemExit: no licence": lambda: sys.exit("no licence\nask your administrator"),
    "KeyboardInterrupt": lambda: throw(KeyboardInterrupt()),
    "CancelledError": lambda: throw(asyncio.CancelledError()),
    "GeneratorExit": lambda: throw(GeneratorExit()),
    "Panic: in Rust": lambda: throw(Panic("in Rust")),
}
AT = 150  # steps of all environments, in the third iteration


def throw(problem: BaseException) -> NoReturn:
    raise problem


class Leaving(TwoDials):
    """Calls `leave` at its class's AT-th step, or at a reset from then on."""

    leave: Any = staticmethod(sys.exit)
    where = "step"
    steps = 0

    def reset(self, **options: Any) -> tuple[np.ndarray, dict]:
        if Leaving.where == "reset" and Leaving.steps > AT:
            Leaving.leave()
        return super().reset(**options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        Leaving.steps += 1
        if Leaving.where == "step" and Leaving.steps == AT:
            Leaving.leave()
        return super().step(action)


class LeavingVector(SyncVectorEnv):
    """The same as a vector of somebody else's."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([Leaving] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.fixture(autouse=True)
def leaving(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(gymnasium.registry, "Leaving-v0", EnvSpec("Leaving-v0", entry_point=f"{__name__}:Leaving"))
    spec = EnvSpec("LeavingVector-v0", vector_entry_point=f"{__name__}:LeavingVector")
    monkeypatch.setitem(gymnasium.registry, "LeavingVector-v0", spec)
    monkeypatch.setattr(Leaving, "steps", 0)
    return monkeypatch


def run(root: Path, env_id: str = "Leaving-v0", backend: str = "auto") -> dict[str, Any]:
    args = Args(env_id=env_id, backend=backend, num_envs=4, num_steps=16, total_timesteps=64 * 10, cuda=False)
    args.compile, args.quiet, args.eval_episodes, args.run_root = "off", True, 0, str(root)
    return train(args)


def assert_saved(root: Path, result: dict[str, Any], words: str) -> None:
    """The two whole iterations are there, and the reason."""
    [folder] = root.iterdir()
    assert result["exit_status"] == 6 and words in result["stopped"], result["stopped"]
    assert json.loads((folder / "result.json").read_text())["stopped"] == result["stopped"]
    assert find.latest(folder / "checkpoints")[1]["progress"]["global_step"] == result["global_step"] == 128
    assert (folder / "policy.safetensors").is_file()


@pytest.mark.parametrize("where", ["step", "reset"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_a_fault_like_any_other(leaving: pytest.MonkeyPatch, tmp_path: Path, way: str, where: str) -> None:
    leaving.setattr(Leaving, "leave", staticmethod(WAYS[way]))
    leaving.setattr(Leaving, "where", where)
    result = run(tmp_path)
    assert_saved(tmp_path, result, f"raised {way}")
    assert result["stopped"].startswith("environment ")


@pytest.mark.parametrize("way", ["SystemExit", "KeyboardInterrupt", "Panic: in Rust"])
def test_in_a_vector_of_somebody_else(leaving: pytest.MonkeyPatch, tmp_path: Path, way: str) -> None:
    leaving.setattr(Leaving, "leave", staticmethod(WAYS[way]))
    assert_saved(tmp_path, run(tmp_path, "LeavingVector-v0"), f"the vector environment raised {way}")


@pytest.mark.parametrize("way", ["SystemExit: 3", "KeyboardInterrupt"])
def test_in_a_worker(leaving: pytest.MonkeyPatch, tmp_path: Path, way: str) -> None:
    """Each worker counts its own steps."""
    leaving.setattr(Leaving, "leave", staticmethod(WAYS[way]))
    envs = make("Leaving-v0", 2, backend="async", num_workers=1)
    envs.reset(seed=1)
    with pytest.raises(EnvironmentFault, match=f"environment 1 raised {way}"):
        for _ in range(AT):
            envs.step(np.zeros((2, 2), np.int64))
    envs.close()


def test_while_it_is_made(leaving: pytest.MonkeyPatch) -> None:
    leaving.setattr(Leaving, "__init__", lambda self: sys.exit(0))
    for backend in ("sync", "async"):
        with pytest.raises(EnvironmentFault, match="environment 0 raised SystemExit: 0"):
            make("Leaving-v0", 2, backend=backend)


def test_in_the_other_process(tmp_path: Path) -> None:
    assert Beside(lambda: sys.exit("no licence"), "test").wait() == "no licence"


def test_stops_are_nobodys_fault(leaving: pytest.MonkeyPatch) -> None:
    """What a signal raises within an environment's code passes through it."""
    leaving.setattr(Leaving, "leave", staticmethod(lambda: os.kill(os.getpid(), signal.SIGINT)))
    envs = make("Leaving-v0", 2)

    def step_until_it_leaves() -> None:
        envs.reset(seed=1)
        Leaving.steps = 0
        for _ in range(AT):
            envs.step(np.zeros((2, 2), np.int64))

    with StopSignal() as stop, pytest.raises(Stopped):
        stop.at_once = True
        step_until_it_leaves()
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        step_until_it_leaves()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # as in a program that has no StopSignal
            step_until_it_leaves()
    finally:
        signal.signal(signal.SIGINT, before)
