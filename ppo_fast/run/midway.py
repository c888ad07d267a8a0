"""How good a policy is while it is still trained: `--eval-every`, and the best policy so far.

Every so many environment steps the policy plays whole episodes, greedily, on environments of its own. They begin from
the same seeds each time, other ones than those of the training and of the last evaluation: so values compare, and the
last evaluation is of episodes by which nothing was chosen. The training's environments and random streams are left
alone, so its numbers are those of a run without `--eval-every`.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from ppo_fast import names
from ppo_fast.engine import process
from ppo_fast.engine.iteration import Iteration
from ppo_fast.engine.ranks import Ranks
from ppo_fast.envs import EnvironmentFault, Environments
from ppo_fast.envs.closing import call_within
from ppo_fast.run import play
from ppo_fast.run.agent_log import AgentLog
from ppo_fast.run.agent_player import probe_of
from ppo_fast.run.interrupt import StopSignal
from ppo_fast.stops import is_of_code

MIDWAY_SEED = 2 * play.EVAL_SEED  # added to a run's seed
FAILURES = 3  # in a row, after which no more evaluations are tried
LONGEST = 600.0  # seconds of one, where other processes wait for it: their collectives don't wait without end
KEPT = ("mean_return", "std_return", "mean_length", "episodes", "unfinished")  # of the figures of an evaluation


class Midway:
    """Evaluates the policy of one run, of which it keeps the environments, made when they are first needed.

    Args:
        args: a program's flags.
        envs: those of the training, of whose backend the others are.
        ranks: the processes that train together; this is the first one, for which the others wait.
        stop: a stop cuts an evaluation short.
        log: of the agent.
    """

    def __init__(self, args: Any, envs: Environments, ranks: Ranks, stop: StopSignal, log: AgentLog) -> None:
        self._args = args
        self._backend = envs.backend
        self._obs_shape = envs.single_observation_space.shape
        self._mask_size = envs.mask_size
        self._device = ranks.device
        self._seconds = args.eval_seconds if ranks.world_size == 1 else min(args.eval_seconds, LONGEST)
        self._stop = stop
        self._log = log
        self._envs: Environments | None = None
        self._failures = 0
        self._said: set[str] = set()

    def is_due(self, before: int, now: int) -> bool:
        """Whether an iteration from step `before` to step `now` has come to a multiple of `--eval-every`."""
        every = self._args.eval_every
        return every > 0 and self._failures < FAILURES and now // every > before // every

    def evaluate(self, iteration: Iteration, global_step: int) -> dict[str, float | int]:
        """The agent's figures as eval/..., and their seconds as time/eval; the best policy is kept.

        None where it can't be played, which is said, or a stop cut it short.

        Args:
            iteration: that has just learned.
            global_step: after it.
        """
        began = time.perf_counter()
        played = self._episodes()
        if played is None or self._stop.requested:
            return {}
        found = played.figures("")
        figures = {f"{names.EVAL}{name}": found[name] for name in KEPT if name in found}
        obs = iteration.state.rollout.get("obs")
        answers = partial(probe_of, self._log.agent, self._obs_shape, self._mask_size, obs)
        is_best = self._log.keep_if_best(figures, global_step, answers)
        self._log.say(in_words(figures, global_step, is_best))
        return {**figures, names.EVAL_TIME: time.perf_counter() - began}

    def _episodes(self) -> play.Episodes | None:
        """The episodes of an evaluation; None where they can't be played."""
        try:
            played = call_within(2 * self._seconds, self._play)  # twice: what has begun may end
        except BaseException as problem:
            if not is_of_code(problem):
                raise
            self._note(problem)
            return None
        self._failures = 0
        return played

    def close(self) -> None:
        """Close the environments. May be called again."""
        if self._envs is not None:
            self._envs.close()
        self._envs = None

    def _play(self) -> play.Episodes:
        args = self._args
        agent: Any = self._log.agent
        if self._envs is None:
            self._envs = self._make()
        stop = self._stop
        end = time.monotonic() + self._seconds
        limits = play.Limits(args.eval_max_steps, end, self._told, lambda: stop.requested)
        play_on_one_thread = process.with_threads(play.play_in_rounds, 1)
        seed = args.seed + MIDWAY_SEED
        return play_on_one_thread(self._envs, partial(play.greedy, agent), seed, args.eval_every_episodes, limits)

    def _make(self) -> Environments:
        """An environment an episode or, where there may not be as many, as the training has."""
        args = self._args
        wanted = args.eval_every_episodes
        fewer = min(wanted, args.num_envs)
        seed = args.seed + MIDWAY_SEED
        try:
            return play.environments_for(args, self._backend, wanted, self._device, seed)
        except BaseException as problem:
            if fewer == wanted or not is_of_code(problem):
                raise
        return play.environments_for(args, self._backend, fewer, self._device, seed)

    def _told(self, over: int, step: int) -> None:
        episodes = self._args.eval_every_episodes
        self._log.console.phase(f"evaluating {min(over, episodes)}/{episodes}, step {step:,}")

    def _note(self, problem: BaseException) -> None:
        """Say why there was no evaluation, each reason once. Another one is tried with new environments."""
        is_plain = isinstance(problem, (EnvironmentFault, TimeoutError))
        reason = names.first_line(problem) if is_plain else names.kind_and_line(problem)
        hangs = isinstance(problem, TimeoutError)
        self._failures = FAILURES if hangs else self._failures + 1
        then = "no more are tried" if self._failures >= FAILURES else "training goes on"
        if reason not in self._said or self._failures >= FAILURES:
            self._log.say([f"warning: no evaluation by --eval-every: {reason}; {then}"])
        self._said.add(reason)
        envs, self._envs = self._envs, None
        if envs is not None and not hangs:  # one that hangs would not close either
            envs.close()


def in_words(figures: Mapping[str, float | int], global_step: int, is_best: bool) -> list[str]:
    """An evaluation as it is printed."""
    x = figures
    unfinished = x.get(f"{names.EVAL}unfinished", 0)
    spread = f"{x[names.MEAN_RETURN]:.2f} ± {x[names.STD_RETURN]:.2f}"
    ends = [f"{unfinished} did not end"] if unfinished else []
    more = ", ".join([f"over {x[names.EPISODES]} episodes", *ends, *(["the best so far"] if is_best else [])])
    return [f"evaluation    step {global_step:,}: {spread} {more}"]
