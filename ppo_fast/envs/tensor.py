"""TensorVectorEnv: vector environments whose state lives in tensors, written as pure functions.

A subclass gives `initial_state`, `observation` and `transition`. They take the state and uniform random numbers and
return new tensors, so they can be compiled, captured in a CUDA graph, replayed and checked. This base adds the
autoreset (`step_state`, pure as well) and the thin gymnasium shell (`reset`, `step`). Letters: T steps, N envs, D
observation size, A action size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.actions import ActionBounds, BoxMap, map_to
from ppo_fast.envs.contract import Part, State, Step, StepResult
from ppo_fast.envs.masks import MASK, NO_MASKS
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.envs.spaces import remaining_columns

__all__ = ["State", "TensorVectorEnv", "Transition"]

# The next state, obs (N, D) of it, reward (N,) float32, terminated (N,) bool and truncated (N,) bool.
Transition = tuple[State, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class TensorVectorEnv(VectorEnv):
    """Base of the tensor environments: SAME_STEP autoreset, static shapes, no device synchronisation in a step.

    Args:
        num_envs: N, at least 1.
        max_episode_steps: an episode is truncated at this many steps.
        single_observation_space: a float32 Box of shape (D,).
        single_action_space: Discrete (actions (N,)) or a float32 Box of shape (A,) (actions (N, A), clipped to its
            bounds, unless `bound_actions` maps them). Discrete values are not range-checked: that would read the
            device on every step.
        device: where the state, the noise and all that is returned live.

    Raises:
        ValueError: for fewer than one environment, or a wrong number of actions, seed, mask or saved state.
    """

    backend = "tensor"
    spec_id = ""
    pure = True
    single_observation_space: spaces.Box
    single_action_space: spaces.Discrete | spaces.Box
    # One name per tensor of the state, in order; they are the keys of get_state().
    state_names: tuple[str, ...] = ("physics", "elapsed")
    # n where the last n columns of the observation say which of n actions are allowed (1) and which not (0).
    mask_size: int = 0
    resets_singly = True
    # Columns of `observation` that are not seen: see `hide`.
    hidden: ClassVar[tuple[int, ...]] = ()
    # Uniform [0, 1) numbers that initial_state and transition consume, per env and step.
    reset_noise_size: int = 0
    step_noise_size: int = 0

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int,
        single_observation_space: spaces.Box,
        single_action_space: spaces.Discrete | spaces.Box,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"--num-envs: at least 1 is needed, got {num_envs}")
        # A copy per instance: gymnasium's wrappers write into metadata.
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.device = torch.device(device)
        self.single_observation_space = single_observation_space
        self.single_action_space = single_action_space
        self.observation_space = batch_space(single_observation_space, num_envs)
        self.action_space = batch_space(single_action_space, num_envs)
        self.state: State = ()  # empty until the first reset
        self.generator = torch.Generator(device=self.device)
        self._seeded = False
        self._own_action_space = single_action_space
        # What the dynamics takes, and how a policy's actions get there; None for Discrete actions.
        self._box = single_action_space if isinstance(single_action_space, spaces.Box) else None
        self._to_box: BoxMap[torch.Tensor] | None = None
        self.bound_actions("clip")
        self._limit: int | None = None  # of steps, beside the environment's own: see `limit_steps`
        # (N,) int32, steps that are counted as made when all are reset; None for no steps. See `stagger`.
        self._steps_ahead: torch.Tensor | None = None
        self._kept: torch.Tensor | None = None  # columns of the observation that are seen; None for all
        # What the environment itself shows, and which columns of that are left.
        self._own_observation_space = single_observation_space
        self._left: Sequence[int] = range(single_observation_space.shape[0])
        if self.hidden:
            self.hide(self.hidden)
            self._own_observation_space = self.single_observation_space
            self._left = range(len(self._left))

    def hide(self, columns: Sequence[int]) -> None:
        """Leave these columns out of the observations that `reset` and a step return.

        `observation` and `transition` go on giving all of them. An action mask can't be hidden.

        Args:
            columns: counted in what is seen up to now.

        Raises:
            ValueError: where there is no such column, or none would be left.
        """
        space = self.single_observation_space
        columns = remaining_columns(space, columns, self.mask_size)
        kept = torch.tensor(columns, device=self.device)
        self._kept = kept if self._kept is None else self._kept[kept]
        self._left = [self._left[column] for column in columns]
        self.single_observation_space = spaces.Box(space.low[columns], space.high[columns])
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def limit_steps(self, limit: int) -> None:
        """Truncate episodes at this many steps, as gymnasium's TimeLimit does, whatever `transition` does itself.

        From the next reset on the state has one tensor more, the steps (N,) that were counted.
        """
        self._limit = limit
        self.max_episode_steps = min(self.max_episode_steps, limit)
        if "limited" not in self.state_names:
            self.state_names = (*self.state_names, "limited")

    def stagger(self, lengths: np.ndarray) -> None:
        """From the next reset of all on, truncate first episodes at these lengths (N,), in steps."""
        self.limit_steps(self.max_episode_steps)
        lengths_here = torch.as_tensor(lengths, dtype=torch.int32, device=self.device)
        self._steps_ahead = self.max_episode_steps - lengths_here

    def bound_actions(self, bounds: ActionBounds) -> None:
        """How Box actions get into their bounds from now on (see actions.py); at first they are clipped."""
        self._bounds: ActionBounds = bounds
        if self._box is not None:
            to_box = map_to(self._box, bounds)
            self._to_box = to_box.on(self.device)
            self.single_action_space = spaces.Box(to_box.low, to_box.high)
            self.action_space = batch_space(self.single_action_space, self.num_envs)

    # The pure core.

    def initial_state(self, noise: torch.Tensor) -> State:
        """The state at the start of an episode, from noise (N, reset_noise_size); every tensor is (N, ...)."""
        raise NotImplementedError

    def observation(self, state: State) -> torch.Tensor:
        """What the policy sees of a state: (N, D) float32. It may be a view of the state."""
        raise NotImplementedError

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One step of every environment, without autoreset; it counts the elapsed steps itself.

        Args:
            state: as `initial_state` returns it.
            action: (N,) for Discrete, (N, A) for Box.
            noise: (N, step_noise_size).

        Returns:
            next state, obs (N, D) of it, reward (N,) float32, terminated (N,) bool, truncated (N,) bool.
        """
        raise NotImplementedError

    def step_state(
        self, state: State, action: torch.Tensor, noise: torch.Tensor
    ) -> tuple[State, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step with SAME_STEP autoreset, pure; Box actions get into their bounds as in the host adapter.

        Args:
            state: as `initial_state` returns it.
            action: (N,) for Discrete, (N, A) for Box.
            noise: (N, step_noise_size + reset_noise_size), the step's numbers first.

        Returns:
            state to go on from, obs (N, D) of it, reward, terminated, truncated (N,), final_obs (N, D): the
            observation of the true successor, which differs from obs where the episode ended.
        """
        if self._to_box is not None:
            action = self._to_box(action)
        step_noise = noise[:, : self.step_noise_size]
        reset_noise = noise[:, self.step_noise_size :]
        own = state if self._limit is None else state[:-1]
        successor, final_obs, reward, terminated, truncated = self.transition(own, action, step_noise)
        if self._limit is not None:
            steps = state[-1] + 1
            truncated = truncated | (steps >= self._limit)
            successor = (*successor, steps)
        state = _where(terminated | truncated, self._first_state(reset_noise), successor)
        return state, self._shown(state), reward, terminated, truncated, self._seen(final_obs)

    def advance(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> tuple[State, Step]:
        """`step_state` in the form that all environments share (see contract.py): pure, and every row is valid."""
        state, obs, reward, terminated, truncated, final_obs = self.step_state(state, action, noise)
        return state, Step(obs, reward, terminated, truncated, final_obs, valid=None)

    # The shell.

    @property
    def own_spaces(self) -> OwnSpaces:
        """What one environment shows, `hidden` columns aside, and takes; what `hide` and `bound_actions` do to it."""
        own = self._own_observation_space
        hidden = sorted(set(range(own.shape[0])) - set(self._left))
        return OwnSpaces(own, self._own_action_space, NO_MASKS, self.mask_size, self._bounds, tuple(hidden))

    @property
    def columns(self) -> dict[str, slice]:
        """Which columns of the observation are the action mask, under "action_mask"; empty where there is none."""
        assert self.single_observation_space.shape is not None
        width = self.single_observation_space.shape[0]
        return {MASK: slice(width - self.mask_size, width)} if self.mask_size else {}

    @property
    def parts(self) -> Sequence[Part]:
        """This environment: its state can be cut anywhere, so nothing is grouped."""
        return (self,)

    def draw_noise(self, num_steps: int) -> torch.Tensor:
        """Noise of the next `num_steps` steps, (T, N, step_noise_size + reset_noise_size), from the environment's own
        generator.

        Drawing T steps at once gives other numbers than T draws of one step.
        """
        self._ensure_seeded(None)
        size = (num_steps, self.num_envs, self.step_noise_size + self.reset_noise_size)
        return torch.rand(size, generator=self.generator, device=self.device)

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict]:
        """Start new episodes.

        Args:
            seed: seeds the generator. None goes on with its stream, which starts from fresh entropy.
            options: `{"reset_mask": (N,) bool}` resets only these environments.

        Returns:
            obs (N, D) and an empty info.

        Raises:
            ValueError: for a negative seed or a mask that isn't (N,) bool.
            gymnasium.error.ResetNeeded: for a mask before the first reset.
        """
        mask = None if options is None else options.get("reset_mask")
        if mask is not None:
            mask = self._checked_mask(mask)
        self._ensure_seeded(seed)
        state = self._first_state(self.draw_noise(1)[0, :, self.step_noise_size :])
        if mask is not None:
            state = _where(mask, state, self.state)
        elif self._steps_ahead is not None:
            state = (*state[:-1], self._steps_ahead.clone())
        self.state = state
        return self._shown(state).clone(), {}

    def restart(self) -> torch.Tensor:
        """Start new episodes with the next random numbers: their observations (N, D). There is nothing to make anew."""
        return self.reset()[0]

    @torch.no_grad()
    def step(self, actions: torch.Tensor | np.ndarray) -> StepResult:
        """Step every environment with actions (N,) or (N, A), a tensor or an array.

        Returns:
            obs (N, D), reward (N,), terminated (N,), truncated (N,), and info with `final_obs` (N, D), the true
            successor, `_final_obs` (N,), where an episode ended, and `valid` (N,), all True. All are fresh tensors
            that share no memory with the state.

        Raises:
            ValueError: when the actions have another shape.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if not self.state:
            raise ResetNeeded("reset() must be called before step()")
        actions = torch.as_tensor(actions, device=self.device)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have the shape {self.action_space.shape}, got {tuple(actions.shape)}")
        result = self.step_state(self.state, actions, self.draw_noise(1)[0])
        self.state, obs, reward, terminated, truncated, final_obs = result
        info = {
            "final_obs": final_obs,
            "_final_obs": terminated | truncated,
            "valid": torch.ones(self.num_envs, dtype=torch.bool, device=self.device),
        }
        # observation() may hand out the state itself; a caller that normalises obs in place must not move the cart.
        return obs.clone(), reward, terminated, truncated, info

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """The answer of the method of this name. It may change tensors of the environment in place, and nothing else
        that `transition` reads: a step is compiled or recorded as it is now."""
        return (getattr(self, name)(*args),)

    def get_state(self) -> dict[str, torch.Tensor]:
        """Everything the future depends on, copied: the state's tensors by name, and `generator`, its state."""
        if not self.state:
            raise ResetNeeded("reset() must be called before get_state()")
        saved = {name: tensor.clone() for name, tensor in zip(self.state_names, self.state, strict=True)}
        return {**saved, "generator": self.generator.get_state()}

    def set_state(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Go on, bit for bit, from what `get_state` of an equal environment returned.

        Raises:
            ValueError: when a tensor is missing or belongs to another number of environments.
        """
        missing = [name for name in (*self.state_names, "generator") if name not in saved]
        if missing:
            raise ValueError(f"the saved state of {self.spec_id or type(self).__name__} lacks {', '.join(missing)}")
        state = tuple(saved[name].to(self.device, copy=True) for name in self.state_names)
        if any(tensor.shape[0] != self.num_envs for tensor in state):
            raise ValueError(f"the saved state is of {state[0].shape[0]} environments, this is one of {self.num_envs}")
        self.generator.set_state(saved["generator"].cpu())
        self._seeded = True
        self.state = state

    def _first_state(self, noise: torch.Tensor) -> State:
        """`initial_state`, with the steps that `limit_steps` counts."""
        state = self.initial_state(noise)
        if self._limit is None:
            return state
        return (*state, torch.zeros(self.num_envs, dtype=torch.int32, device=self.device))

    def _shown(self, state: State) -> torch.Tensor:
        """What is seen of a state: (N, D)."""
        return self._seen(self.observation(state if self._limit is None else state[:-1]))

    def _seen(self, obs: torch.Tensor) -> torch.Tensor:
        """What is not hidden of an observation (N, D)."""
        return obs if self._kept is None else obs.index_select(-1, self._kept)

    def _ensure_seeded(self, seed: int | None) -> None:
        if seed is not None:
            if seed < 0:
                raise ValueError(f"--seed: must be 0 or more, got {seed}")
            super().reset(seed=int(seed))
            self.generator.manual_seed(int(seed))
        elif not self._seeded:
            self.generator.seed()
        self._seeded = True

    def _checked_mask(self, mask: torch.Tensor | np.ndarray) -> torch.Tensor:
        mask = torch.as_tensor(mask, device=self.device)
        if mask.shape != (self.num_envs,) or mask.dtype != torch.bool:
            wrong = f"{tuple(mask.shape)} {mask.dtype}"
            raise ValueError(f"options['reset_mask'] must be ({self.num_envs},) bool, got {wrong}")
        if not self.state:
            raise ResetNeeded("the first reset() resets all environments; reset_mask needs one before it")
        return mask


def _where(mask: torch.Tensor, chosen: State, other: State) -> State:
    """`chosen` where mask (N,) holds, else `other`, for states of tensors (N, ...)."""
    tensors = []
    for a, b in zip(chosen, other, strict=True):
        as_column = mask.view(-1, *[1] * (a.ndim - 1))  # (N, 1, ...), with as many dimensions as a
        tensors.append(torch.where(as_column, a, b))
    return tuple(tensors)
