"""ppo_fast.engine.rollouts: a program's collect in pieces and side by side, into tensors that stay.

Letters: T steps, N envs.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ppo_fast.engine.crew import Crew
from ppo_fast.engine.rollouts import CHUNK, Rollouts
from ppo_fast.envs import EnvironmentFault

T = CHUNK + 3


class Carry(NamedTuple):
    obs: Tensor  # (N,)


class Rollout(NamedTuple):
    obs: Tensor  # (T, N)
    action: Tensor  # (T, N, 2) int64
    valid: Tensor | None


class Agent(nn.Module):
    """Acts on an observation by doubling it."""

    def act(self, obs: Tensor) -> Tensor:
        return torch.stack([obs, 2 * obs], -1).long()


def collect(agent: Any, envs: Any, carry: Carry, noise: Tensor) -> tuple[Carry, Rollout]:
    """An observation is the one before and the noise, which `envs` adds."""
    obs, steps = carry.obs, []
    for row in noise.unbind():
        action = agent.act(obs)
        steps.append((obs, action))
        _, obs = envs.advance((), obs, row)
    columns = [torch.stack(column) for column in zip(*steps, strict=True)]
    return Carry(obs), Rollout(*columns, valid=None)


class Part:
    """Environments on the host; what happens `before` each step is a test's."""

    pure = False
    device = torch.device("cpu")
    state = ()

    def __init__(self, num_envs: int, before: Callable[[int], Any] = lambda step: None) -> None:
        self.num_envs = num_envs
        self.steps = 0
        self.before = before

    def advance(self, state: tuple, obs: Tensor, noise: Tensor) -> tuple[tuple, Tensor]:
        self.before(self.steps)
        self.steps += 1
        return state, obs + noise


class Envs(Part):
    """Environments in parts."""

    def __init__(self, *parts: Part, pure: bool = False) -> None:
        super().__init__(sum(part.num_envs for part in parts))
        self.parts = parts or (self,)
        self.pure = pure


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def rollouts_of(envs: Any, wrap: Callable[..., Any] = lambda function: function, steps: int = T) -> Rollouts:
    carry = Carry(torch.arange(float(envs.num_envs)))
    return Rollouts(collect, Agent(), envs, carry, steps, Crew(torch.device("cpu"), True, True), wrap)


def noises(count: int, size: int, steps: int = T) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 9, (steps, size), generator=draw).float() for _ in range(count)]


@pytest.mark.parametrize("steps", [1, CHUNK, T, 2 * CHUNK])
@pytest.mark.parametrize("sizes", [[3], [150], [2, 3], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("pure", [False, True])
def test_pieces_make_what_one_call_makes(sizes: list[int], steps: int, pure: bool) -> None:
    """Rollout after rollout: in chunks of steps, and for a share of the environments in each thread."""
    envs = Envs(*(Part(size) for size in sizes), pure=pure)
    rollouts = rollouts_of(envs, steps=steps)
    carry = Carry(rollouts.carry.obs.clone())
    memory: list[int] = []
    for noise in noises(3, envs.num_envs, steps):
        rollouts.collect(noise)
        carry, wanted = collect(Agent(), envs, carry, noise)
        assert type(rollouts.rollout) is Rollout and rollouts.rollout.valid is None
        assert torch.equal(rollouts.rollout.obs, wanted.obs) and torch.equal(rollouts.rollout.action, wanted.action)
        assert rollouts.rollout.action.dtype == torch.int64
        assert torch.equal(rollouts.carry.obs, carry.obs)
        memory.append(rollouts.rollout.obs.data_ptr())
    assert len(set(memory)) == 1


def test_what_is_prepared_is_the_chunk_or_where_the_host_steps_the_policy() -> None:
    seen: list[str] = []

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            seen.append(function.__name__)
            return function(*args)

        return called

    rollouts_of(Envs(Part(3), pure=True), wrap).collect(noises(1, 3)[0])
    assert seen == ["collect"] * 2  # CHUNK steps, and 3
    seen.clear()
    rollouts_of(Envs(Part(3)), wrap).collect(noises(1, 3)[0])
    assert seen == ["act"] * T


def test_parts_step_at_the_same_time() -> None:
    """One step of each has to be under way before either can end."""
    meeting = threading.Barrier(2, timeout=20)
    envs = Envs(Part(1, lambda step: meeting.wait()), Part(1, lambda step: meeting.wait()))
    rollouts_of(envs).collect(noises(1, 2)[0])
    assert [part.steps for part in envs.parts] == [T, T]


@pytest.mark.parametrize("problem", [EnvironmentFault(7, "died"), KeyboardInterrupt()], ids=["fault", "Ctrl-C"])
@pytest.mark.parametrize("who", [0, 1])
def test_a_part_that_fails_stops_the_others_and_the_next_rollout_works(who: int, problem: BaseException) -> None:
    """At their next step, not at the end of a rollout, which may take minutes. What there was stays."""
    failing = [False]

    def fail(step: int) -> None:
        if failing[0]:
            raise problem

    def pause(step: int) -> None:
        time.sleep(0.05 if failing[0] else 0.0)

    parts = [Part(2, pause), Part(2, pause)]
    parts[who].before = fail
    rollouts = rollouts_of(Envs(*parts), steps=200)
    first, second, third = noises(3, 4, 200)
    rollouts.collect(first)
    carry, rollout = rollouts.carry.obs.clone(), rollouts.rollout.obs.clone()

    failing[0] = True
    with pytest.raises(type(problem)) as raised:
        rollouts.collect(second)
    assert raised.value is problem and parts[1 - who].steps < 200 + 50
    assert torch.equal(rollouts.carry.obs, carry) and torch.equal(rollouts.rollout.obs, rollout)

    failing[0] = False
    rollouts.collect(third)
    assert torch.equal(rollouts.rollout.obs, collect(Agent(), Envs(Part(4)), Carry(carry), third)[1].obs)


def test_an_interrupt_while_others_are_waited_for_stops_them() -> None:
    """A second Ctrl-C comes when the calling thread has no more to do."""
    interrupted = threading.Event()
    threads: list[threading.Thread] = []

    class Interrupting(Crew):
        def side_by_side(self, function: Callable[..., Any]) -> Any:
            def together(calls: Any) -> Any:
                thread = threading.Thread(target=function, args=calls[1])
                thread.start()
                threads.append(thread)
                interrupted.wait(20)
                raise KeyboardInterrupt

            return together

    crew = Interrupting(torch.device("cpu"), True, True)

    def pause(step: int) -> None:
        interrupted.set()
        time.sleep(0.02)

    slow = Part(1, pause)
    rollouts = Rollouts(collect, Agent(), Envs(Part(1), slow), Carry(torch.zeros(2)), 2000, crew, lambda x: x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(KeyboardInterrupt):
        rollouts.collect(torch.zeros(2000, 2))
    threads[0].join(20)
    assert not threads[0].is_alive() and slow.steps < 100
