"""The agent of train.py: initial weights, sizes, and that its three entrances compute the same."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_fast.train import Agent, Args


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def envs_with(obs_shape: tuple[int, ...] = (4,), action_space: spaces.Space | None = None, mask_size: int = 0) -> Any:
    """What Agent looks at in environments."""
    return SimpleNamespace(
        single_observation_space=spaces.Box(-1, 1, obs_shape),
        single_action_space=action_space or spaces.Discrete(2),
        mask_size=mask_size,
    )


def gain_of(layer: nn.Module) -> float:
    """The largest singular value of its weight."""
    assert isinstance(layer, nn.Linear)
    return torch.linalg.matrix_norm(layer.weight.detach(), 2).item()


def shaken(agent: Agent) -> Agent:
    """With larger weights, so that actions differ."""
    draw = generator(1)
    for parameter in agent.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return agent


@pytest.mark.parametrize("shared", [True, False])
def test_every_layer_has_its_gain(shared: bool) -> None:
    """√2 in hidden layers, 0.01 in front of the policy, 1 in front of the value."""
    agent = Agent(envs_with(), Args(shared_backbone=shared), generator())
    *hidden, policy = agent.actor.layers
    *more, value = agent.critic.layers
    hidden += more
    if agent.backbone is not None:
        hidden += list(agent.backbone.layers)
    assert len(hidden) == (2 if shared else 4)
    assert [gain_of(layer) for layer in hidden] == pytest.approx([math.sqrt(2)] * len(hidden), abs=1e-5)
    assert gain_of(policy) == pytest.approx(0.01, abs=1e-7)
    assert gain_of(value) == pytest.approx(1.0, abs=1e-6)


def test_parameter_counts() -> None:
    """CartPole: (4·64 + 64) + (64·64 + 64) + (64·2 + 2) + (64 + 1) = 4,675 shared, 9,155 separate."""

    def count(envs: Any, shared: bool) -> int:
        return sum(p.numel() for p in Agent(envs, Args(shared_backbone=shared)).parameters())

    assert count(envs_with(), shared=True) == 320 + 4160 + 130 + 65 == 4675
    assert count(envs_with(), shared=False) == 2 * (320 + 4160) + 130 + 65 == 9155
    box = envs_with((3,), spaces.Box(-1, 1, (2,)))
    assert count(box, shared=True) == (3 * 64 + 64) + 4160 + 130 + 65 + 2  # and two deviations


def test_image_like_observations_are_flattened() -> None:
    agent = Agent(envs_with((2, 3)), Args(), generator())
    obs = torch.randn(5, 7, 2, 3, generator=generator())
    assert agent.value(obs).shape == (5, 7)
    torch.testing.assert_close(agent.value(obs), agent.critic(obs.flatten(2)).squeeze(-1))


@pytest.mark.parametrize("flags", [{}, {"shared_backbone": True}, {"norm_obs": True}], ids=str)
def test_the_three_entrances_agree(flags: dict[str, Any]) -> None:
    """act, value and forward compute the same numbers."""
    agent = shaken(Agent(envs_with(), Args(**flags), generator()))
    obs = torch.randn(6, 4, generator=generator())
    if agent.normalize_obs is not None:
        agent.normalize_obs.update_(3 * obs[None] + 1)
    action, outputs = agent.act(obs, agent.head.draw_noise((6,), generator()))
    log_prob, entropy, value = agent(obs, action)
    torch.testing.assert_close(agent.head.log_prob(outputs, action), log_prob)
    torch.testing.assert_close(agent.value(obs), value)
    assert entropy.shape == value.shape == (6,)
    assert torch.equal(agent.act(obs, None)[0], agent.actor(agent.features(obs)).argmax(-1))


def test_an_action_mask_at_the_end_of_an_observation_is_for_the_policy_alone() -> None:
    agent = shaken(Agent(envs_with((7,), spaces.Discrete(3), mask_size=3), Args(), generator()))
    numbers = torch.randn(50, 4, generator=generator())
    allowed = torch.tensor([1.0, 0.0, 1.0]).expand(50, 3)
    obs = torch.cat([numbers, allowed], 1)
    free = torch.cat([numbers, torch.ones(50, 3)], 1)
    assert torch.equal(agent.inputs(obs), numbers) and torch.equal(agent.value(obs), agent.value(free))
    noise = agent.head.draw_noise((50,), generator())
    assert 1 in agent.act(free, noise)[0] and 1 not in agent.act(obs, noise)[0] and 1 not in agent.act(obs, None)[0]
    log_prob, _, _ = agent(obs, torch.ones(50, dtype=torch.int64))
    assert (log_prob < -1e6).all()
