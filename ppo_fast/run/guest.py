"""A program that is called from Python is a guest in its caller's process.

    @guest
    def train(args: Args) -> dict[str, Any]:
        ...

What it finds there does not change its numbers: another default dtype or device, autocast, gradients switched off,
products in less than fp32. What it changes is put back when it ends, in whatever way: settings of torch, environment
variables, filters of warnings, hooks, loggers, the process-wide random generators. Threads that libraries have started
stay, and so does the way in which the C library handles large buffers. There is one guest at a time: two would change
these settings under each other.
"""

import functools
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from ppo_fast.engine import caches, process
from ppo_fast.envs import handed
from ppo_fast.run import randomness
from ppo_fast.run.streams import stand_ins

P = ParamSpec("P")
R = TypeVar("R")


def guest(program: Callable[P, R]) -> Callable[P, R]:
    """The program, one at a time in a process, with settings of its own, all put back at its end.

    The program raises RuntimeError, in one line, where another one runs.
    """

    @functools.wraps(program)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with TURN.of(program.__name__), _all_put_back(), _plain_numbers(), stand_ins(), caches.home():
            return program(*args, **kwargs)

    return call


class Turn:
    """Which of a process's threads runs a program now: one, or none. A forked process begins with none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Take it for the program of this name. RuntimeError where another one has it."""
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._process = os.getpid()
        lock = self._lock
        if not lock.acquire(blocking=False):
            raise RuntimeError(f"{name}: ppo_fast is at work in this process already; wait, or start another process")
        try:
            yield
        finally:
            lock.release()


TURN = Turn()

# ---------------------------------------------------------------- put back


class Setting(NamedTuple):
    """Something of the process that is read and set."""

    get: Callable[[], Any]
    put: Callable[[Any], object]


def _settings() -> list[Setting]:
    """All that a run, or a library that it calls, may change."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn  # whose `matmul` type checkers don't see
    attributes: list[tuple[Any, str]] = [
        (matmul, "fp32_precision"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (onednn.matmul, "fp32_precision"),
        (cudnn, "deterministic"),
        (cudnn, "benchmark"),
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (sys, "exit"),  # W&B puts one of its own there
        (threading, "excepthook"),
        (logging.root, "level"),
        (logging.root.manager, "disable"),
    ]
    return [
        *(Setting(partial(getattr, owner, name), partial(setattr, owner, name)) for owner, name in attributes),
        Setting(torch.get_num_threads, torch.set_num_threads),
        Setting(torch.get_default_dtype, torch.set_default_dtype),
        Setting(_determinism, _put_back_determinism),
        Setting(sys.getrecursionlimit, sys.setrecursionlimit),  # torch.compile raises it
        Setting(gc.get_threshold, lambda before: gc.set_threshold(*before)),
        Setting(lambda: dict(os.environ), _put_back_variables),
        Setting(lambda: list(logging.root.handlers), _put_back_handlers),
        Setting(randomness.rng_state, randomness.set_rng_state),
        Setting(handed.registered, handed.put_back),
    ]


@contextmanager
def _all_put_back() -> Iterator[None]:
    """The process is afterwards as it was before."""
    states = [(setting, setting.get()) for setting in _settings()]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for setting, before in states:
            setting.put(before)


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _put_back_determinism(before: tuple[bool, bool]) -> None:
    if _determinism() != before:  # setting it imports the compiler, which takes a second
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _put_back_variables(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _put_back_handlers(before: list[logging.Handler]) -> None:
    logging.root.handlers[:] = before


# ---------------------------------------------------------------- numbers


@contextmanager
def _plain_numbers() -> Iterator[None]:
    """Numbers as in a fresh process, whatever the caller has set."""
    with ExitStack() as stack:
        with suppress(RuntimeError):  # where the caller mixes torch's old and new names for it
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
        if not process.threads_work():
            torch.set_num_threads(1)
        if torch.get_default_device().type != "cpu":
            stack.callback(torch.set_default_device, torch.get_default_device())
            torch.set_default_device(None)
        if torch.get_default_device().type != "cpu":  # the caller stands within a `with torch.device(...)`
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield
