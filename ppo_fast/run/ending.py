"""The end of a run: the policy is saved, then it is found out how good it is, and how fast the run was."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ppo_fast import names
from ppo_fast.engine import process, profiling, speed
from ppo_fast.engine.iteration import Iteration
from ppo_fast.engine.ranks import Ranks
from ppo_fast.envs import EnvironmentFault, Environments
from ppo_fast.envs.closing import call_within
from ppo_fast.run import play
from ppo_fast.run.agent_log import AgentLog
from ppo_fast.run.agent_player import probe_of
from ppo_fast.run.beside import Beside
from ppo_fast.run.interrupt import StopSignal
from ppo_fast.run.payload import Progress
from ppo_fast.run.stopwatch import Stopwatch
from ppo_fast.stops import Stopped, is_of_code

T = TypeVar("T")

LOST_STATUS = 7


class NotDone(RuntimeError):
    """Something that a run does without could not be done; the message says why, in a line."""


class End(NamedTuple):
    """What the end of a run, complete or stopped, needs of it."""

    args: Any  # a program's flags
    ranks: Ranks
    log: AgentLog
    stop: StopSignal
    watch: Stopwatch
    progress: Progress
    is_complete: bool
    trained: bool  # in this process: a complete run may be gone on with

    def leave(self, result: dict[str, Any], envs: Environments, agent: Any, iteration: Iteration) -> dict[str, Any]:
        """Leave policy, picture and result.json in the run folder, and print the summary.

        Args:
            result: what is known so far, which is completed and returned.
        """
        picture = self.log.begin_picture()
        shape = envs.single_observation_space.shape
        answers = probe_of(agent, shape, envs.mask_size, iteration.state.rollout.get("obs"))
        result |= self._what_is_lost(has_policy=self.log.save_policy(answers))
        self._write_before_the_last_look(result)
        measured: list[str] = []
        try:
            self.stop.at_once = True  # all is saved
            if self.is_complete and not self.stop.requested:
                measured = self._look_back(result, envs, agent, iteration, picture)
            self.stop.at_once = False
        except Stopped:
            self.log.say([f"stopped by {self.stop.name} after the training was over"])
        if self.is_complete and self.stop.requested:
            result |= {"stopped": self.stop.name}
            result.setdefault("exit_status", self.stop.exit_status)
        self.watch.lap("report")
        result["seconds"] = self.watch.seconds
        self.log.finish(result, measured, picture)
        return result

    def _look_back(
        self, result: dict[str, Any], envs: Environments, agent: Any, iteration: Iteration, picture: Beside
    ) -> list[str]:
        """Evaluate, film and measure into `result`; returns lines about the speed."""
        args, device = self.args, self.ranks.device
        if args.capture_video:
            self.log.film_last(self.progress.global_step)
        is_fit = self._evaluate(result, envs, agent) if args.eval_episodes else True
        self.log.wait_for_films()
        self.watch.lap("eval")
        picture.wait()  # what follows wants all cores
        # Other processes don't run the iteration any more; a run that was complete already has no speed of its own.
        if self.ranks.world_size > 1 or not self.trained or not is_fit:
            return []
        lines: list[str] = []
        try:
            result["speed"], lines = measure_speed(args, envs, agent, iteration, result, self.watch.seconds)
            if args.profile:
                self.log.say(profile(iteration, self.log.run.folder, device))
        except NotDone as problem:
            self.log.say([f"warning: the speed was not measured: {problem}"])
        return lines

    def _what_is_lost(self, has_policy: bool) -> dict[str, Any]:
        """What result.json says, and an exit status, where the disk has not taken what a run has learned."""
        if self.log.has_on_disk(self.progress) or (self.is_complete and has_policy):
            return {}
        what = f"no checkpoint of step {self.progress.global_step:,} could be written"
        lost = what if has_policy else f"{what}, and no {names.POLICY_FILE}"
        self.log.say([f"warning: not saved: {lost}"])
        return {"not_saved": lost, "exit_status": LOST_STATUS}

    def _write_before_the_last_look(self, result: Mapping[str, Any]) -> None:
        """Write result.json: no evaluation decides whether there is one. Whoever finds it so knows of a kill."""
        if not self.trained:
            return  # the run was complete before: the result that it has stays until there is another
        is_last = not self.is_complete or self.stop.requested
        under_way = {} if is_last else {"stopped": "a kill during the last evaluation"}
        self.log.write_result({**result, **under_way, "seconds": self.watch.seconds})

    def _evaluate(self, result: dict[str, Any], envs: Environments, agent: Any) -> bool:
        """Evaluate into `result`; returns whether the environments of the training can still be stepped."""
        say = self.log.console.phase
        say("evaluating")
        try:
            figures = evaluate(self.args, envs, agent, self.ranks.device, say)
        except NotDone as problem:
            again = f"python -m ppo_fast.evaluate {self.log.run.folder}"
            self.log.say([f"warning: no evaluation: {problem}; all else is there, and {again} tries it again"])
            result["no_evaluation"] = str(problem)
            return envs.pure
        result |= figures
        cut = cut_short(self.args, figures)
        if cut is not None:
            self.log.say([f"warning: {cut}"])
        return envs.pure or not getattr(envs, "closed", False)


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
        fresh = play.environments_for(args, envs.backend, num_envs, device, args.seed + play.EVAL_SEED)
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
