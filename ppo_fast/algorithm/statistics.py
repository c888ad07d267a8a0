"""Logged numbers with their names: of one update, averaged over the updates of an iteration, and of an iteration."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """What one update logs. The numbers lie in one tensor, so that they can be summed over processes at once."""

    names: tuple[str, ...]
    numbers: Tensor  # (S,)

    def __getitem__(self, name: str) -> Tensor:
        """The number of this name, ()."""
        return self.numbers[self.names.index(name)]


class Means:
    """Averages of what updates log, over those updates that were made."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []
        self._more: dict[str, list[Tensor]] = {}
        self._weights: list[Tensor] = []

    def add(self, statistics: Statistics, weight: Tensor, **more: Tensor) -> None:
        """Take in one update.

        Args:
            weight: () 1, or 0 where it was not made.
            more: further numbers by name, each ().
        """
        self._names = statistics.names
        self._rows.append(statistics.numbers)
        self._weights.append(weight)
        for name, x in more.items():
            self._more.setdefault(name, []).append(x)

    def mean(self) -> dict[str, Tensor]:
        """The averages by name; 0 where no update was made."""
        columns = [torch.stack(self._rows), *(torch.stack(x)[:, None] for x in self._more.values())]
        weight = torch.stack(self._weights)[:, None]
        means = (torch.cat(columns, 1) * weight).sum(0) / weight.sum().clamp(min=1)
        return dict(zip((*self._names, *self._more), means.unbind(), strict=True))


class Metrics(NamedTuple):
    """What an iteration logs, on the device: where several processes train, some is averaged and some is added up."""

    means: dict[str, Tensor]  # each (), the same or nearly so in every process: averaged over them
    sums: dict[str, Tensor]  # each (), counts and totals of a process's own environments: added up
