"""Keywords for an environment reach it whatever steps it, and one that nobody takes is named."""

from typing import Any

import gymnasium
import pytest
import torch

from ppo_fast.envs import make
from ppo_fast.envs.tensor import State, TensorVectorEnv, Transition

BOX = gymnasium.spaces.Box(-1.0, 1.0, (1,))


class TensorDrift(TensorVectorEnv):
    """Says nothing of a limit of steps, and has no counter of its own."""

    state_names = ("place",)

    def __init__(self, num_envs: int, speed: float = 0.1, device: torch.device | str = "cpu") -> None:
        super().__init__(num_envs, 10**9, BOX, gymnasium.spaces.Discrete(2), device)
        self.speed = abs(speed)

    def initial_state(self, noise: torch.Tensor) -> State:
        return (torch.zeros(len(noise), 1),)

    def observation(self, state: State) -> torch.Tensor:
        return state[0]

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        place = state[0] + self.speed * action[:, None]
        never = torch.zeros(len(place), dtype=torch.bool)
        return (place,), place, place[:, 0], never, never


@pytest.fixture(autouse=True)
def drift():
    gymnasium.register("Drift-v0", vector_entry_point=TensorDrift)  # pyright: ignore[reportArgumentType]
    yield
    del gymnasium.registry["Drift-v0"]


def length(env_id: str, backend: str, **env_kwargs: Any) -> int:
    """Steps of the first episode that is truncated."""
    envs = make(env_id, 2, backend=backend, env_kwargs=env_kwargs)
    try:
        envs.reset(seed=1)
        actions = torch.zeros(envs.action_space.shape or (2,), dtype=torch.int64)
        for step in range(1, 60):
            if bool(envs.step(actions)[3].any()):
                return step
        return 0
    finally:
        envs.close()


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        *(("MountainCar-v0", backend) for backend in ("tensor", "sync", "async", "envpool")),
        *(("CartPole-v1", "entry_point"), ("Drift-v0", "tensor"), ("ppo_fast/RepeatFirst-v0", "tensor")),
    ],
)
def test_a_limit_of_steps_holds_with_every_backend(env_id: str, backend: str) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")
    assert length(env_id, backend, max_episode_steps=7) == 7
    assert length(env_id, backend, max_episode_steps=5.0) == 5


def test_a_limit_is_put_back_by_the_end_of_an_episode_and_saved_with_the_state() -> None:
    envs: Any = make("Drift-v0", 3, env_kwargs={"max_episode_steps": 4, "speed": 0.5})
    assert envs.speed == 0.5
    envs.reset(seed=1)
    ones = torch.ones(3, dtype=torch.int64)
    ends = [bool(envs.step(ones)[3].all()) for _ in range(9)]
    assert ends == [False, False, False, True, False, False, False, True, False]
    again: Any = make("Drift-v0", 3, env_kwargs={"max_episode_steps": 4, "speed": 0.5})
    again.set_state(envs.get_state())
    assert [bool(again.step(ones)[3].all()) for _ in range(3)] == [False, False, True]


def test_no_limit() -> None:
    assert (
        length("Pendulum-v1", "tensor", max_episode_steps=-1)
        == length("Pendulum-v1", "sync", max_episode_steps=-1)
        == 0
    )


@pytest.mark.parametrize(
    ("env_id", "backend", "name"),
    [
        *(("Pendulum-v1", backend, "gravity") for backend in ("auto", "tensor", "sync", "async")),
        *(("CartPole-v1", backend, "gravity") for backend in ("entry_point", "envpool")),
        *(("ppo_fast/MemoryChain-v0", "auto", "length"), ("Drift-v0", "tensor", "device"), ("Drift-v0", "auto", "x")),
        *(("CartPole-v1", "sync", "disable_env_checker"), ("CartPole-v1", "auto", "timeout")),
    ],
)
def test_a_keyword_that_nobody_takes_is_named(env_id: str, backend: str, name: str) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")
    with pytest.raises(
        ValueError, match=rf"^--env-kwargs: {env_id} does not take {name}; it takes .*max_episode_steps$"
    ):
        make(env_id, 2, backend=backend, env_kwargs={name: 1})


def test_a_value_of_the_wrong_kind_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^--env-kwargs: ppo_fast/RepeatPrevious-v0: k: a whole number .* got 'a'$"):
        make("ppo_fast/RepeatPrevious-v0", 2, env_kwargs={"k": "a"})
    with pytest.raises(ValueError, match=r"^--env-kwargs: Drift-v0: .*'str'"):
        make("Drift-v0", 2, env_kwargs={"speed": "a"})


def test_a_keyword_that_is_passed_on_and_not_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Passing(TensorDrift):
        def __init__(self, num_envs: int, device: torch.device | str = "cpu", **more: Any) -> None:
            super().__init__(num_envs, device=device, **more)

    monkeypatch.setattr(gymnasium.registry["Drift-v0"], "vector_entry_point", Passing)
    with pytest.raises(ValueError, match=r"^--env-kwargs: Drift-v0 does not take size"):
        make("Drift-v0", 2, backend="tensor", env_kwargs={"size": 3})


@pytest.mark.parametrize("limit", [0, -2, 1.5, "ten", True, [1]])
def test_a_limit_that_is_none(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"^--env-kwargs: max_episode_steps must be a whole number"):
        make("CartPole-v1", 2, env_kwargs={"max_episode_steps": limit})


def test_what_only_the_original_takes_is_stepped_there() -> None:
    assert make("Acrobot-v1", 1, env_kwargs={"render_mode": None}).backend == "sync"
    assert make("Pendulum-v1", 1, env_kwargs={"g": 1.0}).backend == "tensor"
