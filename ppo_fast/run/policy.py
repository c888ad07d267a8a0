"""policy.safetensors: the weights of a policy alone, for other programs, with the facts of its run as metadata.

It is an ordinary safetensors file. Each fact is a JSON text in its metadata, and so are "policy_format" and "sha256":
the checksum of the whole file as it would be with 64 zeros in that place. It finds damage; it is not a signature.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from ppo_fast import jsonl, names, reading
from ppo_fast.run.checkpoint import DamagedCheckpoint, plain
from ppo_fast.writing import write_atomically

FORMAT = 1
FORMAT_KEY = "policy_format"
CHECKSUM_KEY = "sha256"
NO_CHECKSUM = "0" * 64
LARGEST_HEADER = 100_000_000  # bytes, for safetensors, too


class PolicyFile(NamedTuple):
    """What a policy file holds."""

    weights: dict[str, Tensor]
    """A state_dict."""
    facts: dict[str, Any]
    """Of its run."""
    is_checked: bool
    """Whether it had a checksum, which was right. Earlier versions wrote none."""


def save_policy(folder: Path, state_dict: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write folder/policy.safetensors, atomically: the weights, and `meta` as one JSON string a key in its metadata.

    Raises:
        TypeError: a value of `meta` is no JSON.
        OSError: disk full, quota, no permission; an earlier file is as it was.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    facts = {**meta, FORMAT_KEY: FORMAT, CHECKSUM_KEY: NO_CHECKSUM}
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    data = to_bytes(plain(dict(state_dict), "state_dict"), metadata)
    checksum = hashlib.sha256(data).hexdigest()
    path = folder / names.POLICY_FILE
    write_atomically(path, _replaced(data, NO_CHECKSUM, checksum))
    return path


def load_policy(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state_dict, meta) of a policy.safetensors, or of the one in a folder. Errors as in `read_policy`."""
    found = read_policy(path / names.POLICY_FILE if path.is_dir() else path)
    return found.weights, found.facts


def read_policy(path: Path) -> PolicyFile:
    """What the file holds.

    Raises:
        DamagedCheckpoint: the file is truncated, altered, no policy of ours, or holds NaN or infinity.
        OSError: it cannot be read.
    """
    file, size = reading.open_file(path, reading.POLICY)
    with file:
        try:
            return _contents(_whole(file, size))
        except ValueError as error:
            raise DamagedCheckpoint(f"{path}: {names.first_line(error)}") from error


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all numbers are finite."""
    for name, x in tensors.items():
        if (x.is_floating_point() or x.is_complex()) and not bool(x.isfinite().all()):
            return name
    return None


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


def _contents(data: bytes) -> PolicyFile:
    """What a whole file holds. ValueError with the reason where it can't be used."""
    length = int.from_bytes(data[:8], "little")
    header = jsonl.json_object(data[8 : 8 + length]) or {}
    metadata = header.get("__metadata__") or {}
    # First: where a byte of the metadata is wrong, nothing else it says counts.
    _check_checksum(data, metadata)
    try:
        meta = {key: json.loads(value) for key, value in metadata.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no policy of ppo_fast: its metadata is no JSON ({names.first_line(error)})") from error
    if meta.get(FORMAT_KEY, FORMAT) != FORMAT:
        raise ValueError("another version of ppo_fast wrote it")
    try:
        from safetensors.torch import load as from_bytes

        weights = from_bytes(data)
    except Exception as error:  # SafetensorError, and what an unknown type of numbers leads to
        raise ValueError(f"no policy of ppo_fast ({names.first_line(error)})") from error
    bad = first_not_finite(weights)
    if bad is not None:
        raise ValueError(f"its {bad} holds NaN or infinity")
    is_checked = meta.pop(CHECKSUM_KEY, None) is not None
    meta.pop(FORMAT_KEY, None)
    return PolicyFile(weights, meta, is_checked)


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
