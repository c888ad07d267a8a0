"""ppo_fast.engine.tree: tensors in nested tuples."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ppo_fast.engine.tree import assign, copy_all, map_tensors, split, tensors


class Pair(NamedTuple):
    first: Any
    second: Any


def ramp(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def test_tensors_come_in_order_whatever_they_stand_in() -> None:
    a, b, c, d = (ramp(1) + i for i in range(4))
    nest = (a, [b, None, "word"], {"x": Pair(2, c)}, (), Pair(d, a))
    found = list(tensors(nest))
    assert [x is y for x, y in zip(found, [a, b, c, d, a], strict=True)] == [True] * 5
    assert not list(tensors(None)) and not list(tensors("word"))


def test_a_map_keeps_structure_and_types() -> None:
    nest = Pair((ramp(2), None), {"x": [ramp(1), 3], "y": "word"})
    found = map_tensors(lambda x: x + 1, nest)
    assert type(found) is Pair and type(found.first) is tuple and list(found.second) == ["x", "y"]
    assert found.first[0].tolist() == [1.0, 2.0] and found.first[1] is None
    assert found.second["x"][0].tolist() == [1.0] and found.second["x"][1] == 3 and found.second["y"] == "word"
    assert nest.first[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dim", [0, 1])
def test_pieces_are_views_of_the_whole(dim: int) -> None:
    nest = Pair(ramp(5, 5), (ramp(5, 5, 2).long(), None))
    pieces = split(nest, [2, 3], dim)
    assert all(type(piece) is Pair and piece.second[1] is None for piece in pieces)
    assert torch.equal(torch.cat([piece.first for piece in pieces], dim), nest.first)
    assert [piece.second[0].shape[dim] for piece in pieces] == [2, 3]
    for number, piece in enumerate(pieces):
        piece.first.fill_(number)
    assert nest.first.sum(1 - dim).tolist() == [0.0, 0.0, 5.0, 5.0, 5.0]


def test_values_are_copied_into_tensors_that_stay() -> None:
    targets = Pair(ramp(2), [torch.zeros(2, dtype=torch.int64)])
    memory = [x.data_ptr() for x in tensors(targets)]
    assign(targets, Pair(ramp(2) + 5, [torch.tensor([7, 8])]))
    assert targets.first.tolist() == [5.0, 6.0] and targets.second[0].tolist() == [7, 8]
    assert [x.data_ptr() for x in tensors(targets)] == memory


def test_more_or_fewer_values_than_tensors_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        assign((ramp(1), ramp(1)), (ramp(1), None))
    with pytest.raises(ValueError, match="longer"):
        copy_all([ramp(1)], [ramp(1), ramp(1)])
