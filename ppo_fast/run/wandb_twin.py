"""A run's rows in Weights & Biases, online where that works, otherwise in a file to be uploaded later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ppo_fast
from ppo_fast import names
from ppo_fast.engine import caches
from ppo_fast.names import first_line
from ppo_fast.run.rows import Row
from ppo_fast.run.twins import Say, Twin

if TYPE_CHECKING:
    from wandb import Run as WandbRun, Settings

STEPPED_BY_GLOBAL_STEP = ("charts/*", "losses/*", "time/*", "health/*", "eval/*")
INIT_SECONDS = 6.0  # with wandb's own start-up and the offline run after it, a fallback stays under 10 s
FINISH_SECONDS = 8.0
UPLOAD_SECONDS = 60.0  # instead of them where files are uploaded, which the user asked for
MODE_OF_VARIABLE = {"disabled": "disabled", "offline": "offline", "dryrun": "offline"}  # WANDB_MODE


class WandbFlags(NamedTuple):
    """What the flags say of the W&B run; `run_id` is that of the run to go on with, None for a new one."""

    mode: str = "online"
    project_name: str = "ppo_fast"
    entity: str | None = None
    group: str | None = None
    name: str | None = None  # None: the run folder's
    tags: tuple[str, ...] = ()
    notes: str | None = None
    artifacts: bool = False
    run_id: str | None = None


class WandbTwin(Twin):
    """Sends rows to a W&B run that has been started.

    Args:
        run: the W&B run. A resumed one has rows already; those are not sent again.
        folder: the run folder, whose policies and newest checkpoint are uploaded at the end if `artifacts`.
    """

    name = "W&B"

    def __init__(self, run: WandbRun, folder: Path, artifacts: bool) -> None:
        self.run = run
        self.folder = folder
        self.artifacts = artifacts
        self.step_at_start = run.starting_step - 1  # of the last row that W&B has from before
        self.step = self.step_at_start  # of the last row that W&B has

    def log(self, row: Row) -> None:
        """Send one row, unless W&B had it when the run was started."""
        global_step = row.get(names.GLOBAL_STEP) or 0
        if global_step <= self.step_at_start:
            return
        # W&B drops a row whose step is not above the last one; without a step it takes the next free one.
        wanted = global_step if global_step > self.step else None
        self.step = self.step + 1 if wanted is None else wanted
        self.run.log(dict(row), step=wanted, commit=True)

    def log_video(self, path: Path, global_step: int) -> None:
        """Show an mp4 file as "videos/<its name>"."""
        import wandb

        self.step += 1
        self.run.log({names.GLOBAL_STEP: global_step, f"videos/{path.stem}": wandb.Video(str(path))})

    def finish(self, result: Row) -> None:
        """Put the eval/* figures in the run's summary, and upload the policy if that was asked for."""
        figures = {name: value for name, value in result.items() if name.startswith(names.EVAL)}
        self.run.summary.update(figures)
        if self.artifacts:
            self._upload_policy()

    def close(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    def _upload_policy(self) -> None:
        """The policy, the best one where there is one, and the newest checkpoint as one artifact, uploaded before the
        run ends."""
        import wandb

        best = [path for path in [self.folder / names.BEST_POLICY_FILE] if path.exists()]
        newest = sorted((self.folder / "checkpoints").glob("checkpoint-*.pt"))[-1:]  # names count steps
        artifact = wandb.Artifact(f"policy-{self.run.id}", type="model")
        for path in (self.folder / names.POLICY_FILE, *best, *newest):
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)


def start(folder: Path, flags: WandbFlags, config: Row, say: Say) -> WandbTwin | None:
    """Start the W&B run of a run folder: online where that is wanted and works, otherwise offline.

    Args:
        flags: where and under which names. The environment variable WANDB_MODE can only take away: "offline" or
            "disabled" there win over `flags.mode`.
        config: everything that defines the run, in JSON types.
        say: gets the place of the W&B run, or why there is none.

    Returns:
        None where W&B is off, or does not even start offline.
    """
    mode = MODE_OF_VARIABLE.get(os.environ.get("WANDB_MODE", ""), flags.mode)
    if mode == "disabled":
        say("W&B: off, because WANDB_MODE=disabled")
        return None
    # wandb's own error reports hold up the end of the process for 10 to 25 s when its host accepts but does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for line in caches.for_wandb(flags.artifacts):
        say(line)
    if mode == "online":
        try:
            return _start(folder, flags, config, say, online=True)
        except Exception as error:
            say(f"warning: W&B is not reachable ({first_line(error)}); this run is recorded offline")
    try:
        return _start(folder, flags, config, say, online=False)
    except Exception as error:
        say(f"warning: W&B does not start ({first_line(error)}); the run folder stays complete")
        return None


def _start(folder: Path, flags: WandbFlags, config: Row, say: Say, online: bool) -> WandbTwin:
    """The twin with a W&B run of its own. Whatever goes wrong in wandb is raised."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    # Asked here and not left to init, which would stop a run at a terminal to prompt for a key.
    if online and not wandb.login(prompt=False, verify=False):
        raise wandb.Error("no API key: `wandb login` stores one")
    run = wandb.init(
        project=flags.project_name,
        entity=flags.entity,
        group=flags.group,
        name=flags.name or folder.name,
        tags=list(flags.tags) or None,
        notes=flags.notes,
        id=flags.run_id,
        resume="allow" if flags.run_id and online else None,
        dir=str(folder),
        config=dict(config),
        mode="online" if online else "offline",
        reinit="create_new",
        settings=_settings(flags, online),
    )
    run.define_metric(names.GLOBAL_STEP)
    for pattern in STEPPED_BY_GLOBAL_STEP:
        run.define_metric(pattern, step_metric=names.GLOBAL_STEP)
    if flags.artifacts:
        run.log_code(root=str(Path(ppo_fast.__file__).parent))
    place = run.url if online else f"offline; upload with `wandb sync {run.settings.sync_dir}`"
    say(f"W&B: {place}")
    return WandbTwin(run, folder, flags.artifacts)


def _settings(flags: WandbFlags, online: bool) -> Settings:
    """wandb's settings without what costs time or waits without end."""
    import wandb

    return wandb.Settings(
        init_timeout=INIT_SECONDS if online else UPLOAD_SECONDS,
        finish_timeout=UPLOAD_SECONDS if flags.artifacts else FINISH_SECONDS,
        finish_timeout_raises=True,
        console="off",
        disable_git=True,
        silent=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
