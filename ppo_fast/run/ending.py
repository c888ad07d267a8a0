"""What is found out once training is over: how good the agent is, and how fast the run was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ppo_fast.engine import process, profiling, speed
from ppo_fast.engine.iteration import Iteration
from ppo_fast.envs import Environments, make
from ppo_fast.run import play, randomness
from ppo_fast.run.run_flags import env_view


def evaluate(args: Any, envs: Environments, agent: play.Player, device: torch.device) -> dict[str, float | int]:
    """The figures of one episode in each of `--eval-episodes` fresh environments, greedy and sampled.

    Args:
        args: a program's flags.
        envs: those of the training, of whose backend the fresh ones are.
        agent: who plays.
        device: where it is.
    """
    backend = "sync" if envs.backend == "async" else envs.backend  # not a process for each of 100 episodes
    with randomness.seeded(args.seed + play.EVAL_SEED):  # also what environments draw while they are made
        fresh = make(args.env_id, args.eval_episodes, device, backend, **env_view(vars(args)))
    return process.with_threads(play.evaluate, 1)(fresh, agent, args.seed)


def measure_speed(
    args: Any,
    envs: Environments,
    agent: Any,
    iteration: Iteration,
    result: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> tuple[dict[str, float], list[str]]:
    """The speed report of a run that has trained, as result.json holds it and as lines; see `speed.of_run`."""
    report = speed.of_run(args, envs, agent, iteration, result, seconds)
    return report, speed.lines(report)


def profile(iteration: Iteration, folder: Path, device: torch.device) -> list[str]:
    """Where the time of an iteration goes, in lines; a trace lies in the run folder then."""

    def run() -> None:
        iteration.collect()
        metrics = iteration.learn()
        torch.stack([*metrics.means.values(), *metrics.sums.values()]).tolist()  # what the session looks at

    return profiling.profile(run, folder, device).lines
