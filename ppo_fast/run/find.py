"""Which checkpoint is meant: the newest valid one of a folder, of a run, of all runs, or of an unfinished run.

What is found is data from anywhere. Whether a program can go on from it is for resume.py to say.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ppo_fast import jsonl, names, reading
from ppo_fast.run.checkpoint import BEST, DamagedCheckpoint, checkpoints_in, load
from ppo_fast.run.run_flags import saved_flags

Snapshot = tuple[tuple[str, int, int], ...]  # name, time of the last change and size of each checkpoint


class Found(NamedTuple):
    """A whole checkpoint file, and where it lies."""

    run: Path
    """The run folder."""
    path: Path
    """The checkpoint file."""
    payload: dict[str, Any]
    """Its contents, tensors on the CPU."""
    skipped: list[str]
    """One line for each damaged checkpoint that was passed over."""
    seen: Snapshot
    """The checkpoints that were there before it was read."""


def latest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """(path, payload, skipped) of the newest valid checkpoint in `folder`; best.pt is the last resort.

    `skipped` has one line for each damaged checkpoint that was passed over.

    Raises:
        FileNotFoundError: there is no checkpoint at all.
        DamagedCheckpoint: there are, and none is valid.
    """
    candidates = [path for _, path in checkpoints_in(folder)]
    if (folder / BEST).exists():
        candidates.append(folder / BEST)
    if not candidates:
        raise FileNotFoundError(f"{folder}: no checkpoint here")
    skipped = []
    for path in candidates:
        try:
            return path, load(path), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"{path}: {error.strerror}")
    raise DamagedCheckpoint(f"{folder}: none of {len(skipped)} checkpoints is valid; {skipped[0]}")


def resolve(spec: str, root: Path) -> Found:
    """What `--resume spec` means: a run folder, a checkpoint file, or "latest".

    "latest" is the run below `root` that wrote a checkpoint last and has a valid one.

    Raises:
        ValueError: why there is nothing to go on from, in one line.
    """
    candidates = runs_by_age(root) if spec == "latest" else [Path(spec)]
    skipped: list[str] = []
    for run in candidates:
        try:
            found = find_in(run)
        except DamagedCheckpoint as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"{run}: {error.strerror}" if error.strerror else str(error))
        else:
            return found._replace(skipped=skipped + found.skipped)
    if spec != "latest":
        raise ValueError(skipped[0])
    detail = f"; {skipped[0]}" if skipped else ""
    raise ValueError(f"no run with a valid checkpoint below {root}{detail}")


def unfinished(root: Path, program: str, like: Mapping[str, Any]) -> Found | None:
    """What `--resume auto` means: the newest run of `program` below `root` that is not at its end, with these flags.

    None where there is no such run.
    """
    for run in runs_by_age(root):
        with suppress(ValueError, OSError):  # DamagedCheckpoint is a ValueError
            if _is_at_its_end(run):
                continue
            found = find_in(run)
            if found.payload.get("program") == program and _has_flags(found.payload, like):
                return found
    return None


def find_in(path: Path) -> Found:
    """The newest valid checkpoint of a run folder, or the file itself where `path` is one.

    Raises:
        DamagedCheckpoint: nothing valid is there.
        OSError: nothing is there, or it cannot be read.
    """
    if path.exists() and not path.is_dir():
        folder = path.resolve().parent
        run = folder.parent if folder.name == "checkpoints" else folder
        snapshot = snapshot_of(run)
        return Found(run, path, load(path), [], snapshot)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a run folder, a checkpoint file nor 'latest'")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    run = folder.parent if folder.name == "checkpoints" else folder
    snapshot = snapshot_of(run)
    newest, payload, skipped = latest(folder)
    return Found(run, newest, payload, skipped, snapshot)


def snapshot_of(run: Path) -> Snapshot:
    """The checkpoints of a run as they are now: equal to an earlier snapshot where no process has saved one since."""
    found: list[tuple[str, int, int]] = []
    for _, path in checkpoints_in(run / "checkpoints"):
        with suppress(OSError):  # pruned just now
            facts = path.stat()
            found.append((path.name, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def runs_by_age(root: Path) -> list[Path]:
    """Run folders below `root`, the one whose newest checkpoint was written last first."""
    ages: dict[Path, int] = {}
    for path in root.glob("*/checkpoints/checkpoint-*.pt"):
        run = path.parent.parent
        with suppress(OSError):  # such as one that was pruned just now by a run that is still going
            ages[run] = max(ages.get(run, 0), path.stat().st_mtime_ns)
    return sorted(ages, key=lambda run: (ages[run], run.name), reverse=True)


def _is_at_its_end(run: Path) -> bool:
    """Whether a run's result.json is there and says nothing of a stop. OSError where it can't be read."""
    path = run / names.RESULT_FILE
    if not path.exists():
        return False
    result = jsonl.json_object(reading.read_bytes(path, reading.SMALL))
    return result is None or "stopped" not in result


def _has_flags(payload: Mapping[str, Any], like: Mapping[str, Any]) -> bool:
    flags = payload.get("flags")
    return isinstance(flags, dict) and all(saved_flags(flags).get(name) == value for name, value in like.items())
