"""Single environments in processes of their own, a block of them in each, behind shared arrays.

A message is a word over a pipe; observations, rewards and actions lie in shared memory. A worker that dies or hangs is
told apart from a slow one and named by the environment that it was at. Letters as in singles.py; W workers.
"""

import contextlib
import ctypes
import itertools
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper, batch_space

from ppo_fast.envs.encoded import HostStep
from ppo_fast.envs.faults import EnvironmentFault
from ppo_fast.envs.seeds import drawn_seeds, process_seed, seed_process
from ppo_fast.envs.singles import Block, Kind, Layout, MakeEnv, Rows, SingleVectorEnv

# Seconds that workers get to close their environments before they are killed.
CLOSING = 3.0
# Signals that a scheduler or a terminal sends to every process of a run: stopping is the trainer's business, which
# saves first, and a worker that went at once would be a fault.
IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
CACHE_LINE = 64  # bytes


class Shared(NamedTuple):
    """The arrays that the trainer and its workers share: each process lays them over the same memory."""

    rows: Rows
    actions: np.ndarray  # (N, *A), what each environment is to do
    at: np.ndarray  # (W,) int64, which environment each worker is at

    @staticmethod
    def layout(kind: Kind, num_envs: int, num_workers: int) -> Layout:
        """Shape and type of each array."""
        actions = batch_space(kind.action_space, num_envs)
        assert actions.shape is not None and actions.dtype is not None
        layout = Rows.layout(kind, num_envs)
        layout["actions"] = (actions.shape, actions.dtype)
        layout["at"] = ((num_workers,), np.dtype(np.int64))
        return layout

    @classmethod
    def over(cls, memory: ctypes.Array, layout: Layout) -> "Shared":
        """The arrays over one piece of memory of `shared_bytes(layout)`."""
        arrays = {}
        offset = 0
        for name, (shape, dtype) in layout.items():
            arrays[name] = np.ndarray(shape, dtype, memoryview(memory), offset)
            offset += _padded_bytes(shape, dtype)
        actions = arrays.pop("actions")
        at = arrays.pop("at")
        return cls(Rows(**arrays), actions, at)


def shared_bytes(layout: Layout) -> int:
    """Bytes that the arrays of a layout take together."""
    return sum(_padded_bytes(shape, dtype) for shape, dtype in layout.values())


def _padded_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, up to a whole cache line, so that no two arrays share one."""
    lines = math.ceil(math.prod(shape) * dtype.itemsize / CACHE_LINE)
    return lines * CACHE_LINE


@dataclass
class Task:
    """What a worker process is started with."""

    worker: int  # its number, from 0
    first: int  # the index of its first environment
    makers: Any  # CloudpickleWrapper of a tuple of MakeEnv, one for each of its environments
    kind: Kind
    memory: ctypes.Array  # of the shared arrays
    layout: Layout  # of the shared arrays
    seed: int  # of its shared generators: a fork would go on with its parent's, as every other one does


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

    def step(self, actions: np.ndarray) -> HostStep:
        """Step all with actions (N, *A)."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Hand out actions (N, *A) and return; `step_wait` has to follow."""
        self._shared.actions[...] = actions
        self._tell("step")

    def step_wait(self) -> HostStep:
        """What `step` returns, once every worker has stepped."""
        self._answers()
        return self._stepped()

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """What the method of this name returns, of each environment. It comes over a pipe."""
        self._tell("call", name, args)
        return self._of_all()

    def render(self) -> tuple[Any, ...]:
        """A frame of each environment."""
        self._tell("render")
        return self._of_all()

    def _of_all(self) -> tuple[Any, ...]:
        """The answers of all workers, each a list with one item an environment."""
        return tuple(itertools.chain.from_iterable(self._answers()))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments. Workers that don't answer are killed: this neither hangs nor raises."""
        with contextlib.suppress(AttributeError):  # __init__ failed before there were any
            self._finalizer()

    def _start(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        context = multiprocessing.get_context()
        layout = Shared.layout(kind, self.num_envs, self._num_workers)
        memory = context.RawArray(ctypes.c_byte, shared_bytes(layout))
        self._shared = Shared.over(memory, layout)
        self._rows = self._shared.rows
        bounds = np.linspace(0, self.num_envs, self._num_workers + 1).astype(int).tolist()
        self.blocks = [range(first, end) for first, end in itertools.pairwise(bounds)]
        self._shared.at[:] = bounds[:-1]
        self.processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Also where nobody calls close(): at exit, before multiprocessing itself would wait for the workers in vain.
        self._finalizer = util.Finalize(self, _end, args=(self.processes, self._pipes), exitpriority=100)
        seeds = drawn_seeds(self._num_workers)
        for worker, block in enumerate(self.blocks):
            ours, theirs = context.Pipe()
            own_makers = CloudpickleWrapper(tuple(makers[block.start : block.stop]))  # type: ignore[arg-type]
            task = Task(worker, block.start, own_makers, kind, memory, layout, seeds[worker])
            process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=(theirs, ours, task), name=f"environments-{worker}", daemon=True
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

    def _reset(self, seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        self._tell("reset", seeds, mask, options)
        self._answers()

    def _tell(self, command: str, *arguments: Any) -> None:
        """Send a command of `_work` to every worker; `_answers` has to follow."""
        if self.fault is not None:
            raise EnvironmentFault(self.fault.index, self.fault.reason, self.fault.trace)
        for worker, pipe in enumerate(self._pipes):
            try:
                pipe.send((command, arguments))
            except OSError:
                self._raise_dead(worker)

    def _answers(self) -> list[Any]:
        """One answer of each worker."""
        answers: list[Any] = [None] * len(self._pipes)
        waiting = {pipe: worker for worker, pipe in enumerate(self._pipes)}
        look = min(1.0, self.timeout / 4)
        at = self._shared.at.copy()
        since = np.full(len(self._pipes), time.monotonic())
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
            if answer.trace:
                answer.add_note(answer.trace)  # the process in which it was raised is another one
            raise answer
        return answer

    def _look_after(self, workers: list[int], at: np.ndarray, since: np.ndarray) -> None:
        """Raise if one of these workers died (its pipe may be held open by a child of its own), or stays at one
        environment for too long.

        Args:
            workers: their numbers.
            at: (W,), which environment each was at when it was last looked at; brought up to date here.
            since: (W,), when that was seen first, by time.monotonic; brought up to date here.
        """
        now = time.monotonic()
        for worker in workers:
            if not self.processes[worker].is_alive():
                self._raise_dead(worker)
            if self._shared.at[worker] != at[worker]:
                at[worker] = self._shared.at[worker]
                since[worker] = now
            if now - since[worker] > self.timeout:
                self.processes[worker].kill()
                self._raise(worker, f"gave no answer for {self.timeout:g} s")

    def _raise_dead(self, worker: int) -> NoReturn:
        self.processes[worker].join(1.0)
        self._raise(worker, f"died (exit code {self.processes[worker].exitcode})")

    def _raise(self, worker: int, reason: str) -> NoReturn:
        block = self.blocks[worker]
        if len(block) > 1:
            reason += f"; its worker runs environments {block.start} to {block.stop - 1}"
        self.fault = EnvironmentFault(int(self._shared.at[worker]), reason)
        raise self.fault


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end(processes: list[BaseProcess], pipes: list[Connection]) -> None:
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


def _kill(process: BaseProcess) -> None:
    """End a worker, and what it started: it leads a process group of its own."""
    assert process.pid is not None
    if process.exitcode != 0 and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(CLOSING)


def _work(pipe: Connection, parents: Connection, task: Task) -> None:
    """The life of a worker: make the environments, do as told, until "close" or the parent's end."""
    parents.close()
    _settle_in()
    seed_process(task.seed)
    if task.kind.theirs.settings is not None:
        task.kind.theirs.settings.put()  # nothing else runs here
    makers: tuple[MakeEnv, ...] = task.makers.fn
    shared = Shared.over(task.memory, task.layout)
    actions = shared.actions[task.first : task.first + len(makers)]
    block = None
    with contextlib.suppress(EOFError, OSError):
        try:
            block = Block(makers, task.first, task.kind, shared.rows, shared.at[task.worker : task.worker + 1])
            pipe.send(None)
            _serve(pipe, block, actions, task.first)
        except EnvironmentFault as fault:
            pipe.send(fault)
    if block is not None:
        block.close()


def _serve(pipe: Connection, block: Block, actions: np.ndarray, first: int) -> None:
    """Do what the messages (command, arguments) say, and answer each, until "close".

    Args:
        actions: of this worker's environments, in shared memory.
        first: the index of the first of them.
    """

    def reset(seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        seed = process_seed(seeds[first : first + len(actions)], first)
        if seed is not None:
            seed_process(seed)
        block.reset(seeds, mask, options)

    commands: dict[str, Callable[..., Any]] = {
        # A copy: an environment may keep its action, and the next one comes into the same memory.
        "step": lambda: block.step(actions.copy()),
        "reset": reset,
        "render": block.render,
        "call": block.call,
    }
    while True:
        command, arguments = pipe.recv()
        if command == "close":
            return
        pipe.send(commands[command](*arguments))


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
