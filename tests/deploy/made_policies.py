"""Policies that no training has made: agents with random weights, and their files."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ppo_fast import train, train_lstm
from ppo_fast.deploy.agents import StandIn
from ppo_fast.envs import spaces_json
from ppo_fast.envs.masks import NO_MASKS, Masks, maskable
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.run.agent_player import probe_of
from ppo_fast.run.policy import save_policy

BOX = spaces.Box(-5.0, 5.0, (4,), np.float32)
NESTED = spaces.Dict(
    {
        "speed": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        "gear": spaces.Discrete(3, start=-1),
        "lamps": spaces.MultiBinary(3),
        "pair": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(0, 255, (2,), np.uint8)]),
    }
)
ACTIONS = {
    "discrete": spaces.Discrete(3, start=5),
    "multi": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[1, 0], [0, -3]])),
    "mapped": spaces.Box(np.array([100.0, -1.0]), np.array([200.0, 1.0]), dtype=np.float64),
    "clipped": spaces.Box(-2.0, 2.0, (1, 2), np.float32),
}
# Flags of train.py, or of train_lstm.py.
AGENTS: dict[str, dict[str, Any]] = {
    "separate": {"hidden_sizes": (16, 16)},
    "shared": {"hidden_sizes": (16,), "shared_backbone": True},
    "linear": {"hidden_sizes": ()},
    "lstm": {"hidden_sizes": (16,), "lstm_hidden_size": 8},
}


def own_spaces(action: spaces.Space, observation: spaces.Space = BOX, masked: bool = False, **more: Any) -> OwnSpaces:
    """Of an environment that may give masks in its info."""
    masks = Masks("info", maskable(action)) if masked else NO_MASKS
    return OwnSpaces(observation, action, masks, masks.size, action_bounds="auto", **more)


def agent_of(own: OwnSpaces, kind: str, seed: int = 0, **flags: Any) -> tuple[Any, Any]:
    """An agent whose actions differ from observation to observation, and its flags."""
    program = train_lstm if kind == "lstm" else train
    args = program.Args(env_id="Made-v0", **AGENTS[kind], **flags)
    generator = torch.Generator().manual_seed(seed)
    agent = program.Agent(StandIn(own, "Made-v0", args.num_envs), args, generator)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, x in agent.named_parameters():
            if not name.startswith("lstm"):
                x.add_(0.5 * torch.randn(x.shape, generator=generator))
    if agent.normalize_obs is not None:
        size = agent.normalize_obs.shift.shape[0]
        agent.normalize_obs.update_(3 + 2 * torch.randn(7, 5, size, generator=generator))
    return agent.eval().requires_grad_(False), args


def saved(folder: Path, own: OwnSpaces, kind: str, **flags: Any) -> Any:
    """An agent, with its policy file in the folder."""
    agent, args = agent_of(own, kind, **flags)
    write(folder, own, agent, args, kind)
    return agent


def write(folder: Path, own: OwnSpaces, agent: Any, args: Any, kind: str, **more: Any) -> Path:
    """Its policy file, with facts as a run leaves them."""
    box = own.presented().single_observation_space
    probe = probe_of(agent, box.shape, own.mask_size)
    assert probe is not None
    facts = {"env_id": "Made-v0", "program": "ppo_fast.train_lstm" if kind == "lstm" else "ppo_fast.train"}
    facts |= {**dataclasses.asdict(args), "spaces": spaces_json.to_json(own), "probe": probe.to_json(), **more}
    return save_policy(folder, agent.state_dict(), facts)


def drawn(space: spaces.Space, number: int, seed: int = 0) -> list[Any]:
    """Observations of a space."""
    space.seed(seed)
    return [space.sample() for _ in range(number)]


def flat(space: spaces.Space, observations: list[Any]) -> np.ndarray:
    """Observations as training encodes them, (N, D) float32."""
    rows: list[Any] = [spaces.flatten(space, obs) for obs in observations]
    return np.stack(rows).astype(np.float32)


def batched(observations: list[Any]) -> Any:
    """As Gymnasium's vector environments have them."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: batched([obs[key] for obs in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(batched([obs[i] for obs in observations]) for i in range(len(first)))
    return np.stack(observations)
