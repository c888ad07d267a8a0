"""MountainCar, MountainCarContinuous, Acrobot and Pendulum as tensor environments, in float32.

Each has the dynamics, reward, limits and reset of Gymnasium's class in gymnasium.envs.classic_control. State: physics
(N, 2 or 4) and elapsed (N,) int32.
"""

import math

import numpy as np
import torch
from gymnasium import spaces

from ppo_fast.envs.tensor import State, TensorVectorEnv, Transition


class _MountainCarTrack(TensorVectorEnv):
    """What the two mountain cars share; physics is position and velocity."""

    reset_noise_size = 1
    goal_position: float
    MIN_POSITION = -1.2
    MAX_POSITION = 0.6
    MAX_SPEED = 0.07
    SLOPE = 0.0025

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int,
        goal_velocity: float,
        action_space: spaces.Discrete | spaces.Box,
        device: torch.device | str,
    ) -> None:
        low = np.array([self.MIN_POSITION, -self.MAX_SPEED], dtype=np.float32)
        high = np.array([self.MAX_POSITION, self.MAX_SPEED], dtype=np.float32)
        super().__init__(num_envs, max_episode_steps, spaces.Box(low, high), action_space, device)
        self.goal_velocity = goal_velocity

    def initial_state(self, noise: torch.Tensor) -> State:
        """Position uniform in [-0.6, -0.4), velocity 0."""
        position = noise[:, 0] * 0.2 - 0.6
        physics = torch.stack((position, torch.zeros_like(position)), dim=-1)
        return physics, torch.zeros_like(position, dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """The physics itself."""
        return state[0]

    def _drive(self, state: State, push: torch.Tensor) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Advance the cars by accelerations `push` (N,): the state, terminated (N,), truncated (N,)."""
        physics, elapsed = state
        position, velocity = physics.unbind(-1)
        velocity = (velocity + push - self.SLOPE * torch.cos(3 * position)).clamp(-self.MAX_SPEED, self.MAX_SPEED)
        position = (position + velocity).clamp(self.MIN_POSITION, self.MAX_POSITION)
        # The left wall is inelastic.
        velocity = torch.where(position <= self.MIN_POSITION, velocity.clamp(min=0), velocity)
        elapsed = elapsed + 1
        terminated = (position >= self.goal_position) & (velocity >= self.goal_velocity)
        return (torch.stack((position, velocity), dim=-1), elapsed), terminated, elapsed >= self.max_episode_steps


class TensorMountainCar(_MountainCarTrack):
    """N cars with actions 0 left, 1 none, 2 right and reward -1 a step (gymnasium MountainCarEnv)."""

    spec_id = "MountainCar-v0"
    goal_position = 0.5
    FORCE = 0.001

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 200,
        goal_velocity: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(num_envs, max_episode_steps, goal_velocity, spaces.Discrete(3), device)

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One step with actions (N,)."""
        push = (action - 1).to(state[0].dtype) * self.FORCE
        state, terminated, truncated = self._drive(state, push)
        return state, state[0], -torch.ones_like(push), terminated, truncated


class TensorMountainCarContinuous(_MountainCarTrack):
    """N cars with actions (N, 1) in [-1, 1]; reward 100 at the goal, less 0.1 action² (Continuous_MountainCarEnv)."""

    spec_id = "MountainCarContinuous-v0"
    goal_position = 0.45
    POWER = 0.0015

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 999,
        goal_velocity: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(num_envs, max_episode_steps, goal_velocity, spaces.Box(-1.0, 1.0, (1,)), device)

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One step with actions (N, 1). As in Gymnasium the force is clipped, the cost is of the action as given."""
        action = action[:, 0]
        state, terminated, truncated = self._drive(state, action.clamp(-1, 1) * self.POWER)
        reward = 100 * terminated.to(action.dtype) - 0.1 * action.square()
        return state, state[0], reward, terminated, truncated


class TensorAcrobot(TensorVectorEnv):
    """N two-link pendulums with torque -1, 0, 1 on the joint between the links (gymnasium AcrobotEnv, the book's
    dynamics).

    Physics is theta1, theta2 (rad, in [-π, π]) and their velocities; the reward is -1 a step, 0 on the one that
    swings up.
    """

    spec_id = "Acrobot-v1"
    reset_noise_size = 4
    MAX_SPEED_1 = 4 * math.pi  # rad/s
    MAX_SPEED_2 = 9 * math.pi  # rad/s
    TIME_STEP = 0.2  # seconds
    GRAVITY = 9.8  # m/s²

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 500, device: torch.device | str = "cpu") -> None:
        high = np.array([1, 1, 1, 1, self.MAX_SPEED_1, self.MAX_SPEED_2], dtype=np.float32)
        super().__init__(num_envs, max_episode_steps, spaces.Box(-high, high), spaces.Discrete(3), device)

    def initial_state(self, noise: torch.Tensor) -> State:
        """Physics uniform in [-0.1, 0.1)."""
        return noise * 0.2 - 0.1, torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """(N, 6): cos and sin of theta1, of theta2, and the velocities."""
        theta1, theta2, speed1, speed2 = state[0].unbind(-1)
        parts = (torch.cos(theta1), torch.sin(theta1), torch.cos(theta2), torch.sin(theta2), speed1, speed2)
        return torch.stack(parts, dim=-1)

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One step of the classic fourth-order Runge-Kutta method with actions (N,)."""
        physics, elapsed = state
        torque = (action - 1).to(physics.dtype)
        step = self.TIME_STEP
        k1 = self._derivative(physics, torque)
        k2 = self._derivative(physics + step / 2 * k1, torque)
        k3 = self._derivative(physics + step / 2 * k2, torque)
        k4 = self._derivative(physics + step * k3, torque)
        theta1, theta2, speed1, speed2 = (physics + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)

        theta1 = _wrap(theta1)
        theta2 = _wrap(theta2)
        speed1 = speed1.clamp(-self.MAX_SPEED_1, self.MAX_SPEED_1)
        speed2 = speed2.clamp(-self.MAX_SPEED_2, self.MAX_SPEED_2)
        physics = torch.stack((theta1, theta2, speed1, speed2), dim=-1)
        elapsed = elapsed + 1
        state = (physics, elapsed)
        terminated = -torch.cos(theta1) - torch.cos(theta2 + theta1) > 1.0
        reward = terminated.to(physics.dtype) - 1
        return state, self.observation(state), reward, terminated, elapsed >= self.max_episode_steps

    def _derivative(self, physics: torch.Tensor, torque: torch.Tensor) -> torch.Tensor:
        """Time derivative (N, 4) of the physics.

        Both links have mass, length and moment of inertia 1 and their centre of mass halfway, which leaves the
        constants below of the general formulas: d1 = 3.5 + cos θ2, d2 = 1.25 + cos θ2 / 2, and g/2 and 3g/2 as the
        moments of the weights.
        """
        theta1, theta2, speed1, speed2 = physics.unbind(-1)
        cos2, sin2 = torch.cos(theta2), torch.sin(theta2)
        d1 = 3.5 + cos2
        d2 = 1.25 + 0.5 * cos2
        phi2 = 0.5 * self.GRAVITY * torch.sin(theta1 + theta2)
        phi1 = -(0.5 * speed2.square() + speed2 * speed1) * sin2 + 1.5 * self.GRAVITY * torch.sin(theta1) + phi2
        ratio = d2 / d1
        acc2 = (torque + ratio * phi1 - 0.5 * speed1.square() * sin2 - phi2) / (1.25 - d2 * ratio)
        acc1 = -(d2 * acc2 + phi1) / d1
        return torch.stack((speed1, speed2, acc1, acc2), dim=-1)


class TensorPendulum(TensorVectorEnv):
    """N pendulums with torque (N, 1) in [-2, 2]; reward -(θ² + 0.1 θ̇² + 0.001 torque²) (gymnasium PendulumEnv).

    Physics is the angle (rad, unbounded, 0 is upright) and its velocity. Episodes only end by truncation. `g` is
    gravity in m/s².
    """

    spec_id = "Pendulum-v1"
    reset_noise_size = 2
    MAX_SPEED = 8.0  # rad/s
    MAX_TORQUE = 2.0
    TIME_STEP = 0.05  # seconds

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 200,
        g: float = 10.0,
        device: torch.device | str = "cpu",
    ) -> None:
        high = np.array([1, 1, self.MAX_SPEED], dtype=np.float32)
        action_space = spaces.Box(-self.MAX_TORQUE, self.MAX_TORQUE, (1,))
        super().__init__(num_envs, max_episode_steps, spaces.Box(-high, high), action_space, device)
        self.g = g

    def initial_state(self, noise: torch.Tensor) -> State:
        """Angle uniform in [-π, π), velocity uniform in [-1, 1)."""
        centred = noise * 2 - 1
        physics = torch.stack((centred[:, 0] * math.pi, centred[:, 1]), dim=-1)
        return physics, torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """(N, 3): cos and sin of the angle, and its velocity."""
        theta, speed = state[0].unbind(-1)
        return torch.stack((torch.cos(theta), torch.sin(theta), speed), dim=-1)

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One semi-implicit Euler step with actions (N, 1), clipped; the reward is of the state before it."""
        physics, elapsed = state
        theta, speed = physics.unbind(-1)
        torque = action[:, 0].clamp(-self.MAX_TORQUE, self.MAX_TORQUE)
        cost = _wrap(theta).square() + 0.1 * speed.square() + 0.001 * torque.square()
        speed = speed + (1.5 * self.g * torch.sin(theta) + 3 * torque) * self.TIME_STEP
        speed = speed.clamp(-self.MAX_SPEED, self.MAX_SPEED)
        physics = torch.stack((theta + speed * self.TIME_STEP, speed), dim=-1)
        elapsed = elapsed + 1
        state = (physics, elapsed)
        terminated = torch.zeros_like(elapsed, dtype=torch.bool)
        return state, self.observation(state), -cost, terminated, elapsed >= self.max_episode_steps


def _wrap(angle: torch.Tensor) -> torch.Tensor:
    """The same angle in [-π, π]."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
