"""All parameters of a module in one vector, which each of them is a view of.

The optimiser, the gradient norm, a checkpoint and a sum over processes then handle one tensor instead of dozens.
Letter: P numbers of that vector.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppo_fast.algorithm.mlp import THIN

SLOT = (
    16  # a parameter's slot is a multiple of as many floats, 64 bytes: what vector loads and matrix libraries like best
)


def flatten_parameters(module: nn.Module) -> Tensor:
    """Move all parameters of a module into one flat float32 vector (P,) and make each parameter a view of it.

    The order is that of `named_parameters()`. Slots are padded with zeros; their gradient is zero, so they stay zero. A
    weight of at most THIN inputs stands there input by input, since that is how compiled code reads it.
    """
    parameters = dict(module.named_parameters())
    device = next(iter(parameters.values())).device
    theta = torch.zeros(sum(_slot(p.numel()) for p in parameters.values()), device=device)
    for name, view in views(theta, shapes_of(module)).items():
        with torch.no_grad():
            view.copy_(parameters[name])
        parameters[name].data = view
        parameters[name].requires_grad_(False)
    return theta


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a module's parameters by name."""
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def views(theta: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The parameters as views of the flat vector (P,), by name: the inverse of `flatten`."""
    slots = theta.split([_slot(shape.numel()) for shape in shapes.values()])
    found = {}
    for slot, (name, shape) in zip(slots, shapes.items(), strict=True):
        numbers = slot[: shape.numel()]
        found[name] = numbers.view(shape[1], shape[0]).t() if _by_input(shape) else numbers.view(shape)
    return found


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One flat vector (P,) of tensors in order, laid out and padded as `flatten_parameters` does."""
    slots = []
    for x in tensors:
        numbers = (x.t() if _by_input(x.shape) else x).reshape(-1)
        gap = _slot(numbers.numel()) - numbers.numel()
        slots.append(F.pad(numbers, (0, gap)) if gap else numbers)
    return torch.cat(slots)


def _by_input(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[1] <= THIN < shape[0]


def _slot(size: int) -> int:
    """The size of a slot for so many numbers."""
    return (size + SLOT - 1) // SLOT * SLOT
