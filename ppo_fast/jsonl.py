"""Files of JSON lines read back, as far as they go: metrics.jsonl of a run that may have been killed.

    lines = jsonl.read(folder / names.METRICS_FILE)
    lines.rows          # [{"global_step": 64, ...}, ...]
    lines.broken        # 1: the half row that a kill left

Only the standard library is imported here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Lines(NamedTuple):
    """What a file of JSON lines holds."""

    rows: list[dict[str, Any]]
    """the JSON objects, in the file's order; their values may be null, and NaN where another writer is lax"""
    broken: int
    """number of lines, blank ones aside, that hold no JSON object"""


def read(path: Path) -> Lines:
    """All rows of a file. A line that is no JSON object, such as the half row of a killed run, is only counted.

    Raises:
        OSError: the file can't be read.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
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


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text holds; None where it holds anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
