"""A training program, found by the name that a file gives it.

A policy, a checkpoint and a crash file say which program wrote them. Its Args, Agent and iteration are used to read
them. The name is data from anywhere: programs of ppo_fast are imported, and one of somebody's own by the same rule as
the module of an environment (see modules.py): from the working folder, where it is installed, or on a path that the
user has set.
"""

import ast
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from ppo_fast import names
from ppo_fast.run import modules

ORDINARY = 10_000_000  # parameters, so many that making them in vain does no harm
OURS = re.compile(r"ppo_fast\.train(_\w+)?")
NAME = re.compile(r"[^\W\d][\w-]*(\.[^\W\d][\w-]*)*")  # letters of any alphabet
TO_PLAY = ("Args", "Agent")  # what of a program a policy needs
TO_LEARN = (*TO_PLAY, "setup", "make_iteration")  # and what its iterations need


def is_program(name: object) -> bool:
    """Whether something is the name of a training program of ppo_fast, which may not be here."""
    return isinstance(name, str) and OURS.fullmatch(name) is not None


def load(name: object, folder: Path, trusts: bool, parts: Sequence[str] = TO_PLAY) -> tuple[ModuleType, list[str]]:
    """The program of this name, and lines to say of its import.

    Args:
        name: as a file has it.
        folder: of the file: nothing is imported from there.
        trusts: whether the user said that any module may be imported.
        parts: what it has to have.

    Raises:
        ValueError: it is not here, is not imported, or is no training program, in words that go on after "its program".
    """
    if not isinstance(name, str) or NAME.fullmatch(name) is None or name == "__main__":
        raise ValueError(f"is {name!r}, which has no file of its own that could be imported")
    running = _running(name, parts)
    if running is not None:
        return running, []
    said: list[str] = []
    try:
        if not is_program(name):
            _check_source(name, parts)
            said = modules.check_module(name, "of its program", folder, trusts)
        program = importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{name}.".startswith(f"{problem.name}."):
            raise ValueError(f"{name} can't be imported: {names.first_line(problem)}") from problem
        lies = f"start where {name.rpartition('.')[2]}.py lies, with your own script beside it, or set PYTHONPATH"
        raise ValueError(f"is {name}, which is not here" + ("" if is_program(name) else f"; {lies}")) from problem
    except modules.Refused as problem:
        raise ValueError(f"is not imported: {problem}") from problem
    except NotAProgram as problem:
        raise ValueError(f"is {name}, which is no training program: {problem}") from problem
    except Exception as problem:  # any, of code of somebody's own
        raise ValueError(f"{name} can't be imported: {names.kind_and_line(problem)}") from problem
    missing = [part for part in parts if not hasattr(program, part)]
    if missing or not is_dataclass(program.Args):
        raise ValueError(f"is {name}, which is no training program: it has no {', '.join(missing) or 'Args'}")
    return program, said


class NotAProgram(ValueError):
    """A module is no training program; the message says what it lacks."""


def _check_source(name: str, parts: Sequence[str]) -> None:
    """NotAProgram where the source of a module says so: then it is not even imported."""
    places = modules.places_of(name) if name not in sys.modules else []
    if not places or places[-1].suffix != ".py":
        return
    try:
        tree = ast.parse(places[-1].read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # its import says more
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name):
            defined.add(node.id)
    missing = [part for part in parts if part not in defined]
    if missing and "*" not in defined:
        raise NotAProgram(f"it has no {', '.join(missing)}")


def _running(name: str, parts: Sequence[str]) -> ModuleType | None:
    """The script that this process runs, where that is the program."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if main is None or file is None or getattr(main, "__spec__", None) is not None or Path(file).stem != name:
        return None
    return main if all(hasattr(main, part) for part in parts) else None


def least_parameters(flags: Any) -> int:
    """How many parameters a program's networks have at least: only the products between its hidden layers count.

    A file's flags may ask for networks of gigabytes; where it has fewer weights than this, none need be made to know
    that they don't fit. 0 for networks of an ordinary size: a program may have the flags and not heed them.
    """
    hidden_sizes = getattr(flags, "hidden_sizes", ())
    memory = getattr(flags, "lstm_hidden_size", 0)
    count = sum(a * b for a, b in pairwise(hidden_sizes)) + 4 * memory**2
    return count if count > ORDINARY else 0
