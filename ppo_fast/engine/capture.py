"""Whether an iteration is compiled, recorded, captured or left as it is, and what runs it.

This module decides that (graphs.py then compiles or records single functions) and prepares the process: where compiled
code is cached, how fp32 products run, how the C library handles large buffers. On a GPU it captures whole phases.
"""

import ctypes
import functools
import importlib.metadata
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Measured with CartPole on 2 CPU cores (Zen 3), cold cache (benchmarks/LOG.md): seconds to compile everything, and the
# share of a recorded iteration that compiling saves.
COMPILE_SECONDS = 75.0
COMPILE_SAVES = 0.5
COMPILING = "a minute or two the first time, seconds once it is in the cache"
# What a recorded iteration costs on such a machine, to predict a run: per policy-and-environment step, per minibatch,
# and per GFLOP of products, with the pointwise work beside them.
SECONDS_PER_STEP, SECONDS_PER_MINIBATCH, SECONDS_PER_GFLOP = 2.5e-4, 1.3e-3, 3.8e-2

COMPILERS = {"cpu": "g++", "cuda": "gcc"}

# Recording takes as long as some ten eager iterations of a small run.
FEW_ITERATIONS = 20

# Relative error of one rounding, by `--precision`.
ROUNDING = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-9}

# Rows of a minibatch up to which an eager update is run on one thread.
EAGER_ROWS = 1024

# Rollout steps compiled as one graph on a CPU: more costs compile time in proportion and saves little (LOG.md).
CHUNK = 8

# The phases, as the profiler shows them.
COLLECT, LEARN = "environment and policy", "values, advantages, updates"

# What an iteration makes anew, by the beginning of its name, and what its first half changes besides.
FROM_ROLLOUT = ("rollout.", "advantage")
FROM_COLLECT = (*FROM_ROLLOUT, "env", "obs")


class Stopwatch:
    """Seconds by name: `lap(name)` books what has passed since the lap before, the first one since `started`."""

    def __init__(self, started: float | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.started = self._last = time.time() if started is None else started

    @classmethod
    def since_process_start(cls) -> "Stopwatch":
        """Started when this process was, so that imports count too; now, where the system does not say."""
        try:
            with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
                ticks = int(stat.read().rpartition(")")[2].split()[19])
                age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return cls()
        return cls(time.time() - age)

    def lap(self, name: str) -> None:
        """Book the seconds since the last lap under `name`."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def compiler_on_path(device: torch.device) -> bool:
    """Whether a compiler that torch.compile can call is there: of C++ for a CPU, of C for what launches GPU kernels."""
    names = ("CXX", "g++", "clang++", "c++") if device.type == "cpu" else ("CC", "gcc", "clang", "cc")
    return any(shutil.which(name) for name in (os.environ.get(names[0], ""), *names[1:]) if name)


def recorded_seconds(flags: Any, parameters: int) -> float:
    """Predicted seconds of a run on a CPU without compiling: launches of small kernels, and products."""
    flops = 2.0 * parameters * flags.batch_size * (1 + 3 * flags.update_epochs)
    minibatches = flags.update_epochs * flags.num_minibatches
    launches = flags.num_steps * SECONDS_PER_STEP + minibatches * SECONDS_PER_MINIBATCH
    return flags.num_iterations * (launches + flops * 1e-9 * SECONDS_PER_GFLOP)


def decide(flags: Any, device: torch.device, parameters: int) -> tuple[bool, str]:
    """Whether to compile, and why, in words.

    Args:
        flags: a program's; `compile` is "auto", "on" or "off". auto compiles only what pays for its compilation within
            this run. It goes by the flags alone, never by a clock, so that equal seeds give equal runs.
        parameters: how many the agent has.
    """
    if flags.compile == "off":
        return False, "eager (--compile off)"
    how = "recorded" if records(flags, device) else "captured" if captures(flags, device) else "eager"
    if not compiler_on_path(device):
        return False, f"{how} (warning: torch.compile needs a compiler such as {COMPILERS[device.type]}; none is found)"
    if flags.compile == "on":
        return True, "compiled (--compile on)"
    seconds = recorded_seconds(flags, parameters)
    if seconds * COMPILE_SAVES > COMPILE_SECONDS:
        return True, "compiled (a run this long saves more time than compiling takes)"
    return False, f"{how} (about {seconds:.0f} s; compiling would take longer than it saves)"


def captures(flags: Any, device: torch.device) -> bool:
    """Whether phases are captured as CUDA graphs, compiled or not: launching kernels one by one takes longer."""
    return device.type == "cuda" and flags.compile != "off"


def records(flags: Any, device: torch.device) -> bool:
    """Whether what is not compiled is recorded and replayed (ppo_fast.engine.graphs): on a CPU, with --compile auto, in
    a run of enough iterations. It goes by the flags alone, too. torch has TorchScript for Python before 3.14 only."""
    long = flags.num_iterations > FEW_ITERATIONS
    return device.type == "cpu" and flags.compile == "auto" and long and sys.version_info < (3, 14)


def prepare(flags: Any) -> torch.device:
    """Set up this process and pick the device: CUDA where it is wanted and there, else the CPU. May be called again.

    Raises:
        ValueError: `--precision: ...` when the device has no such products.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(base / "ppo_fast" / "inductor")
    torch.backends.cudnn.deterministic = flags.torch_deterministic
    if flags.cuda and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if flags.precision == "tf32" else "highest")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in fp32
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores for float32")  # the user decides
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if flags.precision == "tf32":
        raise ValueError("--precision: tf32 needs a CUDA device; fp32 and bf16 run on a CPU")
    if sys.platform == "linux":
        _keep_large_buffers()
    return torch.device("cpu")


def _keep_large_buffers() -> None:
    # glibc hands every buffer above 128 KB back to the system and faults it in again at the next use: half of the time
    # of a large update. M_TRIM_THRESHOLD = -1, M_TOP_PAD = -2, M_MMAP_THRESHOLD = -3 in malloc.h; musl has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((-1, 1 << 30), (-2, 1 << 26), (-3, 1 << 30)):
            mallopt(option, value)


def eager(function: Callable[..., Any], one_thread: bool = False) -> Callable[..., Any]:
    """The function as it is, or on one intra-op thread."""
    return with_threads(function, 1) if one_thread else function


def with_threads(function: Callable[..., Any], threads: int) -> Callable[..., Any]:
    """The function run with so many intra-op threads; changing the number costs nothing measurable."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return function(*args)
        finally:
            torch.set_num_threads(before)

    return call


def with_products(function: Callable[..., Any], setting: str) -> Callable[..., Any]:
    """The function run with this setting of `torch.set_float32_matmul_precision`."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            return function(*args)
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def fast_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose fp32 matrix products run through oneDNN on a CPU: for many rows about twice as fast as MKL's.

    The "medium" precision setting selects it, and allows bf16 units where a CPU has them. On such a processor the
    result would change by more than float32 rounding; a product is probed once, and then the setting is left alone.
    """
    return with_products(function, "medium") if _agrees_with_fp32() else function


def _agrees_with_fp32() -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    torch.set_float32_matmul_precision("medium")
    fast = a @ b
    torch.set_float32_matmul_precision("highest")
    exact = a.double() @ b.double()
    return float((fast - exact).norm() / exact.norm()) < 2e-6


class CudaGraph:
    """A function without arguments, captured once as a CUDA graph and replayed by calling this object.

    The function must read and write tensors that stay where they are, with static shapes and no host sync. It is run
    three times before capture, to warm up and to compile.

    Args:
        function: returns None, a tensor or a tuple of tensors; a replay refreshes these very tensors.
        generators: random generators it draws from; a replay goes on with their streams.
    """

    def __init__(self, function: Callable[[], Any], generators: list[torch.Generator]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.result = function()

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result


def assign(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Copy values into tensors that stay where they are, which is what a captured graph needs."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def all_finite(*tensors: Tensor) -> Tensor:
    """Whether no number in any of them is NaN or infinite: () bool, on the device."""
    return torch.stack([x.sum(dtype=torch.float64) for x in tensors]).isfinite().all()


def is_shared(name: str) -> bool:
    """Whether a tensor of the phases is the same in every process: learned, not of its environments."""
    return not name.startswith(FROM_COLLECT) and "carry" not in name


class Phases:
    """One training iteration in two phases; calling it runs both and returns the second one's result.

    Attributes:
        collect: T steps of N environments into the rollout, in place.
        learn: values, advantages and updates; returns the metrics.
        state: every tensor that the phases change in place, by name.
        generators: the random generators that they draw from; the first one draws the minibatches.
        restart: `restart(seed)` begins new episodes in environments whose state is not among `state`, with None in new
            processes, and drops what is carried of those that were running; None where the state is there.
        before, stream: what `learn` began with, so that an update which broke down can be replayed.
        seconds: of the host in each phase of the last call; a GPU may still be at work then, and is not waited for.

    Args:
        crew: whose threads the functions that they call share (ppo_fast.engine.crew).
        one_thread: run anything else in them on one intra-op thread. Work on few rows gains little from a second one,
            and on a busy machine loses most of its time waiting for it.
    """

    def __init__(
        self,
        collect: Callable[[], None],
        learn: Callable[[], Tensor],
        state: dict[str, Tensor],
        generators: list[torch.Generator],
        crew: Any,
        one_thread: bool = True,
        restart: Callable[[int | None], None] | None = None,
    ) -> None:
        collect, learn = eager(collect, one_thread), eager(learn, one_thread)
        on_cpu = next(iter(state.values())).device.type == "cpu"
        self.collect = _labelled(collect, COLLECT)
        self.learn = _labelled(fast_products(learn) if on_cpu else learn, LEARN)
        self.graphs: list[CudaGraph] = []
        self.crew, self.state, self.generators = crew, state, generators
        self.restart = None if restart is None else self._restarts(restart)
        self.before = {name: x.clone() for name, x in state.items() if not name.startswith(FROM_COLLECT)}
        self.stream = generators[0].get_state()

    def __call__(self) -> Tensor:
        began = time.perf_counter()
        self.collect()
        collected = time.perf_counter()
        assign(self.before.values(), (self.state[name] for name in self.before))
        self.stream = self.generators[0].get_state()
        metrics = self.learn()
        self.seconds = {"collect": collected - began, "learn": time.perf_counter() - collected}
        return metrics

    def _restarts(self, begin: Callable[[int | None], None]) -> Callable[[int | None], None]:
        def restart(seed: int | None) -> None:
            begin(seed)
            for name in (name for name in self.state if "carry" in name):
                self.state[name].zero_()

        return restart

    def saved(self) -> dict[str, Any]:
        """Copies of all that the next iteration depends on, at an iteration's end; the rollout is not among it."""
        tensors = {name: x.clone() for name, x in self.state.items() if not name.startswith(FROM_ROLLOUT)}
        return {"tensors": tensors, "generators": [generator.get_state() for generator in self.generators]}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` returned, in place: captured graphs stay valid.

        Raises:
            ValueError: `--resume: ...` when it belongs to other networks or environments.
        """
        tensors = saved["tensors"]
        for name, x in tensors.items():
            if name not in self.state or x.shape != self.state[name].shape:
                raise ValueError(f"--resume: the checkpoint's {name} does not fit this configuration")
        assign((self.state[name] for name in tensors), tensors.values())
        for generator, stream in zip(self.generators, saved["generators"], strict=True):
            if stream.shape != generator.get_state().shape:
                raise ValueError(
                    "--resume: the run was on another kind of device, whose random numbers can't go on here"
                )
            generator.set_state(stream)

    def exact(self) -> "Phases":
        """Make products in fp32, whatever `--precision` has set for the process; returns self."""
        self.collect, self.learn = with_products(self.collect, "highest"), with_products(self.learn, "highest")
        return self

    def release(self) -> None:
        """Give captured graphs back: NCCL waits for those with its collectives before it lets a process go."""
        for captured in self.graphs:
            captured.graph.reset()
        self.graphs.clear()

    def _capture(self, phase: Callable[[], Any], name: str) -> Callable[[], Any]:
        self.graphs.append(CudaGraph(phase, self.generators))
        return _labelled(self.graphs[-1], name)  # a replay does not say the name that was said when it was captured

    def ready(self, device: torch.device, seed: int = 0) -> "Phases":
        """Compile what the phases call, or capture them on a GPU, and return self.

        They are run for that; what they changed is put back, and host environments begin anew from `seed`.
        """
        saved: dict[str, Any] = {"tensors": {name: x.clone() for name, x in self.state.items()}}
        saved["generators"] = [generator.get_state() for generator in self.generators]
        if device.type == "cuda":
            if self.restart is None:
                self.collect = self._capture(self.collect, COLLECT)
            else:  # the host steps in between, so this one can't be captured as a whole
                self.collect()
            self.learn = self._capture(self.learn, LEARN)
        else:
            self()
            self.crew.started = True
        self.load(saved)
        if self.restart is not None:
            self.restart(seed)
        return self


def _labelled(function: Callable[[], Any], name: str) -> Callable[[], Any]:
    """The function with gradients off, under a name that the profiler shows."""

    @torch.no_grad()
    def call() -> Any:
        with torch.profiler.record_function(name):
            return function()

    return call


def versions(device: torch.device, cuda: bool) -> dict[str, Any]:
    """What a result depends on besides the flags: versions, device (in words, too), threads."""
    packages = ("torch", "numpy", "gymnasium")
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    words = f"cpu ({torch.get_num_threads()} threads{'; no CUDA device found' if cuda else ''})"
    if device.type == "cuda":
        words = f"{device} ({torch.cuda.get_device_name(device)})"
    return {"versions": found, "device": str(device), "device_in_words": words, "threads": torch.get_num_threads()}
