"""Where a policy is: the file that a run folder, a file's name or "latest" means. No torch is imported here.

A policy may also lie in a checkpoint, which saved_policy.py reads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppo_fast import names, reading
from ppo_fast.run import identity

CHECKPOINTS = "checkpoints/checkpoint-*.pt"
NO_CHECKSUM = "has no checksum, as earlier versions wrote it: damage would not be seen"


@contextmanager
def named_run(path: Path) -> Iterator[None]:
    """Whatever is wrong with the policy that `path` names is a ValueError "run: ..." in one line."""
    try:
        yield
    except KeyError as problem:
        raise ValueError(f"run: {path} holds no {problem}: no checkpoint of a training program") from problem
    except OSError as problem:
        raise ValueError(f"run: {path}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise ValueError(f"run: {problem}") from problem


def file_of(path: Path) -> Path | None:
    """The policy file that `path` names: itself, or that of a run folder; None where a checkpoint is meant.

    In a run folder a checkpoint is meant where it is newer: after a resumed run was killed, the policy is that of the
    stop before.

    Raises:
        ValueError: there is nothing of that name, or no file in the policy's place.
    """
    if path.suffix == ".safetensors" and path.exists() and not path.is_dir():
        return path
    file = path / names.POLICY_FILE
    in_its_place = reading.what_is_at(file)
    if in_its_place is not None:
        raise ValueError(f"{file} is {in_its_place}, not a file; name a checkpoint to play that")
    if file.exists() and not any(age(other) > age(file) for other in path.glob(CHECKPOINTS)):
        return file
    if not path.exists():
        raise ValueError(f"{path} is neither a run folder, a checkpoint, a policy file nor 'latest'")
    return None


def newest(root: Path) -> Path:
    """The run folder below `root` that wrote a policy or a checkpoint last."""
    files = [*root.glob(f"*/{names.POLICY_FILE}"), *root.glob(f"*/{CHECKPOINTS}")]
    if not files:
        raise ValueError(f"run: no run with a policy or a checkpoint below {root}; name one, or set --run-root")
    last = max(files, key=lambda path: (age(path), str(path)))
    return last.parent.parent if last.suffix == ".pt" else last.parent


def age(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 for a link to nothing."""
    return path.stat().st_mtime_ns if path.exists() else 0


def stranger(folder: Path, file: Path, facts: Mapping[str, Any]) -> str | None:
    """That a policy is not of the run in whose folder it lies, and why, in words; None where it is.

    Args:
        folder: of the run.
        file: the policy or the checkpoint.
        facts: what it says of its run.
    """
    try:
        config = identity.config_of(folder)
    except OSError:
        return None
    different = None if config is None else identity.difference(facts, config, ("exp_name",))
    return None if different is None else f"{file} is not of this run: {different}, as its config.json says"


def refuse_stranger(named: Path, folder: Path, file: Path, facts: Mapping[str, Any]) -> list[str]:
    """A line to say where a policy is not of the run in whose folder it lies, and was `named` itself; mostly none.

    Raises:
        ValueError: the folder was named, so its run is meant.
    """
    wrong = stranger(folder, file, facts)
    if wrong is None:
        return []
    if file != named:
        raise ValueError(f"{wrong}; name the file itself to play it all the same")
    return [wrong]
