"""Networks and action distributions: initialisation, multilayer perceptrons, and one head per kind of action space.

Each layer has two spellings of one function: torch's own kernels when run eagerly, and a form the compiler can fuse
when compiled. They agree to a few units in the last place, which a test holds against float64.
Letters: M rows, D inputs, H outputs, A actions or action dimensions.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

# A product this thin wastes a matrix kernel (4 to 10 GFLOP/s against 300 on a CPU); written as sums it is fused.
THIN = 8
# As many numbers are worth three calls more (tanh).
MANY = 8192


def layer_init(layer: nn.Linear, gain: float, generator: torch.Generator | None = None) -> nn.Linear:
    """Orthogonal weights of the given gain and zero biases, in place (Saxe et al. 2014; as in OpenAI's baselines)."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x (..., D) times weight (H, D) transposed, plus bias (H,): (..., H); the product's inputs rounded to `dtype`."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        outputs, inputs = weight.shape
        if inputs <= THIN:
            return sum((x[..., k, None] * weight[:, k] for k in range(inputs)), start=bias)
        if outputs <= THIN:
            # Stacked in front, viewed at the back: what follows runs along the rows, which the CPU vectorises.
            return torch.stack([(x * weight[i]).sum(-1) + bias[i] for i in range(outputs)]).movedim(0, -1)
    if dtype is not None:
        return F.linear(x.to(dtype), weight.to(dtype)).float() + bias
    return F.linear(x, weight, bias)


class _FusedTanh(torch.autograd.Function):
    """tanh as a rational function of degree 13/6, clamped where float32 tanh is 1; error below 4e-7, all multiply-adds.

    The coefficients are the minimax fit that Eigen and XLA use for float32. The gradient is that of tanh, 1 - y².
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.clamp(-7.90531110763549805, 7.90531110763549805)
        square = x * x
        upper = square * -2.76076847742355e-16 + 2.00018790482477e-13
        for coefficient in (-8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05):
            upper = upper * square + coefficient
        upper = (upper * square + 6.37261928875436e-04) * square + 4.89352455891786e-03
        lower = square * 1.19825839466702e-06 + 1.18534705686654e-04
        lower = (lower * square + 2.26843463243900e-03) * square + 4.89352518554385e-03
        return x * upper / lower

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad_outputs[0] * (1.0 - y * y)


def _tanh(x: Tensor) -> Tensor:
    """2σ(2x) - 1 where there are many numbers: torch's sigmoid takes a third of the time of its tanh."""
    if x.numel() < MANY:
        return torch.tanh(x)
    return (x * 2.0).sigmoid_().mul_(2.0).sub_(1.0)


class _EagerTanh(torch.autograd.Function):
    """tanh whose gradient is 1 - y²."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return torch.ops.aten.tanh_backward(grad_outputs[0], *ctx.saved_tensors)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent, any shape: on a CPU three to four times faster than torch's, and within 4e-7 of it."""
    if x.device.type != "cpu":
        return torch.tanh(x)
    if torch.compiler.is_compiling():
        return _FusedTanh.apply(x)  # pyright: ignore[reportReturnType]
    return _EagerTanh.apply(x) if x.requires_grad else _tanh(x)  # pyright: ignore[reportReturnType]


class MLP(nn.Module):
    """Linear layers with tanh between them: (M, D) -> (M, H). Orthogonal gain √2 inside, `gain` at the end.

    Args:
        sizes: D, hidden sizes..., H.
        gain: of the last layer: 0.01 for a policy, 1 for a value, √2 where more layers follow.
        activate_last: tanh after the last layer too, for a shared backbone.
        dtype: of the products' inputs, such as torch.bfloat16; None keeps float32.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        gain: float,
        generator: torch.Generator | None = None,
        activate_last: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        gains = [math.sqrt(2)] * (len(sizes) - 2) + [gain]
        self.layers = nn.ModuleList(
            layer_init(nn.Linear(inputs, outputs), g, generator)
            for inputs, outputs, g in zip(sizes[:-1], sizes[1:], gains, strict=True)
        )
        self.activate_last = activate_last
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            x = linear(x, layer.weight, layer.bias, self.dtype)
            if self.activate_last or i < len(self.layers) - 1:
                x = tanh(x)
        return x


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


FORBIDDEN = -1e9


def masked(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits (M, n) with -1e9 where `allowed` (M, n) is 0: probability 0, no gradient (Huang & Ontañón 2022)."""
    return torch.where(allowed > 0, logits, FORBIDDEN)


def make_head(space: spaces.Space, log_std: float = 0.0) -> CategoricalHead | MultiCategoricalHead | GaussianHead:
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


def _padded(size: int) -> int:
    # Slots of 64 bytes: what vector loads and matrix libraries like best.
    return -(-size // 16) * 16


def flatten_parameters(module: nn.Module) -> Tensor:
    """Move all parameters of a module into one flat float32 vector (P,) and make each parameter a view of it.

    Slots are padded with zeros to 64 bytes; their gradient is zero, so they stay zero. The optimiser, the gradient
    norm, a checkpoint and an all-reduce then handle one vector. The order is that of `named_parameters()`; a weight of
    at most THIN inputs stands there input by input, since that is how fused code reads it.
    """
    parameters = dict(module.named_parameters())
    first = next(iter(parameters.values()))
    theta = torch.zeros(sum(_padded(p.numel()) for p in parameters.values()), device=first.device)
    for name, view in unflatten(theta, {name: p.shape for name, p in parameters.items()}).items():
        with torch.no_grad():
            view.copy_(parameters[name])
        parameters[name].data = view
        parameters[name].requires_grad_(False)
    module.own = (theta, parameters)  # pyright: ignore[reportArgumentType]
    return theta


def parameters_of(module: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """The parameters in theta (P,) by name: the module's own where theta is what `flatten_parameters` gave of it, and
    views where it is not, or compiled. To look views up and lend them takes a tenth of a small update."""
    own_theta, own = getattr(module, "own", (None, {}))
    if theta is own_theta and not torch.compiler.is_compiling():
        return own
    return unflatten(theta, {name: parameter.shape for name, parameter in module.named_parameters()})


def call(module: nn.Module, parameters: dict[str, Tensor], *inputs: Tensor) -> Any:
    """What a module makes of its inputs with these parameters, which `parameters_of` gave, or others of their names."""
    own = getattr(module, "own", (None, None))[1]
    return module(*inputs) if parameters is own else functional_call(module, parameters, inputs)


def _by_input(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[1] <= THIN < shape[0]


def unflatten(theta: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The parameters as views of the flat vector, by name: the inverse of `flatten`."""
    pieces = theta.split([_padded(shape.numel()) for shape in shapes.values()])
    views = {}
    for piece, (name, shape) in zip(pieces, shapes.items(), strict=True):
        x = piece[: shape.numel()]
        views[name] = x.view(shape[1], shape[0]).t() if _by_input(shape) else x.view(shape)
    return views


def flatten(tensors: dict[str, Tensor]) -> Tensor:
    """One flat vector (P,) of tensors in order, laid out and padded as `flatten_parameters` does."""
    rows = ((x.t() if _by_input(x.shape) else x).reshape(-1) for x in tensors.values())
    gaps = ((x, _padded(x.numel()) - x.numel()) for x in rows)
    return torch.cat([F.pad(x, (0, gap)) if gap else x for x, gap in gaps])
