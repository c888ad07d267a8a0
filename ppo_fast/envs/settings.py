"""Process-wide settings of torch and NumPy that an environment makes, kept apart from the program's.

A module that says `torch.set_default_dtype(torch.float64)` means its own code, which may not work otherwise. The
program's tensors stay as they are without it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

R = TypeVar("R")


class Settings(NamedTuple):
    """What holds for a whole process, or a thread of it."""

    dtype: torch.dtype
    device: torch.device
    float_errors: dict[str, Any]  # as np.geterr has them

    @classmethod
    def now(cls) -> "Settings":
        """Those that hold."""
        return cls(torch.get_default_dtype(), torch.get_default_device(), dict(np.geterr()))

    def put(self) -> None:
        """Let these hold."""
        torch.set_default_dtype(self.dtype)
        np.seterr(**self.float_errors)
        if torch.get_default_device() != self.device:  # one that is set costs time at every call of torch
            torch.set_default_device(None)
            if torch.get_default_device() != self.device:
                torch.set_default_device(self.device)


class Theirs:
    """The settings of one environment's code.

    Attributes:
        settings: None while it has changed none.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None

    def call(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """What code of an environment returns, with its own settings."""
        with self.hold():
            return function(*args, **kwargs)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Inside they hold, and what is set there is one of them; outside it is as before. Gradients are switched on or
        off as before, too."""
        before = Settings.now()
        records_gradients = torch.is_grad_enabled()
        if self.settings is not None:
            self.settings.put()
        try:
            yield
        finally:
            now = Settings.now()
            if self.settings is not None or now != before:
                self.settings = now
                before.put()
            torch.set_grad_enabled(records_gradients)


def theirs_of(env_id: str) -> Theirs:
    """The settings of the environment of this id: the same object in the whole process, which imports a module once."""
    return _cached(env_id) if env_id else Theirs()


@functools.cache
def _cached(env_id: str) -> Theirs:
    return Theirs()
