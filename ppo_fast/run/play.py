"""Play whole episodes with a policy: an evaluation that no short episode can bias."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ppo_fast.envs import Environments
from ppo_fast.run import randomness

# Added to a run's seed for its evaluation: episodes that training has not seen.
EVAL_SEED = 1_000_000

# Episodes that are looked at on a GPU only now and then: a look stalls it.
STEPS_BETWEEN_LOOKS = 32

Act = Callable[[Tensor], Tensor]  # observations (N, *S) to actions (N, ...)


class Player(Protocol):
    """What an agent needs in order to play."""

    @property
    def head(self) -> Any:
        """Has `draw_noise(shape, generator)`, which gives `act` its noise."""
        ...

    @property
    def act(self) -> Callable[..., tuple[Any, ...]]:
        """`act(obs, noise, *memory)`: actions (N, ...) for observations (N, *S), what the policy said, and what is
        remembered from now on.

        Without noise they are the most likely ones, with it they are drawn. An agent that remembers something says by
        `initial_memory(N)`, tensors (N, ...), what that is before an episode.
        """
        ...


def initial_memory(agent: Any, num_envs: int) -> tuple[Tensor, ...]:
    """What an agent remembers before the first step of an episode; () for most."""
    begin = getattr(agent, "initial_memory", None)
    return () if begin is None else begin(num_envs)


class Episodes(NamedTuple):
    """The episodes of `play`, one per environment."""

    returns: Tensor  # (N,) f64, undiscounted sums of the environment's own rewards
    lengths: Tensor  # (N,) i64, steps

    def figures(self, prefix: str) -> dict[str, float | int]:
        """Mean, standard deviation (of the episodes, not of the mean), extremes and count, as in result.json."""
        return {
            f"{prefix}mean_return": float(self.returns.mean()),
            f"{prefix}std_return": float(self.returns.std(correction=0)),
            f"{prefix}min_return": float(self.returns.min()),
            f"{prefix}max_return": float(self.returns.max()),
            f"{prefix}mean_length": float(self.lengths.double().mean()),
            f"{prefix}episodes": len(self.returns),
        }


@torch.no_grad()
def play(envs: Environments, act: Act, seed: int, max_steps: int = 1_000_000) -> Episodes:
    """The first episode of each of N freshly reset environments.

    One episode per environment, the long ones too: counting episodes as they end would favour the short ones.

    Args:
        envs: an environment of `ppo_fast.envs.make`.
        act: observations (N, *S) to actions (N, ...).
        seed: of the reset, and of the generators that a process shares, which are put back afterwards.
        max_steps: for environments that never end an episode; what was gathered until then is the return.
    """
    with randomness.seeded(seed):
        return _first_episodes(envs, act, seed, max_steps)


def _first_episodes(envs: Environments, act: Act, seed: int, max_steps: int) -> Episodes:
    """What `play` returns."""
    obs = envs.reset(seed=seed)[0]
    returns = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
    lengths = torch.zeros(envs.num_envs, dtype=torch.int64, device=envs.device)
    running = torch.ones(envs.num_envs, dtype=torch.bool, device=envs.device)
    for step in range(max_steps):
        obs, reward, terminated, truncated, _ = envs.step(act(obs))
        returns += torch.where(running, reward, 0.0)
        lengths += running
        running &= ~(terminated | truncated)
        is_looked_at = not running.is_cuda or step % STEPS_BETWEEN_LOOKS == STEPS_BETWEEN_LOOKS - 1
        if is_looked_at and not running.any():
            break
    return Episodes(returns, lengths)


def greedy(agent: Player) -> Act:
    """An agent's most likely actions, over one episode of each environment."""
    return _remembering(agent, lambda obs: None)


def sampled(agent: Player, generator: torch.Generator) -> Act:
    """Actions drawn from an agent's policy, with noise of this generator, over one episode of each environment."""
    return _remembering(agent, lambda obs: agent.head.draw_noise(obs.shape[:1], generator))


def _remembering(agent: Player, noise_for: Callable[[Tensor], Tensor | None]) -> Act:
    """An agent's actions, with what it remembers handed on from step to step."""
    memory: tuple[Tensor, ...] | None = None

    def act(obs: Tensor) -> Tensor:
        nonlocal memory
        if memory is None:
            memory = initial_memory(agent, len(obs))
        action, _, *after = agent.act(obs, noise_for(obs), *memory)
        memory = tuple(after)
        return action

    return act


def evaluate(envs: Environments, agent: Player, seed: int) -> dict[str, float | int]:
    """An agent's figures over one episode of each environment, greedy as "eval/..." and sampled as "eval/sampled_...".

    Args:
        envs: fresh environments, closed here. Their number is the number of episodes.
        agent: its actions are on the environments' device.
        seed: of the environments (moved away from the training's) and of the sampling.
    """
    generator = torch.Generator(envs.device).manual_seed(seed)
    figures = play(envs, greedy(agent), seed + EVAL_SEED).figures("eval/")
    figures |= play(envs, sampled(agent, generator), seed + EVAL_SEED).figures("eval/sampled_")
    envs.close()
    return figures
