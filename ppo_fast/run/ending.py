"""What is found out once training is over: how good the agent is, and how fast the run was."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ppo_fast import names
from ppo_fast.engine import process, profiling, speed
from ppo_fast.engine.iteration import Iteration
from ppo_fast.envs import EnvironmentFault, Environments, make
from ppo_fast.envs.closing import call_within
from ppo_fast.run import play, randomness
from ppo_fast.run.run_flags import env_view
from ppo_fast.stops import is_of_code

T = TypeVar("T")


class NotDone(RuntimeError):
    """Something that a run does without could not be done; the message says why, in a line."""


def evaluate(
    args: Any, envs: Environments, agent: play.Player, device: torch.device, tell: Callable[[str], object]
) -> dict[str, float | int]:
    """The figures of `--eval-episodes` episodes of fresh environments, greedy and sampled.

    There is one environment an episode. Where that fails, those of the training are closed, which may be all that a
    simulator allows, and as many are tried as the training had.

    Args:
        args: a program's flags.
        envs: those of the training, of whose backend the fresh ones are.
        agent: who plays.
        device: where it is.
        tell: takes a few words about how far it is, now and then.

    Raises:
        NotDone: it can't be played, or a step or a reset hangs.
    """

    def figures(episodes: int, num_envs: int) -> dict[str, float | int]:
        backend = "sync" if envs.backend == "async" else envs.backend  # not a process for each of 100 episodes
        with randomness.seeded(args.seed + play.EVAL_SEED):  # also what environments draw while they are made
            fresh = make(args.env_id, num_envs, device, backend, **env_view(vars(args)))
        try:
            return process.with_threads(play.evaluate, 1)(fresh, agent, args.seed, episodes, limits)
        finally:
            fresh.close()

    def attempts() -> dict[str, float | int]:
        count = args.eval_episodes
        try:
            return figures(count, count)
        except BaseException as problem:
            if envs.pure or not is_of_code(problem):
                raise
        envs.close()
        return figures(count, min(count, args.num_envs))

    words = partial(_told, tell, args.eval_episodes)
    limits = play.Limits(args.eval_max_steps, time.monotonic() + args.eval_seconds, words)
    return _or_not(lambda: call_within(2 * args.eval_seconds, attempts))  # twice: what has begun may end


def _told(tell: Callable[[str], object], episodes: int, over: int, step: int) -> None:
    """Put into words how far the playing is."""
    tell(f"evaluating {min(over, episodes)}/{episodes}, step {step:,}")


def cut_short(args: Any, figures: Mapping[str, float | int]) -> str | None:
    """What is to be said of episodes that were not played to their end; None where all were."""
    words: list[str] = []
    for kind, prefix in (("greedy", names.EVAL), ("sampled", names.EVAL_SAMPLED)):
        unfinished = figures.get(f"{prefix}unfinished", 0)
        if unfinished:
            words.append(f"{unfinished} of {figures[f'{prefix}episodes']} {kind}")
    limits = f"--eval-max-steps {args.eval_max_steps} or --eval-seconds {args.eval_seconds:g}"
    return f"{' and '.join(words)} episodes did not end by {limits}: their returns so far count" if words else None


def _or_not(function: Callable[[], T]) -> T:
    """What a function returns. NotDone for whatever it raises."""
    try:
        return function()
    except BaseException as problem:
        if not is_of_code(problem):
            raise
        is_plain = isinstance(problem, (EnvironmentFault, TimeoutError))
        raise NotDone(names.first_line(problem) if is_plain else names.kind_and_line(problem)) from problem


def measure_speed(
    args: Any,
    envs: Environments,
    agent: Any,
    iteration: Iteration,
    result: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> tuple[dict[str, float], list[str]]:
    """The speed report of a run that has trained, as result.json holds it and as lines; see `speed.of_run`.

    Raises:
        NotDone: something in it can't be run.
    """
    report = _or_not(lambda: speed.of_run(args, envs, agent, iteration, result, seconds))
    return report, speed.lines(report)


def profile(iteration: Iteration, folder: Path, device: torch.device) -> list[str]:
    """Where the time of an iteration goes, in lines; a trace lies in the run folder then.

    Raises:
        NotDone: it can't be run, or the trace can't be written.
    """

    def run() -> None:
        iteration.collect()
        metrics = iteration.learn()
        torch.stack([*metrics.means.values(), *metrics.sums.values()]).tolist()  # what the session looks at

    return _or_not(lambda: profiling.profile(run, folder, device).lines)
