"""What broke down in an iteration: its first bad tensor in words, what to keep of it, the operation that made it."""

import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ppo_fast

# Where a rollout's tensors are looked at first: causes before effects.
ORDER = ("rollout.obs", "rollout.final_obs", "rollout.reward", "obs", "rollout.action", "rollout.log_prob")
# Functions in which NaN is an answer: no episode ended, returns that don't vary.
EXPECTED = ("explained_variance", "episode_stats", "all_finite")


def finding(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor of an iteration's state that holds NaN or infinity, in words; None if there is none.

    A rollout's (T, N, ...) is named by step and environment, anything else by its index.
    """
    for name in (*ORDER, *(name for name in state if name not in ORDER)):
        bad = ~state[name].isfinite() if name in state and state[name].is_floating_point() else torch.zeros(1).bool()
        if bad.any():
            index = bad.nonzero()[0].tolist()
            value = float(state[name][tuple(index)])
            if name.startswith("rollout.") or name == "advantage":
                what = f"{name.removeprefix('rollout.')} of environment {index[1]}"
                return f"{what} is {value} at rollout step {index[0]}"
            if name == "obs":
                return f"obs of environment {index[0]} is {value} after the rollout"
            return f"{name}{index} is {value}"
    return None


def payload(args: Any, program: str, phases: Any, text: str, iteration: int) -> dict[str, Any]:
    """What `replay` needs, in types that a checkpoint takes.

    Args:
        args: the flags, a dataclass.
        program: the module that trained, such as "ppo_fast.train".
        phases: with `state`, `before` and `stream` as `capture.Phases` has them.
        text: of `finding`.
        iteration: how many were completed.
    """
    tensors = {**phases.state, **phases.before}
    flags, stream = asdict(args), phases.stream
    return {"flags": flags, "program": program, "tensors": tensors, "stream": stream, "finding": text, "at": iteration}


class FirstBad(TorchDispatchMode):
    """Finds the first operation whose result has NaN or infinity where its inputs had none.

    Attributes:
        found: the operation, the shape of its result and the line of the program; "" while there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.found:
            return func(*args, **(kwargs or {}))
        sound = not _bad(args)  # asked before, as the function may write into them
        result = func(*args, **(kwargs or {}))
        if sound and (_bad(result) or _bad(args)):
            frames = [
                frame
                for frame in traceback.extract_stack()
                if Path(ppo_fast.__file__).parent in Path(frame.filename).parents
            ]
            frames = [frame for frame in frames if frame.filename != __file__]
            if frames and not any(frame.name in EXPECTED for frame in frames):
                last = frames[-1]
                shape = tuple(result.shape) if isinstance(result, Tensor) else ""
                where = f"{Path(last.filename).name}:{last.lineno} in {last.name}: {last.line}"
                self.found = f"the result {shape} of {func} at {where}"
        return result


def _bad(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(value.isfinite().all())
    return isinstance(value, (tuple, list)) and any(_bad(item) for item in value)
