"""metrics.jsonl: one row of metrics a line, written so that a killed run loses none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppo_fast import jsonl, names
from ppo_fast.run.files import write_atomically

Row = Mapping[str, Any]  # the metrics of one iteration by their names, "global_step" among them


class RowFile:
    """A metrics.jsonl that is open for appending.

    Each row is one write to the system, without a buffer. So a process that is killed loses no row it has appended, and
    a row that the disk refuses is not written later by surprise.

    Args:
        path: the file, which is made if it is not there. Appending goes on behind what it holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        """Open the file for appending: after `close`, and after its contents have been replaced."""
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        last_byte = self.path.read_bytes()[-1:]
        self._ends_in_half_a_row = last_byte not in (b"", b"\n")

    def close(self) -> None:
        """Close the file. May be called again."""
        self._file.close()

    def append(self, row: Row) -> None:
        """Write one row of JSON types.

        Raises:
            OSError: the disk took nothing of the row, or a part; the next row starts on a line of its own.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        if self._ends_in_half_a_row:
            line = b"\n" + line
        written = self._file.write(line)
        self._ends_in_half_a_row = written != len(line)
        if self._ends_in_half_a_row:
            raise OSError(f"{written} of {len(line)} bytes written")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl. A line that is no JSON object (the half row of a killed run) is left out."""
    return jsonl.read(folder / names.METRICS_FILE).rows


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
