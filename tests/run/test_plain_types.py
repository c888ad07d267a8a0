"""Python's own types from what a call in Python hands over."""

import enum
from collections import UserList, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ppo_fast.run.plain_types import in_words, items_of, of_kind


class Word(enum.StrEnum):
    ON = "on"


class OlderWord(str, enum.Enum):  # noqa: UP042 - its str() is no "on"
    ON = "on"


class Number(enum.IntEnum):
    FOUR = 4


class Named(enum.Enum):
    FOUR = 4
    ON = "on"


class Text(str):
    def __str__(self) -> str:
        return "something else"


GOOD: dict[type, list[tuple[Any, Any]]] = {
    bool: [(True, True), (np.bool_(False), False), (np.array(True), True), (torch.tensor(False), False), (1, True)],
    int: [
        *((4, 4), (np.int64(4), 4), (np.uint8(4), 4), (np.array(4), 4), (torch.tensor(4), 4), (4.0, 4), (1e6, 10**6)),
        *((np.float32(4.0), 4), (torch.tensor(4.0), 4), (Number.FOUR, 4), (Named.FOUR, 4), (Decimal(4), 4)),
        *((Fraction(8, 2), 4), (10**400, 10**400)),
    ],
    float: [
        *((0.5, 0.5), (1, 1.0), (np.float32(0.5), 0.5), (np.float16(0.5), 0.5), (np.longdouble(0.5), 0.5)),
        *((np.int32(1), 1.0), (np.array(0.5), 0.5), (torch.tensor(0.5), 0.5), (Fraction(1, 2), 0.5)),
        *((torch.nn.Parameter(torch.tensor(0.5)), 0.5), (torch.tensor(0.5, dtype=torch.bfloat16), 0.5)),
    ],
    str: [
        *(("on", "on"), (np.str_("on"), "on"), (Word.ON, "on"), (OlderWord.ON, "on"), (Named.ON, "on")),
        *((Path("a/b"), "a/b"), (Text("on"), "on"), (np.array("on"), "on")),
    ],
}
BAD: dict[type, list[Any]] = {
    bool: ["True", "", None, 2, 1.0, np.array([True]), torch.tensor([True])],
    int: ["4", b"4", 4.5, True, np.bool_(True), None, 4j, np.nan, np.inf, np.array([4]), torch.tensor([4]), [4]],
    float: ["0.5", True, torch.tensor(True), None, 1j, np.nan, -np.inf, 10**400, [0.5], np.datetime64(1, "s")],
    str: [b"on", 5, None, True, ["on"], SimpleNamespace()],
}


@pytest.mark.parametrize("kind", GOOD)
def test_values_of_a_kind_become_pythons_own(kind: type) -> None:
    for value, expected in GOOD[kind]:
        found = of_kind(value, kind)
        assert type(found) is kind and found == expected, repr(value)


@pytest.mark.parametrize("kind", BAD)
def test_nothing_else_does(kind: type) -> None:
    for value in BAD[kind]:
        with pytest.raises((ValueError, OverflowError)):
            of_kind(value, kind)


def test_several_values() -> None:
    for several in (
        (1, 2),
        [1, 2],
        range(1, 3),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        UserList([1, 2]),
        deque([1, 2]),
    ):
        assert items_of(several) == (1, 2)
    assert items_of(torch.Size([])) == items_of(np.zeros(0)) == ()
    for other in ("12", b"12", {1, 2}, {1: 2}, 12, None, np.array(1), np.zeros((2, 2)), iter([1, 2])):
        with pytest.raises(ValueError, match=r"^not several values"):
            items_of(other)


def test_what_is_shown_of_a_value_is_short_and_in_one_line() -> None:
    assert in_words(4) == "4" and in_words("a\nb") == r"'a\nb'"
    assert in_words(torch.zeros(3, 3)).startswith("tensor([[0., 0., 0.], [0.")
    assert len(in_words("x" * 500)) == 80
