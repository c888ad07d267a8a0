"""See what broke down: run the update of a crash file again and name the first bad tensor.

    python -m ppo_fast.replay runs/<run>/crash-<step>.pt

A run that meets NaN or infinity writes nothing of it into its weights. It leaves a crash file: the rollout, the
parameters and optimiser state that the updates began with, and the state of the generator that drew the minibatches.
"""

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ppo_fast.engine.distributed import Ranks
from ppo_fast.run import checkpoint, cli, crash


def replay(payload: Mapping[str, Any]) -> list[str]:
    """Run the updates of a crash file again, eagerly and on the CPU, and say in lines what was found.

    Raises:
        ValueError: `file: ...` when it does not hold what a crash file of ppo_fast holds.
    """
    kinds = {"finding": str, "program": str, "flags": dict, "tensors": dict, "stream": torch.Tensor, "at": int}
    missing = [name for name, kind in kinds.items() if not isinstance(payload.get(name), kind)]
    missing += ["parameters"] if not {"theta", "step"} <= set(payload.get("tensors") or ()) else []
    if missing:
        raise ValueError(f"file: not what a run leaves when it breaks down: it has no {' and no '.join(missing)}")
    if not re.fullmatch(r"ppo_fast\.train(_\w+)?", payload["program"]):
        raise ValueError(f"file: its program is {payload['program']!r}, none of ppo_fast")
    program, device = importlib.import_module(payload["program"]), torch.device("cpu")
    known = {name: value for name, value in payload["flags"].items() if name in program.Args.__dataclass_fields__}
    args = program.Args(**(known | {"compile": "off"}))
    args.check()
    envs, agent, learner = program.setup(args, device)
    phases = program.make_iteration(args, envs, agent, learner, fast=False, ranks=Ranks(device))
    for name, x in payload["tensors"].items():
        if name not in phases.state or phases.state[name].shape != x.shape:
            raise ValueError(f"file: its {name} does not fit its flags")
        phases.state[name].copy_(x)
    if payload["stream"].shape == phases.generators[0].get_state().shape:
        phases.generators[0].set_state(payload["stream"])  # a GPU's stream can't be continued here
    said = [f"written after {payload['at']:,} iterations of {args.env_id}", f"then: {payload['finding']}"]
    said.append(f"first bad tensor in the rollout: {crash.finding(payload['tensors']) or 'none'}")
    with crash.FirstBad() as watch:
        phases.learn()
    envs.close()
    again = "reproduced" if not bool(learner.sound) else "not reproduced: every number was finite this time"
    made = int(learner.step - payload["tensors"]["step"])
    said.append(f"update {again}; {made} minibatches went well before it")
    return [*said, f"first bad tensor in the update: {watch.found or 'none'}"]


@dataclass
class Args:
    """The crash file to look at."""

    file: Annotated[str, tyro.conf.Positional] = ""
    """crash-<step>.pt of a run folder"""


def main(args: Args) -> None:
    """Load, replay, print. A file that can't be used is one line."""
    try:
        payload = checkpoint.load(Path(args.file))
    except (OSError, checkpoint.DamagedCheckpoint) as error:
        raise ValueError(f"file: {args.file or 'none given'} can't be read ({error})") from error
    if "progress" in payload:
        raise ValueError(f"file: {args.file} is a checkpoint, not a crash file")
    sys.stdout.write("\n".join(replay(payload)) + "\n")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)
