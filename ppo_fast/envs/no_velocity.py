"""CartPole, the mountain cars and Pendulum without velocities: what is seen of the state is not enough to act on.

The ids are those of Stable-Baselines3's zoo, under ppo_fast/: CartPoleNoVel-v1, MountainCarNoVel-v0,
MountainCarContinuousNoVel-v0, PendulumNoVel-v1. There velocities are 0; here they are left out. Each is a tensor
environment, and there is a function that makes Gymnasium's single one, which can be drawn.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs import classic_control

from ppo_fast.envs.cartpole import TensorCartPole
from ppo_fast.envs.classic import TensorMountainCar, TensorMountainCarContinuous, TensorPendulum

# Which numbers of an observation are velocities.
CARTPOLE = (1, 3)
MOUNTAIN_CAR = (1,)
PENDULUM = (2,)


class TensorCartPoleNoVel(TensorCartPole):
    """N cart-poles of which position (m) and pole angle (rad) are seen, (N, 2)."""

    spec_id = "CartPoleNoVel-v1"
    hidden = CARTPOLE


class TensorMountainCarNoVel(TensorMountainCar):
    """N cars of which the position is seen, (N, 1)."""

    spec_id = "MountainCarNoVel-v0"
    hidden = MOUNTAIN_CAR


class TensorMountainCarContinuousNoVel(TensorMountainCarContinuous):
    """N cars of which the position is seen, (N, 1)."""

    spec_id = "MountainCarContinuousNoVel-v0"
    hidden = MOUNTAIN_CAR


class TensorPendulumNoVel(TensorPendulum):
    """N pendulums of which cos and sin of the angle are seen, (N, 2)."""

    spec_id = "PendulumNoVel-v1"
    hidden = PENDULUM


def cartpole(**kwargs: Any) -> gymnasium.Env:
    """Gymnasium's CartPole, of which position and angle are seen."""
    return _without(classic_control.CartPoleEnv(**kwargs), CARTPOLE)


def mountain_car(**kwargs: Any) -> gymnasium.Env:
    """Gymnasium's MountainCar, of which the position is seen."""
    return _without(classic_control.MountainCarEnv(**kwargs), MOUNTAIN_CAR)


def mountain_car_continuous(**kwargs: Any) -> gymnasium.Env:
    """Gymnasium's Continuous_MountainCar, of which the position is seen."""
    return _without(classic_control.Continuous_MountainCarEnv(**kwargs), MOUNTAIN_CAR)


def pendulum(**kwargs: Any) -> gymnasium.Env:
    """Gymnasium's Pendulum, of which cos and sin of the angle are seen."""
    return _without(classic_control.PendulumEnv(**kwargs), PENDULUM)


def _without(env: gymnasium.Env, columns: Sequence[int]) -> gymnasium.Env:
    """A single environment without these numbers of its observation."""
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    kept = np.setdiff1d(np.arange(space.shape[0]), columns)
    seen = spaces.Box(space.low[kept], space.high[kept])
    return gymnasium.wrappers.TransformObservation(env, lambda obs: obs[kept], seen)
