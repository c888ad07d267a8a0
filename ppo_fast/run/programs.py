"""A training program, found by the name that a file gives it.

A policy, a checkpoint and a crash file say which program wrote them. Its Args, Agent and iteration are used to read
them. The name is data from anywhere, so only programs of ppo_fast are imported.
"""

import importlib
import re
from types import ModuleType

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
