"""Python's own types from what a call in Python may hand over: NumPy's numbers, 0-dim tensors, paths, enums, lists.

    of_kind(np.int64(4), int)      # 4
    of_kind(1e6, int)              # 1000000
    of_kind(Path("runs"), str)     # "runs"
    of_kind("4", int)              # ValueError: a text is no number
    items_of(np.array([32, 32]))   # (32, 32)

A checkpoint, config.json and a policy file hold nothing else, and `is` and `==` mean what one expects.
"""

import math
import os
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from typing import Any

Plain = bool | int | float | str


def of_kind(value: object, kind: type) -> Plain:
    """The value as a bool, an int, a float or a str, without loss.

    A whole number may be written as a float (1e6) and a float as a whole number; True and False also as 1 and 0, but
    they are no numbers themselves, and a text is neither.

    Raises:
        ValueError: it is none of this kind.
    """
    bare = without_wrapping(value)
    convert = {bool: _truth, int: _whole, float: _number, str: _text}[kind]
    return convert(bare)


def without_wrapping(value: Any) -> Any:
    """What is in a NumPy scalar, a 0-dim array or tensor, or a member of an enum; anything else as it is."""
    if isinstance(value, Enum):
        value = value.value
    # A tuple: torch.Size is one.
    if isinstance(getattr(value, "shape", None), tuple) and value.shape == () and hasattr(value, "item"):
        return value.item()
    return value


def items_of(value: Any) -> tuple[Any, ...]:
    """The items of a tuple, a list, a range, or a 1-dim array or tensor. ValueError for anything else, texts too."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(value)
    shape = getattr(value, "shape", ())
    if len(shape) == 1 and not isinstance(value, (str, bytes)):
        return tuple(value.tolist())
    raise ValueError(f"not several values: {value!r}")


def in_words(value: object) -> str:
    """A value as it is shown in an error: in one line, and not longer than one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral) and int(value) in (0, 1):
        return int(value) == 1
    raise ValueError(f"no truth value: {value!r}")


def _whole(value: object) -> int:
    number = _real(value)
    if isinstance(number, Integral):
        return int(number)
    whole = int(number)  # OverflowError for an infinity, ValueError for NaN
    if whole != number:
        raise ValueError(f"no whole number: {value!r}")
    return whole


def _number(value: object) -> float:
    number = float(_real(value))
    if not math.isfinite(number):
        raise ValueError(f"not finite: {value!r}")
    return number


def _real(value: object) -> Any:
    if isinstance(value, (Real, Decimal)) and not isinstance(value, bool):
        return value
    raise ValueError(f"no number: {value!r}")


def _text(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return str.__str__(value)  # of np.str_ and other subclasses, which may have a __str__ of their own
    raise ValueError(f"no text: {value!r}")
