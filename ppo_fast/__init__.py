"""ppo_fast: the fastest honest PPO in PyTorch.

`python -m ppo_fast.train --num-envs 64` trains CartPole-v1. Importing the package does one thing: it registers the
tensor environments with gymnasium, by name only, so `gymnasium.make_vec("ppo_fast/CartPole-v1", num_envs=64)` works
and torch is not imported before it is needed. `gymnasium.make("ppo_fast/CartPole-v1")` gives Gymnasium's own single
environment.
"""

import gymnasium

__version__ = "0.1.0"

_TENSOR_ENVIRONMENTS = {
    "CartPole-v1": "ppo_fast.envs.cartpole:TensorCartPole",
    "MountainCar-v0": "ppo_fast.envs.classic:TensorMountainCar",
    "MountainCarContinuous-v0": "ppo_fast.envs.classic:TensorMountainCarContinuous",
    "Acrobot-v1": "ppo_fast.envs.classic:TensorAcrobot",
    "Pendulum-v1": "ppo_fast.envs.classic:TensorPendulum",
}


def _register_tensor_environments() -> None:
    """Register each tensor environment under `ppo_fast/` with its original's limits; a second call changes nothing."""
    for name, vector_entry_point in _TENSOR_ENVIRONMENTS.items():
        if f"ppo_fast/{name}" in gymnasium.registry:
            continue
        original = gymnasium.registry[name]
        gymnasium.register(
            id=f"ppo_fast/{name}",
            entry_point=original.entry_point,
            reward_threshold=original.reward_threshold,
            max_episode_steps=original.max_episode_steps,
            vector_entry_point=vector_entry_point,
        )


_register_tensor_environments()
