"""A flag whose value is a dictionary: `--env-kwargs is_slippery=False size=8 goal=[3,4]`.

    read("size=8")              # {"size": 8}
    read('{"goal": [3, 4]}')    # the same as JSON writes it, any number of items
    read("size")                # None: it is no pair
    plain("--env-kwargs", {"size": np.int64(8)})    # {"size": 8}

A value is what Python or JSON reads as one: True or true, None or null, a number, a text in quotation marks, a list, a
dictionary. Anything else is a text: map_name=4x4.
"""

import ast
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from ppo_fast.run import plain_types

ALLOWED = "NAME=VALUE, several separated by spaces"


def read(word: str) -> dict[str, Any] | None:
    """The pair, or the pairs, that a word of the command line says; None where it says none."""
    if word.lstrip().startswith("{"):
        found = _literal(word)
        return found if isinstance(found, dict) and all(_is_name(name) for name in found) else None
    name, equals, text = word.partition("=")
    name = name.strip().replace("-", "_")
    return {name: _literal(text.strip())} if equals and _is_name(name) else None


def gathered(words: Iterable[str]) -> dict[str, Any]:
    """What all of these words say, which `read` understands; of a name that is there twice the last."""
    found: dict[str, Any] = {}
    for word in words:
        found.update(read(word) or {})
    return found


def spelled(values: Mapping[str, Any]) -> str:
    """Pairs as they would be typed: is_slippery=False size=8."""
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in values.items())


def plain(flag: str, value: object) -> dict[str, Any]:
    """The same dictionary in Python's own types: a checkpoint and config.json hold nothing else. Tuples become lists.

    Raises:
        ValueError: naming the flag, and what of it is none of these.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{flag}: must be a dictionary, got {plain_types.in_words(value)}")
    found: dict[str, Any] = {}
    for name, item in value.items():
        if not _is_name(name):
            raise ValueError(f"{flag}: {plain_types.in_words(name)} is no name of an argument")
        try:
            found[name] = _plain(item)
        except ValueError as problem:
            what = "must be True, False, None, a finite number, a text, or a list or a dictionary of these"
            raise ValueError(f"{flag}: {name} {what}, got {plain_types.in_words(item)}") from problem
    return found


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _literal(text: str) -> Any:
    """What Python or JSON reads, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _plain(value: Any) -> Any:
    """One value in plain types. ValueError where it can't be."""
    value = plain_types.without_wrapping(value)
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, (str, os.PathLike)):
        return plain_types.of_kind(value, str)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("a name is no text")
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return [_plain(item) for item in plain_types.items_of(value)]
