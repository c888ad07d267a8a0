"""metrics.jsonl: one row of metrics a line, written so that a killed run loses none."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

from ppo_fast.run.files import write_atomically


def truncate_rows(path: Path, global_step: int) -> int:
    """Cut a metrics.jsonl back to a checkpoint, atomically, before it is opened for appending again.

    Drops rows beyond `global_step` (they will be made again) and torn rows that a kill left behind.

    Returns:
        the number of rows dropped; 0 where there is no file.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    rows = [line for line in data.split(b"\n") if line.strip()]
    kept = [row for row in rows if _step_of(row) <= global_step]
    clean = b"".join(row + b"\n" for row in kept)
    if clean != data:
        write_atomically(path, clean)
    return len(rows) - len(kept)


def _step_of(row: bytes) -> float:
    """The global_step of one row; infinity for a torn one."""
    with suppress(ValueError, KeyError, TypeError):
        return float(json.loads(row)["global_step"])
    return math.inf
