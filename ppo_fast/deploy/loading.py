"""load: a policy from what a run has left, as light as it can be.

The policy file says all that is needed: weights, the environment's own spaces, and a probe. Where the networks are
those of train.py or train_lstm.py and answer the probe, they are played in NumPy, and neither torch nor anything of
training is imported. Anything else is played by the Agent of the program that trained it, with torch: networks of
somebody's own, checkpoints, files of earlier versions.
"""

import sysconfig
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_fast.deploy.found import Found, in_numpy
from ppo_fast.deploy.policy import Policy
from ppo_fast.envs import spaces_json
from ppo_fast.run import policy_file, policy_place
from ppo_fast.run.probe import Probe

# What messages of the programs name, as a caller from Python writes it.
ARGUMENTS = {"--trust": "trust=True", "--run-root": "run_root"}


def load(run: str, run_root: Path, seed: int | None, trusts: bool) -> Policy:
    """See `ppo_fast.load`, whose caller is warned of what there is to note."""
    try:
        found = _find(run, run_root, trusts)
    except ValueError as problem:
        text = str(problem)
        for flag, argument in ARGUMENTS.items():
            text = text.replace(flag, argument)
        raise ValueError(text) from _cause_elsewhere(problem)
    for note in found.notes:
        warnings.warn(note, stacklevel=3)
    return Policy(found.player, found.own, flags_in(found.facts), found.path, seed)


def _cause_elsewhere(problem: BaseException) -> BaseException | None:
    """What a program or an environment of somebody's own raised, whose lines help; how one line here was made of
    another does not."""
    here, standard = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")
    cause: BaseException | None = problem
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        file = frames[-1].filename if frames else here
        if isinstance(cause, ImportError | SyntaxError) or not file.startswith((here, standard, "<frozen")):
            return None if cause is problem else cause
        cause = cause.__cause__
    return None


def _find(run: str, run_root: Path, trusts: bool) -> Found:
    """The policy that `run` names. ValueError "run: ..." where there is none that can be used."""
    path = policy_place.newest(run_root) if run == "latest" else Path(run)
    with policy_place.named_run(path):
        found = _light(path)
    if found is None:
        from ppo_fast.deploy import agents  # which brings torch

        found = agents.find(path, run_root, trusts)
    return found


def _light(path: Path) -> Found | None:
    """A policy that is played in NumPy; None where it can't be. ValueError or OSError where there is none at all."""
    file = policy_place.file_of(path)
    if file is None:
        return None
    try:
        contents = policy_file.read(file)
    except ValueError as problem:
        raise ValueError(f"{file}: {problem}") from problem
    facts = contents.facts
    notes = [] if contents.is_checked else [f"{file} {policy_place.NO_CHECKSUM}"]
    notes += policy_place.refuse_stranger(path, file.parent, file, facts)
    probe = Probe.from_json(facts.get("probe"))
    if probe is None or facts.get("spaces") is None:
        return None
    try:
        own = spaces_json.from_json(facts["spaces"])
        state = policy_file.arrays_of(contents)
    except ValueError:
        return None  # torch has more types of numbers, and an environment can be asked for its spaces
    player = in_numpy(state, facts, own, probe)
    return None if player is None else Found(player, own, facts, file, notes)


def flags_in(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of a policy's facts is of interest to who uses it."""
    return {name: value for name, value in facts.items() if name not in ("probe", "spaces")}
