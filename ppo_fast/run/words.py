"""The words of a command line, each flag together with its values.

    parts_of(["runs/a", "--num_envs", "4", "--cuda=no"], flags_of(Args))
    # the word "runs/a", --num-envs with its value "4", --cuda with its value "no"

Hyphens and underscores are the same in a flag's name. `--cuda`, `--no-cuda`, `--cuda=True`, `--cuda False` and
`--cuda=0`, as sweeps and older scripts write, are all understood.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ppo_fast.run.flags import BOOLEANS, Flag, positional_of

SHORT_FLAG = re.compile(r"-(?!inf\b|nan\b)[A-Za-z]")


class Part(NamedTuple):
    """A flag with the words that are its values, or one word that belongs to no flag."""

    words: tuple[str, ...]  # as they were written: ("--num_envs", "4"), ("--cuda=no",), ("runs/a",)
    name: str  # "--num-envs"; "" where it belongs to no flag
    flag: Flag | None  # None where there is no flag of that name; that of --no-cuda is --cuda
    values: tuple[str, ...]

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
        flag = flags.get(name)
        if equals:
            parts.append(Part((word,), name, flag or by_negative.get(name), (value,)))
        elif flag is None:
            parts.append(Part((word,), name, by_negative.get(name), ()))
        else:
            values = _take_values(rest, flag)
            parts.append(Part((word, *values), name, flag, values))
    return parts


def plain_words(parts: Iterable[Part]) -> list[str]:
    """The command line again, as tyro reads it: a boolean with its value becomes `--cuda` or `--no-cuda`."""
    result: list[str] = []
    for part in parts:
        flag = part.flag
        value = part.values[0].lower() if part.values else ""
        if flag is not None and flag.kind is bool and not part.is_negative and value in BOOLEANS:
            result.append(flag.name if BOOLEANS[value] else flag.negative)
        else:
            result.extend(part.words)
    return result


def _take_values(rest: list[str], flag: Flag) -> tuple[str, ...]:
    """Take the values of a flag off the front of `rest`: those up to the next flag for a tuple, else one at most."""
    values: list[str] = []
    while rest and _can_be_value(rest[0], flag):
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
