"""policy.safetensors as bytes: whole, unaltered, and the facts in its metadata. No torch is imported here.

    contents = policy_file.read(path)
    contents.facts["env_id"]
    policy_file.arrays_of(contents)    # {"actor.layers.0.weight": array, ...}

It is an ordinary safetensors file. Each fact is a JSON text in its metadata, and so are "policy_format" and "sha256":
the checksum of the whole file as it would be with 64 zeros in that place. It finds damage; it is not a signature.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppo_fast import jsonl, names, reading

FORMAT = 1
FORMAT_KEY = "policy_format"
CHECKSUM_KEY = "sha256"
NO_CHECKSUM = "0" * 64
LARGEST_HEADER = 100_000_000  # bytes, for safetensors, too


class Contents(NamedTuple):
    """A whole file, and what its metadata says."""

    data: bytes
    facts: dict[str, Any]
    """Of its run."""
    is_checked: bool
    """Whether it had a checksum, which was right. Earlier versions wrote none."""


def read(path: Path) -> Contents:
    """What the file holds, its tensors still as bytes.

    Raises:
        ValueError: with the reason, where it is truncated, altered, or no policy of ours.
        OSError: it cannot be read.
    """
    file, size = reading.open_file(path, reading.POLICY)
    with file:
        return _contents(_whole(file, size))


def with_checksum(data: bytes) -> bytes:
    """A file that was made with NO_CHECKSUM, with the right one."""
    return _replaced(data, NO_CHECKSUM, hashlib.sha256(data).hexdigest())


def arrays_of(contents: Contents) -> dict[str, np.ndarray]:
    """The tensors as arrays, which can't be written to.

    Raises:
        ValueError: NumPy has no such numbers (bfloat16), they are none of safetensors, or one is NaN or infinite.
    """
    from safetensors.numpy import load as from_bytes

    try:
        arrays = from_bytes(contents.data)
    except Exception as error:  # SafetensorError, and what an unknown type of numbers leads to
        raise ValueError(f"no policy of ppo_fast ({names.first_line(error)})") from error
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"its {name} holds NaN or infinity")
    return arrays


def _whole(file: BinaryIO, size: int) -> bytes:
    """The bytes of a file whose header says that it is whole: of any other only the header is read. Else ValueError."""
    wrong = ValueError(f"truncated, or no policy of ppo_fast ({size} bytes)")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(LARGEST_HEADER, size - 8):
        raise wrong
    header = file.read(length)
    entries = jsonl.json_object(header)
    if entries is None or 8 + length + _end_of(entries) != size:
        raise wrong
    return start + header + file.read(size)


def _end_of(entries: Mapping[str, Any]) -> int:
    """How many bytes of tensors there are, by a header; -1 where it doesn't say."""
    end = 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or not offsets or type(offsets[-1]) is not int:
            return -1
        end = max(end, offsets[-1])
    return end


def _contents(data: bytes) -> Contents:
    """The metadata of a whole file. ValueError with the reason where it can't be used."""
    length = int.from_bytes(data[:8], "little")
    header = jsonl.json_object(data[8 : 8 + length]) or {}
    metadata = header.get("__metadata__") or {}
    # First: where a byte of the metadata is wrong, nothing else it says counts.
    _check_checksum(data, metadata)
    try:
        facts = {key: json.loads(value) for key, value in metadata.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no policy of ppo_fast: its metadata is no JSON ({names.first_line(error)})") from error
    if facts.pop(FORMAT_KEY, FORMAT) != FORMAT:
        raise ValueError("another version of ppo_fast wrote it")
    is_checked = facts.pop(CHECKSUM_KEY, None) is not None
    return Contents(data, facts, is_checked)


def _check_checksum(data: bytes, metadata: Any) -> None:
    """ValueError where a checksum is there and wrong, or is missing though the file says that it has one."""
    if not isinstance(metadata, dict) or not {FORMAT_KEY, CHECKSUM_KEY} & metadata.keys():
        return  # written before there were checksums
    said = str(metadata.get(CHECKSUM_KEY, "")).strip('"')
    if hashlib.sha256(_replaced(data, said, NO_CHECKSUM)).hexdigest() != said:
        raise ValueError(f"the checksum does not match its contents ({len(data)} bytes)")


def _replaced(data: bytes, before: str, after: str) -> bytes:
    """The file with another checksum. One that is not there, in full, changes nothing."""
    if len(before) != len(after):
        return data
    return data.replace(_entry(before), _entry(after), 1)


def _entry(checksum: str) -> bytes:
    """How a checksum stands in the header: a JSON text within a JSON text."""
    return f'"{CHECKSUM_KEY}":{json.dumps(json.dumps(checksum))}'.encode()
