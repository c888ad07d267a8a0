"""Checkpoints that survive a kill at any moment and cannot run code when they are loaded.

A run folder holds

    checkpoints/checkpoint-<step>.pt   the whole training state, the newest K
    checkpoints/best.pt                an optional hard link to one of them, kept when its checkpoint is pruned

**One file, one rename.** A checkpoint is an ordinary `torch.save` archive. Its SHA-256 stands in the archive's own zip
comment, so data and checksum become visible together in a single `os.replace`: a checksum in a second file would leave
a moment in which one is new and the other old. The order is: serialise in memory, write a temp file in the same folder,
flush, fsync, rename, fsync the folder, and only then delete what is too old. So at every moment the newest checkpoint
that `save` has returned for is on the disk, whole. `torch.load(path, weights_only=True)` reads it without this module.

**Nothing but data.** `save` takes tensors and plain types only and `load` unpickles with `weights_only=True`, after the
checksum agreed and from the very bytes that were checked. The checksum finds damage; it is not a signature: whoever
makes a file can make it right. So nothing is unpacked that is larger than the file.

One process (rank 0) writes to a folder. What a training program puts into a checkpoint is in state.py, how one is found
again in find.py.
"""

import hashlib
import io
import os
import re
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ppo_fast import names, reading
from ppo_fast.writing import new_file, refuse_link, sync_folder, temporary_name, write_atomically

PLAIN_TYPES = (type(None), bool, int, float, str, bytes)
NAME = re.compile(r"checkpoint-(\d+)\.pt")
BEST = "best.pt"
SUPERSEDED = "superseded-"
COMMENT = b"ppo_fast sha256 "
COMMENT_SIZE = len(COMMENT) + 64


class DamagedCheckpoint(ValueError):
    """A file that is no whole checkpoint or policy of ours; the message is one line with the file and the reason."""


def plain(value: Any, where: str = "payload") -> Any:
    """A deep copy of `value`, each tensor detached, on the CPU, contiguous and holding no more than its own elements.

    A view into a large buffer would otherwise be saved with all of it. Two views of one storage come back as two.

    Raises:
        TypeError: something is neither a tensor nor a plain type (None, bool, int, float, str, bytes, list, tuple,
            dict with str or int keys); the message names its place, such as payload['env']['state'][2].
    """
    if type(value) in PLAIN_TYPES:
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if type(value) in (dict, OrderedDict):  # Module.state_dict() is ordered
        for key in value:
            if type(key) not in (str, int):
                kind = type(key).__qualname__
                raise TypeError(f"{where}: the key {key!r} is a {kind}; only str and int can be saved")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (torch.Tensor, torch.nn.Parameter) and _is_dense(value):
        return torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value.detach())
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise TypeError(f"{where} is a {kind}; only dense tensors and plain types can be saved")


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def save(folder: Path, step: int, payload: dict[str, Any], keep: int = 3) -> Path:
    """Write `payload` as folder/checkpoint-<step>.pt; durable and valid when this returns.

    Keeps the `keep` newest. Checkpoints of later steps, left over when training went back to an earlier one, belong to
    another future: see `supersede`.

    Raises:
        TypeError: the payload holds something else than tensors and plain types; nothing was written.
        OSError: disk full, quota, no permission. No temp file stays and every earlier checkpoint is as it was, so a
            caller may warn and train on.
    """
    assert keep >= 1 and step >= 0 and type(payload) is dict
    folder.mkdir(parents=True, exist_ok=True)
    refuse_link(folder)
    path = folder / f"checkpoint-{step:012d}.pt"
    write_atomically(path, _serialise(payload))
    supersede(folder, step)
    for _, other in checkpoints_in(folder)[keep:]:
        other.unlink(missing_ok=True)
    for other_step, other in _numbered(folder, SUPERSEDED):
        if other_step <= step:
            other.unlink(missing_ok=True)
    return path


def supersede(folder: Path, step: int) -> None:
    """Rename the checkpoints in `folder` of steps later than `step` to superseded-*: training went back before them.

    They are deleted once training has come as far again, and its own checkpoint is on the disk.
    """
    later = [path for other_step, path in checkpoints_in(folder) if other_step > step]
    for path in later:
        path.replace(path.with_name(f"{SUPERSEDED}{path.name}"))
    if later:
        sync_folder(folder)


def write(path: Path, payload: dict[str, Any]) -> Path:
    """Write `payload` as a file of its own that `load` reads, such as a crash report; errors as in `save`."""
    write_atomically(path, _serialise(payload))
    return path


def mark_best(path: Path) -> Path:
    """Keep the checkpoint `path` as best.pt beside it, whatever `save` prunes later.

    The score that it was best by is the caller's to keep, in the payload.
    """
    best = path.with_name(BEST)
    temporary = temporary_name(best)
    temporary.unlink(missing_ok=True)
    try:
        _link_or_copy(path, temporary)
        os.replace(temporary, best)
        sync_folder(best.parent)
    finally:
        # Renaming one hard link over another of the same file does nothing at all, by POSIX, and leaves the source.
        temporary.unlink(missing_ok=True)
    return best


def _link_or_copy(path: Path, other: Path) -> None:
    """Make `other` the same file as `path` or, on a file system without hard links, a copy that is on the disk."""
    try:
        os.link(path, other)
    except OSError:
        with path.open("rb") as source, new_file(other) as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())


def _serialise(payload: dict[str, Any]) -> bytes:
    """The archive of `payload`, its SHA-256 in the zip comment."""
    buffer = io.BytesIO()
    torch.save(plain(payload), buffer)
    data = buffer.getvalue()
    # The archive ends with the record PK\5\6, whose last two bytes are the length of the comment after it: zero so far.
    assert data[-22:-18] == b"PK\x05\x06" and data[-2:] == b"\0\0"
    data = data[:-2] + COMMENT_SIZE.to_bytes(2, "little")
    return data + COMMENT + hashlib.sha256(data).hexdigest().encode()


def load(path: Path) -> dict[str, Any]:
    """The payload of one checkpoint, tensors on the CPU.

    Raises:
        DamagedCheckpoint: truncated, altered, not ours, or holding anything but tensors and plain types.
        OSError: it cannot be read.
    """
    data = _checked(path)
    try:
        _check_archive(data)
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        _check_size(payload, len(data))
        payload = plain(payload)
    except MemoryError:
        raise
    except Exception as error:
        # The checksum agrees, so someone wrote other things than data; what that raises is theirs to choose.
        reason = names.kind_and_line(error)
        raise DamagedCheckpoint(f"{path}: holds something else than tensors and plain types ({reason})") from error
    if type(payload) is not dict:
        raise DamagedCheckpoint(f"{path}: holds a {type(payload).__name__}, not a dict")
    return payload


def _checked(path: Path) -> bytes:
    """The bytes of a checkpoint whose checksum agrees. Of a file that does not end like one no more is read."""
    file, size = reading.open_file(path, reading.CHECKPOINT)
    with file:
        head = file.read(2)
        file.seek(max(0, size - COMMENT_SIZE))
        comment = file.read(COMMENT_SIZE)
        if head != b"PK" or not comment.startswith(COMMENT):
            raise DamagedCheckpoint(f"{path}: truncated, or not a checkpoint of ppo_fast ({size} bytes)")
        file.seek(0)
        data = file.read(size)
    if comment[len(COMMENT) :] != hashlib.sha256(data[:-COMMENT_SIZE]).hexdigest().encode():
        raise DamagedCheckpoint(f"{path}: the checksum does not match its contents ({size} bytes)")
    return data


def _check_archive(data: bytes) -> None:
    """ValueError where the archive is packed, as `torch.save` never does: a few bytes may become gigabytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed")
    if sum(entry.file_size for entry in entries) > len(data):
        raise ValueError("its parts overlap")


def _check_size(payload: Any, size: int) -> None:
    """ValueError where something was put together from more items or bytes than a file of so many bytes can name.

    A list may hold itself or another one a thousand times, and a tensor may have a billion elements that are one.
    """
    left = size
    rest = [payload]
    while rest:
        value = rest.pop()
        left -= value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 1
        if left < 0:
            raise ValueError("its contents are larger than the file")
        if isinstance(value, dict):
            rest.extend(value)
            rest.extend(value.values())
        elif isinstance(value, (list, tuple)):
            rest.extend(value)


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of each checkpoint in `folder`, newest step first; best.pt is not among them."""
    return _numbered(folder, "")


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """The same of the files that are named like a checkpoint behind a prefix."""
    found = []
    for path in folder.glob(f"{prefix}checkpoint-*.pt"):
        match = NAME.fullmatch(path.name.removeprefix(prefix))
        if match is not None:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)
