"""HostGroups: the environments of a host backend in groups, each of which steps while the policy acts for another.

Neither waits for the other then ("double-buffered sampling", Petrenko et al. 2020, arXiv 2006.11751). Letters: N envs
of all groups, n of one, S observation shape, T steps.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.contract import ActionSpace, State, Step, StepResult
from ppo_fast.envs.faults import EnvironmentFault
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.seeds import spread_seeds


class HostGroup:
    """One group of HostGroups as a part of its own (see contract.Part).

    It may be stepped in a thread of its own. Its faults have the index among the environments of all groups.

    Args:
        envs: the environments of this group.
        first: the index of its first environment among those of all groups.
    """

    state: State = ()

    def __init__(self, envs: HostVectorEnv, first: int) -> None:
        self.envs = envs
        self.num_envs = envs.num_envs
        self.device = envs.device
        self.first = first
        self.rows = slice(first, first + envs.num_envs)

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """An empty tensor (T, n, 0): the environments draw their own random numbers."""
        return self.envs.draw_noise(num_steps)

    def advance(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> tuple[State, Step]:
        """Step this group with actions (n,) or (n, A), as HostVectorEnv.advance."""
        with self.naming():
            return self.envs.advance(state, action, noise)

    def step_async(self, actions: torch.Tensor | np.ndarray) -> None:
        """Begin a step with actions (n,) or (n, A), as HostVectorEnv.step_async."""
        with self.naming():
            self.envs.step_async(actions)

    def step_wait(self) -> StepResult:
        """What a step of this group returns, as HostVectorEnv.step_wait."""
        with self.naming():
            return self.envs.step_wait()

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Number a fault's environment among all."""
        try:
            yield
        except EnvironmentFault as fault:
            index = None if fault.index is None else self.first + fault.index
            raise EnvironmentFault(index, fault.reason, fault.trace) from fault


class HostGroups(VectorEnv):
    """Host vectors of one kind as one of N environments.

    Seeds are spread over all N, so that the number of groups changes no trajectory.

    Args:
        groups: vectors of one environment with one backend.

    Attributes:
        parts: the groups, each of which may be stepped in a thread of its own.
    """

    pure = False
    state: State = ()  # it lies in the environments, and so do their random numbers
    generator = None
    single_observation_space: spaces.Box
    single_action_space: ActionSpace

    def __init__(self, groups: Sequence[HostVectorEnv]) -> None:
        self.parts: list[HostGroup] = []
        self.num_envs = 0
        for group in groups:
            self.parts.append(HostGroup(group, self.num_envs))
            self.num_envs += group.num_envs
        first = groups[0]
        self.device = first.device
        self.backend = first.backend
        self.spec_id = first.spec_id
        self.spec = first.spec
        self.mask_size = first.mask_size
        self.columns = first.columns
        self.own_spaces = first.own_spaces
        self.metadata = first.metadata
        self.render_mode = first.render_mode
        self.single_observation_space = first.single_observation_space
        self.single_action_space = first.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def resets_singly(self) -> bool:
        """Whether some environments can begin new episodes while others go on."""
        return self.parts[0].envs.resets_singly

    def stagger(self, lengths: np.ndarray) -> None:
        """From the next reset of all on, truncate first episodes at these lengths (N,), as HostVectorEnv.stagger."""
        for part in self.parts:
            part.envs.stagger(lengths[part.rows])

    def spread(self, seed: int | None) -> Any:
        """One seed for each environment, as HostVectorEnv.spread."""
        return None if seed is None else spread_seeds(seed, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there: obs (N, *S), an empty info."""
        seeds = self.spread(seed)
        obs = []
        for part in self.parts:
            part_seeds = None if seeds is None else seeds[part.rows]
            part_options = None if options is None else dict(options)
            if part_options is not None and part_options.get("reset_mask") is not None:
                part_options["reset_mask"] = part_options["reset_mask"][part.rows]
            with part.naming():
                obs.append(part.envs.reset(seed=part_seeds, options=part_options)[0])
        return torch.cat(obs), {}

    def restart(self) -> torch.Tensor:
        """Close everything and make it anew, as HostVectorEnv.restart: the observations (N, *S) of fresh episodes."""
        obs = []
        for part in self.parts:
            with part.naming():
                obs.append(part.envs.restart())
        return torch.cat(obs)

    def step(self, actions: torch.Tensor | np.ndarray) -> StepResult:
        """Step every environment, all groups at the same time; as HostVectorEnv.step.

        Raises:
            ValueError: when the actions have another shape.
        """
        if tuple(actions.shape) != self.action_space.shape:
            raise ValueError(f"actions must have the shape {self.action_space.shape}, got {tuple(actions.shape)}")
        for part in self.parts:
            part.step_async(actions[part.rows])
        results = [part.step_wait() for part in self.parts]
        obs, reward, terminated, truncated, infos = zip(*results, strict=True)
        info = {name: torch.cat([each[name] for each in infos]) for name in infos[0]}
        return torch.cat(obs), torch.cat(reward), torch.cat(terminated), torch.cat(truncated), info

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """What each environment's method of this name returns, as HostVectorEnv.call."""
        answers: list[Any] = []
        for part in self.parts:
            with part.naming():
                answers += part.envs.call(name, *args)
        return tuple(answers)

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """An empty tensor (T, N, 0): the environments draw their own random numbers."""
        return torch.empty((num_steps, self.num_envs, 0), device=self.device)

    def advance(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> tuple[State, Step]:
        """Step every environment, all groups at the same time; as HostVectorEnv.advance."""
        obs, reward, terminated, truncated, info = self.step(action)
        valid = info["valid"] if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP else None
        return state, Step(obs, reward, terminated, truncated, info["final_obs"], valid)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments of all groups."""
        for part in self.parts:
            part.envs.close(**kwargs)
