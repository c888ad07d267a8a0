"""ppo_fast: the fastest honest PPO in PyTorch.

`python -m ppo_fast.train --num-envs 64` trains CartPole-v1. Importing the package does one thing: it registers the
tensor environments with gymnasium, by name only, so `gymnasium.make_vec("ppo_fast/CartPole-v1", num_envs=64)` works
and torch is not imported before it is needed. `gymnasium.make("ppo_fast/CartPole-v1")` gives Gymnasium's own single
environment. Where a program of ppo_fast is the command, begin.py prepares its process.

    policy = ppo_fast.load("latest")    # what a run has learned
    action = policy(obs)                # as a function from the environment's observations to its actions
"""

from ppo_fast.begin import register_command

register_command()  # before all that takes long to import

import os  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import gymnasium  # noqa: E402

if TYPE_CHECKING:
    from ppo_fast.deploy.policy import Policy

__version__ = "0.1.0"

# Tensor environments of Gymnasium's own.
_TENSOR_ENVIRONMENTS = {
    "CartPole-v1": "ppo_fast.envs.cartpole:TensorCartPole",
    "MountainCar-v0": "ppo_fast.envs.classic:TensorMountainCar",
    "MountainCarContinuous-v0": "ppo_fast.envs.classic:TensorMountainCarContinuous",
    "Acrobot-v1": "ppo_fast.envs.classic:TensorAcrobot",
    "Pendulum-v1": "ppo_fast.envs.classic:TensorPendulum",
}

# Of these without velocities: the original, the tensor environment, and what makes a single one.
_WITHOUT_VELOCITIES = {
    "CartPoleNoVel-v1": ("CartPole-v1", "TensorCartPoleNoVel", "cartpole"),
    "MountainCarNoVel-v0": ("MountainCar-v0", "TensorMountainCarNoVel", "mountain_car"),
    "MountainCarContinuousNoVel-v0": (
        "MountainCarContinuous-v0",
        "TensorMountainCarContinuousNoVel",
        "mountain_car_continuous",
    ),
    "PendulumNoVel-v1": ("Pendulum-v1", "TensorPendulumNoVel", "pendulum"),
}

# Tensor environments that ask for memory, with their arguments.
_MEMORY_ENVIRONMENTS = {
    "MemoryChain-v0": ("TensorMemoryChain", {}),
    "MemoryChain5-v0": ("TensorMemoryChain", {"memory_length": 5}),
    "MemoryChain10-v0": ("TensorMemoryChain", {"memory_length": 10}),
    "MemoryChain50-v0": ("TensorMemoryChain", {"memory_length": 50}),
    "MemoryChain100-v0": ("TensorMemoryChain", {"memory_length": 100}),
    "RepeatPrevious-v0": ("TensorRepeatPrevious", {}),
    "RepeatPreviousMedium-v0": ("TensorRepeatPrevious", {"num_decks": 2, "k": 32}),
    "RepeatPreviousHard-v0": ("TensorRepeatPrevious", {"num_decks": 3, "k": 64}),
    "RepeatFirst-v0": ("TensorRepeatFirst", {}),
    "RepeatFirstMedium-v0": ("TensorRepeatFirst", {"num_decks": 8}),
    "RepeatFirstHard-v0": ("TensorRepeatFirst", {"num_decks": 16}),
}


def load(
    run: str | os.PathLike[str] = "latest",
    *,
    seed: int | None = None,
    run_root: str | os.PathLike[str] = "runs",
    trust: bool = False,
) -> "Policy":
    """The policy of a run, to act with: see `ppo_fast.deploy.policy.Policy` and docs/use.md.

    Args:
        run: a run folder, a policy file, a checkpoint, or "latest".
        seed: of sampled actions; None for another one each time.
        run_root: the folder that "latest" looks in.
        trust: where a file of an earlier version has to ask its environment, import that one's module wherever it lies,
            even in a run folder.

    Raises:
        ValueError: "run: ..." in one line, where there is no policy that can be used.
    """
    from pathlib import Path

    from ppo_fast.deploy import loading

    return loading.load(os.fspath(run), Path(run_root), seed, trust)


def _register_tensor_environments() -> None:
    """Register each tensor environment under `ppo_fast/`, with its original's limits where it has one; a second call
    changes nothing."""
    for name, vector_entry_point in _TENSOR_ENVIRONMENTS.items():
        _register_like(name, name, vector_entry_point)
    for name, (original, vector, single) in _WITHOUT_VELOCITIES.items():
        module = "ppo_fast.envs.no_velocity"
        _register_like(name, original, f"{module}:{vector}", f"{module}:{single}")
    for name, (vector, arguments) in _MEMORY_ENVIRONMENTS.items():
        if f"ppo_fast/{name}" not in gymnasium.registry:
            entry_point = f"ppo_fast.envs.memory:{vector}"
            gymnasium.register(f"ppo_fast/{name}", vector_entry_point=entry_point, kwargs=arguments)


def _register_like(name: str, original: str, vector_entry_point: str, entry_point: str | None = None) -> None:
    """Register `name` with the limits of an original and, unless another one is given, its single environment."""
    if f"ppo_fast/{name}" in gymnasium.registry:
        return
    spec = gymnasium.registry[original]
    gymnasium.register(
        id=f"ppo_fast/{name}",
        entry_point=entry_point or spec.entry_point,
        reward_threshold=spec.reward_threshold,
        max_episode_steps=spec.max_episode_steps,
        vector_entry_point=vector_entry_point,
    )


_register_tensor_environments()
