"""A training program, found by the name that a file gives it.

A policy, a checkpoint and a crash file say which program wrote them. Its Args, Agent and iteration are used to read
them. The name is data from anywhere, so only programs of ppo_fast are imported.
"""

import importlib
import re
from itertools import pairwise
from types import ModuleType
from typing import Any

ORDINARY = 10_000_000  # parameters, so many that making them in vain does no harm
NAME = re.compile(r"ppo_fast\.train(_\w+)?")


def is_program(name: object) -> bool:
    """Whether something is the name of a training program of ppo_fast, which may not be here."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def load(name: str) -> ModuleType:
    """The program of this name.

    Raises:
        ModuleNotFoundError: it is not here.
    """
    assert is_program(name)
    return importlib.import_module(name)


def least_parameters(flags: Any) -> int:
    """How many parameters a program's networks have at least: only the products between its hidden layers count.

    A file's flags may ask for networks of gigabytes; where it has fewer weights than this, none need be made to know
    that they don't fit. 0 for networks of an ordinary size: a program may have the flags and not heed them.
    """
    hidden_sizes = getattr(flags, "hidden_sizes", ())
    memory = getattr(flags, "lstm_hidden_size", 0)
    count = sum(a * b for a, b in pairwise(hidden_sizes)) + 4 * memory**2
    return count if count > ORDINARY else 0
