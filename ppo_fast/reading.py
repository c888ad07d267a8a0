"""Files from anywhere, read without harm.

    data = reading.read_bytes(folder / "config.json", reading.SMALL)
    for line in reading.lines(folder / "metrics.jsonl"):
        ...

A run folder may come from somebody else, or be what a broken disk has left. Where a file should be there may lie a
folder, a pipe that nobody writes to, a device without an end, or far more bytes than such a file has. Each of these is
an OSError whose `strerror` says so in words; nothing waits, and no more is read than was asked for.

Only the standard library is imported here.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MB = 2**20
# The most bytes that are read of a file. Those of training are far smaller.
SMALL = 16 * MB  # config.json, result.json
ROWS = 4096 * MB  # metrics.jsonl, which is read line by line
POLICY = 1024 * MB
CHECKPOINT = 4096 * MB
LONGEST_LINE = MB

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_file(path: Path, most: int) -> tuple[BinaryIO, int]:
    """A regular file, open for reading, and its size in bytes. Links are followed.

    Raises:
        OSError: it can't be opened, is no regular file, or has more than `most` bytes.
    """
    _check(path, os.stat(path), most)  # a device may do something as soon as it is opened
    # Opening a pipe would wait for somebody who writes to it. Windows, which has none of these, has no such flag.
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    try:
        found = os.fstat(file.fileno())
        _check(path, found, most)
    except OSError:
        file.close()
        raise
    return file, found.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """What is in a file; what is appended while it is read is left out. Errors as in `open_file`."""
    file, size = open_file(path, most)
    with file:
        return file.read(size)


def read_text(path: Path, most: int) -> str:
    """The same as text; what is no UTF-8 is replaced."""
    return read_bytes(path, most).decode("utf-8", errors="replace")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without their ends, as `bytes.split` parts them: what is behind the last end comes, too.

    Raises:
        OSError: as in `open_file`, or a line is longer than LONGEST_LINE.
    """
    file, size = open_file(path, ROWS)
    with file:
        while size > 0:
            line = file.readline(min(size, LONGEST_LINE + 1))
            if len(line) > LONGEST_LINE:
                raise OSError(errno.EFBIG, f"holds a line of more than {LONGEST_LINE:,} bytes", str(path))
            if not line:  # it was cut meanwhile
                return
            size -= len(line)
            yield line.removesuffix(b"\n")


def what_is_at(path: Path) -> str | None:
    """What lies where a regular file should be, in words, links followed; None for a regular file and for nothing."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "a link to nothing" if os.path.islink(path) else None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else KINDS.get(stat.S_IFMT(mode), "no file")


def _check(path: Path, found: os.stat_result, most: int) -> None:
    """OSError unless it is a regular file of at most so many bytes."""
    kind = stat.S_IFMT(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"is {KINDS.get(kind, 'no file')}, not a file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"has {found.st_size:,} bytes; more than {most:,} are not read", str(path))
