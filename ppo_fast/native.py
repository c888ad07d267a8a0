"""C functions of this package, compiled for this machine when they are first called, and kept for later runs.

    library = compiled(Path(__file__).with_name("lstm.c"))     # None where there is no C compiler

For loops whose steps are too small for calls from Python. Each has a slower way without C beside it.
Only the standard library is imported here.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path

SECONDS = 60  # that compiling may take
# Fast arithmetic that leaves NaN and infinity what they are.
FLAGS = ("-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
FOR_THIS_MACHINE = ("-march=native",)  # which some compilers don't know
COMPILERS = ("cc", "gcc", "clang")

_one_at_a_time = threading.Lock()


def compiled(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file; None, with a warning, where they can't be had: no compiler, no room for what it makes.

    The environment variable CC names another compiler, and an empty one none.
    """
    with _one_at_a_time:
        return _compiled(source)


@functools.cache
def _compiled(source: Path) -> ctypes.CDLL | None:
    compiler = _compiler()
    if compiler is None:
        if "CC" not in os.environ:
            _warn(source, f"no C compiler, none of {', '.join(COMPILERS)}")
        return None
    text = source.read_bytes()
    problem: Exception | None = None
    for own_flags in (FOR_THIS_MACHINE, ()):
        command = [*compiler, *FLAGS, *own_flags]
        try:
            return ctypes.CDLL(str(_library(source, text, command)))
        except (OSError, subprocess.SubprocessError) as failure:
            problem = failure
    _warn(source, str(problem).split("\n")[0])
    return None


def _warn(source: Path, reason: str) -> None:
    warnings.warn(f"{source.name} can't be compiled, a slower way is taken: {reason}", stacklevel=2)


def _compiler() -> list[str] | None:
    """The command of a C compiler, without flags."""
    if "CC" in os.environ:
        return shlex.split(os.environ["CC"]) or None
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    return None if found is None else [found]


def _library(source: Path, text: bytes, command: list[str]) -> Path:
    """The shared library of a C file, made unless it is there. OSError or SubprocessError where that fails."""
    # What -march=native means depends on the machine, which a folder may be shared with.
    made_of = [text, shlex.join(command).encode(), platform.platform().encode(), _processor()]
    name = f"{source.stem}-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}.so"
    folder = _folder()
    path = folder / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            new = Path(scratch) / name
            subprocess.run([*command, str(source), "-o", str(new)], check=True, capture_output=True, timeout=SECONDS)
            os.replace(new, path)
    return path


def _processor() -> bytes:
    """What tells one kind of processor from another."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"|".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))


def _folder() -> Path:
    """Where libraries are kept: this user's cache, or for this process alone where that can't be written.

    What lies there is run, so it belongs to this user, and no other can write to it.
    """
    home = Path(os.path.expanduser("~"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "ppo_fast" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        is_own = not hasattr(os, "getuid") or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)
        if is_own and folder.is_absolute() and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(_for_this_process().name)


@functools.cache
def _for_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ppo_fast-native-")
