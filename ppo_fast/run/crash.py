"""What broke down in an iteration: its first bad tensor in words, and the file that `ppo_fast.replay` runs again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ppo_fast.engine.ranks import Ranks
from ppo_fast.run import checkpoint

# Where a rollout's tensors are looked at first: causes before effects.
ORDER = ("rollout.obs", "rollout.final_obs", "rollout.reward", "obs", "rollout.action", "rollout.log_prob")
# What environments gave, and the largest number of it whose sums can be squared in float32.
FROM_ENVIRONMENTS = ("rollout.reward", "rollout.obs", "rollout.final_obs")
TOO_LARGE = 1e15
# What a crash file holds, and of which types.
PARTS = {"finding": str, "program": str, "flags": dict, "tensors": dict, "stream": Tensor, "at": int}


@dataclass(frozen=True)
class Crash:
    """The contents of a crash file: the iteration that broke down, as it was before its updates."""

    program: str
    """The module that trained, such as "ppo_fast.train"."""
    flags: dict[str, Any]
    """The flags of the process, by field name."""
    tensors: dict[str, Tensor]
    """By name: the rollout, and what the updates began with."""
    stream: Tensor
    """The state of the generator that drew the minibatches."""
    finding: str
    """What is bad, in words."""
    at: int
    """How many iterations were completed before."""

    def to_plain(self) -> dict[str, Any]:
        """What stands in the file."""
        return {
            "program": self.program,
            "flags": self.flags,
            "tensors": self.tensors,
            "stream": self.stream,
            "finding": self.finding,
            "at": self.at,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Crash":
        """ValueError where `plain`, which may be data from anywhere, is not what a crash file holds."""
        missing = [name for name, kind in PARTS.items() if not isinstance(plain.get(name), kind)]
        tensors = plain.get("tensors")
        tensors = tensors if isinstance(tensors, dict) else {}
        if not all(isinstance(x, Tensor) for x in tensors.values()) or not {"theta", "step"} <= tensors.keys():
            missing.append("parameters")
        if missing:
            raise ValueError(f"not what a run leaves when it breaks down: it has no {' and no '.join(missing)}")
        return cls(**{name: plain[name] for name in PARTS})


def finding(tensors: Mapping[str, Tensor]) -> str | None:
    """The first of an iteration's tensors that holds NaN or infinity, in words; None if there is none.

    A rollout's (T, N, ...) is named by step and environment, anything else by its index.
    """
    first = [name for name in ORDER if name in tensors]
    others = [name for name in tensors if name not in ORDER]
    for name in (*first, *others):
        x = tensors[name]
        if x.is_floating_point() and not bool(x.isfinite().all()):
            return _in_words(name, x)
    return None


def huge(tensors: Mapping[str, Tensor]) -> str | None:
    """The largest number of what environments gave, in words, where it is too large to learn from; else None."""
    found: tuple[float, str] = (TOO_LARGE, "")
    for name in FROM_ENVIRONMENTS:
        x = tensors.get(name)
        if x is not None and x.is_floating_point() and x.numel():
            sizes = x.abs()
            index = [int(i) for i in np.unravel_index(int(sizes.argmax()), x.shape)]
            size = float(sizes[tuple(index)])
            if size > found[0]:
                where = f"{name.removeprefix('rollout.')} of environment {index[1]} is {float(x[tuple(index)]):g}"
                found = (size, f"{where} at rollout step {index[0]}, too large to learn from: scale it")
    return found[1] or None


def _in_words(name: str, x: Tensor) -> str:
    """Which number of x is the first bad one."""
    index = (~x.isfinite()).nonzero()[0].tolist()
    value = float(x[tuple(index)])
    if name.startswith("rollout.") or name == "advantage":
        step, environment = index[:2]
        return f"{name.removeprefix('rollout.')} of environment {environment} is {value} at rollout step {step}"
    if name == "obs":
        return f"obs of environment {index[0]} is {value} after the rollout"
    return f"{name}{index} is {value}"


def first_of(ranks: Ranks, own: Crash, is_found: bool) -> tuple[int, Crash] | None:
    """On rank 0 the first rank that found something bad, and what it knows; None on the others.

    Args:
        ranks: the processes that train together; each calls this.
        own: what this one knows.
        is_found: whether it found something; where none did, rank 0 counts as the first.
    """
    reports = ranks.gather(checkpoint.plain({"found": is_found, "crash": own.to_plain()}))
    if not ranks.is_main:
        return None
    finders = [rank for rank, report in enumerate(reports) if report["found"]]
    rank = finders[0] if finders else 0
    return rank, Crash.from_plain(reports[rank]["crash"])
