"""Long short-term memory (Hochreiter & Schmidhuber 1997) in which episodes may begin anywhere in a sequence.

One step of it is `LSTM.step`. A whole sequence, `LSTM.forward`, is the same step T times, but faster: the product with
the inputs of all steps at once, then a loop in which only the product with the step before is left. torch.nn.LSTM can't
take its place, since it does not forget in the middle of a sequence.

Letters: T steps, M rows (an environment each), D inputs, H units. The 4H numbers that a step computes are H each of
output, input and forget gate, and candidate.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ppo_fast import native
from ppo_fast.algorithm.mlp import tanh

Array = TypeVar("Array", Tensor, np.ndarray)


class LSTM(nn.Module):
    """A layer of H units. What it remembers, `hidden` and `cell`, (..., H) each, is 0 before an episode.

    As torch.nn.LSTM with one bias. Weights are orthogonal, gate by gate; the forget gates' biases are 1, so that it
    remembers before it has learned what to (Gers et al. 2000; Jozefowicz et al. 2015).
    """

    def __init__(self, inputs: int, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.size = size
        self.input = nn.Linear(inputs, 4 * size)
        self.recurrent = nn.Linear(size, 4 * size, bias=False)
        with torch.no_grad():
            for layer in (self.input, self.recurrent):
                for gate in layer.weight.split(size):
                    nn.init.orthogonal_(gate, generator=generator)
            self.input.bias.zero_()
            self.input.bias[2 * size : 3 * size] = 1.0

    def step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """One step: inputs (..., D) and what is remembered, (..., H) each; returns hidden and cell after it."""
        numbers = self.input(x) + self.recurrent(hidden)
        output_gate, input_gate, forget_gate = numbers[..., : 3 * self.size].sigmoid().chunk(3, -1)
        candidate = tanh(numbers[..., 3 * self.size :])
        cell = forget_gate * cell + input_gate * candidate
        return output_gate * tanh(cell), cell

    def forward(self, x: Tensor, first: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """T steps at once.

        Args:
            x: (T, M, D).
            first: (T, M) bool, where an episode begins: before this step all that is remembered becomes 0.
            hidden, cell: (M, H), what is remembered before the first step. No gradient flows into them.

        Returns:
            `hidden` after each step, (T, M, H).
        """
        hiddens, _, _ = _Loop.apply(self.input(x), self.recurrent.weight, first, hidden, cell)
        return hiddens


class _Loop(torch.autograd.Function):
    """The loop over time and, for its gradient, the loop back."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return forward_loop(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, weight, first, hidden, cell = inputs
        hiddens, cells, gates = output
        ctx.mark_non_differentiable(cells, gates)
        ctx.save_for_backward(weight, first, hidden, cell, hiddens, cells, gates)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, first, hidden, cell, hiddens, cells, gates = ctx.saved_tensors
        by_numbers = backward_loop(gradients[0].contiguous(), weight, first, cell, cells, gates)
        before = torch.where(first[..., None], 0.0, torch.cat([hidden[None], hiddens[:-1]]))
        by_weight = by_numbers.flatten(0, 1).T @ before.flatten(0, 1)
        return by_numbers, by_weight, None, None, None


# Each loop is one operation to autograd, to recordings and to the compiler, which would write out all T steps. On a CPU
# it runs in C (lstm.c), a fifth of NumPy's time, whose calls cost a third of torch's on few rows. NumPy stands in where
# there is no C compiler, torch on other devices; their lines are the same.


def flops(rows: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Floating point operations of the products in either loop, by its arguments: for who counts them."""
    return 2 * rows.shape[0] * rows.shape[1] * weight.numel()


@torch.library.custom_op("ppo_fast::lstm_forward", mutates_args=())
def forward_loop(
    inputs: Tensor, weight: Tensor, first: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of an LSTM.

    Args:
        inputs: (T, M, 4H), the part of the gates' numbers that comes from the inputs.
        weight: (4H, H) of the recurrent product.
        first, hidden, cell: see LSTM.forward.

    Returns:
        Hidden and cell after each step, (T, M, H), and the gates, (T, M, 4H): what the numbers became.
    """
    keep = (~first)[..., None].to(inputs.dtype)
    gates = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    hiddens = inputs.new_empty(*first.shape, weight.shape[1])
    cells = torch.empty_like(hiddens)
    tensors = (inputs, weight, keep, hidden, cell, gates, hiddens, cells)
    library = in_c(inputs)
    if library is not None:
        gates.copy_(inputs)
        kept, packed = torch.empty_like(hidden, memory_format=torch.contiguous_format), weight.new_empty(weight.numel())
        read = (weight.T.contiguous(), first.contiguous(), hidden.contiguous(), cell.contiguous())
        _call(library.lstm_forward, hiddens, (*read, gates, hiddens, cells, kept, packed))
    elif inputs.is_cpu:
        _forward(np, *(x.detach().numpy() for x in tensors))
    else:
        _forward(torch, *tensors)
    return hiddens, cells, gates


def in_c(x: Tensor) -> ctypes.CDLL | None:
    """The loops in C, where they are for such numbers and can be had."""
    if not x.is_cpu or x.dtype != torch.float32:
        return None
    return native.compiled(Path(__file__).with_name("lstm.c"))


def _call(function: Any, hiddens: Tensor, tensors: Sequence[Tensor]) -> None:
    """Call a function of lstm.c for hiddens (T, M, H); other threads may run meanwhile."""
    sizes = (ctypes.c_long(size) for size in hiddens.shape)
    function(*sizes, *(ctypes.c_void_p(x.data_ptr()) for x in tensors))


@forward_loop.register_fake
def _(inputs: Tensor, weight: Tensor, first: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hiddens = inputs.new_empty(*first.shape, weight.shape[1])
    return hiddens, torch.empty_like(hiddens), inputs.new_empty(inputs.shape)


def _forward(
    library: Any,
    inputs: Array,
    weight: Array,
    keep: Array,
    hidden: Array,
    cell: Array,
    gates: Array,
    hiddens: Array,
    cells: Array,
) -> None:
    """Fills the last three; `library` is torch or numpy, keep (T, M, 1) is 0 where an episode begins, else 1."""
    size = hiddens.shape[-1]
    # σ(x) = ½ + ½ tanh(x / 2): so one tanh serves the gates and the candidate.
    gates[...] = inputs  # pyright: ignore[reportArgumentType]
    gates[..., : 3 * size] *= 0.5  # pyright: ignore[reportArgumentType]
    half = library.ones_like(weight)
    half[: 3 * size] = 0.5
    turned = library.empty_like(weight.reshape(size, 4 * size))
    turned[...] = (weight * half).T  # (H, 4H), whose product is quicker
    product = library.empty_like(gates[0])
    kept = library.empty_like(hiddens[0])
    output_gate, input_gate, forget_gate, candidate = (gates[..., k * size : (k + 1) * size] for k in range(4))
    by_step = (gates, gates[..., : 3 * size], output_gate, input_gate, forget_gate, candidate, keep, hiddens, cells)
    for now, sigmoids, o, i, f, g, keeps, next_hidden, next_cell in zip(*by_step, strict=True):
        library.multiply(hidden, keeps, out=kept)
        now += library.matmul(kept, turned, out=product)
        library.tanh(now, out=now)
        sigmoids *= 0.5
        sigmoids += 0.5
        library.multiply(cell, keeps, out=next_cell)
        next_cell *= f
        next_cell += library.multiply(i, g, out=kept)
        library.tanh(next_cell, out=next_hidden)
        next_hidden *= o
        hidden, cell = next_hidden, next_cell


@torch.library.custom_op("ppo_fast::lstm_backward", mutates_args=())
def backward_loop(
    by_hidden: Tensor, weight: Tensor, first: Tensor, cell: Tensor, cells: Tensor, gates: Tensor
) -> Tensor:
    """The gradient by the numbers that became the gates, (T, M, 4H), from the one by the hiddens, (T, M, H).

    Args:
        weight, first, cell: as in `forward_loop`, which returned cells and gates.
    """
    library = in_c(gates)
    if library is not None:
        by_numbers, packed = torch.empty_like(gates), weight.new_empty(weight.numel())
        own = tuple(torch.empty_like(cell, memory_format=torch.contiguous_format) for _ in range(3))
        read = (weight.contiguous(), first.contiguous(), cell.contiguous(), cells, gates, by_hidden.contiguous())
        _call(library.lstm_backward, cells, (*read, by_numbers, *own, packed))
        return by_numbers
    keep = (~first)[..., None].to(gates.dtype)
    before = torch.cat([cell[None], cells[:-1]]) * keep
    slopes, to_cell, to_before = _slopes(cells, before, gates, keep)
    tensors = (by_hidden, weight, keep, to_cell, to_before, slopes)
    if gates.is_cpu:
        _backward(np, *(x.detach().numpy() for x in tensors))
    else:
        _backward(torch, *tensors)
    return slopes


@backward_loop.register_fake
def _(by_hidden: Tensor, weight: Tensor, first: Tensor, cell: Tensor, cells: Tensor, gates: Tensor) -> Tensor:
    return gates.new_empty(gates.shape)


def _slopes(cells: Tensor, before: Tensor, gates: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a step's gradient is multiplied by on its way: to the numbers behind the gates, (T, M, 4H), from hidden to
    cell and from cell to the cell before, (T, M, H) each."""
    output_gate, input_gate, forget_gate, candidate = gates.chunk(4, -1)
    squashed = cells.tanh()
    slopes = torch.empty_like(gates)
    to_output, to_input, to_forget, to_candidate = slopes.chunk(4, -1)
    torch.mul(squashed, output_gate * (1.0 - output_gate), out=to_output)
    torch.mul(candidate, input_gate * (1.0 - input_gate), out=to_input)
    torch.mul(before, forget_gate * (1.0 - forget_gate), out=to_forget)
    torch.mul(input_gate, 1.0 - candidate**2, out=to_candidate)
    return slopes, output_gate * (1.0 - squashed**2), forget_gate * keep


def _backward(
    library: Any,
    by_hidden: Array,
    weight: Array,
    keep: Array,
    to_cell: Array,
    to_before: Array,
    slopes: Array,
) -> None:
    """Turns the slopes (T, M, 4H) into gradients."""
    steps, rows, size = by_hidden.shape
    gates = slopes.reshape(steps, rows, 4, size)
    after = library.zeros_like(by_hidden[0])  # the gradient by hidden that comes from the step after, then all of it
    by_cell = library.zeros_like(by_hidden[0])
    each_gate = by_cell[:, None]
    by_step = [by_hidden, slopes, gates[:, :, 0], gates[:, :, 1:], keep, to_cell, to_before]
    backwards = [list(x)[::-1] for x in by_step]
    for own, now, output_gate, others, keeps, to_now, to_last in zip(*backwards, strict=True):
        after += own
        output_gate *= after
        after *= to_now
        by_cell += after
        others *= each_gate
        library.matmul(now, weight, out=after)
        after *= keeps
        by_cell *= to_last
