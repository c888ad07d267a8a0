"""Rollouts as the engine makes them with a program's `collect`: in pieces, side by side, into tensors that stay.

A tensor environment is pure, so that a few steps of some environments at a time are one function, which is compiled or
recorded. Environments on the host step themselves, and only the policy's part is. Letters: T steps, N envs.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from ppo_fast.engine.crew import FEW_ENVS, Crew
from ppo_fast.engine.tree import assign, map_tensors, split
from ppo_fast.envs import Environments, Part

# Rollout steps in one function on a CPU: more costs compile time in proportion and saves little (benchmarks/LOG.md).
CHUNK = 8

Collect = Callable[[Any, Any, Any, Any], tuple[Any, Any]]  # collect(agent, envs, carry, noise): a program's
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]  # what compiles or records a function, or leaves it


class Rollouts:
    """A program's `collect`, run into standing tensors.

    Args:
        collect: `collect(agent, envs, carry, noise) -> carry, rollout`, all named tuples of tensors: carry (N, ...),
            noise and rollout (T, N, ...). For tensor environments a pure function.
        agent: with a method `act`, which runs prepared where the host steps.
        carry: where the first rollout begins; moved on in place.
        num_steps: T.
        wrap: prepares a function; see Engine.function.

    Attributes:
        rollout: the last one; None before the first, then always the same tensors.
    """

    def __init__(
        self,
        collect: Collect,
        agent: nn.Module,
        envs: Environments,
        carry: Any,
        num_steps: int,
        crew: Crew,
        wrap: Wrap,
    ) -> None:
        self.agent = agent
        self.envs = envs
        self.carry = carry
        self.num_steps = num_steps
        self.rollout: Any = None
        whole, rest = divmod(num_steps, CHUNK)
        self._chunks = [CHUNK] * whole + ([rest] if rest else [])  # steps of each
        # For each thread the carry of its environments, and its part of the rollout in chunks: views of what stays.
        self._lanes: list[tuple[Any, list[Any]]] = []
        self._collect = collect
        self._crew = crew
        self._chunk = wrap(in_place(collect)) if envs.pure else None
        self._actor = agent if envs.pure else Acting(agent, wrap(type(agent).act))  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def collect(self, noise: Any) -> None:
        """Make the next rollout with noise (T, N, ...)."""
        if self._chunk is None:
            self._on_host(noise)
        else:
            self._on_device(noise)

    def _on_device(self, noise: Any) -> None:
        sizes = self._crew.sizes(self.envs.num_envs, FEW_ENVS)
        if self.rollout is None:
            self._allocate(self._collect(self.agent, self.envs, self.carry, map_tensors(lambda x: x[:1], noise))[1])
        if not self._lanes:
            pairs = zip(split(self.carry, sizes, 0), split(self.rollout, sizes, 1), strict=True)
            self._lanes = [(carry, split(rollout, self._chunks, 0)) for carry, rollout in pairs]
        calls = [(*lane, own_noise) for lane, own_noise in zip(self._lanes, split(noise, sizes, 1), strict=True)]
        self._crew.side_by_side(self._in_chunks)(calls)

    def _in_chunks(self, carry: Any, rollout: list[Any], noise: Any) -> None:
        """All T steps of some environments, CHUNK at a time."""
        assert self._chunk is not None
        for rows, own_noise in zip(rollout, split(noise, self._chunks, 0), strict=True):
            self._chunk(self.agent, self.envs, carry, rows, own_noise)

    def _on_host(self, noise: Any) -> None:
        """All parts of the environments at the same time: while one steps, the policy acts for another."""
        parts = self.envs.parts
        sizes = [part.num_envs for part in parts]
        carries = split(self.carry, sizes, 0)
        stepping = [Stepping(part) for part in parts]

        def collect(part: Stepping, carry: Any, noise: Any) -> Any:
            try:
                return self._collect(self._actor, part, carry, noise)
            except Halted:  # whatever it is for is raised by another part
                return None
            except BaseException:
                halt()
                raise

        def halt() -> None:
            for part in stepping:
                part.halted = True

        calls = list(zip(stepping, carries, split(noise, sizes, 1), strict=True))
        try:
            found = self._crew.side_by_side(collect)(calls)
        except BaseException:  # it may be one that came while the others were waited for
            halt()
            raise
        if self.rollout is None:
            self._allocate(found[0][1])
        for carry, rows, (after, made) in zip(carries, split(self.rollout, sizes, 1), found, strict=True):
            assign((carry, rows), (after, made))

    def _allocate(self, sample: Any) -> None:
        """Standing tensors like those of a rollout of any number of steps and environments."""
        size = (self.num_steps, self.envs.num_envs)

        def standing(x: Tensor) -> Tensor:
            return torch.zeros(*size, *x.shape[2:], dtype=x.dtype, device=x.device)

        self.rollout = map_tensors(standing, sample)


class Halted(Exception):
    """Another part of the environments has failed, or the program is to end: there is no rollout to go on with."""


class Stepping:
    """A part of the environments, to be stepped beside others until it is `halted`; everything else is the part's."""

    def __init__(self, part: Part) -> None:
        self.halted = False
        self._part = part

    def advance(self, state: Any, action: Tensor, noise: Tensor) -> tuple[Any, Any]:
        """One step, as that of a Part.

        Raises:
            Halted: instead of the step.
        """
        if self.halted:
            raise Halted
        return self._part.advance(state, action, noise)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class Acting:
    """An agent whose `act` runs prepared; everything else is the agent's."""

    def __init__(self, agent: nn.Module, act: Callable[..., Any]) -> None:
        self.act = partial(act, agent)
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


def in_place(collect: Collect) -> Callable[[Any, Any, Any, Any, Any], None]:
    """`collect` as a function that moves the carry on and writes the rollout where it is to be."""

    @wraps(collect)  # its name is told where it can't be recorded
    def collected(agent: Any, envs: Any, carry: Any, rollout: Any, noise: Any) -> None:
        after, rows = collect(agent, envs, carry, noise)
        assign((carry, rollout), (after, rows))

    return collected
