"""CartPole-v1 as a tensor environment: the dynamics of gymnasium.envs.classic_control.CartPoleEnv in float32."""

import math

import numpy as np
import torch
from gymnasium import spaces

from ppo_fast.envs.tensor import State, TensorVectorEnv, Transition

GRAVITY = 9.8  # m/s²
POLE_MASS = 0.1  # kg
TOTAL_MASS = 1.1  # kg, of cart and pole
POLE_HALF_LENGTH = 0.5  # m
POLE_SHARE = POLE_MASS / TOTAL_MASS * POLE_HALF_LENGTH
FORCE = 10.0  # N
TIME_STEP = 0.02  # seconds
ANGLE_LIMIT = 12 * 2 * math.pi / 360  # rad
POSITION_LIMIT = 2.4  # m


class TensorCartPole(TensorVectorEnv):
    """N cart-poles; physics is (N, 4): position (m), velocity, pole angle (rad), angular velocity; elapsed is (N,)
    int32.

    The reward is 1 on every step, the one that ends the episode included. With `sutton_barto_reward` it is 0, and -1
    on termination.
    """

    spec_id = "CartPole-v1"
    reset_noise_size = 4

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 500,
        sutton_barto_reward: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        high = np.array([2 * POSITION_LIMIT, np.inf, 2 * ANGLE_LIMIT, np.inf], dtype=np.float32)
        super().__init__(num_envs, max_episode_steps, spaces.Box(-high, high), spaces.Discrete(2), device)
        self.sutton_barto_reward = sutton_barto_reward
        self.limits = torch.tensor([POSITION_LIMIT, np.inf, ANGLE_LIMIT, np.inf], device=device)

    def initial_state(self, noise: torch.Tensor) -> State:
        """Physics uniform in [-0.05, 0.05)."""
        return noise * 0.1 - 0.05, torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """The physics itself."""
        return state[0]

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One explicit Euler step; action (N,) 1 pushes right, all else left."""
        physics, elapsed = state  # (N, 4), (N,)
        _, x_dot, theta, theta_dot = physics.unbind(-1)
        force = torch.where(action == 1, FORCE, -FORCE).to(physics.dtype)
        cos, sin = torch.cos(theta), torch.sin(theta)

        # The equations, with m and M the mass of the pole and of all, l half the pole's length, x the position, θ the
        # angle; θ' and x' are velocities, θ'' and x'' accelerations:
        #
        #     temp = (force + m l θ'² sin θ) / M
        #     θ''  = (g sin θ - cos θ temp) / (l (4/3 - m cos² θ / M))
        #     x''  = temp - m l θ'' cos θ / M
        #
        # and each of x, x', θ, θ' grows by its rate times TIME_STEP. Below, POLE_SHARE is m l / M, addcmul(a, b, c,
        # value=k) is a + k b c, and rsub(a, b, alpha=k) is b - k a: half as many operations, each of which costs more
        # than its numbers.
        temp = torch.addcmul(force, theta_dot.square(), sin, value=POLE_MASS * POLE_HALF_LENGTH) / TOTAL_MASS
        inertia = torch.rsub(cos.square(), POLE_HALF_LENGTH * 4 / 3, alpha=POLE_SHARE)
        theta_acc = torch.addcmul(GRAVITY * sin, cos, temp, value=-1) / inertia
        x_acc = torch.addcmul(temp, theta_acc, cos, value=-POLE_SHARE)
        rates = torch.stack((x_dot, x_acc, theta_dot, theta_acc), dim=-1)
        physics = torch.add(physics, rates, alpha=TIME_STEP)

        elapsed = elapsed + 1
        terminated = (physics.abs() > self.limits).any(-1)
        truncated = elapsed >= self.max_episode_steps
        reward = -terminated.to(physics.dtype) if self.sutton_barto_reward else torch.ones_like(theta)
        return (physics, elapsed), physics, reward, terminated, truncated
