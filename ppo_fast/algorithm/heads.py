"""Action distributions, one head for each kind of action space: draw, log-probability, entropy.

A head turns what the policy network says, (M, H), into actions. Noise is drawn outside of it, so that a head is a pure
function: it can be compiled, recorded and captured.
Letters: M rows, H outputs of the policy network, A action dimensions, K independent discrete actions.
"""

import math
from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn


class CategoricalHead(nn.Module):
    """Actions 0 ... n-1 from n logits. Noise: one uniform number per row (inverse of the distribution function)."""

    max_entropy: float

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.outputs = num_actions
        self.action_shape: tuple[int, ...] = ()
        self.action_dtype = torch.int64
        self.max_entropy = math.log(num_actions)

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Uniform numbers in [0, 1) of the given leading shape."""
        return torch.rand(*shape, generator=generator, device=generator.device)

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draw actions (M,) int64 from logits (M, n) with noise (M,)."""
        total = logits.softmax(-1).cumsum(-1)
        # Relative to the last sum, which rounding leaves a little below 1: a forbidden last action is never drawn.
        return (total[..., :-1] <= noise[..., None] * total[..., -1:]).sum(-1)

    def mode(self, logits: Tensor) -> Tensor:
        """The most likely actions (M,)."""
        return logits.argmax(-1)

    def log_prob(self, logits: Tensor, action: Tensor) -> Tensor:
        """log π(action), (M,), in nats."""
        return self._chosen(logits.log_softmax(-1), action)

    def log_prob_entropy(self, logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log π(action) and the entropy, both (M,), in nats."""
        log_probs = logits.log_softmax(-1)
        return self._chosen(log_probs, action), -(log_probs.exp() * log_probs).sum(-1)

    def _chosen(self, log_probs: Tensor, action: Tensor) -> Tensor:
        # A comparison instead of a gather: its backward is a product, not a scatter.
        chosen = action[..., None] == torch.arange(self.outputs, device=action.device)
        return torch.where(chosen, log_probs, 0.0).sum(-1)


class MultiCategoricalHead(nn.Module):
    """K independent categorical actions: logits (M, sum of nvec), actions (M, K) int64, one uniform number each."""

    def __init__(self, nvec: Sequence[int]) -> None:
        super().__init__()
        self.parts = [CategoricalHead(int(n)) for n in nvec]
        self.outputs = sum(part.outputs for part in self.parts)
        self.action_shape = (len(self.parts),)
        self.action_dtype = torch.int64
        self.max_entropy = sum(part.max_entropy for part in self.parts)

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        return logits.split([part.outputs for part in self.parts], dim=-1)

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Uniform numbers in [0, 1): shape + (K,)."""
        return torch.rand(*shape, len(self.parts), generator=generator, device=generator.device)

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draw actions (M, K) from logits with noise (M, K)."""
        triples = zip(self.parts, self._split(logits), noise.unbind(-1), strict=True)
        return torch.stack([part.sample(x, u) for part, x, u in triples], -1)

    def mode(self, logits: Tensor) -> Tensor:
        """The most likely actions (M, K)."""
        return torch.stack([x.argmax(-1) for x in self._split(logits)], -1)

    def log_prob(self, logits: Tensor, action: Tensor) -> Tensor:
        """Joint log π(action), (M,)."""
        triples = zip(self.parts, self._split(logits), action.unbind(-1), strict=True)
        return torch.stack([part.log_prob(x, a) for part, x, a in triples]).sum(0)

    def log_prob_entropy(self, logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Joint log π(action) and joint entropy, both (M,): sums over the K parts."""
        triples = zip(self.parts, self._split(logits), action.unbind(-1), strict=True)
        pairs = [part.log_prob_entropy(x, a) for part, x, a in triples]
        return torch.stack([p for p, _ in pairs]).sum(0), torch.stack([e for _, e in pairs]).sum(0)


class GaussianHead(nn.Module):
    """A diagonal Gaussian with a state-independent log standard deviation, learned from `log_std`. Noise: normal.

    The log-probability is of the action drawn; clipping it to the bounds is the environment's side.
    """

    max_entropy: float  # of unit variance, as a measure: a density has no largest one

    def __init__(self, action_dim: int, log_std: float = 0.0) -> None:
        super().__init__()
        self.outputs = action_dim
        self.action_shape = (action_dim,)
        self.action_dtype = torch.float32
        self.max_entropy = 0.5 * math.log(2 * math.pi * math.e) * action_dim
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std)))

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Standard normal numbers: shape + (A,)."""
        return torch.randn(*shape, self.outputs, generator=generator, device=generator.device)

    def sample(self, mean: Tensor, noise: Tensor) -> Tensor:
        """mean + std · noise, (M, A)."""
        return mean + self.log_std.exp() * noise

    def mode(self, mean: Tensor) -> Tensor:
        """The mean, (M, A)."""
        return mean

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Joint log-density of the action, (M,), in nats."""
        standard = (action - mean) * (-self.log_std).exp()
        return (-0.5 * standard**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_prob_entropy(self, mean: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Joint log-density of the action and joint entropy, both (M,), in nats."""
        log_prob = self.log_prob(mean, action)
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return log_prob, entropy.expand_as(log_prob)


# The logit of an action that the environment forbids.
FORBIDDEN = -1e9


def masked(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits (M, n) with -1e9 where `allowed` (M, n) is 0: probability 0, no gradient (Huang & Ontañón 2022)."""
    return torch.where(allowed > 0, logits, FORBIDDEN)


Head = CategoricalHead | MultiCategoricalHead | GaussianHead


def make_head(space: spaces.Space, log_std: float = 0.0) -> Head:
    """The head for an action space: Discrete, MultiDiscrete (flat) or Box (flat). ValueError names any other.

    Args:
        log_std: of a Gaussian at the start.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return MultiCategoricalHead(space.nvec.tolist())
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return GaussianHead(space.shape[0], log_std)
    raise ValueError(f"--env-id: action space {space} is not supported; Discrete, MultiDiscrete and Box are")
