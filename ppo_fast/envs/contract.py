"""How a program steps an environment, whatever kind of environment it is.

`envs.advance(state, action, noise) -> (state, Step)` is the one way in. A tensor environment's state is a tuple of
tensors, and `advance` is a pure function of it. Host environments keep their state to themselves: `state` is `()` and
the noise is empty. Letters: T steps, N envs, S observation shape, A action size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces

from ppo_fast.envs.actions import ActionSpace
from ppo_fast.envs.own import OwnSpaces

# One tensor (N, ...) for each part of a state; () for environments that keep their state to themselves.
State = tuple[torch.Tensor, ...]
# obs, reward, terminated, truncated, info: see ppo_fast.envs.
StepResult = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


class Step(NamedTuple):
    """What one step of N environments gave."""

    obs: torch.Tensor  # (N, *S) float32, to act on next: where an episode ended, the first of the new one
    reward: torch.Tensor  # (N,) float32
    terminated: torch.Tensor  # (N,) bool
    truncated: torch.Tensor  # (N,) bool
    final_obs: torch.Tensor  # (N, *S) float32, the true successor, equal to obs where no episode ended
    valid: torch.Tensor | None  # (N,) bool, False for the reset row of a NEXT_STEP environment; None: no such rows


class Part(Protocol):
    """Environments that step together: all there are, or one group of them (see HostGroups).

    Parts are independent of each other: each may be stepped in a thread of its own.
    """

    num_envs: int  # N of this part
    device: torch.device

    @property
    def state(self) -> State:
        """Where the environments stand, as `advance` takes it."""
        ...

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """The random numbers of the next `num_steps` steps, (T, N, ...): one row for each call of `advance`."""
        ...

    def advance(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> tuple[State, Step]:
        """One step with actions (N,) or (N, A): the state to go on from, and what the step gave.

        Raises:
            EnvironmentFault: naming the environment's index among those of all parts.
        """
        ...


class Environments(Part, Protocol):
    """What every environment of `make` offers: gymnasium's VectorEnv in tensors, and `advance` (see ppo_fast.envs)."""

    backend: str  # what steps it: tensor, entry_point, sync, async or envpool
    spec_id: str  # the id that it was made by
    metadata: dict[str, Any]  # its "autoreset_mode" is NEXT_STEP where there are reset rows, else SAME_STEP
    mask_size: int  # n where the last n columns of an observation are an action mask, else 0
    pure: bool  # whether `advance` is a pure function of tensors, which can be compiled, captured and replayed

    @property
    def resets_singly(self) -> bool:
        """Whether some environments can begin new episodes while others go on."""
        ...

    @property
    def single_observation_space(self) -> spaces.Box:
        """Of one environment, float32."""
        ...

    @property
    def single_action_space(self) -> ActionSpace:
        """Of one environment: what `advance` takes a row of."""
        ...

    @property
    def own_spaces(self) -> OwnSpaces:
        """What one environment itself observes and takes, and what lies between that and the spaces above."""
        ...

    @property
    def columns(self) -> dict[str, slice]:
        """Which columns of a flattened observation belong to which of its keys (see ppo_fast.envs)."""
        ...

    @property
    def generator(self) -> torch.Generator | None:
        """What `draw_noise` draws from; None where environments draw their own random numbers."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """The parts in order of their environments: the first part's come first."""
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict]:
        """Start new episodes, from this seed or going on with the random numbers: obs (N, *S) and an empty info."""
        ...

    def stagger(self, lengths: np.ndarray) -> None:
        """From the next reset of all on, truncate first episodes at these lengths (N,), in steps. `resets_singly` has
        to hold."""
        ...

    def restart(self) -> torch.Tensor:
        """Make everything anew, also after an EnvironmentFault: the observations (N, *S) of fresh episodes."""
        ...

    def step(self, actions: torch.Tensor | np.ndarray) -> StepResult:
        """One step as gymnasium has it; `advance` with other names."""
        ...

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """What each environment's method of this name returns, in workers too; of a vector's or a tensor environment's
        own method the one answer. For what changes in the course of a training, such as how hard the task is.

        Raises:
            EnvironmentFault: naming the environment that raised something, or has no such method.
        """
        ...

    def close(self, **kwargs: Any) -> None:
        """End what runs for them, processes and threads."""
        ...
