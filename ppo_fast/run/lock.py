"""One process at a time trains in a run folder.

    lock = FolderLock(folder)      # BlockingIOError where another process has it
    ...
    lock.release()

The lock is the system's (flock) on the file `.lock`, which stays empty. It ends with the process, however that ends, so
none is ever left over; the file is, and means nothing. Processes that are forked meanwhile don't keep it.
"""

import errno
import functools
import os
import weakref
from pathlib import Path

from ppo_fast.writing import open_kept

NAME = ".lock"
# What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class FolderLock:
    """The lock of a folder, held until `release` or the end of the process.

    Attributes:
        is_held: False where the file system, or the platform, has no locks.

    Raises:
        BlockingIOError: another process, or another run in this one, has it.
        OSError: the file can't be opened, or is a link.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = open_kept(folder / NAME, os.O_RDWR | os.O_CREAT)
        try:
            self.is_held = _lock(self._descriptor)
        except BaseException:
            self.release()
            raise
        _held.add(self)
        _release_in_children()

    def release(self) -> None:
        """Let others have it. May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _release_all() -> None:
    """In a process just forked: only its parent's end of each file keeps the lock."""
    for lock in list(_held):
        lock.release()


_held: weakref.WeakSet["FolderLock"] = weakref.WeakSet()


@functools.cache
def _release_in_children() -> None:
    """See to it that no forked process keeps a lock: once, since such a hook can't be taken back."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_release_all)


def _lock(descriptor: int) -> bool:
    """Whether there are locks here. BlockingIOError where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True
