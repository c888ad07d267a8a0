"""Tensors in nested tuples, such as a rollout or the state of environments; None stands where there is none."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor

Nest = TypeVar("Nest")
Leaf = TypeVar("Leaf")


def leaves(nest: Any, kind: type[Leaf]) -> Iterator[Leaf]:
    """What is of this kind in nested tuples, lists and dictionaries, in order."""
    if isinstance(nest, kind):
        yield nest
    elif isinstance(nest, tuple | list):
        for item in nest:
            yield from leaves(item, kind)
    elif isinstance(nest, dict):
        yield from leaves(list(nest.values()), kind)


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, in order."""
    return leaves(nest, Tensor)


def map_tensors(function: Callable[[Tensor], Any], nest: Nest) -> Nest:
    """The same nest with function(tensor) in place of each tensor; whatever else stands in it stays."""
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, tuple):
        items = [map_tensors(function, item) for item in nest]
        make = getattr(type(nest), "_make", tuple)  # of a named tuple
        return make(items)  # pyright: ignore[reportReturnType]
    if isinstance(nest, list):
        return [map_tensors(function, item) for item in nest]  # pyright: ignore[reportReturnType]
    if isinstance(nest, dict):
        return {key: map_tensors(function, item) for key, item in nest.items()}  # pyright: ignore[reportReturnType]
    return nest


def split(nest: Nest, sizes: Sequence[int], dim: int) -> list[Nest]:
    """The nest cut along one dimension of its tensors into pieces of these sizes: views."""
    cut = [x.split(list(sizes), dim) for x in tensors(nest)]
    pieces = []
    for index in range(len(sizes)):
        columns = iter(cut)
        pieces.append(map_tensors(lambda _, columns=columns, index=index: next(columns)[index], nest))
    return pieces


def assign(targets: Any, values: Any) -> None:
    """Copy values into tensors that stay where they are, which is what captured graphs and threads need."""
    copy_all(tensors(targets), tensors(values))


def copy_all(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """The same for tensors one after the other."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
