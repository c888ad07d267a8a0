"""A policy that is played by the Agent of the program that trained it, with torch.

No environment is made, but for files of earlier versions, which don't say what their environments look like.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ppo_fast import envs as environments, names
from ppo_fast.deploy.found import Found, in_numpy, tolerance_of
from ppo_fast.envs import spaces_json
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.envs.settings import Settings
from ppo_fast.run import identity, modules, policy_place, randomness, saved_policy
from ppo_fast.run.agent_player import AgentPlayer, probe_of
from ppo_fast.run.probe import Player, Probe
from ppo_fast.run.run_flags import env_view


class StandIn:
    """What an Agent looks at when it is made, of environments that are not there."""

    def __init__(self, own: OwnSpaces, env_id: str, num_envs: int) -> None:
        self.single_observation_space, self.single_action_space, self.mask_size, self.columns = own.presented()
        self.spec_id = env_id
        self.num_envs = num_envs
        self.device = torch.device("cpu")


class Rebuilt(NamedTuple):
    """An agent as it was, and what it is of."""

    agent: Any
    saved: saved_policy.Policy
    flags: Any
    own: OwnSpaces
    notes: list[str]  # lines to say of it


def find(path: Path, run_root: Path, trusts: bool = False) -> Found:
    """The policy that `path` names.

    Args:
        path: a run folder, a policy file or a checkpoint.
        run_root: the folder of all runs.
        trusts: where an environment is made, import its module wherever it lies, even in a run folder.

    Raises:
        ValueError: "run: ..." in one line where there is none that can be used.
    """
    agent, saved, _, own, notes = rebuild(path, run_root, trusts)
    player, more = _player_of(agent, saved.facts, own, Probe.from_json(saved.facts.get("probe")))
    return Found(player, own, saved.facts, saved.path, [*notes, *more])


def rebuild(path: Path, run_root: Path, trusts: bool = False) -> Rebuilt:
    """The agent of the policy that `path` names, on the CPU; arguments and errors as of `find`."""
    saved = saved_policy.load(str(path), run_root)
    program, flags, _ = saved_policy.rebuild_flags(saved, trusts)
    own, notes = _spaces_of(saved, flags, trusts)
    with _as_a_guest():
        agent = saved_policy.rebuild_agent(program, flags, saved, StandIn(own, flags.env_id, flags.num_envs))
    return Rebuilt(agent, saved, flags, own, [*saved.notes, *notes])


def _player_of(
    agent: nn.Module, facts: Mapping[str, Any], own: OwnSpaces, probe: Probe | None
) -> tuple[Player, list[str]]:
    """The agent or, where it computes what NumPy does, that; and a line to say where it isn't what it was."""
    player = AgentPlayer(agent)
    if probe is not None and not probe.is_answered_by(player, tolerance_of(facts)):
        program = facts.get("program", "ppo_fast.train")
        return player, [f"{program} computes other actions now than when the policy was saved: has it been changed?"]
    now = probe_of(agent, own.presented().single_observation_space.shape, own.mask_size)
    if now is None:
        return player, []
    state = {name: x.numpy() for name, x in agent.state_dict().items() if x.dtype != torch.bfloat16}
    return in_numpy(state, facts, own, now) or player, []


def _spaces_of(saved: saved_policy.Policy, flags: Any, trusts: bool) -> tuple[OwnSpaces, list[str]]:
    """The environment's own spaces, from the file, its run's config.json or itself; and lines to say of them."""
    facts = saved.facts.get("spaces")
    if facts is None and policy_place.stranger(saved.folder, saved.path, saved.facts) is None:
        facts = _config_of(saved.folder).get("spaces")
    if facts is not None:
        try:
            return spaces_json.from_json(facts), []
        except ValueError as problem:
            raise ValueError(f"run: {saved.path}: {problem}") from problem
    note = f"{saved.path} doesn't say what {flags.env_id} observes, as earlier versions wrote it: one was made to ask"
    try:
        modules.check(flags.env_id, saved.folder, trusts)
        has_own = "sync" in environments.available_backends(flags.env_id)
        view = env_view(vars(flags))
        envs = environments.make(flags.env_id, 1, "cpu", "sync" if has_own else "auto", **view)
    except (ValueError, environments.EnvironmentFault) as problem:
        raise ValueError(f"run: {saved.path}: {names.first_line(problem)}") from problem
    own = envs.own_spaces
    envs.close()
    return own, [note]


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        return identity.config_of(folder) or {}
    except OSError:
        return {}


@contextmanager
def _as_a_guest() -> Iterator[None]:
    """The process's default type and device are torch's own inside; random generators are as before afterwards."""
    before = Settings.now()
    with randomness.seeded(0):
        try:
            Settings(torch.float32, torch.device("cpu"), before.float_errors).put()
            yield
        finally:
            before.put()
