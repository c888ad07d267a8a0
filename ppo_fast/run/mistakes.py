"""What is wrong with a command line, in one line that names the flag and says what it takes.

    flags = flags_of(Args)
    mistake(parts_of(["--num-envs", "four"], flags), flags)
    # "--num-envs: must be a whole number of at least 1, got 'four'"

The first mistake is told, not all of them.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

from ppo_fast.run.flags import ONE_VALUE, Flag, one_of
from ppo_fast.run.words import Part

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RULE = re.compile(r"[╭─╰]|^\s*-+\s*$")  # the lines of a box; dashes where a terminal has no line-drawing characters


def mistake(parts: Iterable[Part], flags: Mapping[str, Flag]) -> str | None:
    """What is wrong with the first part of a command line that is wrong; None where nothing is."""
    before: Part | None = None
    for part in parts:
        if part.flag is None:
            return _no_flag(part, before, flags)
        if part.is_negative:
            if part.values:
                return f"{part.name}: takes no value; write {part.flag.name}=True or {part.flag.name}=False"
        else:
            wrong = _wrong_value(part, part.flag)
            if wrong is not None:
                return wrong
        before = part
    return None


def _no_flag(part: Part, before: Part | None, flags: Mapping[str, Flag]) -> str:
    """A flag that the program doesn't have, or a word that belongs to no flag where it takes none."""
    word = part.words[0]
    if before is not None and before.is_bare_boolean and not word.startswith("--"):
        return f"{before.name}: must be {ONE_VALUE[bool]}, got {word!r}"
    if part.name:
        return _unknown(part.name, flags)
    after = f" after {before.name}" if before is not None else ""
    return f"unexpected {word!r}{after}; flags are written --name value, see --help"


def _wrong_value(part: Part, flag: Flag) -> str | None:
    if not part.values and not flag.many and flag.kind is not bool:
        return f"{flag.name}: needs a value: {flag.allowed}"
    for value in part.values:
        if flag.spell(value) is None:
            return f"{flag.name}: must be {flag.allowed}, got {value!r}"
    return None


def _unknown(name: str, flags: Mapping[str, Flag]) -> str:
    near = difflib.get_close_matches(name, flags, n=2, cutoff=0.7)
    advice = f"did you mean {one_of(near)}?" if near else "--help lists all flags"
    return f"{name}: no such flag; {advice}"


def in_one_line(box: str) -> str:
    """What a boxed message of tyro says, without its frame, its title and what follows its first section.

    tyro has no public way to ask what was wrong. Its words are needed where a program has a field of a type that
    `flags` doesn't know.
    """
    message: list[str] = []
    is_title = True
    for line in COLOUR.sub("", box).splitlines():
        if not RULE.search(line):
            if not is_title:
                message.append(line.strip("│ "))
        elif any(message):
            break
        else:
            is_title = False
    return " ".join(" ".join(message).split()) or "the command line can't be read; see --help"
