"""metrics.jsonl: one row of metrics a line, written so that a killed run loses none.

A row is a line that holds a JSON object with a global_step. Anything else, such as the half row that a kill left, does
not count. A checkpoint keeps a `Tally` of the rows before it, by which they are known again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ppo_fast import jsonl, names, reading
from ppo_fast.writing import appended_file, write_atomically

Row = Mapping[str, Any]  # the metrics of one iteration by their names, "global_step" among them


@dataclass(frozen=True)
class Tally:
    """What is remembered of some rows, to know them again."""

    count: int = 0
    """How many they are."""
    digest: str = ""
    """SHA-256 of their lines, one after the other."""
    first: str = ""
    """The same of the first one alone; no other run has it, since it says how long that row took."""
    last: str = ""
    """And of the last one."""

    def to_plain(self) -> dict[str, int | str]:
        """What stands in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> Tally | None:
        """None where `plain`, which may be data from anywhere, is no tally."""
        if not isinstance(plain, dict) or plain.keys() != cls().to_plain().keys():
            return None
        found = cls(**plain)
        texts = (found.digest, found.first, found.last)
        return found if type(found.count) is int and all(type(text) is str for text in texts) else None


class Counter:
    """Counts rows, and makes a tally of them at any moment."""

    def __init__(self) -> None:
        self.count = 0
        self._all = hashlib.sha256()
        self._first = b""
        self._last = b""

    def add(self, row: bytes) -> None:
        """One row more, its line without the end."""
        self._all.update(row + b"\n")
        self._first = self._first or row
        self._last = row
        self.count += 1

    def tally(self) -> Tally:
        """Of the rows so far."""
        if not self.count:
            return Tally()
        ends = (hashlib.sha256(row).hexdigest() for row in (self._first, self._last))
        return Tally(self.count, self._all.hexdigest(), *ends)

    def copy(self) -> Counter:
        """One that counts on by itself."""
        other = Counter()
        other.count, other._all = self.count, self._all.copy()
        other._first, other._last = self._first, self._last
        return other


class Mark(NamedTuple):
    """A place in a metrics.jsonl to come back to."""

    size: int  # bytes before it
    counter: Counter  # of the rows before it


class RowFile:
    """A metrics.jsonl that is open for appending.

    Each row is one write to the system, without a buffer. So a process that is killed loses no row it has appended, and
    a row that the disk refuses is not written later by surprise.

    Args:
        path: the file, which is made if it is not there. Appending goes on behind what it holds.

    Raises:
        OSError: it can't be opened or read, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = appended_file(path)
        self._counter = Counter()
        for row, _ in _rows_in(path):
            self._counter.add(row)
        self._ends_in_half_a_row = _last_byte(path) not in (b"", b"\n")

    def close(self) -> None:
        """Close the file. May be called again."""
        self._file.close()

    def append(self, row: Row) -> None:
        """Write one row of JSON types.

        Raises:
            OSError: the disk took nothing of the row, or a part; the next row starts on a line of its own.
        """
        text = json.dumps(row, allow_nan=False).encode()
        line = text + b"\n"
        if self._ends_in_half_a_row:
            line = b"\n" + line
        written = self._file.write(line)
        if written >= len(line) - 1:  # all but the end of the line is a row, too
            self._counter.add(text)
        self._ends_in_half_a_row = written != len(line)
        if self._ends_in_half_a_row:
            raise OSError(f"{written} of {len(line)} bytes written")

    def put_back(self) -> bool:
        """Whether the file had gone, or its folder had: then it is there again, with all its rows.

        Raises:
            OSError: its rows can't be read any more, as where the disk itself has gone, or it can't be written.
        """
        descriptor = self._file.fileno()
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(descriptor)):
                return False
        size = os.fstat(descriptor).st_size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, os.pread(descriptor, size, 0))
        file = appended_file(self.path)
        self._file.close()
        self._file = file
        return True

    def tally(self) -> Tally:
        """Of all rows in the file."""
        return self._counter.tally()

    def mark(self) -> Mark:
        """Where the file ends now."""
        return Mark(os.fstat(self._file.fileno()).st_size, self._counter.copy())

    def rewind(self, mark: Mark) -> None:
        """Take back what was appended after a mark. OSError where the disk refuses."""
        os.ftruncate(self._file.fileno(), mark.size)
        self._counter = mark.counter.copy()
        self._ends_in_half_a_row = _last_byte(self.path) not in (b"", b"\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl. A line that is no JSON object (the half row of a killed run) is left out."""
    return jsonl.rows_of(reading.lines(folder / names.METRICS_FILE)).rows


def truncate_rows(path: Path, global_step: int) -> int:
    """Cut a metrics.jsonl back to a checkpoint, atomically, before it is opened for appending again.

    Drops rows beyond `global_step` (they will be made again) and torn rows that a kill left behind. A file that has
    another name, too, as in a copy made of hard links, is left to that one.

    Returns:
        the number of rows dropped; 0 where there is no file.
    """
    if not path.exists():
        return 0
    lines = [line for line in reading.lines(path) if line.strip()]
    kept = [row for row, step in _rows_in(path) if step <= global_step]
    clean = b"".join(row + b"\n" for row in kept)
    found = path.stat()
    if found.st_nlink > 1 or len(clean) != found.st_size or len(kept) != len(lines):
        write_atomically(path, clean)
    return len(lines) - len(kept)


def reason_against(path: Path, global_step: int, written: Tally | None, iterations: int) -> str | None:
    """What is wrong with the rows up to `global_step` of a checkpoint, in words; None where they are all there.

    Args:
        path: the metrics.jsonl, which need not be there.
        global_step: of the checkpoint.
        written: the checkpoint's tally; None where it has none.
        iterations: that were complete then: a row each, where no disk was full.

    Raises:
        ValueError: they are of another run.
        OSError: the file can't be read.
    """
    expected = iterations if written is None else written.count
    if not expected:
        return None
    if not os.path.lexists(path):
        return f"{path} is missing: {expected:,} rows are lost"
    counter = Counter()
    last_step = 0.0
    for row, step in _rows_in(path):
        if step <= global_step:
            counter.add(row)
            last_step = step
    found = counter.tally()
    if not found.count:
        return f"{path} has no row up to step {global_step:,}: {expected:,} rows are lost"
    if written is None:
        is_whole = found.count == expected and last_step == global_step
    else:
        is_whole = found == written
        if found.first != written.first and found.last != written.last:
            raise ValueError(f"{path} is of another run: neither its first row nor its last one is as it was written")
    if is_whole:
        return None
    if found.count == expected:
        return f"{path} is not as it was when the checkpoint was saved, up to step {global_step:,}"
    return f"{path} has {found.count:,} rows up to step {global_step:,}, of {expected:,} that were written"


def _rows_in(path: Path) -> Iterator[tuple[bytes, float]]:
    """The rows of a file, each with its step."""
    for line in reading.lines(path):
        row = line.strip()
        step = _step_of(row)
        if step is not None:
            yield row, step


def _step_of(line: bytes) -> float | None:
    """The global_step of one row; None for what is none."""
    row = jsonl.json_object(line)
    step = None if row is None else row.get(names.GLOBAL_STEP)
    return float(step) if step is not None and names.is_number(step) else None


def _last_byte(path: Path) -> bytes:
    file, size = reading.open_file(path, reading.ROWS)
    with file:
        file.seek(max(0, size - 1))
        return file.read(1)
