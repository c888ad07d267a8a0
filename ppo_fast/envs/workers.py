"""Single environments in processes of their own, a block of them in each, behind shared arrays.

A message is a word over a pipe; observations, rewards and actions lie in shared memory. A worker that dies or hangs is
told apart from a slow one and named by the environment that it was at. Letters as in singles.py; W workers.
"""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing import connection, util
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper, batch_space

from ppo_fast.envs.host import EnvironmentFault
from ppo_fast.envs.singles import Block, Kind, MakeEnv, Rows, SingleVectorEnv

# Seconds that workers get to close their environments before they are killed.
CLOSING = 3.0
# Signals that a scheduler or a terminal sends to every process of a run: stopping is the trainer's business, which
# saves first, and a worker that went at once would be a fault.
IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class WorkerVectorEnv(SingleVectorEnv):
    """N single environments in W processes; otherwise as SingleVectorEnv.

    Args:
        makers: make the N environments, one each; they are called in the workers.
        kind: from `find_kind`.
        num_workers: W; None takes one for each CPU that this process may use. More are right only for environments
            that wait for something else than a CPU.
        timeout: seconds that one environment may take for one step, reset or start.

    Raises:
        EnvironmentFault: from every method, when a worker dies, hangs or an environment raises. After that every call
            raises it again, but `close`, which never raises.
    """

    def __init__(
        self, makers: Sequence[MakeEnv], kind: Kind, num_workers: int | None = None, timeout: float = 60.0
    ) -> None:
        self._num_workers = min(len(makers), num_workers or usable_cpus())
        self.timeout = timeout
        self.fault: EnvironmentFault | None = None
        super().__init__(makers, kind)

    def _start(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        context = multiprocessing.get_context()
        actions = batch_space(kind.action_space, self.num_envs)
        layout = [
            *Rows.layout(kind, self.num_envs),
            (actions.shape, actions.dtype),
            ((self._num_workers,), np.dtype(np.int64)),
        ]
        size = sum(_aligned(shape, dtype) for shape, dtype in layout)
        shared = context.RawArray(ctypes.c_byte, size)
        *rows, self._actions, self._at = _arrays(shared, layout)
        self._rows = Rows(*rows)
        bounds = np.linspace(0, self.num_envs, self._num_workers + 1).astype(int).tolist()
        self.blocks = [range(a, b) for a, b in itertools.pairwise(bounds)]
        self._at[:] = bounds[:-1]
        self.processes, self._pipes = [], []
        # Also where nobody calls close(): at exit, before multiprocessing itself would wait for the workers in vain.
        self._finalizer = util.Finalize(self, _end, args=(self.processes, self._pipes), exitpriority=100)
        for worker, block in enumerate(self.blocks):
            ours, theirs = context.Pipe()
            work = (CloudpickleWrapper(tuple(makers[block.start : block.stop])), block.start, kind, worker)  # type: ignore[arg-type]
            process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=(theirs, ours, shared, layout, *work), name=f"environments-{worker}", daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)
        try:
            self._answers()
        except EnvironmentFault:
            self.close()
            raise

    def step_async(self, actions: np.ndarray) -> None:
        """Hand out actions (N, *A) and return; `step_wait` has to follow."""
        self._actions[...] = actions
        self._tell("step")

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """What `step` returns, once every worker has stepped."""
        self._answers()
        return self._stepped()

    def _run(self, command: str, *arguments: Any) -> list[Any]:
        self._tell(command, *arguments)
        return [item for answer in self._answers() for item in answer or ()]

    def _tell(self, command: str, *arguments: Any) -> None:
        if self.fault is not None:
            raise EnvironmentFault(self.fault.index, self.fault.reason)
        for worker, pipe in enumerate(self._pipes):
            try:
                pipe.send((command, arguments))
            except OSError:
                self._raise_dead(worker)

    def _run_step(self, actions: np.ndarray) -> None:
        self.step_async(actions)
        self._answers()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments. Workers that don't answer are killed: this neither hangs nor raises."""
        with contextlib.suppress(AttributeError):  # __init__ failed before there were any
            self._finalizer()

    def _answers(self) -> list[Any]:
        """One answer of each worker."""
        answers: list[Any] = [None] * len(self._pipes)
        waiting = dict(zip(self._pipes, range(len(self._pipes)), strict=True))
        look = min(1.0, self.timeout / 4)
        at, since = self._at.copy(), np.full(len(self._pipes), time.monotonic())
        while waiting:
            ready = connection.wait(list(waiting), timeout=look)
            for pipe in ready:
                assert isinstance(pipe, Connection)
                worker = waiting.pop(pipe)
                answers[worker] = self._answer(worker, pipe)
            if not ready:
                self._look_after(list(waiting.values()), at, since)
        return answers

    def _answer(self, worker: int, pipe: Connection) -> Any:
        try:
            answer = pipe.recv()
        except (OSError, EOFError):
            self._raise_dead(worker)
        if isinstance(answer, EnvironmentFault):
            self.fault = answer
            raise answer
        return answer

    def _look_after(self, workers: list[int], at: np.ndarray, since: np.ndarray) -> None:
        """Raise if one of these workers died (its pipe may be held open by a child of its own), or stays at one
        environment for too long."""
        now = time.monotonic()
        for worker in workers:
            if not self.processes[worker].is_alive():
                self._raise_dead(worker)
            if self._at[worker] != at[worker]:
                at[worker], since[worker] = self._at[worker], now
            if now - since[worker] > self.timeout:
                self.processes[worker].kill()
                self._raise(worker, f"gave no answer for {self.timeout:g} s")

    def _raise_dead(self, worker: int) -> None:
        self.processes[worker].join(1.0)
        self._raise(worker, f"died (exit code {self.processes[worker].exitcode})")

    def _raise(self, worker: int, reason: str) -> None:
        block = self.blocks[worker]
        if len(block) > 1:
            reason += f"; its worker runs environments {block.start} to {block.stop - 1}"
        self.fault = EnvironmentFault(int(self._at[worker]), reason)
        raise self.fault


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end(processes: list[Any], pipes: list[Connection]) -> None:
    """Ask the workers to close, wait, kill what is left."""
    for pipe in pipes:
        with contextlib.suppress(OSError, ValueError):
            pipe.send(("close", ()))
    deadline = time.monotonic() + CLOSING
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        _kill(process)
    for pipe in pipes:
        pipe.close()


def _kill(process: Any) -> None:
    """End a worker, and what it started: it leads a process group of its own."""
    if process.exitcode != 0 and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(CLOSING)


def _work(
    pipe: Connection, parents: Connection, shared: Any, layout: list, wrapped: Any, first: int, kind: Kind, worker: int
) -> None:
    """The life of a worker: make the environments, do as told, until "close" or the parent's end."""
    parents.close()
    _settle_in()
    makers = wrapped.fn
    *rows, actions, at = _arrays(shared, layout)
    actions = actions[first : first + len(makers)]
    block = None
    with contextlib.suppress(EOFError, OSError):
        try:
            block = Block(makers, first, kind, Rows(*rows), at[worker : worker + 1])
            pipe.send(None)
            while (message := pipe.recv())[0] != "close":
                command, arguments = message
                # A copy: an environment may keep its action, and the next one comes into the same memory.
                pipe.send(block.step(actions.copy()) if command == "step" else getattr(block, command)(*arguments))
        except EnvironmentFault as fault:
            fault.add_note("".join(traceback.format_exception(fault.__cause__)))
            pipe.send(fault)
    if block is not None:
        block.close()


def _settle_in() -> None:
    """Ignore the signals that are meant for the trainer, and make sure not to outlive it."""
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = os.getppid()
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: a worker that hangs doesn't see that its pipe was closed. It also comes when the thread that
        # made the worker ends, so environments are to be made in one that lasts as long as they do.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array in shared memory, up to the next cache line."""
    return -(-int(np.prod(shape)) * dtype.itemsize // 64) * 64


def _arrays(shared: Any, layout: list[tuple[tuple[int, ...], np.dtype]]) -> list[np.ndarray]:
    """The arrays of `layout` over one piece of shared memory."""
    arrays, offset = [], 0
    for shape, dtype in layout:
        arrays.append(np.ndarray(shape, dtype, shared, offset))
        offset += _aligned(shape, dtype)
    return arrays
