"""Play whole episodes with a policy: an evaluation that no short episode can bias."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ppo_fast.envs import Environments, make
from ppo_fast.envs.seeds import spread_seeds
from ppo_fast.run import randomness
from ppo_fast.run.run_flags import env_view

# Added to a run's seed for its evaluation: episodes that training has not seen.
EVAL_SEED = 1_000_000

# Episodes that are looked at on a GPU only now and then: a look stalls it.
STEPS_BETWEEN_LOOKS = 32

SECONDS_BETWEEN_TELLS = 5.0

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
    unfinished: int = 0  # of them had not ended, and count with what they had gathered

    def figures(self, prefix: str) -> dict[str, float | int]:
        """Mean, standard deviation (of the episodes, not of the mean), extremes and count, as in result.json."""
        return {
            f"{prefix}mean_return": float(self.returns.mean()),
            f"{prefix}std_return": float(self.returns.std(correction=0)),
            f"{prefix}min_return": float(self.returns.min()),
            f"{prefix}max_return": float(self.returns.max()),
            f"{prefix}mean_length": float(self.lengths.double().mean()),
            f"{prefix}episodes": len(self.returns),
            **({f"{prefix}unfinished": self.unfinished} if self.unfinished else {}),
        }


@dataclass(frozen=True)
class Limits:
    """What bounds the playing, for environments that never end an episode; and who is told how far it is."""

    steps: int = 100_000
    """of an episode; what it has gathered until then is its return"""
    end: float = math.inf
    """when no more is played, by `time.monotonic`; episodes that go on then count with what they have"""
    tell: Callable[[int, int], object] = lambda over, step: None
    """takes, now and then, how many episodes are over, and the steps of those that go on"""
    stops: Callable[[], bool] = lambda: False
    """whether somebody wants it to end at once"""

    def are_over(self) -> bool:
        """Whether it is time to end."""
        return self.stops() or time.monotonic() > self.end

    def half(self) -> "Limits":
        """The same for half of the time that is left."""
        now = time.monotonic()
        return replace(self, end=now + (self.end - now) / 2)


def environments_for(args: Any, backend: str, num_envs: int, device: torch.device, seed: int) -> Environments:
    """Fresh environments to evaluate a run's policy on, as its training sees them.

    Args:
        args: a program's flags.
        backend: of the training.
        seed: of what environments draw while they are made; the process-wide generators are as before afterwards.
    """
    backend = "sync" if backend == "async" else backend  # not a process for each of 100 episodes
    with randomness.seeded(seed):
        return make(args.env_id, num_envs, device, backend, **env_view(vars(args)))


@torch.no_grad()
def play(
    envs: Environments, act: Act, seed: int | list[int], max_steps: int = 100_000, limits: Limits | None = None
) -> Episodes:
    """The first episode of each of N freshly reset environments.

    One episode per environment, the long ones too: counting episodes as they end would favour the short ones.

    Args:
        envs: an environment of `ppo_fast.envs.make`.
        act: observations (N, *S) to actions (N, ...).
        seed: of the reset, and of the generators that a process shares, which are put back afterwards; or one for each
            environment.
        max_steps: for environments that never end an episode; what was gathered until then is the return.
        limits: these and others, instead of `max_steps`.
    """
    with randomness.seeded(seed if isinstance(seed, int) else seed[0]):
        return _first_episodes(envs, act, seed, limits or Limits(max_steps))


def play_in_rounds(envs: Environments, begin: Callable[[], Act], seed: int, episodes: int, limits: Limits) -> Episodes:
    """As many episodes as are wanted of the environments that there are, one an environment and round.

    They are those that so many environments would have played, where each has a seed of its own.

    Args:
        begin: gives what acts, anew for each round.
        limits: fewer episodes are played where it is time to end.
    """
    if episodes == envs.num_envs:
        return play(envs, begin(), seed, limits=limits)
    seeds = spread_seeds(seed, episodes)
    rounds: list[Episodes] = []
    for first in range(0, episodes, envs.num_envs):
        if rounds and limits.are_over():
            break
        own = [seeds[(first + i) % episodes] for i in range(envs.num_envs)]
        count = min(envs.num_envs, episodes - first)
        rest = replace(limits, tell=partial(_tell_of_all, limits.tell, first))
        seen = play(envs, begin(), own if _takes_seeds(envs) else own[0], limits=rest)
        rounds.append(Episodes(seen.returns[:count], seen.lengths[:count], min(seen.unfinished, count)))
    returns, lengths, unfinished = zip(*rounds, strict=True)
    return Episodes(torch.cat(returns), torch.cat(lengths), sum(unfinished))


def _tell_of_all(tell: Callable[[int, int], object], before: int, over: int, step: int) -> None:
    """Tell of a round, with the episodes of those before it."""
    tell(before + over, step)


def _takes_seeds(envs: Environments) -> bool:
    """Whether each environment takes a seed of its own."""
    return isinstance(getattr(envs, "spread", lambda seed: seed)(0), list)


def _first_episodes(envs: Environments, act: Act, seed: int | list[int], limits: Limits) -> Episodes:
    """What `play` returns."""
    resettable: Any = envs  # those on the host take a seed each
    obs = resettable.reset(seed=seed)[0]
    returns = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
    lengths = torch.zeros(envs.num_envs, dtype=torch.int64, device=envs.device)
    running = torch.ones(envs.num_envs, dtype=torch.bool, device=envs.device)
    tell_at = time.monotonic() + SECONDS_BETWEEN_TELLS
    for step in range(limits.steps):
        obs, reward, terminated, truncated, _ = envs.step(act(obs))
        returns += torch.where(running, reward, 0.0)
        lengths += running
        running &= ~(terminated | truncated)
        is_looked_at = not running.is_cuda or step % STEPS_BETWEEN_LOOKS == STEPS_BETWEEN_LOOKS - 1
        if is_looked_at and not running.any():
            break
        if limits.are_over():
            break
        if time.monotonic() > tell_at:
            tell_at = time.monotonic() + SECONDS_BETWEEN_TELLS
            limits.tell(envs.num_envs - int(running.sum()), step + 1)
    return Episodes(returns, lengths, int(running.sum()))


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


def evaluate(
    envs: Environments, agent: Player, seed: int, episodes: int | None = None, limits: Limits | None = None
) -> dict[str, float | int]:
    """An agent's figures over one episode of each environment, greedy as "eval/..." and sampled as "eval/sampled_...".

    Args:
        envs: fresh environments, closed here.
        agent: its actions are on the environments' device.
        seed: of the environments (moved away from the training's) and of the sampling.
        episodes: of each kind; one an environment unless given.
        limits: the greedy ones may take half of the time.
    """
    generator = torch.Generator(envs.device).manual_seed(seed)
    limits = limits or Limits()
    count = episodes or envs.num_envs
    begin = partial(greedy, agent)
    figures = play_in_rounds(envs, begin, seed + EVAL_SEED, count, limits.half()).figures("eval/")
    begin = partial(sampled, agent, generator)
    figures |= play_in_rounds(envs, begin, seed + EVAL_SEED, count, limits).figures("eval/sampled_")
    envs.close()
    return figures
