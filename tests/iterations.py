"""Iterations of a training program for tests: built in each of the engine's modes, run, and compared."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppo_fast.algorithm.adam import Learner
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.iteration import Iteration
from ppo_fast.engine.plan import Mode
from ppo_fast.engine.ranks import Ranks
from ppo_fast.train import Args

CPU = torch.device("cpu")

# Kinds of run that take different ways through the trunk or the engine. Small: 8 environments, 4 steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "normalised": {"norm_obs": True, "norm_reward": True, "lr_schedule": "kl"},
    "shared backbone": {"shared_backbone": True},
    "plain value loss": {"clip_vloss": False, "norm_adv": False},
    "least deviation": {"adv_std_min": 1.0},
    "early stop": {"target_kl": 0.003},
    "continuous": {"env_id": "Pendulum-v1"},
    "host": {"backend": "sync"},
    # 13 x 10 rows in 4 minibatches: 33, 33, 32, 32; and 10 steps in chunks of 8 and 2.
    "uneven": {"num_envs": 13, "num_steps": 10},
}


def small(program: Any = Args, **flags: Any) -> Any:
    """Flags of a run that takes milliseconds.

    Args:
        program: whose flags: a program's Args.
    """
    sizes: dict[str, Any] = {
        "num_envs": 8,
        "num_steps": 4,
        "num_minibatches": 4,
        "update_epochs": 4,
        "total_timesteps": 8 * 4 * 10,
    }
    return program(**(sizes | {"learning_rate": 2.5e-3, "cuda": False} | flags))


class Built(NamedTuple):
    """One run without what surrounds it."""

    agent: Any
    learner: Learner
    iteration: Iteration
    engine: Engine


def built(args: Any, mode: Mode = "eager", ranks: Ranks | None = None, exact: bool = False) -> Built:
    """A run with these flags of a program, in this mode of the engine."""
    program = sys.modules[type(args).__module__]
    ranks = ranks or Ranks(CPU)
    envs, agent, learner = program.setup(args, ranks.device)
    engine = Engine(args, ranks, mode, exact)
    return Built(agent, learner, program.make_iteration(args, envs, agent, learner, engine), engine)


class Ran(NamedTuple):
    """What a few iterations did."""

    metrics: list[dict[str, float]]  # of each
    theta: Tensor  # (iterations, P) after each


def once(iteration: Iteration) -> dict[str, float]:
    """Both halves of an iteration; its metrics by name."""
    iteration.collect()
    metrics = iteration.learn()
    return {name: float(x) for name, x in (metrics.means | metrics.sums).items()}


def run(run: Built, count: int, args: Any, after: Callable[[int], object] = lambda i: None) -> Ran:
    """Iterations with the learning rate annealed as in training; `after(i)` is called after each."""
    metrics, thetas = [], []
    for i in range(count):
        if args.lr_schedule == "linear":
            run.learner.learning_rate.fill_(args.learning_rate * (1 - i / args.num_iterations))
        metrics.append(once(run.iteration))
        thetas.append(run.learner.theta.clone())
        after(i)
    return Ran(metrics, torch.stack(thetas))
