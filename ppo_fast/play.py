"""Play whole episodes with a policy, for an evaluation that no short episode can bias."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """The episodes of `play`, one per environment."""

    returns: Tensor  # (N,) f64, undiscounted sums of the environment's own rewards
    lengths: Tensor  # (N,) i64, steps

    def figures(self, prefix: str) -> dict[str, float | int]:
        """Mean, standard deviation (of the episodes, not of the mean), extremes and count, as result.json names them."""
        returns = self.returns
        figures = {"mean_return": returns.mean(), "std_return": returns.std(correction=0)}
        figures |= {
            "min_return": returns.min(),
            "max_return": returns.max(),
            "mean_length": self.lengths.double().mean(),
        }
        return {**{prefix + name: float(x) for name, x in figures.items()}, prefix + "episodes": len(returns)}


@torch.no_grad()
def play(envs: Any, act: Callable[[Tensor], Tensor], seed: int, max_steps: int = 1_000_000) -> Episodes:
    """The first episode of each of N freshly reset environments.

    One episode per environment, the long ones too: counting episodes as they end would favour the short ones.

    Args:
        envs: an environment of `ppo_fast.envs.make`.
        act: observations (N, *S) to actions (N, ...).
        seed: of the reset.
        max_steps: for environments that never end an episode; what was gathered until then is the return.
    """
    obs = envs.reset(seed=seed)[0]
    returns = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
    lengths = torch.zeros(envs.num_envs, dtype=torch.int64, device=envs.device)
    running = torch.ones(envs.num_envs, dtype=torch.bool, device=envs.device)
    for step in range(max_steps):
        obs, reward, terminated, truncated, _ = envs.step(act(obs))
        returns += torch.where(running, reward, 0.0)
        lengths += running
        running &= ~(terminated | truncated)
        # Looking at the device stalls it: now and then is enough there.
        if (not running.is_cuda or step % 32 == 31) and not running.any():
            break
    return Episodes(returns, lengths)
