"""Files that are written whole or not at all, and never through a link.

The bytes go to a temporary file in the same folder. Once they are on the disk, it takes the old file's name in a single
`os.replace`. So a kill at any moment leaves the old file or the new one.

A folder may come from somebody else, who has put a link where a program is going to write. A link that has the name of
a file is replaced, and what it points to stays as it is. One that has the name of a folder, or of a file that is
appended to, is an OSError.

Only the standard library is imported here.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.ppo_fast-tmp")  # the number is the id of the process that writes it

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # never through a link
APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: whole or not at all, and on the disk when this returns.

    Raises:
        OSError: disk full, quota, no permission. `path` holds what it held before, and no temporary file stays.
    """
    _remove_leftovers(path.parent)
    temporary = temporary_name(path)
    try:
        with new_file(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def new_file(path: Path) -> BinaryIO:
    """A file that was not there before, open for writing; whatever had its name, a link also, is deleted first."""
    try:
        descriptor = os.open(path, NEW, 0o666)
    except FileExistsError:
        path.unlink()
        descriptor = os.open(path, NEW, 0o666)
    return os.fdopen(descriptor, "wb")


def appended_file(path: Path) -> BinaryIO:
    """A regular file, made if it is not there, open for appending without a buffer.

    Raises:
        OSError: it can't be opened, or is a link, a pipe, a device.
    """
    file = os.fdopen(open_kept(path, APPEND), "ab", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return file


def open_kept(path: Path, flags: int) -> int:
    """The descriptor of a file that is there or is made. OSError where it is a link; a pipe is not waited for."""
    refuse_link(path)
    # Windows, which has neither of these, has no such flags.
    unlinked, at_once = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | unlinked | at_once, 0o666)


def own_folder(path: Path) -> Path:
    """The folder `path`, made if it is not there.

    Raises:
        OSError: it can't be made, or is a link.
    """
    refuse_link(path)
    path.mkdir(exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """OSError where `path` is a link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, and nothing is written through links", str(path))


def try_out(folder: Path) -> None:
    """Write a small file into `folder` and delete it again. OSError where that can't be done."""
    temporary = temporary_name(folder / "try-out")
    try:
        with new_file(temporary) as file:
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())
    finally:
        temporary.unlink(missing_ok=True)


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
