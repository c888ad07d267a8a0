"""What surrounds the training loop of a program: flags settled, run folder, checkpoints, stops, faults, the end.

    args, origin = settle(args)
    with distributed.init(device) as ranks, Session(args, ranks, origin, watch) as run:
        ...
        fast = run.start(envs, agent)
        for i in run.iterations(phases):
            run.record(phases, METRICS)
        return run.finish(envs, agent, phases)

Besides the programs this module alone imports leaves: the plumbing that they share. What computes is the program's.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from ppo_fast.engine import capture, profiling, speed, verify
from ppo_fast.engine.distributed import Ranks
from ppo_fast.envs import EnvironmentFault, make
from ppo_fast.pictures import curves
from ppo_fast.run import checkpoint, crash, play, presets, randomness, resume
from ppo_fast.run.beside import Beside
from ppo_fast.run.camera import Camera
from ppo_fast.run.cli import program_of
from ppo_fast.run.console import Console
from ppo_fast.run.health import Health
from ppo_fast.run.interrupt import Stopped, StopSignal
from ppo_fast.run.report import Report
from ppo_fast.run.tracking import NoRun, Run, read_metrics

MAX_RUNTIME_STATUS, FAULT_STATUS = 5, 6
ROLLBACKS, FRAMES, LAST_FRAMES = 3, 250, 1000  # of a run, of a video while it trains, and of that at its end, at most
SUMS = ("returns", "lengths", "episodes", "steps", "broken")  # the metrics that are summed over processes
PROGRESS = tuple(name for name in resume.PROGRESS if name != "wandb_id")


def settle(args: Any) -> tuple[Any, checkpoint.Resume | None]:
    """The flags to train with, and the checkpoint to go on from, if any: `--resume` and presets applied.

    Flags count as given if the command line names them (`cli.parse` notes which); in a call from Python, those that
    differ from their default do, and no preset is applied.

    Raises:
        ValueError: "--resume: ..." or, for a flag that may not change, its name.
    """
    if args.capture_video:
        play.render_without_a_display()
    named = getattr(args, "flags_given", None)
    given = named or {field.name for field in fields(args) if getattr(args, field.name) != field.default}
    # torchrun starts the ranks anew, with the same words, after one of them died.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    spec, root = args.resume or ("auto" if restarted else ""), Path(args.run_root)
    if spec == "auto":
        same = {name: getattr(args, name) for name in ("env_id", "exp_name", "seed")}
        origin = checkpoint.unfinished(root, program_of(args), same)
    else:
        origin = checkpoint.resolve(spec, root) if spec else None
    if origin is not None:
        reason = resume.reason_against(origin.payload, program_of(args))
        if reason is not None:
            raise ValueError(f"--resume: can't go on from {origin.path}: {reason}")
        return resume.flags(args, origin.payload, origin.run, given), origin
    if named is None or not args.preset:
        return args, None
    tuned = {name: value for name, value in presets.flags(args.env_id).items() if name not in named}
    args = replace(args, **tuned)
    args.notes = [f"preset        {resume.as_typed(tuned)}"] if tuned else []
    return args, None


def compare_paths(
    args: Any, setup: Callable, make_iteration: Callable, names: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """`--verify`: the fast path beside the eager fp32 one, from equal state and noise; exit status 4 if they part."""
    print(f"compiling {args.env_id} ({capture.COMPILING}); then {args.verify} updates of both paths", flush=True)
    ranks, exact = Ranks(device), replace(args, precision="fp32", compile="off")
    fast = make_iteration(args, *setup(args, device), fast=True, ranks=ranks)
    eager = make_iteration(exact, *setup(exact, device), fast=False, ranks=ranks).exact()
    holds = verify.compare(fast, eager, args.verify, print, names, capture.ROUNDING[args.precision])
    return {"verified": holds, "exit_status": 0 if holds else 4}


class Session:
    """One training run of one process among `ranks`; rank 0 alone writes and speaks.

    Args:
        args: a program's flags, settled and checked.
        origin: the checkpoint to go on from.
        watch: started with the program, for the seconds in result.json and `--max-runtime`.

    Attributes:
        rate_factor: what the learning rate is multiplied by: halved at every rollback.
    """

    def __init__(
        self, args: Any, ranks: Ranks, origin: checkpoint.Resume | None, watch: capture.Stopwatch | None
    ) -> None:
        self.args, self.ranks, self.origin = args, ranks, origin
        self.watch = watch or capture.Stopwatch()
        self.stop, self.stack = StopSignal(), ExitStack()
        self.iteration = self.global_step = self.rollbacks = self.restarts = 0
        self.rate_factor, self.elapsed, self.first_seconds = 1.0, 0.0, 0.0
        self.best, self.recent = -math.inf, [0.0, 0.0]  # mean return at the best checkpoint; returns, episodes since
        self.over: dict[str, Any] = {}  # why the run stops before its end
        self.saved_at, self.good = -1, {}
        self.disk_failed = False

    def __enter__(self) -> Self:
        # Signals come first: workers started inside the block ignore what is sent to the whole process group.
        self.stack.enter_context(self.stop)
        self.stop.at_once = True  # until the first iteration there is nothing to save
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        early = isinstance(error, Stopped) and self.ranks.is_main and hasattr(self, "report")
        if early:
            self.report.say([f"stopped by {self.stop.name} before the first iteration: there was nothing to save"])
        self.stack.__exit__(kind, error, trace)
        if early and self.origin is None and not self.args.track:
            shutil.rmtree(self.run.folder, ignore_errors=True)

    def share(self, args: Any) -> Any:
        """The flags of this process: its part of the environments, and a seed of its own.

        Raises:
            ValueError: the environments can't be divided among the processes.
        """
        world = self.ranks.world_size
        if args.num_envs % world:
            raise ValueError(f"--num-envs: {args.num_envs} environments can't be divided among {world} processes")
        self.own = replace(args, num_envs=args.num_envs // world, seed=args.seed + 1_000_003 * self.ranks.rank)
        if args.num_minibatches > self.own.batch_size:
            raise ValueError(f"--num-minibatches: each of {world} processes has {self.own.batch_size} rows for them")
        return self.own

    def start(self, envs: Any, agent: Any) -> bool:
        """Open the run folder and the console and say what runs; returns whether to compile."""
        args, self.agent = self.args, agent
        self.stack.callback(envs.close)
        parameters = sum(parameter.numel() for parameter in agent.parameters())
        if self.origin is not None and (wrong := resume.misfit(self.origin.payload["ranks"][0]["tensors"], agent)):
            raise ValueError(f"--resume: {self.origin.path}: its {wrong} does not fit this configuration")
        fast, wording = capture.decide(args, self.ranks.device, parameters)
        facts = asdict(args) | {"batch_size": args.batch_size, "num_iterations": args.num_iterations}
        facts |= {"parameters": parameters, "backend_used": envs.backend, "execution": wording}
        facts |= {"world_size": self.ranks.world_size, "program": program_of(args)}
        facts |= {f"{name}_space": str(getattr(envs, f"single_{name}_space")) for name in ("observation", "action")}
        self.facts = facts | capture.versions(self.ranks.device, args.cuda)
        total = args.num_iterations * args.batch_size
        console = Console(total, args.quiet, f"ppo_fast {args.env_id}", silent=not self.ranks.is_main)
        self.console = self.stack.enter_context(console)
        self.run = self.stack.enter_context(self._open_run())
        self.report = Report(console, self.run, Health(total, agent.head.max_entropy), self.facts)
        self.camera = self.stack.enter_context(Camera(play.record, console.message, Beside))
        self.report.say(getattr(args, "notes", []))
        if self.origin is not None:
            self.report.say(resume.lines(self.origin, envs.backend, self.ranks.world_size, args.num_iterations))
        self.watch.lap("startup")
        if fast:
            self.report.say([f"compiling     {capture.COMPILING}"])
            console.phase("compiling")
        return fast

    def _open_run(self) -> Any:
        if not self.ranks.is_main:
            return NoRun()
        if self.origin is None:
            return Run.from_flags(self.facts, self.console.message)
        progress, folder = self.origin.payload["progress"], self.origin.run
        # In this order, so that a kill in between leaves no checkpoint whose rows are gone.
        checkpoint.supersede(folder / "checkpoints", progress["global_step"])
        checkpoint.truncate_rows(folder / "metrics.jsonl", progress["global_step"])
        (folder / "result.json").unlink(missing_ok=True)  # a run that goes on has no result yet
        return Run.from_flags(self.facts, self.console.message, folder, progress["wandb_id"])

    def iterations(self, phases: Any) -> Iterator[int]:
        """The numbers of the iterations to run, from the checkpoint on, until the end or a stop; saves at the end."""
        self.watch.lap("compile")
        self.stack.callback(phases.release)
        self.stop.at_once = False
        if self.origin is not None:
            self._restore(phases, self.origin.payload)
        elif self.args.on_nan == "rollback" or self.ranks.world_size > 1:  # or torchrun may look for one soon
            self.save(phases)
        self.began, self.began_at = time.perf_counter() - self.elapsed, self.iteration
        while self.iteration < self.args.num_iterations and not self.over:
            yield self.iteration
        self.save(phases)
        self.watch.lap("train")

    def _restore(self, phases: Any, payload: Mapping[str, Any]) -> None:
        progress, saved = payload["progress"], payload["ranks"]
        for name in PROGRESS:
            setattr(self, name, progress[name])
        whole = len(saved) == self.ranks.world_size
        own = saved[self.ranks.rank if whole else 0]
        if not whole:  # what belongs to the environments of one process stays out
            own = {**own, "tensors": {name: x for name, x in own["tensors"].items() if capture.is_shared(name)}}
        phases.load(own)
        if whole:
            randomness.set_rng_state(own["rng"])
        seed = (self.own.seed + 7919 * (self.iteration + 1)) % 2**31
        if not whole:
            for generator in phases.generators:
                generator.manual_seed(seed)
        if phases.restart is not None:
            phases.restart(seed)
        self.good, self.good_progress, self.saved_at = phases.saved(), self._progress(), self.iteration
        if self.ranks.is_main:
            self.report.recall(read_metrics(self.run.folder))
            self.rows_at = (self.run.folder / "metrics.jsonl").stat().st_size

    def save(self, phases: Any) -> None:
        """Write a checkpoint, unless this iteration has one. A full disk is one warning, and training goes on."""
        if self.saved_at == self.iteration:
            return
        returns, episodes = self.recent
        # A save at a stop is none of these, so that a run with stops marks the same checkpoints as one without.
        due = self.iteration % self.args.save_interval == 0 or self.iteration == self.args.num_iterations
        is_best = due and episodes and returns / episodes > self.best
        self.best = returns / episodes if is_best else self.best
        self.recent = [0.0, 0.0] if due else self.recent
        self.good, self.saved_at = phases.saved(), self.iteration
        self.good_progress = self._progress()
        ranks = self.ranks.gather(checkpoint.plain(self.good | {"rng": randomness.rng_state()}))
        if not self.ranks.is_main:
            return
        self.rows_at = (self.run.folder / "metrics.jsonl").stat().st_size
        payload = {"flags": asdict(self.args), "progress": self.good_progress, "ranks": ranks}
        payload |= {"program": self.facts["program"], "format": resume.FORMAT}
        try:
            folder = self.run.subfolder("checkpoints")
            path = checkpoint.save(folder, self.global_step, payload, self.args.keep_checkpoints)
            if is_best:
                checkpoint.mark_best(path)
        except OSError as error:
            if not self.disk_failed:
                self.report.say([f"warning: no checkpoint was saved ({error}); training goes on"])
            self.disk_failed = True

    def _progress(self) -> dict[str, Any]:
        self.elapsed = time.perf_counter() - self.began if hasattr(self, "began") else self.elapsed
        return {name: getattr(self, name) for name in PROGRESS} | {"wandb_id": self.run.wandb_id}

    def record(self, phases: Any, names: Sequence[str]) -> None:
        """Run one iteration, look at its metrics once, log them, save and stop where it is time to.

        Args:
            phases: returns a tensor of metrics `names`; the last ones are SUMS, the others means.

        Raises:
            FloatingPointError: NaN or infinity, and no rollback is allowed; a crash file has been written.
        """
        try:
            found = phases()
        except EnvironmentFault as fault:
            return self._environment_fault(fault, phases)
        late = self.args.max_runtime is not None and time.time() - self.watch.started > self.args.max_runtime
        wishes = [float(self.stop.requested), float(late)]
        if self.ranks.world_size > 1:  # a stop asked of one is a stop of all, at the same iteration
            means, sums = found[: -len(SUMS)] / self.ranks.world_size, found[-len(SUMS) :]
            found = self.ranks.sum_(torch.cat([means, sums, found.new_tensor(wishes)]))
            *values, wishes[0], wishes[1] = found.tolist()
        else:
            values = found.tolist()  # the iteration's only look at the device
        row = dict(zip(names, values, strict=True))
        returns, lengths, episodes, steps, broken = (row.pop(name) for name in SUMS)
        if broken:
            return self._broke_down(phases)
        self.iteration, self.global_step = self.iteration + 1, self.global_step + int(steps)
        self.recent = [self.recent[0] + returns, self.recent[1] + episodes]
        mean = (returns / episodes, lengths / episodes) if episodes else (math.nan, math.nan)
        row |= {f"time/{name}": x for name, x in phases.seconds.items()}
        self._log(row | dict(zip(("charts/episodic_return", "charts/episodic_length"), mean, strict=True)))
        if self.iteration % self.args.save_interval == 0:
            self.save(phases)
        quarter, before = (4 * i // self.args.num_iterations for i in (self.iteration, self.iteration - 1))
        if self.args.capture_video and before < quarter < 4 and self.ranks.is_main:
            self.film(f"step-{self.global_step}")
        if wishes[0]:
            self.over = {"stopped": self.stop.name or "SIGTERM", "exit_status": self.stop.exit_status or 143}
        elif wishes[1]:
            self.over = {"stopped": "max_runtime", "exit_status": MAX_RUNTIME_STATUS}

    def _log(self, row: dict[str, float]) -> None:
        self.elapsed = time.perf_counter() - self.began
        self.first_seconds = self.first_seconds or self.elapsed
        row |= {"global_step": self.global_step, "charts/SPS": self.global_step / self.elapsed}
        if self.ranks.is_main:
            self.report.log(row | {"time/elapsed": self.elapsed})

    def _environment_fault(self, fault: EnvironmentFault, phases: Any) -> None:
        if self.ranks.world_size > 1:
            raise fault  # the other ranks wait in a collective, which ends with this process
        while self.restarts < self.args.env_restarts:
            self.restarts += 1
            self.report.say([f"warning: {fault}; environments are started again ({self.restarts})"])
            try:
                return phases.restart(None)
            except EnvironmentFault as again:
                fault = again
        self.report.say([f"warning: {fault}; the run is saved and stops"])
        self.over = {"stopped": str(fault), "exit_status": FAULT_STATUS}

    def _broke_down(self, phases: Any) -> None:
        """NaN or infinity: nothing of it is in the weights. Leave a crash file, then go back or stop."""
        text = f"step {self.global_step:,}: {self._crash_file(phases)}"
        if self.args.on_nan == "stop" or self.rollbacks >= ROLLBACKS or not self.good:
            tried = f" (after {self.rollbacks} rollbacks)" if self.rollbacks else ""
            raise FloatingPointError(f"{text}{tried}")
        rollbacks = self.rollbacks + 1
        for name in PROGRESS:
            setattr(self, name, self.elapsed if name == "elapsed" else self.good_progress[name])
        phases.load(self.good)
        if phases.restart is not None:
            phases.restart((self.own.seed + 7919 * rollbacks) % 2**31)
        phases.state["learning_rate"].mul_(0.5 ** (rollbacks - self.rollbacks))
        self.rollbacks, self.rate_factor = rollbacks, 0.5**rollbacks
        self.report.say([f"warning: {text}", f"back to step {self.global_step:,} with half the learning rate"])
        if self.ranks.is_main:
            self.run.rewind(partial(os.truncate, length=self.rows_at))

    def _crash_file(self, phases: Any) -> str:
        """Leave what the first process that found something knows; returns what and where, in words."""
        text, program = crash.finding(phases.state), self.facts["program"]
        own = crash.payload(self.own, program, phases, text or "losses or gradients are not finite", self.iteration)
        reports = self.ranks.gather(checkpoint.plain({"found": text is not None, "payload": own}))
        if not self.ranks.is_main:
            return f"{own['finding']}; rank 0 says more"
        rank = next((rank for rank, report in enumerate(reports) if report["found"]), 0)
        finding = reports[rank]["payload"]["finding"] + (f" (rank {rank})" if len(reports) > 1 else "")
        try:
            path = checkpoint.write(self.run.folder / f"crash-{self.global_step}.pt", reports[rank]["payload"])
            return f"{finding}; python -m ppo_fast.replay {path} shows more"
        except OSError as error:
            return f"{finding}; no crash file was written ({error})"

    def finish(self, envs: Any, agent: Any, phases: Any) -> dict[str, Any]:
        """Evaluate, film, measure and report what the flags ask for; returns what result.json holds."""
        result: dict[str, Any] = {"global_step": self.global_step, "sps": self.global_step / max(self.elapsed, 1e-9)}
        result |= {"first_iteration_seconds": self.first_seconds, **self.over}
        if not self.ranks.is_main:
            return result
        self.picture = Beside(lambda: curves.plot_curves(self.run.folder, self.run.rows()), "picture", seconds=60.0)
        measured: list[str] = []
        try:
            checkpoint.save_policy(self.run.folder, agent.state_dict(), self.facts)
        except OSError as error:
            self.report.say([f"warning: no policy.safetensors was written ({error})"])
        try:
            self.stop.at_once = True  # all is saved
            if not self.over and not self.stop.requested:
                measured = self._look_back(result, envs, agent, phases)
        except Stopped:
            self.report.say([f"stopped by {self.stop.name} after the training was over"])
        self.stop.at_once = False
        if not self.over and self.stop.requested:
            result |= {"stopped": self.stop.name, "exit_status": self.stop.exit_status}
        self.watch.lap("report")
        result["seconds"] = self.watch.seconds
        self.report.finish(result, measured, lambda *_: self.picture.insist())
        return result

    def _look_back(self, result: dict[str, Any], envs: Any, agent: Any, phases: Any) -> list[str]:
        """Evaluate, film and measure into `result`; returns lines about the speed."""
        args, device = self.args, self.ranks.device
        if args.capture_video:
            self.film("greedy")
        if args.eval_episodes:
            self.console.phase("evaluating")
            backend = "sync" if envs.backend == "async" else envs.backend  # not a process for each of 100 episodes
            fresh = make(args.env_id, args.eval_episodes, device, backend)
            result |= capture.eager(play.evaluate, one_thread=True)(fresh, agent, args.seed)
        self.camera.wait()
        self.watch.lap("eval")
        self.picture.wait()  # what follows wants all cores
        # Other processes don't run the phases any more; a run that was complete already has no speed of its own.
        if self.ranks.world_size > 1 or self.iteration == self.began_at:
            return []
        result["speed"] = speed.of_run(args, envs, agent, phases, result, self.watch.seconds)
        if args.profile:
            self.report.say(profiling.profile(lambda: phases().tolist(), self.run.folder, device).lines)
        return speed.lines(result["speed"])

    def film(self, name: str) -> None:
        """Begin to record a greedy episode as videos/<name>.mp4, which W&B shows once it is there."""
        args, path = self.args, self.run.subfolder("videos") / f"{name}.mp4"
        made = partial(make, args.env_id, 1, "cpu", render_mode="rgb_array")
        done = partial(self.run.log_video, path, self.global_step)
        frames, niceness = (LAST_FRAMES, 0) if name == "greedy" else (FRAMES, 19)  # the run waits for the last one
        self.camera.film(done, made, self.agent, args.seed, path, frames, niceness)
