"""An agent that is asked in NumPy's arrays, and the probe that its policy file keeps (see probe.py)."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppo_fast.algorithm.heads import CategoricalHead, GaussianHead, MultiCategoricalHead
from ppo_fast.run import play, probe
from ppo_fast.run.probe import Memory, Probe


class AgentPlayer:
    """A probe.Player: a program's Agent on the CPU.

    Args:
        agent: see play.Player.
    """

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def begin(self, rows: int) -> Memory:
        """See probe.Player."""
        return tuple(x.numpy() for x in play.initial_memory(self.agent, rows))

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """See probe.Player. The heads of ppo_fast get the numbers that they get without torch."""
        head = self.agent.head
        if isinstance(head, GaussianHead):
            return rng.standard_normal((rows, *head.action_shape), np.float32)
        if isinstance(head, (CategoricalHead, MultiCategoricalHead)):
            return rng.random((rows, *head.action_shape), np.float32)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        return head.draw_noise((rows,), generator).numpy()

    @torch.no_grad()
    def act(
        self, obs: np.ndarray, noise: np.ndarray | None, memory: Memory
    ) -> tuple[np.ndarray, np.ndarray | None, Memory]:
        """See probe.Player."""
        drawn = None if noise is None else torch.tensor(noise)
        action, outputs, *after = self.agent.act(torch.tensor(obs), drawn, *map(torch.tensor, memory))
        said = outputs.numpy() if isinstance(outputs, Tensor) else None
        return action.numpy(), said, tuple(x.numpy() for x in after)


def probe_of(agent: nn.Module, shape: tuple[int, ...], mask_size: int, seen: Tensor | None = None) -> Probe | None:
    """What an agent answers now; None where it can't be asked. The agent is as before.

    Args:
        agent: on any device.
        shape: S, of an encoded observation.
        mask_size: n where the last n columns of observations are an action mask, else 0.
        seen: (T, N, *S), a rollout's observations, if there are any.
    """
    try:
        asked = copy.deepcopy(agent).cpu().eval()  # also of one on the CPU: a rollout may be under way
        remembers = bool(play.initial_memory(asked, 1))
    except Exception:  # any, since it is code of anybody's
        return None
    rows = None if seen is None else seen.detach().flatten(0, 1).cpu().numpy()
    obs = probe.observations(shape, mask_size, rows, probe.STEPS if remembers else 1)
    return probe.record(AgentPlayer(asked), obs)
