"""See what broke down: run the update of a crash file again and name the first bad tensor.

    python -m ppo_fast.replay runs/<run>/crash-<step>.pt

A run that meets NaN or infinity writes nothing of it into its weights. It leaves a crash file: the rollout, the
parameters and optimiser state that the updates began with, and the state of the generator that drew the minibatches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Unpack

import torch
import tyro

from ppo_fast import names
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.firstbad import FirstBad
from ppo_fast.engine.iteration import Iteration
from ppo_fast.engine.ranks import Ranks
from ppo_fast.envs import Own, handed
from ppo_fast.run import checkpoint, cli, crash, modules, programs
from ppo_fast.run.flags import plain_args
from ppo_fast.run.guest import guest
from ppo_fast.run.run_flags import saved_flags
from ppo_fast.run.streams import say

# What the updates find out themselves, and a mask that is left out where all rows count.
MADE_ANEW = ("advantage", "rollout.advantage", "rollout.valid")


@guest
def replay(payload: Mapping[str, Any], folder: Path = Path(), trusts: bool = False, **own: Unpack[Own]) -> list[str]:
    """Run the updates of a crash file again, eagerly and on the CPU, and say in lines what was found.

    Args:
        payload: what the file holds.
        folder: where it lies: a module of the environment is not imported from there.
        trusts: imports it all the same.
        own: `envs` and `wrappers`, environments of the caller's own, as train() takes them.

    Raises:
        ValueError: `file: ...` when it does not hold what a crash file of ppo_fast holds.
    """
    try:
        broken = crash.Crash.from_plain(payload)
    except ValueError as problem:
        raise ValueError(f"file: {problem}") from problem
    program, args, imports = _rebuild_flags(broken, folder, trusts)
    handed.take(own, args.env_id.removeprefix(handed.PREFIX), args.env_kwargs)
    try:
        said = imports + modules.check(args.env_id, folder, trusts)
    except ValueError as problem:
        raise ValueError(f"file: {problem}") from problem
    device = torch.device("cpu")
    envs, agent, learner = program.setup(args, device)
    iteration = program.make_iteration(args, envs, agent, learner, Engine(args, Ranks(device), "eager"))
    iteration.collect()  # makes room for a rollout
    try:
        _take_over(iteration, broken)
    except RuntimeError as problem:  # such as a generator's, whose state may be anything
        raise ValueError(f"file: it can't be used: {names.first_line(problem)}") from problem
    with FirstBad() as watch:
        iteration.learn()
    envs.close()
    again = "not reproduced: every number was finite this time" if bool(learner.sound) else "reproduced"
    made = int(learner.step - broken.tensors["step"])
    return [
        *said,
        f"written after {broken.at:,} iterations of {args.env_id}",
        f"then: {broken.finding}",
        f"first bad tensor in the rollout: {crash.finding(broken.tensors) or 'none'}",
        f"update {again}; {made} minibatches went well before it",
        f"first bad tensor in the update: {watch.found or 'none'}",
    ]


def _rebuild_flags(broken: crash.Crash, folder: Path, trusts: bool) -> tuple[ModuleType, Any, list[str]]:
    """The program that left the file, its flags, and lines to say of its import. ValueError("file: ...") where the file
    doesn't fit them."""
    try:
        program, imports = programs.load(broken.program, folder, trusts, programs.TO_LEARN)
    except ValueError as problem:
        raise ValueError(f"file: its program {problem}") from problem
    flags = saved_flags(broken.flags)
    known = {field.name: flags[field.name] for field in fields(program.Args) if field.name in flags}
    try:
        args = plain_args(program.Args(**{**known, "compile": "off"}))
        args.check()
    except (ValueError, TypeError) as problem:
        raise ValueError(f"file: it holds flags that can't be used: {problem}") from problem
    # Before anything is made of them: a crafted file may ask for gigabytes.
    rewards = broken.tensors.get("rollout.reward")
    if rewards is None or rewards.shape != (args.num_steps, args.num_envs):
        raise ValueError("file: its rollout.reward does not fit its flags")
    if programs.least_parameters(args) > broken.tensors["theta"].numel():
        raise ValueError("file: its theta does not fit its flags")
    return program, args, imports


def _take_over(iteration: Iteration, broken: crash.Crash) -> None:
    """Put the tensors of a crash file in their places, and the stream of minibatches where it was. ValueError("file:
    ...") where one does not fit or is missing; RuntimeError where the stream is none."""
    state = iteration.state.all()
    for name, x in broken.tensors.items():
        if name in MADE_ANEW and name not in state:
            continue
        if name not in state or state[name].shape != x.shape or not torch.can_cast(x.dtype, state[name].dtype):
            raise ValueError(f"file: its {name} does not fit its flags")
        state[name].copy_(x)
    for name in state:
        if name not in broken.tensors and name not in MADE_ANEW:
            raise ValueError(f"file: it has no {name}")
    minibatches = iteration.generators[0]
    if broken.stream.shape == minibatches.get_state().shape:  # a GPU's stream can't be continued here
        minibatches.set_state(broken.stream)


@dataclass
class Args:
    """The crash file to look at."""

    file: Annotated[str, tyro.conf.Positional] = ""
    """crash-<step>.pt of a run folder"""
    trust: bool = False
    """import the environment's module wherever it lies, even in a run folder"""


def main(args: Args) -> None:
    """Load, replay, print. A file that can't be used is one line."""
    args = plain_args(args)
    try:
        payload = checkpoint.load(Path(args.file))
    except (OSError, checkpoint.DamagedCheckpoint) as error:
        raise ValueError(f"file: {args.file or 'none given'} can't be read ({names.first_line(error)})") from error
    if "progress" in payload:
        raise ValueError(f"file: {args.file} is a checkpoint, not a crash file")
    say(*replay(payload, Path(args.file).parent, args.trust))


if __name__ == "__main__":
    cli.run(main, Args, __doc__)
