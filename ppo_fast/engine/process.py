"""What belongs to the process: device, threads, how fp32 products run, how large buffers are handled."""

import ctypes
import functools
import importlib.metadata
import multiprocessing
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

MANY_NUMBERS = 1_000_000  # enough for torch to share them among threads
TRIAL_SECONDS = 2.0


def prepare(flags: Any) -> torch.device:
    """Set up this process and pick the device: CUDA where it is wanted and there, else the CPU. May be called again.

    Raises:
        ValueError: `--precision: ...` when the device has no such products.
    """
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


def unheard_precision(precision: str, agent: torch.nn.Module) -> str | None:
    """A warning where `--precision bf16` changes nothing in this agent; else None."""
    if precision != "bf16" or any(getattr(part, "dtype", None) is torch.bfloat16 for part in agent.modules()):
        return None
    return "--precision bf16: changes nothing: no network here is an mlp.MLP, which alone heeds it"


def _keep_large_buffers() -> None:
    # glibc hands every buffer above 128 KB back to the system and faults it in again at the next use: half of the time
    # of a large update. M_TRIM_THRESHOLD = -1, M_TOP_PAD = -2, M_MMAP_THRESHOLD = -3 in malloc.h; musl has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((-1, 1 << 30), (-2, 1 << 26), (-3, 1 << 30)):
            mallopt(option, value)


def threads_work() -> bool:
    """Whether torch can use several threads here. A forked process waits forever for those that its parent had used.

    A process that was forked by multiprocessing forks another one to try it out, which takes milliseconds.
    """
    if multiprocessing.current_process().__class__.__name__ != "ForkProcess" or torch.get_num_threads() == 1:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the process uses none of what they hold
        child = os.fork()
    if child == 0:
        torch.ones(MANY_NUMBERS).exp_()
        os._exit(0)
    end = time.monotonic() + TRIAL_SECONDS
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002)
    return True


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


def fast_products_are_exact() -> bool:
    """Whether the "medium" precision setting computes fp32 products on this CPU as exactly as "highest" does.

    It runs them through oneDNN: for many rows about twice as fast as MKL. But it allows bf16 units where a CPU has
    them, and there the result would change by more than float32 rounding. A product is tried to see which.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    fast = with_products(torch.matmul, "medium")(a, b)
    exact = a.double() @ b.double()
    return float((fast - exact).norm() / exact.norm()) < 2e-6


def versions(device: torch.device, cuda: bool) -> dict[str, Any]:
    """What a result depends on besides the flags: versions, device (in words, too), threads."""
    packages = ("torch", "numpy", "gymnasium")
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    words = f"cpu ({torch.get_num_threads()} threads{'; no CUDA device found' if cuda else ''})"
    if device.type == "cuda":
        words = f"{device} ({torch.cuda.get_device_name(device)})"
    return {"versions": found, "device": str(device), "device_in_words": words, "threads": torch.get_num_threads()}
