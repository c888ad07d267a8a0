"""Whether a run can go on in a folder: its files are files, of one run, and nothing would be written elsewhere.

Nothing is changed here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ppo_fast import names, reading
from ppo_fast.run import checkpoint, identity, rows
from ppo_fast.run.payload import Checkpoint
from ppo_fast.writing import refuse_link

CHECKPOINTS = "checkpoints"
# What a run writes in its folder. W&B's own files, below wandb/, are W&B's.
SUBFOLDERS = (CHECKPOINTS, "videos", "tensorboard", "wandb")
FILES = (
    *(names.CONFIG_FILE, names.METRICS_FILE, names.RESULT_FILE, names.POLICY_FILE),
    *("curves.png", "profile.json.gz", ".lock"),
)


@dataclass(frozen=True)
class Standing:
    """What is known of a folder that a run can go on in."""

    run_id: str
    """The run's; a new one where earlier versions gave none."""
    notes: tuple[str, ...] = ()
    """Lines about what is lost, which keeps nothing from going on."""


def standing(run: Path, path: Path, origin: Checkpoint, flags: tuple[str, ...]) -> Standing:
    """Look at the folder `run` before a run goes on in it from the checkpoint `path`.

    Args:
        run: the folder.
        path: the checkpoint's file.
        origin: its contents.
        flags: names of all flags of the program.

    Raises:
        ValueError: why it can't go on there.
        OSError: a file can't be read.
    """
    _check_kinds(run)
    facts = facts_of(origin)
    config = identity.config_of(run)
    notes: list[str] = []
    if config is None:
        what = "holds no JSON object" if (run / names.CONFIG_FILE).exists() else "is missing"
        notes.append(f"{run / names.CONFIG_FILE} {what}: it is written anew")
    else:
        different = identity.difference(facts, config, flags)
        if different is not None:
            raise ValueError(f"{different}, as {run / names.CONFIG_FILE} says")
    _check_others(run, path, facts if config is None else {**facts, **config}, flags)
    progress = origin.progress
    lost = rows.reason_against(run / names.METRICS_FILE, progress.global_step, origin.rows, progress.iteration)
    if lost is not None:
        notes.append(lost)
    run_id = origin.run_id or identity.id_in(config or {}) or identity.new_id()
    return Standing(run_id, tuple(notes))


def facts_of(origin: Checkpoint) -> dict[str, object]:
    """A checkpoint's flags, program and run id."""
    return {**origin.flags, "program": origin.program, names.RUN_ID: origin.run_id}


def _check_kinds(run: Path) -> None:
    """OSError or ValueError where a link, a folder or a pipe has the name of something that a run writes."""
    for name in (*SUBFOLDERS, *FILES):
        refuse_link(run / name)
    for name in SUBFOLDERS:
        if (run / name).exists() and not (run / name).is_dir():
            raise ValueError(f"{run / name} is not a folder")
    for name in FILES:
        what = reading.what_is_at(run / name)
        if what is not None:
            raise ValueError(f"{run / name} is {what}, not a file")


def _check_others(run: Path, path: Path, facts: dict[str, object], flags: tuple[str, ...]) -> None:
    """ValueError where a checkpoint of another run lies there: old ones are renamed and deleted when a run goes on."""
    folder = run / CHECKPOINTS
    others = [other for _, other in checkpoint.checkpoints_in(folder)]
    if (folder / checkpoint.BEST).exists():
        others.append(folder / checkpoint.BEST)
    for other in others:
        try:
            if os.path.samefile(other, path):
                continue
            payload = checkpoint.load(other)
        except (checkpoint.DamagedCheckpoint, OSError):
            continue  # whoever needs it says so, and a living run may have deleted it just now
        saved = payload.get("flags")
        known = {
            **(saved if isinstance(saved, dict) else {}),
            "program": payload.get("program"),
            names.RUN_ID: payload.get(names.RUN_ID),
        }
        different = identity.difference(known, facts, flags)
        if different is not None:
            raise ValueError(f"{other} lies there, and {different}; take it out of the folder first")
