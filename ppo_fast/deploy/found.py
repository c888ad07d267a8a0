"""What a policy is made of, and whether NumPy plays it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_fast.deploy import networks
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.run import programs
from ppo_fast.run.probe import TOLERANCE, TOLERANCE_BF16, Player, Probe

PROGRAMS = ("ppo_fast.train", "ppo_fast.train_lstm")  # whose networks networks.py plays


class Found(NamedTuple):
    """A policy that was found, before it is one."""

    player: Player
    own: OwnSpaces
    facts: dict[str, Any]  # of its run
    path: Path
    notes: list[str]  # lines to say of it


def in_numpy(
    state: Mapping[str, np.ndarray], facts: Mapping[str, Any], own: OwnSpaces, probe: Probe
) -> networks.NumpyPlayer | None:
    """The networks of a state_dict in NumPy; None where they are others than those of train.py and train_lstm.py, or
    don't answer the probe.

    A further program of ppo_fast is here to play its own. One that is nowhere to be imported, such as a copy in
    somebody's own folder, is played if its networks are these.
    """
    program = facts.get("program", PROGRAMS[0])
    if program not in PROGRAMS and programs.is_program(program):
        return None
    seen = own.presented()
    if probe.obs.shape[2:] != seen.single_observation_space.shape:
        return None
    player = networks.player_of(state, facts, seen.single_action_space, own.mask_size)
    return player if player is not None and probe.is_answered_by(player, tolerance_of(facts)) else None


def tolerance_of(facts: Mapping[str, Any]) -> float:
    """What of a difference is rounding, in a policy with these flags."""
    return TOLERANCE_BF16 if facts.get("precision") == "bf16" else TOLERANCE
