"""The words of a command line, each flag together with its values.

    parts_of(["runs/a", "--num_envs", "4", "--cuda=no"], flags_of(Args))
    # the word "runs/a", --num-envs with its value "4", --cuda with its value "no"

Hyphens and underscores are the same in a flag's name. `--cuda`, `--no-cuda`, `--cuda=True`, `--cuda False` and
`--cuda=0`, as sweeps and older scripts write, are all understood. So are `--hidden-sizes 32 32`,
`--hidden_sizes=[32, 32]`, `"(32, 32)"` and `32,32`, and 1e6 as a whole number. An alias, such as `--lr`, is read as the
flag's own name.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ppo_fast.run.flags import BOOLEANS, Flag, positional_of

SEPARATOR = re.compile(r"\s*,\s*|\s+")
SHORT_FLAG = re.compile(r"-(?!inf\b|nan\b)[A-Za-z]")


class Part(NamedTuple):
    """A flag with the words that are its values, or one word that belongs to no flag."""

    words: tuple[str, ...]  # as they were written: ("--num_envs", "4"), ("--sizes=[1, 2]",), ("runs/a",)
    name: str  # "--num-envs"; "" where it belongs to no flag
    flag: Flag | None  # None where there is no flag of that name; that of --no-cuda is --cuda
    values: tuple[str, ...]  # ("4",), ("1", "2"), ()

    @property
    def is_negative(self) -> bool:
        """Whether a boolean is written as `--no-...`."""
        return self.flag is not None and self.name == self.flag.negative

    @property
    def is_bare_boolean(self) -> bool:
        """Whether a boolean is written as its name alone, which means yes."""
        return self.flag is not None and self.flag.kind is bool and not self.is_negative and not self.values


def parts_of(argv: Sequence[str], flags: Mapping[str, Flag]) -> list[Part]:
    """The parts of a command line in the order in which they were written.

    A bare `--` belongs to no flag where a program takes such words: what it divides is the program's to say.
    """
    by_negative = {flag.negative: flag for flag in flags.values() if flag.kind is bool}
    by_alias = {alias: flag.name for flag in flags.values() for alias in flag.aliases}
    takes_words = positional_of(flags) is not None
    parts: list[Part] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or (word == "--" and takes_words):
            parts.append(Part((word,), "", None, ()))
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in by_alias:
            name = by_alias[name]
            word = name + equals + value
        flag = flags.get(name)
        if flag is None:
            parts.append(Part((word,), name, by_negative.get(name), (value,) if equals else ()))
            continue
        values = (value,) if equals else ()
        if not equals or (flag.many and not takes_words):
            values += _take_values(rest, flag, takes_words)
        parts.append(Part((word, *values[bool(equals) :]), name, flag, _items(values, flag) if flag.many else values))
    return parts


def plain_words(parts: Iterable[Part]) -> list[str]:
    """The command line again, as tyro reads it: a boolean with its value becomes `--cuda` or `--no-cuda`, 1e6 of a
    whole number 1000000, and the items of `[32, 32]` words of their own."""
    result: list[str] = []
    for part in parts:
        result.extend(_spelled(part) or part.words)
    return result


def _spelled(part: Part) -> list[str] | None:
    """The words of a part as tyro reads them; None where they are already, or where there is no such value."""
    flag = part.flag
    if flag is None or part.is_negative:
        return None
    spelled: list[str] = []
    for value in part.values:
        word = flag.spell(value)
        if word is None:
            return None
        spelled.append(word)
    if flag.many:
        return [flag.name, *spelled]
    if spelled and flag.kind is bool:
        return [flag.name if BOOLEANS[spelled[0].lower()] else flag.negative]
    return None if spelled == list(part.values) else [f"{flag.name}={spelled[0]}"]


def _items(words: tuple[str, ...], flag: Flag) -> tuple[str, ...]:
    """What the words behind a flag that takes several values hold: `32 32`, `32,32`, `[32, 32]` or `(32, 32)`.

    Texts are parted at commas only within brackets, where they may stand in quotation marks.
    """
    if flag.pairs:
        return words
    text = " ".join(words).strip()
    inside = text[1:-1].strip() if text[:1] + text[-1:] in ("[]", "()") else None
    if inside == "":
        return ()
    if flag.kind is str and not flag.choices:
        return words if inside is None else _texts(inside)
    if inside is None:
        return tuple(SEPARATOR.split(text)) if text else words
    return tuple(SEPARATOR.split(inside.removesuffix(",")))


def _texts(inside: str) -> tuple[str, ...]:
    """The texts of a list as Python writes it, without its brackets: `'a', 'b'`; quotation marks may be missing."""
    try:
        return tuple(map(str, ast.literal_eval(f"[{inside}]")))
    except (ValueError, SyntaxError):
        return tuple(item.strip().strip("'\"") for item in inside.removesuffix(",").split(","))


def _take_values(rest: list[str], flag: Flag, takes_words: bool) -> tuple[str, ...]:
    """Take the values of a flag off the front of `rest`: those up to the next flag for a tuple or a dictionary, else
    one at most. Where a program takes words without a flag, what is no pair is such a word."""
    values: list[str] = []
    while rest and _can_be_value(rest[0], flag):
        if flag.pairs and takes_words and values and flag.spell(rest[0]) is None:
            break
        values.append(rest.pop(0))
        if not flag.many:
            break
    return tuple(values)


def _can_be_value(word: str, flag: Flag) -> bool:
    """Whether a word behind a flag is its value. A boolean leaves all words alone but those that say yes or no."""
    if word.startswith("--"):
        return False
    if flag.kind is bool:
        return word.lower() in BOOLEANS
    if flag.kind is str and not flag.choices:
        return SHORT_FLAG.match(word) is None  # tyro takes -x for a flag, and -1 or -inf for a value
    return True
