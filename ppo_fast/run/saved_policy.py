"""A policy that a run has left, and the agent that it is of: from a policy file or a checkpoint.

    policy = load("runs/x", Path("runs"))
    program, flags, notes = rebuild_flags(policy, trusts=False)
    agent = rebuild_agent(program, flags, policy, envs)

A policy names the program that trained it, whose Args and Agent are used (see programs.py).
"""

import dataclasses
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from gymnasium import spaces

from ppo_fast import names
from ppo_fast.engine import flat
from ppo_fast.run import find, policy_place, programs
from ppo_fast.run.flags import plain_args
from ppo_fast.run.payload import policy_in
from ppo_fast.run.policy import first_not_finite, read_policy
from ppo_fast.run.run_flags import saved_flags


class Policy(NamedTuple):
    """Weights and where they come from."""

    folder: Path  # of the run, or the one that the file lies in
    path: Path
    weights: dict[str, torch.Tensor]  # of a state_dict; from a checkpoint "theta" and "agent.<buffer>"
    facts: dict[str, Any]  # the flags of the run, and its "program"
    notes: list[str]  # lines to say of it


class Seen(Protocol):
    """What an Agent asks environments for when it is made."""

    @property
    def single_observation_space(self) -> spaces.Box:
        """Of one environment, float32."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the agent is to be."""
        ...


def load(run: str, root: Path) -> Policy:
    """Read what `run` names: of a run folder its policy file, or its newest checkpoint if that is newer.

    Args:
        run: a run folder, a checkpoint, a policy file, or "latest".
        root: the folder that "latest" looks in.

    Raises:
        ValueError: "run: ..." in one line when there is nothing usable.
    """
    path = policy_place.newest(root) if run == "latest" else Path(run)
    with policy_place.named_run(path):
        policy = _read(path, root)
        notes = policy_place.refuse_stranger(path, policy.folder, policy.path, policy.facts)
        return policy._replace(notes=[*policy.notes, *notes])


def _read(path: Path, root: Path) -> Policy:
    """The policy of a file or a run folder. ValueError, KeyError or OSError where there is none."""
    file = policy_place.file_of(path)
    if file is not None:
        weights, facts, is_checked = read_policy(file)
        notes = [] if is_checked else [f"{file} {policy_place.NO_CHECKSUM}"]
        return Policy(file.parent, file, weights, facts, notes)
    found = find.resolve(str(path), root)
    notes = [f"passed over {line}" for line in found.skipped]
    facts = {names.RUN_ID: found.payload.get(names.RUN_ID)}
    weights, flags = policy_in(found.payload)
    return Policy(found.run, found.path, weights, {**flags, **facts}, notes)


def rebuild_flags(policy: Policy, trusts: bool) -> tuple[ModuleType, Any, list[str]]:
    """The program that trained the policy, its Args as they were, and lines to say of the program's import.

    Args:
        policy: of any run.
        trusts: whether a program of somebody's own is imported wherever it lies, even in a run folder.

    Raises:
        ValueError: "run: ..." if that can't be.
    """
    try:
        program, notes = programs.load(policy.facts.get("program", "ppo_fast.train"), policy.folder, trusts)
    except ValueError as problem:
        raise ValueError(f"run: {policy.path}: its program {problem}") from problem
    facts = saved_flags(policy.facts)
    known = {}
    for field in dataclasses.fields(program.Args):
        if field.name in facts:
            known[field.name] = facts[field.name]
    if "env_id" not in known:
        raise ValueError(f"run: {policy.path} does not say which environment it is for")
    try:
        flags = plain_args(program.Args(**known))  # JSON has lists for tuples
        flags.check()
    except (ValueError, TypeError) as problem:
        raise ValueError(f"run: {policy.path} holds flags that can't be used: {problem}") from problem
    return program, flags, notes


def rebuild_agent(program: ModuleType, flags: Any, policy: Policy, envs: Seen) -> Any:
    """The agent with its weights and statistics, laid out in memory as in training, so that it computes the same."""
    _check_room(flags, policy)
    try:
        agent = program.Agent(envs, flags).to(envs.device)
        theta = flat.flatten_parameters(agent)
        weights = policy.weights
        if "theta" in weights:  # a checkpoint's, which keeps all parameters in one vector
            weights = _of_checkpoint(agent, theta, weights)
        agent.load_state_dict(weights)
    except (RuntimeError, KeyError, MemoryError) as problem:
        reason = textwrap.shorten(str(problem), 200)
        fitting = f"does not fit {flags.env_id} and the Agent of {program.__file__}"  # of which there may be copies
        raise ValueError(f"run: {policy.path} {fitting}: {reason}") from problem
    return agent.eval()


def _check_room(flags: Any, policy: Policy) -> None:
    """ValueError where a file's flags ask for far larger networks than it has weights for: none are made then."""
    count = sum(x.numel() for x in policy.weights.values())
    if programs.least_parameters(flags) > count:
        raise ValueError(f"run: {policy.path} does not fit its flags: it has only {count:,} weights")


def _of_checkpoint(agent: Any, theta: torch.Tensor, saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state_dict from the tensors of a checkpoint. KeyError or RuntimeError naming one that does not fit."""
    statistics = {name: saved[f"agent.{name}"] for name in buffers_of(agent)}
    learned = {"theta": saved["theta"], **statistics}
    if learned["theta"].shape != theta.shape or not learned["theta"].is_floating_point():
        raise RuntimeError(f"theta has the shape {tuple(learned['theta'].shape)}, not {tuple(theta.shape)}")
    bad = first_not_finite(learned)
    if bad is not None:
        raise RuntimeError(f"its {bad} holds NaN or infinity")
    theta.copy_(learned["theta"])
    return {**agent.state_dict(), **statistics}


def buffers_of(agent: torch.nn.Module) -> list[str]:
    """The names of the statistics that belong to an agent's state."""
    return [name for name, _ in agent.named_buffers() if name in agent.state_dict()]
