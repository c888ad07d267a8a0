"""An environment of your own as tensors: a point mass is to be pushed to the middle of a room and to stop there.

    python -m ppo_fast.train --env-id "examples.point_mass:PointMass-v0"

The module is found from the folder above examples/, and importing it registers the environment. Letters: N envs.
"""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from ppo_fast.envs.tensor import State, TensorVectorEnv

TIME_STEP = 0.1  # seconds
FRICTION = 0.5  # of the velocity, lost per second
NEAR, SLOW = 0.1, 0.2  # m and m/s: closer and slower than this is at rest in the middle


class TensorPointMass(TensorVectorEnv):
    """N point masses in a room of 2 m x 2 m; an action (N, 2) is the acceleration in m/s², from -1 to 1.

    The reward of a step is minus the distance to the middle, in m, times its 0.1 s. The episode ends (terminated) when
    the mass is at rest in the middle, or is cut off (truncated) after 100 steps.
    """

    spec_id = "PointMass-v0"
    reset_noise_size = 2  # uniform numbers that `initial_state` gets for each environment

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 100, device: torch.device | str = "cpu") -> None:
        sees = spaces.Box(-np.inf, np.inf, (4,), dtype=np.float32)
        does = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        super().__init__(num_envs, max_episode_steps, sees, does, device)

    def initial_state(self, noise: torch.Tensor) -> State:
        """At rest anywhere in the room: position and velocity in one tensor (N, 4), and the steps so far (N,)."""
        position = noise * 2 - 1
        return torch.cat([position, torch.zeros_like(position)], dim=-1), torch.zeros_like(noise[:, 0]).int()

    def observation(self, state: State) -> torch.Tensor:
        """Position and velocity (N, 4)."""
        return state[0]

    def transition(
        self, state: State, action: torch.Tensor, noise: torch.Tensor
    ) -> tuple[State, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step of all N: push, move, stop at the walls."""
        physics, elapsed = state
        position, velocity = physics[:, :2], physics[:, 2:]
        velocity = velocity + TIME_STEP * (action - FRICTION * velocity)
        moved = position + TIME_STEP * velocity
        position = moved.clamp(-1, 1)
        velocity = torch.where(moved == position, velocity, 0.0)
        physics = torch.cat([position, velocity], dim=-1)

        distance = position.norm(dim=-1)
        terminated = (distance < NEAR) & (velocity.norm(dim=-1) < SLOW)
        elapsed = elapsed + 1
        truncated = elapsed >= self.max_episode_steps
        return (physics, elapsed), physics, -distance * TIME_STEP, terminated, truncated


gymnasium.register(id="PointMass-v0", vector_entry_point="examples.point_mass:TensorPointMass", max_episode_steps=100)
