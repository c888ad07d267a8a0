"""The flags of a program: read from the types of an `Args` dataclass, with the values that each one allows.

    @dataclass
    class Args:
        num_envs: Annotated[int, Range(1)] = 64
        precision: Literal["fp32", "bf16"] = "fp32"

    flags_of(Args)["--num-envs"].allowed        # "a whole number of at least 1"
    flags_of(Args)["--num-envs"].spell("1e6")   # "1000000", as tyro reads it
    check_ranges(Args(num_envs=0))              # ValueError: --num-envs: must be a whole number of at least 1, got 0
    plain_args(Args(num_envs=np.int64(4)))      # Args(num_envs=4, precision="fp32")

A field may be a bool, an int, a float, a text, a choice (Literal), one of these or None, a tuple of one of these, or a
dict[str, Any], whose items are written NAME=VALUE (see pairs.py).
`Range` bounds numbers. One field of a program may be marked `tyro.conf.Positional`: it takes the words that belong to
no flag. Fields of other types are left to tyro: nothing is said about them here.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ppo_fast.run import pairs, plain_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# The words of strtobool, which older scripts of the field read.
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "y", "t", "on"), True),
    **dict.fromkeys(("false", "0", "no", "n", "f", "off"), False),
}
ONE_VALUE = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
NOTHING = ("none", "null")  # what Python and JSON call it
MOST_DIGITS = 30  # of a whole number that is written with an exponent: nobody means 1e999999
MANY_VALUES = {bool: "True or False", int: "whole numbers", float: "finite numbers", str: "texts"}


class Range(NamedTuple):
    """Allowed values of a number, both ends included unless `above` is set, which excludes the lower one."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real):
            return False
        number: Any = value  # an int may be too large for a float, so nothing is converted
        high_enough = self.low < number if self.above else self.low <= number
        low_enough = number <= self.high and number < math.inf
        return high_enough and low_enough  # NaN is neither

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low}" if self.above else f"of at least {self.low}"
        return f"above {self.low} and up to {self.high}" if self.above else f"from {self.low} to {self.high}"


class Alias(NamedTuple):
    """Another name of a flag, which is understood on the command line: Annotated[float, Alias("--lr")]."""

    name: str


class Flag(NamedTuple):
    """What a field's type says about its flag."""

    name: str  # "--num-envs"
    field: str  # "num_envs"
    kind: type  # bool, int, float or str
    choices: tuple[Any, ...]  # of a Literal, mostly texts, else empty
    bound: Range | None
    optional: bool  # takes None
    many: bool  # a tuple
    positional: bool  # written without its name
    known: bool  # not so of a type that only tyro understands
    aliases: tuple[str, ...] = ()  # other names, such as "--lr"
    pairs: bool = False  # a dict, written NAME=VALUE; `many` then, too

    @property
    def negative(self) -> str:
        """How a boolean is switched off: "--no-cuda"."""
        return "--no-" + self.name.removeprefix("--")

    @property
    def allowed(self) -> str:
        """The allowed values in words: "a whole number of at least 1", "auto, on or off"."""
        if self.pairs:
            return pairs.ALLOWED
        kinds = MANY_VALUES if self.many else ONE_VALUE
        text = one_of(map(str, self.choices)) if self.choices else kinds[self.kind]
        if self.many:
            text += ", separated by spaces"
        if self.bound is not None:
            text += f", each {self.bound}" if self.many else f" {self.bound}"
        if self.optional:
            text += ", or None"
        return text

    def plain(self, value: object) -> Any:
        """What the field gets for this value, in Python's own types (see plain_types.py); an unknown type's as it is.

        Raises:
            ValueError: naming the flag and the allowed values.
        """
        if not self.known or (value is None and self.optional):
            return value
        if self.pairs:
            return pairs.plain(self.name, value)
        wrong = value
        try:
            if not self.many:
                return self._plain_one(value)
            items = []
            for item in plain_types.items_of(value):
                wrong = item
                items.append(self._plain_one(item))
            return tuple(items)
        except (ValueError, OverflowError) as problem:
            raise ValueError(f"{self.name}: must be {self.allowed}, got {plain_types.in_words(wrong)}") from problem

    def _plain_one(self, value: object) -> Any:
        """The same of one item of a tuple. ValueError without words, or OverflowError."""
        if self.choices:
            bare = plain_types.without_wrapping(value)
            return self.choices[self.choices.index(bare)]
        found = plain_types.of_kind(value, self.kind)
        if self.bound is not None and found not in self.bound:
            raise ValueError
        return found

    def spell(self, word: str) -> str | None:
        """A word of the command line as tyro reads it: "1e6" of a whole number as "1000000".

        None where it is no value of this flag's type; whether it is in bounds does not count.
        """
        if self.pairs:
            return None if pairs.read(word) is None else word
        if not self.known or (self.kind is str and not self.choices):
            return word
        if self.optional and word.lower() in NOTHING:
            return "None"
        if self.choices:
            return word if word in map(str, self.choices) else None
        if self.kind is bool:
            return word if word.lower() in BOOLEANS else None
        try:
            self.kind(word)
        except ValueError:
            return None if self.kind is float else _whole_number(word)
        return word


def flags_of(args_type: type) -> dict[str, Flag]:
    """The flags of a dataclass by name, the field `num_envs` as "--num-envs"."""
    hints = get_type_hints(args_type, include_extras=True)
    flags = [_flag(field.name, hints[field.name]) for field in dataclasses.fields(args_type)]
    return {flag.name: flag for flag in flags}


def positional_of(flags: Mapping[str, Flag]) -> Flag | None:
    """The flag that takes the words without a name, None where a program has none."""
    for flag in flags.values():
        if flag.positional:
            return flag
    return None


def check_ranges(args: "DataclassInstance") -> None:
    """Raise ValueError naming each flag outside its type, range or choices, and the allowed values."""
    plain_args(args)


def plain_args(args: T) -> T:
    """The same flags in Python's own types, such as 4 for np.int64(4) and (32, 32) for [32, 32].

    Raises:
        ValueError: as `check_ranges` does.
    """
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for flag in flags_of(type(args)).values():
        try:
            found[flag.field] = flag.plain(getattr(args, flag.field))
        except ValueError as problem:
            wrong.append(str(problem))
    if wrong:
        raise ValueError("; ".join(wrong))
    return dataclasses.replace(args, **found)


def as_typed(values: Mapping[str, Any]) -> str:
    """Flags as they would be typed: --num-envs 16 --norm-obs."""
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            words.append(f"--{flag} {pairs.spelled(value)}")
        elif isinstance(value, tuple):
            words.append(f"--{flag} {' '.join(map(str, value))}")
        else:
            words.append(f"--{flag} {value}")
    return " ".join(words)


def one_of(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _whole_number(word: str) -> str | None:
    """1e6 and 64.0 as 1000000 and 64; None for what is no whole number."""
    try:
        number = Decimal(word)
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > MOST_DIGITS or number != number.to_integral_value():
        return None
    return str(int(number))


def _flag(field: str, hint: Any) -> Flag:
    """What the type of one field says: peeled from outside in, Annotated, `| None`, tuple, Literal."""
    bound, positional, optional, many = None, False, False, False
    aliases: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        for note in notes:
            if isinstance(note, Range):
                bound = note
            elif isinstance(note, Alias):
                aliases += (note.name,)
            else:
                positional = positional or _marks_positional(note)
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        optional = len(members) < len(get_args(hint))
        hint = members[0] if len(members) == 1 else object
    if get_origin(hint) is tuple:
        many = True
        items = {item for item in get_args(hint) if item is not ...}
        hint = items.pop() if len(items) == 1 else object
    if get_origin(hint) is Literal:
        choices = get_args(hint)
    is_dict = hint is dict or get_origin(hint) is dict
    known = bool(choices) or hint in ONE_VALUE or is_dict
    kind = hint if hint in ONE_VALUE else str
    name = "--" + field.replace("_", "-")
    many = (many and known) or is_dict
    return Flag(name, field, kind, choices, bound, optional, many, positional, known, aliases, is_dict)


def _marks_positional(note: object) -> bool:
    import tyro  # imported by whoever wrote such a note, so this costs nothing

    return note is tyro.conf.Positional
