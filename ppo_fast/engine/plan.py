"""Whether an iteration is compiled, recorded, captured or left as it is: decided by the flags, told in words."""

import os
import shutil
from typing import Literal, NamedTuple, Protocol

import torch

from ppo_fast.engine import caches

# Measured with CartPole on 2 CPU cores (Zen 3), cold cache (benchmarks/LOG.md): seconds to compile everything, and the
# share of a recorded iteration that compiling saves.
COMPILE_SECONDS = 75.0
COMPILE_SAVES = 0.5
COMPILING = "a minute or two the first time, seconds once it is in the cache"
# What a recorded iteration costs on such a machine, to predict a run: per policy-and-environment step, per minibatch,
# and per GFLOP of products, with the pointwise work beside them.
SECONDS_PER_STEP = 2.5e-4
SECONDS_PER_MINIBATCH = 1.3e-3
SECONDS_PER_GFLOP = 3.8e-2

# Recording takes as long as some ten eager iterations of a small run.
FEW_ITERATIONS = 20

COMPILERS = {"cpu": "g++", "cuda": "gcc"}

Mode = Literal["eager", "recorded", "compiled"]


class Flags(Protocol):
    """What is asked of a program's flags here."""

    compile: Literal["auto", "on", "off"]
    num_steps: int
    num_minibatches: int
    update_epochs: int

    @property
    def batch_size(self) -> int: ...
    @property
    def num_iterations(self) -> int: ...


class Plan(NamedTuple):
    """How an iteration is to run, and why, in words."""

    mode: Mode
    reason: str


def compiler_on_path(device: torch.device) -> bool:
    """Whether a compiler that torch.compile can call is there: of C++ for a CPU, of C for what launches GPU kernels."""
    names = ("CXX", "g++", "clang++", "c++") if device.type == "cpu" else ("CC", "gcc", "clang", "cc")
    return any(shutil.which(name) for name in (os.environ.get(names[0], ""), *names[1:]) if name)


def uncompiled_seconds(flags: Flags, parameters: int) -> float:
    """Predicted seconds of a run on a CPU without compiling: launches of small kernels, and products."""
    flops = 2.0 * parameters * flags.batch_size * (1 + 3 * flags.update_epochs)
    minibatches = flags.update_epochs * flags.num_minibatches
    launches = flags.num_steps * SECONDS_PER_STEP + minibatches * SECONDS_PER_MINIBATCH
    return flags.num_iterations * (launches + flops * 1e-9 * SECONDS_PER_GFLOP)


def decide(flags: Flags, device: torch.device, parameters: int) -> Plan:
    """Whether to compile, and why, in words.

    It goes by the flags alone, never by a clock, so that equal seeds give equal runs.

    Args:
        flags: a program's. With `compile` "auto" only a run that is long enough to save its compilation is compiled.
        parameters: how many the agent has.
    """
    if flags.compile == "off":
        return Plan("eager", "--compile off")
    uncompiled: Mode = "recorded" if records(flags, device) else "eager"
    if not compiler_on_path(device):
        missing = f"torch.compile needs a compiler such as {COMPILERS[device.type]}; none is found"
        return Plan(uncompiled, f"warning: {missing}")
    no_room = caches.no_room_for_code()
    if no_room is not None:
        return Plan(uncompiled, f"warning: torch.compile needs room for temporary files; {no_room}")
    if flags.compile == "on":
        return Plan("compiled", "--compile on")
    seconds = uncompiled_seconds(flags, parameters)
    if seconds * COMPILE_SAVES > COMPILE_SECONDS:
        return Plan("compiled", "a run this long saves more time than compiling takes")
    preparing = "compiling" if uncompiled == "recorded" or device.type == "cuda" else "recording or compiling"
    return Plan(uncompiled, f"about {seconds:.0f} s; {preparing} would take longer than it saves")


def captures(flags: Flags, device: torch.device) -> bool:
    """Whether both halves are captured as CUDA graphs, compiled or not: launching kernels one by one takes longer."""
    return device.type == "cuda" and flags.compile != "off"


def records(flags: Flags, device: torch.device) -> bool:
    """Whether what is not compiled is recorded and replayed: on a CPU, with --compile auto, in a run of enough
    iterations."""
    return device.type == "cpu" and flags.compile == "auto" and flags.num_iterations > FEW_ITERATIONS
