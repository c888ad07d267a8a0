"""JSON of a run folder, read as far as it goes: what a killed run has left, and what anybody may have put there.

    lines = jsonl.rows_of(reading.lines(folder / names.METRICS_FILE))
    lines.rows          # [{"global_step": 64, ...}, ...]
    lines.broken        # 1: the half row that a kill left

Only the standard library is imported here.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

DEEPEST = 50  # levels of lists and objects in each other, of which a run folder's files have three


class Lines(NamedTuple):
    """What lines of JSON hold."""

    rows: list[dict[str, Any]]
    """the JSON objects, in the file's order; their values may be null, and NaN where another writer is lax"""
    broken: int
    """number of lines, blank ones aside, that hold no JSON object"""


def rows_of(lines: Iterable[bytes]) -> Lines:
    """All rows. A line that is no JSON object, such as the half row of a killed run, is only counted."""
    rows: list[dict[str, Any]] = []
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        row = json_object(line)
        if row is None:
            broken += 1
        else:
            rows.append(row)
    return Lines(rows, broken)


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a text holds; None where it holds anything else, or lists in lists without end."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _depth_is_sane(value) else None


def _depth_is_sane(value: dict[str, Any]) -> bool:
    """Whether no list or object lies deeper than DEEPEST: whatever is done with it later works level by level."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [item for parent in level for item in _items(parent) if isinstance(item, (list, dict))]
        if not level:
            return True
    return False


def _items(parent: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return parent.values() if isinstance(parent, dict) else parent
