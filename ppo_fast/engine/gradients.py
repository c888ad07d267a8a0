"""The gradient of a loss by all parameters: on a part of a minibatch, and from all parts and processes together.

Letters: M rows of a minibatch, P parameters, S logged numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppo_fast.algorithm import ppo
from ppo_fast.algorithm.statistics import Statistics
from ppo_fast.engine import flat


class Rows(Protocol):
    """A minibatch: a named tuple of columns (M, ...). One is `valid`, (M,) bool, or None where all rows count.

    A row may be a sequence of steps, all equally long; `valid` is (M, L) bool then.
    """

    @property
    def valid(self) -> Tensor | None: ...
    def __getitem__(self, index: int, /) -> Any: ...


Loss = Callable[[Any, Any, Any], tuple[Tensor, dict[str, Tensor]]]  # loss(agent, args, minibatch): a program's


class Part(NamedTuple):
    """What one part of a minibatch adds."""

    sums: Tensor  # (P + S,) its share of the gradient and of the logged numbers
    names: tuple[str, ...]  # of the logged numbers


class LossModule(nn.Module):
    """A program's loss as a module, whose parameters are the agent's, so that others may be lent to it."""

    def __init__(self, loss: Loss, agent: nn.Module, args: Any) -> None:
        super().__init__()
        self.agent = agent
        self.loss = loss
        self.args = args

    def forward(self, rows: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.agent, self.args, rows)


def part_gradient(module: LossModule, theta: Tensor, rows: Any, share: float | Tensor) -> Part:
    """Forward and backward on some rows of a minibatch.

    Args:
        theta: (P,) the flat vector whose views the agent's parameters are.
        rows: a part of a minibatch.
        share: what share of the minibatch's valid rows it has, over all processes.
    """
    if torch.compiler.is_compiling():
        gradients, statistics = _functional_gradients(module, theta, rows)
    else:
        gradients, statistics = _autograd_gradients(module, rows)
    for name, x in statistics.items():
        if not isinstance(x, Tensor) or x.shape != ():
            raise ValueError(f"{module.loss.__name__}: {name!r} of the logged numbers is no tensor (), but {x!r}")
    numbers = torch.stack(list(statistics.values()))
    return Part(torch.cat([flat.flatten(gradients), numbers]) * share, tuple(statistics))


Found = tuple[Sequence[Tensor], Mapping[str, Tensor]]  # gradients in order, logged numbers by name


def _functional_gradients(module: LossModule, theta: Tensor, rows: Any) -> Found:
    """By torch.func, which makes forward and backward one graph for the compiler."""

    def loss_of(parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(module, parameters, (rows,))

    parameters = flat.views(theta, flat.shapes_of(module))
    gradients, (_, statistics) = torch.func.grad_and_value(loss_of, has_aux=True)(parameters)
    return list(gradients.values()), statistics


def _autograd_gradients(module: LossModule, rows: Any) -> Found:
    """By plain autograd, which does the same in about 60 % of the time where nothing is compiled."""
    parameters = list(module.parameters())
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            loss, statistics = module(rows)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return gradients, {name: x.detach() if isinstance(x, Tensor) else x for name, x in statistics.items()}


def shares(parts: Sequence[Rows], world_size: int, reduce: Callable[[Tensor], Tensor] | None) -> list[float | Tensor]:
    """What share of a minibatch's valid rows each of its parts has: the whole mean is the sum of share times mean.

    Args:
        parts: of this process.
        world_size: processes that each have as many rows of the minibatch.
        reduce: sums a tensor over them; None for one.

    Returns:
        Numbers or, where there is a mask, tensors ().
    """
    masks = [part.valid for part in parts if part.valid is not None]
    if not masks:
        total = world_size * sum(len(part[0]) for part in parts)
        return [len(part[0]) / total for part in parts]
    counts = torch.stack([mask.sum() for mask in masks]).double()
    total = counts.sum() if reduce is None else reduce(counts.sum())
    return list((counts / total.clamp(min=1)).float().unbind())


class Gradient:
    """Calling it gives the gradient (P,) of a minibatch and what is logged of it.

    Args:
        each: finds a `Part` for every (theta, rows, share) of a list, maybe side by side on threads.
        theta: (P,).
        parts: how many parts a minibatch is cut into.
        world_size, reduce: of the processes that each have a part of every minibatch.
    """

    def __init__(
        self,
        each: Callable[[list[tuple[Tensor, Any, float | Tensor]]], list[Part]],
        theta: Tensor,
        parts: int,
        world_size: int,
        reduce: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.each = each
        self.theta = theta
        self.parts = parts
        self.world_size = world_size
        self.reduce = reduce

    def __call__(self, minibatch: Any) -> tuple[Tensor, Statistics]:
        rows = [minibatch]
        parts = min(self.parts, len(minibatch[0]))
        if parts > 1:
            rows = ppo.split(minibatch, ppo.even_sizes(len(minibatch[0]), parts))
        own = shares(rows, self.world_size, self.reduce)
        found = self.each([(self.theta, part, share) for part, share in zip(rows, own, strict=True)])
        total = found[0].sums
        for part in found[1:]:
            total = total + part.sums
        if self.reduce is not None:
            total = self.reduce(total)
        size = len(self.theta)
        return total[:size], Statistics(found[0].names, total[size:])
