"""Whether a run can go on from a checkpoint, and with which flags."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppo_fast.run import folder, identity, programs
from ppo_fast.run.find import Found, Snapshot
from ppo_fast.run.flags import Flag, flags_of
from ppo_fast.run.payload import FORMAT, Checkpoint
from ppo_fast.run.policy import first_not_finite
from ppo_fast.run.rows import Tally
from ppo_fast.run.run_flags import saved_flags

# Flags of one process, which the next does not inherit.
NOT_KEPT = ("max_runtime", "resume", "trust", "quiet", "profile")
# What a checkpoint must hold, and of which types, and what of that its progress.
PARTS = {"program": str, "flags": dict, "progress": dict, "ranks": list}
PROGRESS = {
    "iteration": (int,),
    "global_step": (int,),
    "rollbacks": (int,),
    "elapsed": (int, float),
    "rate_factor": (int, float),
    "best": (int, float),
    "first_seconds": (int, float),
    "recent": (list,),
    "wandb_id": (str, type(None)),
}


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run goes on from."""

    run: Path
    """The run folder."""
    path: Path
    """The checkpoint file."""
    checkpoint: Checkpoint
    skipped: list[str]
    """One line for each damaged checkpoint that was passed over."""
    seen: Snapshot
    """The checkpoints that were there before it was read."""
    standing: folder.Standing
    """What is known of the run folder."""


def origin_of(found: Found, program: str, args_type: type) -> Origin:
    """The origin of a run of `program`, whose flags are `args_type`. Nothing is changed in the run folder.

    Raises:
        ValueError: "--resume: can't go on from ...", with the reason.
    """
    reason = reason_against(found.payload, program)
    if reason is not None:
        raise ValueError(f"--resume: can't go on from {found.path}: {reason}")
    saved = Checkpoint.from_plain(found.payload)
    names = tuple(flag.field for flag in flags_of(args_type).values())
    try:
        known = folder.standing(found.run, found.path, saved, names)
    except ValueError as problem:
        raise ValueError(f"--resume: can't go on from {found.path}: {problem}") from problem
    except OSError as problem:
        where = problem.filename or found.run
        raise ValueError(f"--resume: can't go on in {found.run}: {where}: {problem.strerror}") from problem
    return Origin(found.run, found.path, saved, found.skipped, found.seen, known)


def reason_against(payload: Mapping[str, Any], program: str) -> str | None:
    """Why `program` can't go on from a file with these contents, in words; None where it can.

    The contents are data from anywhere: a whole file need not be one of this program.
    """
    if "finding" in payload:
        return "it is a crash file; python -m ppo_fast.replay looks at it"
    for name, kind in PARTS.items():
        if not isinstance(payload.get(name), kind):
            return f"it has no {name}"
    is_script = payload["program"] == "__main__" and not programs.is_program(program)  # of an earlier version
    if payload["program"] != program and not is_script:
        return f"it is of {payload['program']}, not of {program}"
    if type(payload.get("format")) is not int or payload["format"] != FORMAT:
        return "another version of ppo_fast wrote it"
    progress = payload["progress"]
    for name, types in PROGRESS.items():
        if name not in progress or type(progress[name]) not in types:
            return f"its progress has no {name}"
    if [type(number) in (int, float) for number in progress["recent"]] != [True, True]:
        return "its progress has no recent"
    if progress["iteration"] < 0 or progress["global_step"] < 0:
        return "its progress is below 0"
    if not payload["ranks"] or not all(_is_rank_state(rank) for rank in payload["ranks"]):
        return "it has no training state"
    if type(payload.get("run_id")) not in (str, type(None)):
        return "its run_id is no text"
    if payload.get("rows") is not None and Tally.from_plain(payload["rows"]) is None:
        return "its rows are no tally of rows"
    return None


def _is_rank_state(rank: object) -> bool:
    """Whether something is what `RankState.to_plain` gives."""
    if not isinstance(rank, dict):
        return False
    tensors, generators = rank.get("tensors"), rank.get("generators")
    if not isinstance(tensors, dict) or not isinstance(generators, list) or not isinstance(rank.get("rng"), dict):
        return False
    return "theta" in tensors and all(isinstance(x, Tensor) for x in (*tensors.values(), *generators))


def misfit(tensors: Mapping[str, Tensor], agent: nn.Module) -> str | None:
    """What of a checkpoint's learned tensors is missing or does not fit this agent, in words; None where all fit.

    Args:
        agent: its parameters are views of one flat vector.
    """
    first = next(agent.parameters())
    size = first.untyped_storage().nbytes() // first.element_size()
    wanted: dict[str, torch.Size] = {}
    for name in ("theta", "moment1", "moment2"):
        wanted[name] = torch.Size([size])
    in_policy = agent.state_dict().keys()  # other buffers are of episodes that go on
    for name, buffer in agent.named_buffers():
        if name in in_policy:
            wanted[f"agent.{name}"] = buffer.shape
    for name, shape in wanted.items():
        if name not in tensors:
            return f"it has no {name}"
        if tensors[name].shape != shape:
            return f"its {name} does not fit this configuration"
    bad = first_not_finite({name: tensors[name] for name in wanted})
    return None if bad is None else f"its {bad} holds NaN or infinity"


def check_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """ValueError naming the first of the wanted tensors that a checkpoint lacks, or has other kinds of numbers for."""
    for name, x in wanted.items():
        if name not in tensors:
            raise ValueError(f"it has no {name}")
        if not torch.can_cast(tensors[name].dtype, x.dtype):
            raise ValueError(f"its {name} holds {tensors[name].dtype}, not {x.dtype}")


def too_small(flags: Any, origin: Origin) -> str | None:
    """Why a checkpoint can't be of a run with these flags, in words; None where it may be.

    A crafted file may ask for gigabytes of networks and environments: this is found out before they are made.
    """
    ranks = origin.checkpoint.ranks
    count = ranks[0].tensors["theta"].numel()
    if programs.least_parameters(flags) > count:
        return f"it has only {count:,} parameters, too few for its flags"
    places = [rank.tensors["obs"] for rank in ranks if "obs" in rank.tensors]
    envs = sum(len(obs) for obs in places if obs.ndim)
    if len(places) == len(ranks) and envs != flags.num_envs:
        return f"it is of {envs:,} environments, not of {flags.num_envs:,} as its flags say"
    return None


def flags(args: Any, saved: Mapping[str, Any], run: Path, given: Collection[str]) -> Any:
    """The flags to go on with: those of the checkpoint, and what of `given` may change. Flags that are new to a
    checkpoint of an earlier version keep their defaults, or what runs did before there was the flag.

    Args:
        args: a program's flags as they were typed, a dataclass, in plain types.
        saved: the flags of the checkpoint.
        run: the run folder, for messages.
        given: names of the flags that the user named.

    Raises:
        ValueError: naming a flag that may not change, or one that the checkpoint holds nonsense for.
    """
    saved = saved_flags(saved)
    kept: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for flag in flags_of(type(args)).values():
        if flag.field in saved and flag.field not in NOT_KEPT:
            kept[flag.field] = _value_in(run, flag, saved[flag.field])
        if flag.field in given:
            new[flag.field] = getattr(args, flag.field)
    for name, value in new.items():
        if not identity.may_change(name) and name in kept and value != kept[name]:
            raise ValueError(f"{_flag(name)}: is {kept[name]} in {run} and can't change when a run goes on")
    return replace(args, **{**kept, **new})


def _value_in(run: Path, flag: Flag, value: object) -> Any:
    """What a checkpoint of this run holds for a flag. Those of earlier versions may hold a list for a tuple."""
    try:
        return flag.plain(value)
    except ValueError as problem:
        raise ValueError(f"--resume: {run} holds a wrong {problem}") from problem


def _flag(field: str) -> str:
    """num_envs as --num-envs."""
    return "--" + field.replace("_", "-")


def lines(origin: Origin, backend: str, world_size: int, num_iterations: int) -> list[str]:
    """What to say of a run that goes on from `origin`, in so many processes and iterations."""
    progress = origin.checkpoint.progress
    said = [f"warning: passed over {line}" for line in origin.skipped]
    said += [f"warning: {note}" for note in origin.standing.notes]
    said.append(f"resumed       at step {progress.global_step:,} from {origin.path}")
    if progress.iteration >= num_iterations:
        said.append("complete      nothing is left to train; a larger --total-timesteps goes on")
    if backend != "tensor":
        said.append("episodes      begin anew: only tensor environments can be put back where they were")
    elif len(origin.checkpoint.ranks) != world_size:
        said.append("episodes      begin anew: the number of processes is another one")
    return said
