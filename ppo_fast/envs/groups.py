"""HostGroups: the environments of a host backend in groups that step by turns.

While the environments of one group step, in processes or threads of their own, the policy acts for another: neither
waits for the other ("double-buffered sampling", Petrenko et al. 2020, arXiv 2006.11751). Letters: N envs, S observation
shape, T steps.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.contract import Part, State, Step
from ppo_fast.envs.host import EnvironmentFault, HostVectorEnv, spread_seeds


class HostGroup:
    """One group of HostGroups as a part of its own (see contract.Part).

    Args:
        envs: the environments of this group.
        first: the index of its first environment among those of all groups.
    """

    state: State = ()

    def __init__(self, envs: HostVectorEnv, first: int) -> None:
        self.envs = envs
        self.first = first
        self.num_envs = envs.num_envs
        self.device = envs.device

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """An empty tensor (T, N, 0): the environments draw their own random numbers."""
        return self.envs.draw_noise(num_steps)

    def advance(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> tuple[State, Step]:
        """Step this group; as HostVectorEnv.advance, but a fault has the index among all groups' environments."""
        try:
            return self.envs.advance(state, action, noise)
        except EnvironmentFault as fault:
            raise EnvironmentFault(self.first + fault.index, fault.reason) from fault


class HostGroups(VectorEnv):
    """Host vectors of one kind as one of N environments; `step_async` and `step_wait` take the number of a group.

    Seeds are spread over all N, so that the number of groups changes no trajectory.

    Args:
        groups: vectors of one environment with one backend.
    """

    pure = False
    state: State = ()

    def __init__(self, groups: Sequence[HostVectorEnv]) -> None:
        first = groups[0]
        self.groups = groups
        self.group_sizes = [group.num_envs for group in groups]
        self.num_envs = sum(self.group_sizes)
        self.device, self.backend, self.spec_id, self.spec = first.device, first.backend, first.spec_id, first.spec
        self.mask_size, self.metadata, self.render_mode = first.mask_size, first.metadata, first.render_mode
        self.single_observation_space = first.single_observation_space
        self.single_action_space = first.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def spread(self, seed: int | None) -> Any:
        """One seed for each environment, as HostVectorEnv.spread."""
        return None if seed is None else spread_seeds(seed, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there: obs (N, *S), an empty info."""
        seeds, mask, obs = self.spread(seed), (options or {}).get("reset_mask"), []
        for number, rows in self._rows():
            own = None if options is None else {**options, **({} if mask is None else {"reset_mask": mask[rows]})}
            with self._naming(number):
                obs.append(self.groups[number].reset(seed=None if seeds is None else seeds[rows], options=own)[0])
        return torch.cat(obs), {}

    def restart(self) -> torch.Tensor:
        """Close everything and make it anew, as HostVectorEnv.restart: the observations (N, *S) of fresh episodes."""
        obs = []
        for number, group in enumerate(self.groups):
            with self._naming(number):
                obs.append(group.restart())
        return torch.cat(obs)

    def step(
        self, actions: torch.Tensor | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Step every environment, all groups at the same time; as HostVectorEnv.step."""
        for number, rows in self._rows():
            self.step_async(actions[rows], number)
        *columns, infos = zip(*(self.step_wait(number) for number in range(len(self.groups))), strict=True)
        obs, reward, terminated, truncated = (torch.cat(column) for column in columns)
        info = {name: torch.cat([each[name] for each in infos]) for name in infos[0]}
        return obs, reward, terminated, truncated, info

    def step_async(self, actions: torch.Tensor | np.ndarray, group: int = 0) -> None:
        """Begin a step of one group with its actions; as HostVectorEnv.step_async."""
        with self._naming(group):
            self.groups[group].step_async(actions)

    def step_wait(
        self, group: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What `step` of that group returns."""
        with self._naming(group):
            return self.groups[group].step_wait()

    @property
    def parts(self) -> Sequence[Part]:
        """The groups, each of which can be stepped in a thread of its own."""
        firsts = (sum(self.group_sizes[:number]) for number in range(len(self.groups)))
        return [HostGroup(group, first) for group, first in zip(self.groups, firsts, strict=True)]

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
        for group in self.groups:
            group.close(**kwargs)

    def _rows(self) -> Iterator[tuple[int, slice]]:
        """The number of each group and which of the N are in it."""
        ends = np.cumsum(self.group_sizes).tolist()
        return ((i, slice(end - size, end)) for i, (end, size) in enumerate(zip(ends, self.group_sizes, strict=True)))

    @contextlib.contextmanager
    def _naming(self, group: int) -> Iterator[None]:
        """Number a fault's environment among all."""
        try:
            yield
        except EnvironmentFault as fault:
            raise EnvironmentFault(fault.index + sum(self.group_sizes[:group]), fault.reason) from fault


def take_turns(
    turn: Callable[..., Iterator[None]],
    envs: HostVectorEnv | HostGroups,
    obs: torch.Tensor,
    rows: Sequence[torch.Tensor],
) -> None:
    """Run a generator for each group of the environments: each goes on to its next yield, then the next one does.

    Args:
        turn: called with the number of the group and, of its environments, the observations and the rows.
        obs: (N, *S).
        rows: tensors (T, N, ...).
    """
    own = zip(obs.split(envs.group_sizes), *(x.split(envs.group_sizes, 1) for x in rows), strict=True)
    going, ended = [turn(number, first, rest) for number, (first, *rest) in enumerate(own)], object()
    while going:
        going = [each for each in going if next(each, ended) is not ended]
