"""The flags of a program: read from the types of an `Args` dataclass, with the values that each one allows.

    @dataclass
    class Args:
        num_envs: Annotated[int, Range(1)] = 64
        precision: Literal["fp32", "bf16"] = "fp32"

    flags_of(Args)["--num-envs"].allowed    # "a whole number of at least 1"
    check_ranges(Args(num_envs=0))          # ValueError: --num-envs: must be a whole number of at least 1, got 0

A field may be a bool, an int, a float, a text, a choice (Literal), one of these or None, or a tuple of one of these.
`Range` bounds numbers. One field of a program may be marked `tyro.conf.Positional`: it takes the words that belong to
no flag. Fields of other types are left to tyro: nothing is said about them here.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The words of strtobool, which older scripts of the field read.
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "y", "t", "on"), True),
    **dict.fromkeys(("false", "0", "no", "n", "f", "off"), False),
}
ONE_VALUE = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
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


class Flag(NamedTuple):
    """What a field's type says about its flag."""

    name: str  # "--num-envs"
    field: str  # "num_envs"
    kind: type  # bool, int, float or str
    choices: tuple[str, ...]  # of a Literal, else empty
    bound: Range | None
    optional: bool  # takes None
    many: bool  # a tuple
    positional: bool  # written without its name

    @property
    def negative(self) -> str:
        """How a boolean is switched off: "--no-cuda"."""
        return "--no-" + self.name.removeprefix("--")

    @property
    def allowed(self) -> str:
        """The allowed values in words: "a whole number of at least 1", "auto, on or off"."""
        kinds = MANY_VALUES if self.many else ONE_VALUE
        text = one_of(self.choices) if self.choices else kinds[self.kind]
        if self.many:
            text += ", separated by spaces"
        if self.bound is not None:
            text += f", each {self.bound}" if self.many else f" {self.bound}"
        if self.optional:
            text += ", or None"
        return text

    def holds(self, value: object) -> bool:
        """Whether a field may have this value: a choice, a number in bounds. Texts and truth values are not judged."""
        if value is None and self.optional:
            return True
        if not self.many:
            return self.holds_one(value)
        if isinstance(value, (tuple, list)):
            return all(self.holds_one(item) for item in value)
        return self.kind is str

    def holds_one(self, value: object) -> bool:
        """The same of one item of a tuple."""
        if self.choices:
            return value in self.choices
        if self.kind is int:
            is_number = isinstance(value, Integral)
        elif self.kind is float:
            is_number = isinstance(value, Real)
        else:
            return True
        in_bounds = self.bound is None or value in self.bound
        return is_number and in_bounds and not isinstance(value, bool)

    def reads(self, word: str) -> bool:
        """Whether a word of the command line is a value of this flag's type, in bounds or not."""
        if self.optional and word == "None":
            return True
        if self.choices:
            return word in self.choices
        if self.kind is bool:
            return word.lower() in BOOLEANS
        try:
            self.kind(word)
        except ValueError:
            return False
        return True


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
    """Raise ValueError naming the flag and the allowed values for the first field outside its range or choices."""
    for flag in flags_of(type(args)).values():
        value = getattr(args, flag.field)
        if not flag.holds(value):
            raise ValueError(f"{flag.name}: must be {flag.allowed}, got {_wrong_item(flag, value)!r}")


def one_of(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _wrong_item(flag: Flag, value: object) -> object:
    """What to show of a wrong value: of a tuple the first item that is wrong."""
    if flag.many and isinstance(value, (tuple, list)):
        for item in value:
            if not flag.holds_one(item):
                return item
    return value


def _flag(field: str, hint: Any) -> Flag:
    """What the type of one field says: peeled from outside in, Annotated, `| None`, tuple, Literal."""
    bound, positional, optional, many = None, False, False, False
    choices: tuple[str, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        for note in notes:
            if isinstance(note, Range):
                bound = note
            else:
                positional = positional or _marks_positional(note)
    if get_origin(hint) in (Union, types.UnionType):
        members = get_args(hint)
        optional = type(None) in members
        hint = next(member for member in members if member is not type(None))
    if get_origin(hint) is tuple:
        many = True
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
    kind = hint if hint in (bool, int, float) else str
    name = "--" + field.replace("_", "-")
    return Flag(name, field, kind, choices, bound, optional, many, positional)


def _marks_positional(note: object) -> bool:
    import tyro  # imported by whoever wrote such a note, so this costs nothing

    return note is tyro.conf.Positional
