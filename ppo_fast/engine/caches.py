"""Folders for what is kept between runs, also where a user has no home or may not write where he should.

    with home():                               # of an account that has none, as in `docker run --user 1234`
        said = for_compiled_code()             # [], or a line about the folder that is used instead

A folder that can't be written is stood in for by one of the user's own below the system's folder for temporary files,
which no other user can write to: what lies in a cache is run.
"""

import getpass
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def home() -> Iterator[None]:
    """An account without a home or a name, which libraries take for granted, has some inside; a home is said."""
    missing: dict[str, str] = {}
    with suppress(OSError):  # or there is no room for one
        if not os.path.isabs(os.path.expanduser("~")):
            missing["HOME"] = str(private_folder())
            _complain(f"warning: this account has no home folder; {missing['HOME']} stands in for it (HOME)")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # no such user id, before Python 3.13 and since
        missing["USER"] = f"user-{os.getuid()}"
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def for_compiled_code() -> list[str]:
    """Let torch.compile keep its code where the user says, else among his caches; lines about what can't be."""
    return usable("TORCHINDUCTOR_CACHE_DIR", below("XDG_CACHE_HOME", ".cache") / "ppo_fast" / "inductor")


def for_wandb(artifacts: bool) -> list[str]:
    """The same for Weights & Biases' own files, and for the copies of what is uploaded."""
    said = usable("WANDB_CACHE_DIR", below("XDG_CACHE_HOME", ".cache") / "wandb")
    if artifacts:
        said += usable("WANDB_DATA_DIR", below("XDG_DATA_HOME", ".local/share") / "wandb")
    return said


def for_pictures() -> list[str]:
    """The same for Matplotlib's list of fonts, which takes seconds to make."""
    folder = below("XDG_CONFIG_HOME", ".config") / "matplotlib"
    if "MPLCONFIGDIR" not in os.environ and _why_not(folder) is None:
        return []  # Matplotlib looks there by itself, and keeps its list among the user's caches
    return usable("MPLCONFIGDIR", folder)


def no_room_for_code() -> str | None:
    """Why torch.compile can't work: it needs room for temporary files, wherever its code is kept. None if it can."""
    try:
        tempfile.gettempdir()
    except OSError as problem:
        return problem.strerror or str(problem)
    return None


def headers_can_be_kept() -> bool:
    """Whether torch.compile may keep compiled headers. It does so in a folder of its own, which can't be named."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # seconds that an eager run does not spend

    return _why_not(Path(default_cache_dir()) / "precompiled_headers" / "locks") is None


def below(variable: str, default: str) -> Path:
    """The folder that an environment variable names, else `default` in the user's home."""
    return Path(os.environ.get(variable) or os.path.join(os.path.expanduser("~"), default))


def usable(variable: str, default: Path) -> list[str]:
    """Let an environment variable name a folder that can be written: the one that it names, `default`, or a stand-in.

    Returns:
        A line where it is a stand-in, else none.
    """
    folder = Path(os.environ.get(variable) or default)
    reason = _why_not(folder)
    if reason is None:
        os.environ[variable] = str(folder)
        return []
    said = f"warning: {folder} can't be written ({reason})"
    try:
        stand_in = private_folder() / variable.lower()
    except OSError:
        return [f"{said}, nor can a folder for temporary files; {variable} may name another"]
    os.environ[variable] = str(stand_in)
    return [f"{said}; {stand_in} is used instead ({variable})"]


def private_folder() -> Path:
    """A folder that only this user can write to; the same one each time, unless somebody else has taken its name.

    Raises:
        OSError: there is no room for temporary files at all.
    """
    folder = Path(tempfile.gettempdir()) / f"ppo_fast-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if is_ours else Path(tempfile.mkdtemp(prefix="ppo_fast-"))


def _why_not(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which is made where it is not there; None where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as problem:
        return problem.strerror or str(problem)


def _complain(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads, or the stream is closed
        print(text, file=sys.stderr, flush=True)
