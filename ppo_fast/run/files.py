"""Files that are written whole or not at all.

The bytes go to a temporary file in the same folder. Once they are on the disk, it takes the old file's name in a single
`os.replace`. So a kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.ppo_fast-tmp")  # the number is the id of the process that writes it


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: whole or not at all, and on the disk when this returns.

    Raises:
        OSError: disk full, quota, no permission. `path` holds what it held before, and no temporary file stays.
    """
    _remove_leftovers(path.parent)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable: fsync of a file does not cover its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Where this process prepares the file `path`: beside it, under a name that nobody else reads."""
    return path.with_name(f".{path.name}.{os.getpid()}.ppo_fast-tmp")


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes that died while writing.

    Those under our own process id are among them: containers use the same ids again.
    """
    for temporary in folder.glob(".*.ppo_fast-tmp"):
        match = TEMPORARY.fullmatch(temporary.name)
        if match is None:
            continue
        process = int(match[1])
        if process == os.getpid() or not _is_alive(process):
            temporary.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True
