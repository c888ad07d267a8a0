"""What is written and said of one agent: its rows, diagnostics, checkpoints, crash file, films, policy and result.

    with open_log(args, agent, facts, console, origin, writes=True) as log:
        log.introduce()
        log.record(means, totals, progress, seconds)     # to the diagnostics, the run folder and the screen
        log.save(progress, ranks, keep, is_best)         # a checkpoint
        log.finish(result, measured, picture)

A process has one lifecycle (session.py) and a log for each agent that it trains. A rank that does not write has a log
too: it keeps the score, has a silent console, and leaves nothing.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import nn

from ppo_fast import names
from ppo_fast.envs import EnvironmentFault, make
from ppo_fast.pictures import panels
from ppo_fast.run import checkpoint, pairs, resume
from ppo_fast.run.beside import Beside
from ppo_fast.run.best import Best, best_in
from ppo_fast.run.camera import Camera
from ppo_fast.run.console import Console
from ppo_fast.run.crash import Crash
from ppo_fast.run.find import snapshot_of
from ppo_fast.run.health import Critic, Health
from ppo_fast.run.payload import Checkpoint, Progress, RankState, Score
from ppo_fast.run.policy import save_policy
from ppo_fast.run.probe import Probe
from ppo_fast.run.readout import Totals
from ppo_fast.run.rows import Row, truncate_rows
from ppo_fast.run.run_flags import env_view
from ppo_fast.run.tracking import NoRun, Record, Run

FRAMES = 250  # of a film that is made while training goes on, at most
LAST_FRAMES = 1000  # and of the one at the end, which the run waits for
FAULTS_FILE = "faults.txt"  # what environments did wrong, and where their code raised it
PICTURE_SECONDS = 60.0  # that the picture of the curves may take in a process of its own


class AgentLog:
    """The log of one agent; a context manager that closes the run and leaves no film under way. See `open_log`.

    Args:
        agent: it acts in films, and its weights are left as the policy.
        flags: of the run, by field name.
        facts: what config.json holds: the flags, "parameters", "program", "world_size", ...
        console: opened and closed by the caller; several logs may have the same.
        run: closed here; `NoRun` on a rank that does not write.
        health: the diagnostics of this agent.
        score: of the checkpoint that the run goes on from.

    Attributes:
        score: which of its checkpoints is the best one.
        best: the policy that --eval-every found to be the best; None where there is none.
    """

    def __init__(
        self,
        agent: nn.Module,
        flags: dict[str, Any],
        facts: dict[str, Any],
        console: Console,
        run: Record,
        health: Health,
        score: Score,
    ) -> None:
        self.agent = agent
        self.flags = flags
        self.facts = facts
        self.console = console
        self.run = run
        self.health = health
        self.score = score
        self._writes = not isinstance(run, NoRun)
        self.best = best_in(run.folder, run.run_id) if self._writes else None
        self._saved_score = score  # with the last checkpoint, for a rollback
        self._camera = Camera(console.message)
        self._disk_failed = False
        self._step_on_disk = -1  # of the last checkpoint that was saved by this process, or that it went on from
        self._traces_said: set[str] = set()

    def __enter__(self) -> Self:
        self.run.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._camera.close()
        self.run.__exit__(kind, error, traceback)

    def introduce(self) -> None:
        """Say what runs, where, and where it leaves its files."""
        if self._writes:
            self.console.start(header(self.facts, self.run.folder))

    def say(self, lines: Sequence[str]) -> None:
        """Print lines of their own."""
        for line in lines:
            self.console.message(line)

    # ---------------------------------------------------------------- rows

    def record(
        self,
        means: Mapping[str, float],
        totals: Totals,
        progress: Progress,
        seconds: Mapping[str, float],
        more: Callable[[Row], Row] = lambda row: {},
    ) -> None:
        """Write and show the row of one iteration, check it, and count the episodes that ended in it.

        Args:
            means, totals: of the iteration.
            progress: with this iteration.
            seconds: spent in it, by phase.
            more: is given the row, and returns what is logged with it and is no matter of the diagnostics.

        Raises:
            FloatingPointError: with the cause in a line, when something is NaN or infinite. The row has been written.
        """
        self.score = self.score.after(totals.returns, totals.episodes)
        if not self._writes:
            return
        row = dict(means)
        for phase, spent in seconds.items():
            row[f"time/{phase}"] = spent
        for name, total in ((names.EPISODIC_RETURN, totals.returns), (names.EPISODIC_LENGTH, totals.lengths)):
            if totals.episodes and not math.isnan(total):
                row[name] = total / totals.episodes
        row[names.GLOBAL_STEP] = progress.global_step
        row[names.SPS] = progress.global_step / progress.elapsed
        row[names.ELAPSED] = progress.elapsed
        advice = self.health.update(row)
        row |= self.health.metrics()
        row |= more(row)
        self.run.log(row)
        self.console.update(row, advice)
        for item in advice:
            if item.severity == "stop":
                raise FloatingPointError(item.text)

    def go_on(self, origin: resume.Origin, is_complete: bool) -> None:
        """Cut the run folder back to the checkpoint and open it; before this, a run that goes on has changed nothing.

        Args:
            origin: what the run goes on from.
            is_complete: whether nothing is left to train: then the result that is there stays until there is another.

        Raises:
            ValueError: `--resume: ...`, the folder can't be written to.
        """
        step = origin.checkpoint.progress.global_step

        def cut_back(folder: Path) -> None:
            # In this order, so that a kill in between leaves no checkpoint whose rows are gone.
            checkpoint.supersede(folder / "checkpoints", step)
            truncate_rows(folder / names.METRICS_FILE, step)
            if not is_complete:
                (folder / names.RESULT_FILE).unlink(missing_ok=True)

        self.run.go_on(cut_back)
        self._step_on_disk = step

    def recall(self) -> None:
        """Take in the rows that a resumed run has already written, as if they had been written here."""
        for row in self.run.rows():
            self.console.update(row, self.health.update(row), draw=False)
        self.run.remember()

    # ---------------------------------------------------------------- checkpoints

    def judge(self, due: bool) -> bool:
        """Whether the checkpoint that is about to be saved is the best so far.

        Only checkpoints that are `due` are compared. A save at a stop is none, so that a run with stops marks the same
        ones as a run without.
        """
        is_best = due and self.score.is_best()
        if due:
            self.score = self.score.judged()
        self._saved_score = self.score
        return is_best

    def save(self, progress: Progress, ranks: list[RankState], keep: int, is_best: bool) -> None:
        """Write a checkpoint and keep the `keep` newest. A full disk is one warning, and training goes on."""
        if not self._writes:
            return
        contents = Checkpoint(
            self.facts["program"],
            self.flags,
            progress,
            self.score,
            ranks,
            self.run.wandb_id,
            run_id=self.run.run_id,
            rows=self.run.remember(),
        )
        try:
            folder = self.run.subfolder("checkpoints")
            path = checkpoint.save(folder, progress.global_step, contents.to_plain(), keep)
            if is_best:
                checkpoint.mark_best(path)
            self._step_on_disk = progress.global_step
        except OSError as error:
            if not self._disk_failed:
                self.say([f"warning: no checkpoint was saved ({error}); training goes on"])
            self._disk_failed = True

    def go_back(self) -> None:
        """Forget what came after the last checkpoint."""
        self.score = self._saved_score
        self.run.rewind()

    def write_crash(self, crash: Crash, global_step: int) -> str:
        """Leave a crash file; returns where it is or why it is not, in words."""
        try:
            path = checkpoint.write(self.run.folder / f"crash-{global_step}.pt", crash.to_plain())
        except OSError as error:
            return f"no crash file was written ({error})"
        return f"python -m ppo_fast.replay {path} shows more"

    def tell_fault(self, fault: EnvironmentFault, progress: Progress, then: str) -> None:
        """Say what an environment did wrong and what is done `then`; where its code raised that is said once, and left
        in faults.txt each time."""
        is_new = bool(fault.trace) and fault.trace not in self._traces_said
        self._traces_said.add(fault.trace)
        trace = fault.trace.rstrip()
        self.say([f"warning: {fault}; {then}" + (f"\n{trace}" if is_new else "")])
        if not self._writes:
            return
        text = f"after step {progress.global_step}: {fault}\n{trace}".rstrip() + "\n\n"
        try:
            with (self.run.folder / FAULTS_FILE).open("ab") as file:
                file.write(text.encode(errors="backslashreplace"))
        except OSError as error:
            self.say([f"warning: no {FAULTS_FILE} was written ({error})"])

    # ---------------------------------------------------------------- films

    def film(self, global_step: int) -> None:
        """Begin to record a greedy episode of the agent as it is now, as step-<global_step>.mp4; training goes on."""
        if self._writes:
            self._film(f"step-{global_step}", global_step, FRAMES, niceness=19)

    def film_last(self, global_step: int) -> None:
        """Begin to record the film of the end, greedy.mp4, which the run waits for."""
        self._film("greedy", global_step, LAST_FRAMES, niceness=0)

    def _film(self, name: str, global_step: int, frames: int, niceness: int) -> None:
        make_one = partial(make, self.flags["env_id"], 1, "cpu", render_mode="rgb_array", **env_view(self.flags))
        path = self.run.subfolder("videos") / f"{name}.mp4"
        show = partial(self.run.log_video, path, global_step)
        self._camera.film(make_one, self.agent, self.flags["seed"], path, frames, show, niceness)

    def wait_for_films(self) -> None:
        """Wait until all films are there and shown in W&B."""
        self._camera.wait()

    # ---------------------------------------------------------------- the end

    def begin_picture(self) -> Beside:
        """Begin to draw curves.png, in a process of its own."""
        return Beside(self._draw, "picture", seconds=PICTURE_SECONDS)

    def _draw(self) -> None:
        panels.plot_curves(self.run.folder, self.run.rows())

    def save_policy(self, probe: Probe | None) -> bool:
        """Write policy.safetensors, with what the policy answers; returns whether it is there. A full disk is a
        warning."""
        return self._write_policy(names.POLICY_FILE, {}, probe)

    def _write_policy(self, name: str, evaluated: Mapping[str, float], probe: Probe | None) -> bool:
        """Write a policy file; returns whether it is there."""
        try:
            facts = {**self.facts, **evaluated, names.RUN_ID: self.run.run_id}
            if probe is not None:
                facts["probe"] = probe.to_json()
            save_policy(self.run.folder, self.agent.state_dict(), facts, name)
        except OSError as error:
            self.say([f"warning: no {name} was written ({error})"])
            return False
        return True

    def keep_if_best(self, figures: Mapping[str, float], global_step: int, probe: Callable[[], Probe | None]) -> bool:
        """Whether the policy that was evaluated is the best so far; it is then written as best.safetensors.

        A full disk is a warning.

        Args:
            figures: of the evaluation.
            global_step: at which the policy is.
            probe: makes what the file says of the policy's answers.
        """
        mean = figures[names.MEAN_RETURN]
        if math.isnan(mean) or (self.best is not None and mean <= self.best.mean_return):
            return False
        evaluated = {names.MEAN_RETURN: mean, names.EPISODES: figures[names.EPISODES], names.GLOBAL_STEP: global_step}
        if self._write_policy(names.BEST_POLICY_FILE, evaluated, probe()):
            self.best = Best(mean, global_step)
        return True

    def has_on_disk(self, progress: Progress) -> bool:
        """Whether there is a checkpoint of this moment."""
        return self._step_on_disk == progress.global_step

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which `finish` writes anew."""
        self.run.write_result(result)

    def finish(self, result: Mapping[str, Any], measured: Sequence[str], picture: Beside) -> None:
        """Write the result, see to it that the picture is drawn, and print the summary with lines about the speed."""
        self.run.finish(result, lambda *_: picture.insist())
        folder = self.run.folder
        commands = [f"{self._launch()} --resume {folder}"] if "stopped" in result else []
        self.console.summary(result, self.health.summary(), folder, commands, measured)

    def _launch(self) -> str:
        """How the program is started."""
        start = "python" if self.facts["world_size"] == 1 else "torchrun ..."
        return f"{start} -m {self.facts['program']}"

    def discard(self) -> None:
        """Delete the run folder: nothing has been learned that could be kept."""
        shutil.rmtree(self.run.folder, ignore_errors=True)


def open_log(
    args: Any, agent: Any, facts: dict[str, Any], console: Console, origin: resume.Origin | None, writes: bool
) -> AgentLog:
    """The log of an agent, with a run folder of its own.

    Args:
        args: a program's flags.
        agent, facts, console: see `AgentLog`.
        origin: the checkpoint that the run goes on from, in the same folder; None for a new one.
        writes: whether this rank leaves files and speaks.

    Raises:
        ValueError: as `Run` does.
    """
    run = open_run(facts, console.message, origin) if writes else NoRun()
    # A program of somebody's own may lack these flags: then nothing is known of its critic.
    clips = getattr(args, "clip_vloss", False) and not getattr(args, "norm_reward", True)
    critic = Critic(args.clip_coef if clips else None, getattr(args, "norm_reward", True))
    follows_kl = getattr(args, "lr_schedule", None) == "kl"
    health = Health(args.num_iterations * args.batch_size, agent.head.max_entropy, critic, follows_kl)
    score = Score() if origin is None else origin.checkpoint.score
    return AgentLog(agent, asdict(args), facts, console, run, health, score)


def open_run(facts: Mapping[str, Any], say: Callable[[str], None], origin: resume.Origin | None) -> Run:
    """A new run folder or, with an origin, the one that the run goes on in, in which nothing is changed yet.

    Raises:
        ValueError: as `Run` does.
    """
    if origin is None:
        return Run.from_flags(facts, say)
    run = Run.from_flags(facts, say, origin.run, origin.checkpoint.wandb_id, origin.standing.run_id)
    if snapshot_of(origin.run) != origin.seen:
        run.close()
        raise ValueError(f"--resume: {origin.run} has gone on in the meantime; try again")
    return run


def header(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """What is said first: what runs, where, and where it leaves its files."""
    count = facts["num_iterations"]
    size = facts["batch_size"]
    plural = "s" if count > 1 else ""
    iterations = f"{count:,} iteration{plural} of {size:,} steps, {count * size:,} in all"
    keywords = f" {pairs.spelled(facts['env_kwargs'])}" if facts.get("env_kwargs") else ""
    return [
        f"environments  {facts['num_envs']} x {facts['env_id']}{keywords}, backend {facts['backend_used']}",
        f"agent         {facts['parameters']:,} parameters; {iterations}",
        f"device        {facts['device_in_words']}",
        f"run folder    {folder}",
    ]
