"""Whether a run can go on from a checkpoint, and with which flags.

What `Session.save` puts into a checkpoint:

    program    the module that trained, such as "ppo_fast.train"
    format     FORMAT
    flags      the flags of the run, by field name
    progress   iteration, global_step, elapsed seconds, best return, rollbacks, W&B id, ...
    ranks      for each process what its phases go on from: "tensors" by name, "generators", their states, and "rng",
               the process-wide ones
"""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Counts up when the same tensors mean something else: 2 since the weights of few inputs stand input by input in theta.
FORMAT = 2
# Flags that may differ when a run goes on, besides W&B's. Any other would make it another run.
CHANGEABLE = (
    *("total_timesteps", "eval_episodes", "capture_video", "quiet", "profile", "track", "tensorboard", "run_root"),
    *("save_interval", "keep_checkpoints", "max_runtime", "on_nan", "env_timeout", "env_restarts", "resume", "preset"),
)
# Flags of one process, which the next does not inherit.
NOT_KEPT = ("max_runtime", "resume", "quiet", "profile")
# What a run's progress must hold, and of which types.
PROGRESS = {
    **dict.fromkeys(("iteration", "global_step", "rollbacks"), (int,)),
    **dict.fromkeys(("elapsed", "rate_factor", "best", "first_seconds"), (int, float)),
    "recent": (list,),
    "wandb_id": (str, type(None)),
}


def reason_against(payload: Mapping[str, Any], program: str) -> str | None:
    """Why `program` can't go on from a file with these contents, in words; None where it can.

    The contents are data from anywhere: a whole file need not be one of this program.
    """
    if "finding" in payload:
        return "it is a crash file; python -m ppo_fast.replay looks at it"
    kinds = {"program": str, "flags": dict, "progress": dict, "ranks": list}
    for name, kind in kinds.items():
        if not isinstance(payload.get(name), kind):
            return f"it has no {name}"
    if payload["program"] != program:
        return f"it is of {payload['program']}, not of {program}"
    if payload.get("format") != FORMAT:
        return "another version of ppo_fast wrote it"
    progress = payload["progress"]
    for name, types in PROGRESS.items():
        if type(progress.get(name, ...)) not in types:
            return f"its progress has no {name}"
    if progress["iteration"] < 0 or progress["global_step"] < 0:
        return "its progress is below 0"
    if not payload["ranks"] or not all(_is_state(own) for own in payload["ranks"]):
        return "it has no training state"
    return None


def _is_state(own: Any) -> bool:
    if not isinstance(own, dict) or not isinstance(own.get("tensors"), dict):
        return False
    tensors, generators = own["tensors"].values(), own.get("generators")
    if not isinstance(generators, list) or not isinstance(own.get("rng"), dict):
        return False
    whole = all(isinstance(x, Tensor) for x in (*tensors, *generators))
    return whole and "theta" in own["tensors"]


def misfit(tensors: Mapping[str, Tensor], agent: nn.Module) -> str | None:
    """The first of a checkpoint's learned tensors that is missing or not of this agent's shape; None where all fit.

    Args:
        agent: its parameters are views of one flat vector, as `networks.flatten_parameters` leaves them.
    """
    first = next(agent.parameters())
    flat = torch.Size([first.untyped_storage().nbytes() // first.element_size()])
    wanted = dict.fromkeys(("theta", "moment1", "moment2"), flat)
    wanted |= {f"agent.{name}": x.shape for name, x in agent.named_buffers() if "carry" not in name}
    return next((name for name, shape in wanted.items() if name not in tensors or tensors[name].shape != shape), None)


def flags(args: Any, payload: Mapping[str, Any], run: Path, given: Collection[str]) -> Any:
    """The flags to go on with: those of the checkpoint, and what of `given` may change. Flags that are new to a
    checkpoint of an earlier version keep their defaults.

    Args:
        args: a program's flags as they were typed, a dataclass.
        payload: a checkpoint that `reason_against` has nothing against.
        run: the run folder, for messages.
        given: names of the flags that the user named.

    Raises:
        ValueError: naming a flag that may not change, or one that the checkpoint holds nonsense for.
    """
    defaults = {field.name: field.default for field in fields(args)}
    saved = {name: x for name, x in payload["flags"].items() if name in defaults and name not in NOT_KEPT}
    for name, value in saved.items():
        kind = type(defaults[name])
        if defaults[name] is not None and type(value) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(f"--resume: {run} holds --{name.replace('_', '-')} as {value!r}, no {kind.__name__}")
    new = {name: getattr(args, name) for name in defaults if name in given}
    for name, value in new.items():
        if name not in CHANGEABLE and not name.startswith("wandb_") and name in saved and value != saved[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}: is {saved[name]} in {run} and can't change when a run goes on")
    return replace(args, **{**saved, **new})


def lines(origin: Any, backend: str, world_size: int, num_iterations: int) -> list[str]:
    """What to say of a run that goes on from `origin`, a `checkpoint.Resume`, in so many processes and iterations."""
    said = [f"warning: passed over {line}" for line in origin.skipped]
    said += [f"resumed       at step {origin.payload['progress']['global_step']:,} from {origin.path}"]
    if origin.payload["progress"]["iteration"] >= num_iterations:
        said += ["complete      nothing is left to train; a larger --total-timesteps goes on"]
    if backend != "tensor":
        said += ["episodes      begin anew: only tensor environments can be put back where they were"]
    elif len(origin.payload["ranks"]) != world_size:
        said += ["episodes      begin anew: the number of processes is another one"]
    return said


def as_typed(values: Mapping[str, Any]) -> str:
    """Flags as they would be typed: --num-envs 16 --norm-obs."""
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return " ".join(words)
