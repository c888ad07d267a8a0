"""Where a module lies that a file names, of its environment or its program: no run folder runs code of its own.

`module:Env-v0` imports the module, and a shared run folder can name any. To Python, every folder below the working one
is a package. So a module that nobody typed is imported only where it is installed, on a path that the user has set, or
in the working folder itself.
"""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ppo_fast import names

# What tells a run folder. Its configuration alone is no sign: other programs have a config.json, too.
SIGNS = (names.POLICY_FILE, names.METRICS_FILE, "checkpoints")
INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")


class Refused(ValueError):
    """A module is not imported; the message says why."""


def check(env_id: str, run: Path, trusts: bool) -> list[str]:
    """Lines to say of the module that this id of a file imports; none where nothing is imported.

    Args:
        env_id: as the file has it.
        run: the folder of the file.
        trusts: whether the user said that any module may be imported.

    Raises:
        ValueError: why the module is not imported, in words that go on after the name of the file.
    """
    module = env_id.rpartition(":")[0]
    return check_module(module, "of its environment", run, trusts) if module else []


def check_module(module: str, role: str, run: Path, trusts: bool) -> list[str]:
    """The same of a module by its name.

    Args:
        module: as the file has it.
        role: "of its environment", say.
        run, trusts: see `check`.
    """
    if module in sys.modules:
        return []
    places = places_of(module)
    if not places:
        return []  # its import says what is missing
    reason = None if trusts or _is_installed(module, places) else _reason_against(places, run.resolve())
    if reason is not None:
        raise Refused(
            f"the module {names.printable(module)!r} {role} is {places[-1]}, {reason}; "
            "if you know that code, --trust imports it"
        )
    return [f"imports {names.printable(module)} from {places[-1]}"]


def places_of(module: str) -> list[Path]:
    """The files, or folders, of the packages that a module lies in, and its own, found without importing any; empty
    where there is none."""
    places: list[Path] = []
    where: Sequence[str] | None = None  # on Python's path
    for name in module.split("."):
        spec = _find(name, where)
        if spec is None:
            return []
        where = list(spec.submodule_search_locations or ())
        place = spec.origin if spec.has_location and spec.origin else next(iter(where), None)
        if place is None:  # built into Python
            return []
        places.append(Path(place).resolve())
    return places


def _find(name: str, where: Sequence[str] | None) -> ModuleSpec | None:
    """The module of this name, without its packages', in these folders. None where there is none."""
    try:
        if where is not None:
            return PathFinder.find_spec(name, where)
        found = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next((spec for spec in found if spec is not None), None)
    except (ImportError, ValueError, AttributeError, OSError):
        return None


def _is_installed(module: str, places: Sequence[Path]) -> bool:
    """Whether a package manager has put it there."""
    folders = {Path(sysconfig.get_path(name)).resolve() for name in INSTALLED}
    if any(places[0].is_relative_to(folder) for folder in folders):
        return True
    return module.split(".")[0] in metadata.packages_distributions()  # such as one that is installed to be edited


def _reason_against(places: Sequence[Path], run: Path) -> str | None:
    """Why code that was not installed is not run, in words; None where it is."""
    here = Path.cwd().resolve()
    file = places[-1]
    if any(_is_run_folder(folder) or folder == run for folder in _folders(file)):
        return "inside a run folder"
    if not file.is_relative_to(here) or not _is_on_path(here, file):
        return None  # on a path that the user has set
    if file.parent == here:
        return None
    packages = [place.parent if place.name == "__init__.py" else place for place in places[:-1]]
    if not all((package / "__init__.py").is_file() for package in packages):
        return "below the working folder in one that is no package"
    return "in a package around the run folder" if any(run.is_relative_to(package) for package in packages) else None


def _is_on_path(here: Path, file: Path) -> bool:
    """Whether a file is found by way of the working folder, rather than of another one on Python's path below it."""
    entries = [Path(entry or here).resolve() for entry in sys.path]
    nearer = [entry for entry in entries if file.is_relative_to(entry)]
    return max(nearer, key=lambda entry: len(entry.parts), default=here) == here


def _folders(file: Path) -> Iterator[Path]:
    """The folders that a file lies in, the nearest first."""
    yield from file.parents if file.suffix else (file, *file.parents)


def _is_run_folder(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in SIGNS)
