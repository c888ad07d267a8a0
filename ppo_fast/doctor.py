"""Look at an environment before anything is trained on it: what it is, how fast, and what is wrong with it.

    python -m ppo_fast.doctor CartPole-v1
    python -m ppo_fast.doctor my_package:MyEnv-v0 --steps 20000
    python -m ppo_fast.doctor Hopper-v4 --backend envpool
    python -m ppo_fast.doctor my_package:MyEnv-v0 --json > diagnosis.json

It takes random actions for some seconds. An error would make results wrong, or leave none: the exit status is 1 then.
A warning is likely not what is meant, a note is good to know.
"""

import contextlib
import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import tyro

from ppo_fast.checkup import examination, report
from ppo_fast.checkup.apart import Death, apart
from ppo_fast.checkup.examination import Diagnosis
from ppo_fast.checkup.findings import Finding, Tell
from ppo_fast.envs import Own, handed
from ppo_fast.run import cli, programs, settle
from ppo_fast.run.cli import Range
from ppo_fast.run.flags import check_ranges, plain_args
from ppo_fast.run.guest import guest
from ppo_fast.run.streams import say, show
from ppo_fast.stops import EnvironmentFault

MAKING = 4  # times --timeout: how often an environment is made, at most, before time counts
BACKENDS = 5


@dataclass
class Args:
    """What to look at, and for how long."""

    env: Annotated[str, tyro.conf.Positional] = ""
    """a gymnasium id, `module:Env-v0` imports the module first; or one of envpool's"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keywords for the environment: --env-kwargs is_slippery=False max_episode_steps=200"""
    backend: Literal["auto", "tensor", "entry_point", "sync", "async", "envpool"] = "auto"
    """whose vector is looked at, besides the single environment; auto is what training takes"""
    steps: Annotated[int, Range(1)] = 2_000
    """random steps of each form, at most"""
    seconds: Annotated[float, Range(0, above=True)] = 30.0
    """seconds of looking, at most; the pace of the backends comes on top"""
    timeout: Annotated[float, Range(0, above=True)] = 60.0
    """seconds that one call of the environment may take"""
    pace: bool = True
    """time each backend"""
    pace_seconds: Annotated[float, Range(0, above=True)] = 0.5
    """for so many seconds"""
    apart: bool = True
    """look from a process of its own (Linux), so that an environment that ends it is a finding, too"""
    json: bool = False
    """print JSON, with all numbers of the observation"""

    def check(self) -> None:
        """Raise ValueError naming the first flag whose value cannot work."""
        check_ranges(self)
        if not self.env:
            raise ValueError("env: name an environment, such as CartPole-v1 or my_package:MyEnv-v0")


@guest
def doctor(args: Args, **own: Unpack[Own]) -> dict[str, Any]:
    """Look and print; returns what `--json` prints, with "exit_status". A flag that can't be used is a ValueError.

    `envs` and `wrappers` are environments of the caller's own, as train() takes them: a function or a class that makes
    one, or a vector of so many; not a vector ready-made, since several are looked at.
    """
    args = plain_args(args)
    try:
        found = handed.take(own, args.env, args.env_kwargs)
    except ValueError as problem:
        raise ValueError(re.sub(r"^--env-id: ", "env: ", str(problem))) from problem
    if found is not None:
        if found.num_envs is not None:
            raise ValueError("envs: several are looked at; hand in what makes them, not a vector ready-made")
        args = replace(args, env=found.env_id)
    args.check()
    diagnosis = _examine_apart(args) if args.apart else _examine(args)
    found = report.as_json(diagnosis)
    if args.json:
        show(json.dumps(found, indent=2))
    else:
        say(*report.lines_of(diagnosis))
    return {**found, "exit_status": int(found["counts"]["error"] > 0)}


def _examine(args: Args, tell: Tell | None = None) -> Diagnosis:
    """The diagnosis, made in this process."""
    with contextlib.redirect_stdout(sys.stderr):  # what an environment prints is no answer
        return _look(args, tell)


def _look(args: Args, tell: Tell | None) -> Diagnosis:
    """The diagnosis. ValueErrors name the flags of this program."""
    limits = examination.Limits(args.steps, args.seconds, args.timeout)
    try:
        diagnosis = examination.examine(args.env, args.backend, limits, tell, args.env_kwargs)
    except ValueError as problem:
        raise ValueError(re.sub(r"^--env-id: ", "env: ", str(problem))) from problem
    if not any(finding.severity == "error" for finding in diagnosis.findings):
        diagnosis.training = _set_by_training(args)
    if args.pace:
        examination.time_backends(diagnosis, args.pace_seconds, args.timeout, tell)
    return diagnosis


def _set_by_training(args: Args) -> tuple[str, ...]:
    """What train.py sets for this environment by a preset or its recipe, in the lines that it says of it."""
    flags = programs.load("ppo_fast.train", Path(), trusts=False)[0].Args
    try:
        return settle.what_is_set(flags(env_id=args.env, backend=args.backend, env_kwargs=args.env_kwargs))
    except (ValueError, EnvironmentFault):  # such as an image: train.py itself says what it can't take
        return ()


def _examine_apart(args: Args) -> Diagnosis:
    """The diagnosis, made in another process; where that dies, this is the diagnosis."""
    seconds = args.seconds + MAKING * args.timeout + BACKENDS * (args.pace_seconds + args.timeout)
    found = apart(lambda tell: _examine(args, tell), seconds)
    if not isinstance(found, Death):
        return found
    if found.place.startswith("backend"):  # by then all else was known, and is found out again without
        return _with(_examine_apart(replace(args, pace=False)), found)
    return _with(Diagnosis(args.env, "", (), None), found)


def _with(diagnosis: Diagnosis, death: Death) -> Diagnosis:
    """A diagnosis, and that the process in which it was made has died."""
    advice = "mend it: training would die here; --backend async survives it with --env-restarts"
    diagnosis.findings.append(Finding("error", "dies", death.place, death.how, advice, death.trace))
    return diagnosis


if __name__ == "__main__":
    cli.run(doctor, Args, __doc__)
