"""The lifecycle of one process's run: signals, clock, iterations, checkpoints, faults, the end.

    args, beginning = settle(args, handed)
    with ranks.init(device) as group, Session(args, group, beginning, watch) as run:
        ...
        plan = run.start(envs, agent)
        for i in run.iterations(iteration):
            with run.environment_faults(iteration):
                iteration.collect()
                run.record(iteration, iteration.learn())
        return run.finish(envs, agent, iteration)

What is written and said of the agent is in its log (agent_log.py). What computes is the program's.
"""

import math
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from gymnasium import spaces
from torch import nn

from ppo_fast import names
from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine import caches, plan, process
from ppo_fast.engine.iteration import EXECUTION_KNOWN, Execution, Iteration
from ppo_fast.engine.ranks import Ranks
from ppo_fast.envs import EnvironmentFault, Environments, spaces_json
from ppo_fast.envs.keywords import step_limit
from ppo_fast.envs.seeds import seed_process
from ppo_fast.run import checkpoint, clipped, crash, ending, randomness, readout, resume
from ppo_fast.run.agent_log import AgentLog, open_log
from ppo_fast.run.callback import Callback, OnIteration
from ppo_fast.run.cli import FAULT_STATUS, program_of
from ppo_fast.run.console import Console
from ppo_fast.run.crash import Crash
from ppo_fast.run.endless import FirstEnd
from ppo_fast.run.interrupt import StopSignal
from ppo_fast.run.midway import Midway
from ppo_fast.run.payload import Checkpoint, Progress, RankState
from ppo_fast.run.settle import Beginning
from ppo_fast.run.stopwatch import Stopwatch
from ppo_fast.stops import Stopped

MAX_RUNTIME_STATUS = 5
ROLLBACKS = 3  # of a run, at most


class Over(NamedTuple):
    """Why a run stops before its end."""

    stopped: str
    exit_status: int


class Saved(NamedTuple):
    """What a rollback goes back to."""

    state: Mapping[str, Any]  # as the iteration's `saved` gives it
    progress: Progress


class Session:
    """One training run of one process among `ranks`; rank 0 alone writes and speaks.

    Args:
        args: a program's flags, settled and checked.
        ranks: the processes that train together.
        beginning: where the run begins.
        watch: started with the program, for the seconds in result.json and `--max-runtime`.
        on_iteration: a function of the caller's that is called after every iteration, on rank 0; see callback.py.

    Attributes:
        progress: how far the run is.
        over: why it stops before its end; None while it does not.
    """

    def __init__(
        self,
        args: Any,
        ranks: Ranks,
        beginning: Beginning,
        watch: Stopwatch | None = None,
        on_iteration: OnIteration | None = None,
    ) -> None:
        self.args = args
        self.ranks = ranks
        self.progress = Progress()
        self.over: Over | None = None
        self._beginning = beginning
        self._origin = beginning.origin
        self._watch = watch or Stopwatch()
        self._stop = StopSignal()
        self._stack = ExitStack()
        self._share = args  # the flags of this process
        self._log: AgentLog | None = None
        self._began: float | None = None  # the clock at the first iteration of the run
        self._began_at = 0  # the iteration that this process began with
        self._saved: Saved | None = None
        self._saved_at = -1  # iteration of the last checkpoint
        self._restarts = 0  # of environments that died
        self._action_space: spaces.Space | None = None  # what the environments take
        self._plan = plan.Plan("eager", "")
        self._execution_said = False
        self._first_end = FirstEnd(has_limit=True)
        self._unfit_said: list[str] = []  # functions that run as they are, with their reasons
        self._callback = Callback(on_iteration)
        self._midway: Midway | None = None  # on rank 0, from `start` on
        self._filmed_after = quarters(args.num_iterations) if args.capture_video else frozenset()

    @property
    def log(self) -> AgentLog:
        """The log of the agent, which is open from `start` on."""
        assert self._log is not None, "start opens it"
        return self._log

    @property
    def _seed(self) -> int:
        """The seed of this process."""
        return self.args.seed + 1_000_003 * self.ranks.rank

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by: halved at every rollback."""
        return self.progress.rate_factor

    def __enter__(self) -> Self:
        # Signals come first: workers started inside the block ignore what is sent to the whole process group.
        self._stack.enter_context(self._stop)
        self._stop.at_once = True  # until the first iteration there is nothing to save
        self._stack.enter_context(randomness.seeded(self._seed))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        began = self._log is not None and self._began is not None
        failed_early = isinstance(error, EnvironmentFault) and not began
        is_left_early = (isinstance(error, Stopped) or failed_early) and self.ranks.is_main and self._log is not None
        if is_left_early and not failed_early:
            self.log.say([f"stopped by {self._stop.name} before the first iteration: there was nothing to save"])
        self._stack.__exit__(kind, error, trace)
        if is_left_early and self._origin is None and not self.args.track:
            self.log.discard()

    # ---------------------------------------------------------------- before the first iteration

    def share(self, args: Any) -> Any:
        """The flags of this process: its part of the environments, and a seed of its own.

        Raises:
            ValueError: the environments can't be divided among the processes.
        """
        world = self.ranks.world_size
        self._refuse_other_flags(args)
        if args.num_envs % world:
            raise ValueError(f"--num-envs: {args.num_envs} environments can't be divided among {world} processes")
        share = replace(args, num_envs=args.num_envs // world, seed=self._seed)
        if args.num_minibatches > share.batch_size:
            raise ValueError(f"--num-minibatches: each of {world} processes has {share.batch_size} rows for them")
        self._share = share
        return share

    def _refuse_other_flags(self, args: Any) -> None:
        """ValueError in every process where one of them has other flags."""
        names = [field.name for field in fields(args)]
        sums = [zlib.crc32(repr(getattr(args, name)).encode()) for name in names]
        mine = torch.tensor(sums, dtype=torch.float64, device=self.ranks.device)
        differs = self.ranks.sum_((self.ranks.broadcast_(mine.clone()) != mine).double())
        others = [f"--{name.replace('_', '-')}" for name, count in zip(names, differs.tolist(), strict=True) if count]
        if others:
            what = "the processes have different flags, as where a recipe sees different rewards, ends or speed"
            raise ValueError(f"--env-id: {what}: name {', '.join(others)}")

    def start(self, envs: Environments, agent: nn.Module) -> plan.Plan:
        """Open the console and the run folder and say what runs; returns how the iterations are to run.

        Raises:
            ValueError: the checkpoint is not of such an agent, or the run folder can't be made or gone on in.
        """
        self._stack.callback(envs.close)
        self._action_space = envs.single_action_space
        self._first_end = FirstEnd(step_limit(envs, self.args.env_kwargs) is not None)
        origin = self._origin
        if origin is not None:
            wrong = resume.misfit(origin.checkpoint.ranks[0].tensors, agent)
            if wrong is not None:
                raise ValueError(f"--resume: can't go on from {origin.path}: {wrong}")
        parameters = sum(parameter.numel() for parameter in agent.parameters())
        self._plan = how = plan.decide(self.args, self.ranks.device, parameters)
        facts = self._facts(envs, parameters, f"{how.mode} ({how.reason})")
        console = self._stack.enter_context(self._console())
        log = open_log(self.args, agent, facts, console, origin, self.ranks.is_main)
        self._log = self._stack.enter_context(log)
        if self.ranks.is_main:
            self._midway = Midway(self.args, envs, self.ranks, self._stop, self.log)
            self._stack.callback(self._midway.close)
        self.log.introduce()
        self.log.say(self._beginning.notes)
        self._warn(process.unheard_precision(self.args.precision, agent))
        if origin is not None:
            self.log.say(resume.lines(origin, envs.backend, self.ranks.world_size, self.args.num_iterations))
        self._watch.lap("startup")
        if how.mode == "compiled":
            self.log.say([*caches.for_compiled_code(), f"compiling     {plan.COMPILING}"])
            self.log.console.phase("compiling")
        return how

    def _console(self) -> Console:
        args = self.args
        total = args.num_iterations * args.batch_size
        return Console(total, args.quiet, f"ppo_fast {args.env_id}", silent=not self.ranks.is_main)

    def _facts(self, envs: Environments, parameters: int, execution: str) -> dict[str, Any]:
        """What config.json holds."""
        args = self.args
        return {
            **asdict(args),
            "batch_size": args.batch_size,
            "num_iterations": args.num_iterations,
            "parameters": parameters,
            "backend_used": envs.backend,
            "execution": execution,
            "world_size": self.ranks.world_size,
            "program": program_of(args),
            "observation_space": str(envs.single_observation_space),
            "action_space": str(envs.single_action_space),
            "spaces": spaces_json.to_json(envs.own_spaces),
            **({} if self._beginning.handed_in is None else {"handed_in": self._beginning.handed_in}),
            **process.versions(self.ranks.device, args.cuda),
        }

    # ---------------------------------------------------------------- iterations

    def iterations(self, iteration: Iteration) -> Iterator[int]:
        """The numbers of the iterations to run, from the checkpoint on, until the end or a stop; saves at the end."""
        self._watch.lap("compile")
        self._stack.callback(iteration.release)
        self._stop.at_once = False
        if self._origin is not None:
            self._restore(iteration, self._origin)
        elif self.args.on_nan == "rollback" or self.ranks.world_size > 1:  # or torchrun may look for one soon
            self.save(iteration)
        self._began = time.perf_counter() - self.progress.elapsed
        self._began_at = self.progress.iteration
        while self.progress.iteration < self.args.num_iterations and self.over is None:
            yield self.progress.iteration
        self.save(iteration)
        self._watch.lap("train")

    def record(self, iteration: Iteration, metrics: Metrics) -> None:
        """Look at an iteration's metrics once, log them, save and stop where it is time to.

        Args:
            iteration: that has just learned.
            metrics: what `learn` returned.

        Raises:
            FloatingPointError: NaN or infinity, and no rollback is allowed; a crash file has been written.
        """
        seen = readout.read(metrics, self.ranks, self._wants_stop(), self._is_late())
        if seen.totals.broken:
            return self._broke_down(iteration)
        before = self.progress.global_step
        self._count(int(seen.totals.steps))
        more = partial(self._beyond_the_row, iteration, None if seen.stop else before)
        self.log.record(seen.means, seen.totals, self.progress, iteration.seconds, more)
        done = self.progress.iteration
        if done == 1:
            self._warn(self._clipped(iteration))
        is_last = done >= self.args.num_iterations
        endless = self._first_end.words(seen.totals.episodes, self.progress.global_step // self.args.num_envs, is_last)
        self._warn(endless)
        if done == self._began_at + EXECUTION_KNOWN and not self._execution_said:  # a rollback may come here again
            self._say_execution(iteration)
        if done % self.args.save_interval == 0:
            self.save(iteration)
        if done in self._filmed_after:
            self.log.film(self.progress.global_step)
        # Asked since: by the caller's function, or during an evaluation. Several processes stop at their next look.
        if seen.stop or (self.ranks.world_size == 1 and self._wants_stop()):
            self.over = self._why_stopped()
        elif seen.late:
            self.over = Over("max_runtime", MAX_RUNTIME_STATUS)

    def _warn(self, words: str | None) -> None:
        """Say so, where there is something to say."""
        if words is not None:
            self.log.say([f"warning: {words}"])

    def _clipped(self, iteration: Iteration) -> str | None:
        """Where the first rollout's actions were clipped almost always, in words."""
        action = iteration.state.rollout.get("action")
        return None if action is None else clipped.words(action, self._action_space, self.args.action_bounds)

    def _wants_stop(self) -> bool:
        """Whether this process was asked to stop, by a signal or by the caller's function."""
        return self._stop.requested or self._callback.stops

    def _why_stopped(self) -> Over:
        """By a signal, or by the caller's function; in another process than this one it may have been either."""
        problem = self._callback.problem
        if problem is not None:
            return Over(self._callback.reason(), 1)
        if self._stop.name is None and (self._callback.stops or not self.ranks.is_main):
            return Over(self._callback.reason(), 0) if self._callback.function else Over("SIGTERM", 143)
        return Over(self._stop.name or "SIGTERM", self._stop.exit_status or 143)

    def _beyond_the_row(self, iteration: Iteration, before: int | None, row: Mapping[str, Any]) -> dict[str, Any]:
        """What is logged with an iteration's row: the evaluation that is due, and what the caller's function adds.

        Args:
            before: the step before the iteration; None where a stop leaves no time for an evaluation.
        """
        more: dict[str, Any] = {}
        if before is not None and self._midway is not None and self._midway.is_due(before, self.progress.global_step):
            more |= self._evaluate(self._midway, iteration)
        return more | self._callback.call(self.progress, {**row, **more}, self.log.agent)

    def _evaluate(self, midway: Midway, iteration: Iteration) -> dict[str, Any]:
        """The figures of an evaluation, whose seconds are none of the training's."""
        began = time.perf_counter()
        self._watch.lap("train")
        figures = midway.evaluate(iteration, self.progress.global_step)
        self._watch.lap("eval")
        if self._began is not None:
            self._began += time.perf_counter() - began
        return figures

    def _is_late(self) -> bool:
        """Whether `--max-runtime` is over."""
        limit = self.args.max_runtime
        return limit is not None and self._watch.elapsed() > limit

    def _count(self, steps: int) -> None:
        """One iteration more, of so many steps."""
        elapsed = self._elapsed()
        self.progress = replace(
            self.progress,
            iteration=self.progress.iteration + 1,
            global_step=self.progress.global_step + steps,
            elapsed=elapsed,
            first_seconds=self.progress.first_seconds or elapsed,
        )

    def _elapsed(self) -> float:
        """Seconds of training, in the processes before this one too."""
        return self.progress.elapsed if self._began is None else time.perf_counter() - self._began

    def _say_execution(self, iteration: Iteration) -> None:
        """Say how the functions run, now that it is known; a function that could not be recorded is a warning."""
        self._execution_said = True
        execution = iteration.execution()
        self.log.say([f"execution     {execution.words} ({self._plan.reason})"])
        self._warn_of_unfit(execution)

    def _warn_of_unfit(self, execution: Execution) -> None:
        """Say which functions run as they are though they should be replayed, each once."""
        new = [reason for reason in execution.as_they_are if reason not in self._unfit_said]
        self._unfit_said += new
        self.log.say([f"warning: runs as it is, and slower: {reason}" for reason in new])

    @contextmanager
    def environment_faults(self, iteration: Iteration) -> Iterator[None]:
        """An environment that dies inside is started again, `--env-restarts` times; then the run is over, and saved.

        Raises:
            EnvironmentFault: there are other processes: they wait in a collective, which ends with this one.
        """
        try:
            yield
        except EnvironmentFault as fault:
            if self.ranks.world_size > 1:
                raise
            self._start_again(iteration, fault)

    def _start_again(self, iteration: Iteration, fault: EnvironmentFault) -> None:
        assert iteration.restart is not None, "only environments on the host die"
        while self._restarts < self.args.env_restarts:
            self._restarts += 1
            self.log.tell_fault(fault, self.progress, f"environments are started again ({self._restarts})")
            try:
                iteration.restart(None)
            except EnvironmentFault as again:
                fault = again
            else:
                return
        self.log.tell_fault(fault, self.progress, "the run is saved and stops")
        self.over = Over(str(fault), FAULT_STATUS)

    # ---------------------------------------------------------------- checkpoints

    def save(self, iteration: Iteration) -> None:
        """Write a checkpoint, unless this iteration has one. A full disk is one warning, and training goes on."""
        done = self.progress.iteration
        if self._saved_at == done:
            return
        due = done % self.args.save_interval == 0 or done == self.args.num_iterations
        is_best = self.log.judge(due)
        saved = self._note_saved(iteration)
        own = RankState(saved.state["tensors"], saved.state["generators"], randomness.rng_state())
        gathered = self.ranks.gather(checkpoint.plain(own.to_plain()))
        ranks = [RankState.from_plain(rank) for rank in gathered]  # none on a rank that does not write
        self.log.save(self.progress, ranks, self.args.keep_checkpoints, is_best)

    def _note_saved(self, iteration: Iteration) -> Saved:
        """Keep what a rollback goes back to."""
        self.progress = replace(self.progress, elapsed=self._elapsed())
        self._saved_at = self.progress.iteration
        self._saved = Saved(iteration.saved(), self.progress)
        return self._saved

    def _restore(self, iteration: Iteration, origin: resume.Origin) -> None:
        """Go on where a checkpoint was saved, in as many processes or in another number.

        Nothing is changed in the run folder before all of it fits, in every process.

        Raises:
            ValueError: it does not, or the folder can't be written to.
        """
        self.progress = origin.checkpoint.progress
        seed = (self._share.seed + 7919 * (self.progress.iteration + 1)) % 2**31
        try:
            self._load(iteration, origin.checkpoint, seed)
        except ValueError as problem:
            raise ValueError(f"--resume: can't go on from {origin.path}: {names.first_line(problem)}") from problem
        except (KeyError, TypeError, RuntimeError) as problem:  # what a crafted file makes libraries raise
            reason = names.kind_and_line(problem)
            raise ValueError(f"--resume: can't go on from {origin.path}: {reason}") from problem
        if iteration.restart is not None:
            iteration.restart(seed)
        self.ranks.barrier()
        self.log.go_on(origin, is_complete=self.progress.iteration >= self.args.num_iterations)
        self._note_saved(iteration)
        self.log.recall()

    def _load(self, iteration: Iteration, saved: Checkpoint, seed: int) -> None:
        """Take over a checkpoint's tensors and generators. An exception of any kind where they don't fit."""
        if len(saved.ranks) == self.ranks.world_size:
            own = saved.ranks[self.ranks.rank]
            resume.check_names(own.tensors, iteration.state.saved())
            iteration.load(own.to_plain())
            randomness.set_rng_state(own.rng)
            return
        first = saved.ranks[0]
        learned = iteration.state.learned
        resume.check_names(first.tensors, learned)
        tensors = {name: x for name, x in first.tensors.items() if name in learned}
        # What belongs to the environments of one process stays out.
        iteration.load(replace(first, tensors=tensors).to_plain())
        for generator in iteration.generators:
            generator.manual_seed(seed)
        seed_process(seed)

    # ---------------------------------------------------------------- NaN and infinity

    def _broke_down(self, iteration: Iteration) -> None:
        """NaN or infinity: nothing of it is in the weights. Leave a crash file, then go back or stop."""
        text = f"step {self.progress.global_step:,}: {self._leave_crash(iteration)}"
        done = self.progress.rollbacks
        if self._saved is None or self.args.on_nan == "stop" or done >= ROLLBACKS:
            raise FloatingPointError(f"{text} (after {done} rollbacks)" if done else text)
        self._roll_back(iteration, self._saved)
        back = f"back to step {self.progress.global_step:,} with half the learning rate"
        self.log.say([f"warning: {text}", back])
        self.log.go_back()

    def _roll_back(self, iteration: Iteration, saved: Saved) -> None:
        """Go on from the last checkpoint with other episodes and half the learning rate."""
        rollbacks = self.progress.rollbacks + 1
        factor = 0.5**rollbacks
        elapsed = self.progress.elapsed
        self.progress = replace(saved.progress, elapsed=elapsed, rollbacks=rollbacks, rate_factor=factor)
        iteration.load(saved.state)
        if iteration.restart is not None:
            iteration.restart((self._share.seed + 7919 * rollbacks) % 2**31)
        since_saved = rollbacks - saved.progress.rollbacks
        iteration.state.learned["learning_rate"].mul_(0.5**since_saved)

    def _leave_crash(self, iteration: Iteration) -> str:
        """Leave what the first process that found something knows; returns what and where, in words."""
        tensors = iteration.state.all()
        text = crash.finding(tensors)
        unsound = "losses or gradients are not finite"
        large = crash.huge(tensors) if text is None else None
        own = Crash(
            program=program_of(self.args),
            flags=asdict(self._share),
            tensors={**tensors, **iteration.before},
            stream=iteration.stream,
            finding=text or (f"{unsound}; {large}" if large else unsound),
            at=self.progress.iteration,
        )
        found = crash.first_of(self.ranks, own, text is not None)
        if found is None:
            return f"{own.finding}; rank 0 says more"
        rank, first = found
        of_rank = f" (rank {rank})" if self.ranks.world_size > 1 else ""
        return f"{first.finding}{of_rank}; {self.log.write_crash(first, self.progress.global_step)}"

    # ---------------------------------------------------------------- the end

    def finish(self, envs: Environments, agent: Any, iteration: Iteration) -> dict[str, Any]:
        """Evaluate, film, measure and report what the flags ask for; returns what result.json holds."""
        progress = self.progress
        execution = iteration.execution()
        result: dict[str, Any] = {
            "global_step": progress.global_step,
            "sps": progress.global_step / max(progress.elapsed, 1e-9),
            "first_iteration_seconds": progress.first_seconds,
            "execution": execution.words,
        }
        if self.over is not None:
            result |= self.over._asdict()
        if not self.ranks.is_main:
            return result
        if self.log.best is not None:
            result |= self.log.best.to_result()
        self._warn_of_unfit(execution)  # a replay may have been given up since
        is_complete = self.over is None
        trained = progress.iteration > self._began_at
        end = ending.End(self.args, self.ranks, self.log, self._stop, self._watch, progress, is_complete, trained)
        left = end.leave(result, envs, agent, iteration)
        if self._callback.problem is not None:
            raise self._callback.problem
        return left


def quarters(num_iterations: int) -> frozenset[int]:
    """The iterations with which the first, second and third quarter of a run are complete; never the last one."""
    ends = {math.ceil(quarter * num_iterations / 4) for quarter in (1, 2, 3)}
    return frozenset(ends - {num_iterations})
