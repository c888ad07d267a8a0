"""Checkpoints that survive a kill at any moment and cannot run code when they are loaded.

A run folder holds

    checkpoints/checkpoint-<step>.pt   the whole training state, the newest K
    checkpoints/best.pt                an optional hard link to one of them, kept when its checkpoint is pruned
    policy.safetensors                 the weights alone, for other programs

**One file, one rename.** A checkpoint is an ordinary `torch.save` archive. Its SHA-256 stands in the archive's own zip
comment, so data and checksum become visible together in a single `os.replace`: a checksum in a second file would leave
a moment in which one is new and the other old. The order is: serialise in memory, write a temp file in the same folder,
flush, fsync, rename, fsync the folder, and only then delete what is too old. So at every moment the newest checkpoint
that `save` has returned for is on the disk, whole. `torch.load(path, weights_only=True)` reads it without this module.

**Nothing but data.** `save` takes tensors and plain types only and `load` unpickles with `weights_only=True`, after the
checksum agreed and from the very bytes that were checked. The checksum finds damage; it is not a signature.

One process (rank 0) writes to a folder.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppo_fast.run.files import sync_folder, temporary_name, write_atomically
from ppo_fast.run.rows import truncate_rows as truncate_rows

PLAIN_TYPES = (type(None), bool, int, float, str, bytes)
NAME = re.compile(r"checkpoint-(\d+)\.pt")
BEST = "best.pt"
COMMENT = b"ppo_fast sha256 "
COMMENT_SIZE = len(COMMENT) + 64


class DamagedCheckpoint(ValueError):
    """A file that is no whole checkpoint of ours; the message is one line with the file and the reason."""


class Resume(NamedTuple):
    """What `resolve` found: where to go on, and from what."""

    run: Path
    """The run folder."""
    path: Path
    """The checkpoint file."""
    payload: dict[str, Any]
    """Its contents, tensors on the CPU."""
    skipped: list[str]
    """One line for each damaged checkpoint that was passed over."""


# ---------------------------------------------------------------- writing


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
                raise TypeError(
                    f"{where}: the key {key!r} is a {type(key).__qualname__}; only str and int can be saved"
                )
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
    ):
        return torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value.detach())
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise TypeError(f"{where} is a {kind}; only dense tensors and plain types can be saved")


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
    path = folder / f"checkpoint-{step:012d}.pt"
    write_atomically(path, _serialise(payload))
    supersede(folder, step)
    for _, other in _checkpoints(folder)[keep:]:
        other.unlink()
    return path


def supersede(folder: Path, step: int) -> None:
    """Rename the checkpoints in `folder` of steps later than `step` to superseded-*: training went back before them."""
    later = [path for other_step, path in _checkpoints(folder) if other_step > step]
    for path in later:
        path.replace(path.with_name(f"superseded-{path.name}"))
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
    temp = temporary_name(best)
    temp.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temp)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temp)
            with temp.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, best)
        sync_folder(best.parent)
    finally:
        # Renaming one hard link over another of the same file does nothing at all, by POSIX, and leaves the source.
        temp.unlink(missing_ok=True)
    return best


def _serialise(payload: dict[str, Any]) -> bytes:
    """The archive of `payload`, its SHA-256 in the zip comment."""
    buffer = io.BytesIO()
    torch.save(plain(payload), buffer)
    data = buffer.getvalue()
    # The archive ends with the record PK\5\6, whose last two bytes are the length of the comment after it: zero so far.
    assert data[-22:-18] == b"PK\x05\x06" and data[-2:] == b"\0\0"
    data = data[:-2] + COMMENT_SIZE.to_bytes(2, "little")
    return data + COMMENT + hashlib.sha256(data).hexdigest().encode()


# ---------------------------------------------------------------- reading


def load(path: Path) -> dict[str, Any]:
    """The payload of one checkpoint, tensors on the CPU.

    Raises:
        DamagedCheckpoint: truncated, altered, not ours, or holding anything but tensors and plain types.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    body, comment = data[:-COMMENT_SIZE], data[-COMMENT_SIZE:]
    if not comment.startswith(COMMENT) or not body.startswith(b"PK"):
        raise DamagedCheckpoint(f"{path}: truncated, or not a checkpoint of ppo_fast ({len(data)} bytes)")
    if comment[len(COMMENT) :] != hashlib.sha256(body).hexdigest().encode():
        raise DamagedCheckpoint(f"{path}: the checksum does not match its contents ({len(data)} bytes)")
    try:
        payload = plain(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except Exception as error:
        # The checksum agrees, so someone wrote other things than data; what that raises is theirs to choose.
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise DamagedCheckpoint(f"{path}: holds something else than tensors and plain types ({reason})") from error
    if type(payload) is not dict:
        raise DamagedCheckpoint(f"{path}: holds a {type(payload).__name__}, not a dict")
    return payload


def latest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """(path, payload, skipped) of the newest valid checkpoint in `folder`; best.pt is the last resort.

    `skipped` has one line for each damaged checkpoint that was passed over.

    Raises:
        FileNotFoundError: there is no checkpoint at all.
        DamagedCheckpoint: there are, and none is valid.
    """
    candidates = [path for _, path in _checkpoints(folder)]
    candidates += [folder / BEST] if (folder / BEST).is_file() else []
    if not candidates:
        raise FileNotFoundError(f"{folder}: no checkpoint here")
    skipped = []
    for path in candidates:
        try:
            return path, load(path), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"{path}: {error.strerror}")
    raise DamagedCheckpoint(f"{folder}: none of {len(skipped)} checkpoints is valid; {skipped[0]}")


def unfinished(root: Path, program: str, like: Mapping[str, Any]) -> Resume | None:
    """What `--resume auto` means: the newest run of `program` below `root` that is not at its end, with these flags.

    A run is at its end once its result.json says nothing of a stop. None where there is no such run.
    """
    for run in _runs_by_age(root):
        result: Any = {"stopped": "by force"}
        with suppress(ValueError, OSError):  # DamagedCheckpoint is a ValueError
            if (run / "result.json").exists():
                result = json.loads((run / "result.json").read_text())
            if not isinstance(result, dict) or "stopped" not in result:
                continue
            found = _resume_from(run)
            flags = found.payload.get("flags")
            same = isinstance(flags, dict) and all(flags.get(name) == value for name, value in like.items())
            if same and found.payload.get("program") == program:
                return found
    return None


def resolve(spec: str, root: Path) -> Resume:
    """Find what `--resume spec` means: a run folder, a checkpoint file, or "latest".

    "latest" is the run below `root` that wrote a checkpoint last and has a valid one.

    Raises:
        ValueError: "--resume: ..." in one line, when there is nothing to resume from.
    """
    skipped: list[str] = []
    for run in _runs_by_age(root) if spec == "latest" else [Path(spec)]:
        try:
            found = _resume_from(run)
            return found._replace(skipped=skipped + found.skipped)
        except DamagedCheckpoint as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"{run}: {error.strerror}" if error.strerror else str(error))
    if spec != "latest":
        raise ValueError(f"--resume: {skipped[0]}")
    detail = f"; {skipped[0]}" if skipped else ""
    raise ValueError(f"--resume: no run with a valid checkpoint below {root}{detail}")


def _resume_from(path: Path) -> Resume:
    if path.is_file():
        inside = path.resolve().parent
        return Resume(inside.parent if inside.name == "checkpoints" else inside, path, load(path), [])
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a run folder, a checkpoint file nor 'latest'")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    run = folder.parent if folder.name == "checkpoints" else folder
    return Resume(run, *latest(folder))


def _runs_by_age(root: Path) -> list[Path]:
    """Run folders below `root`, the one whose newest checkpoint was written last first."""
    ages: dict[Path, int] = {}
    for path in root.glob("*/checkpoints/checkpoint-*.pt"):
        run = path.parent.parent
        with suppress(FileNotFoundError):  # pruned just now by a run that is still going
            ages[run] = max(ages.get(run, 0), path.stat().st_mtime_ns)
    return sorted(ages, key=lambda run: (ages[run], run.name), reverse=True)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of each checkpoint in `folder`, newest step first."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pt")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


# ---------------------------------------------------------------- the policy for others


def save_policy(folder: Path, state_dict: dict[str, torch.Tensor], meta: dict[str, Any]) -> Path:
    """Write folder/policy.safetensors, atomically: the weights, and `meta` as one JSON string a key in its metadata.

    Raises:
        TypeError: a value of `meta` is no JSON.
        OSError: as in `save`.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value) for key, value in meta.items()}
    path = folder / "policy.safetensors"
    write_atomically(path, to_bytes(plain(dict(state_dict), "state_dict"), metadata))
    return path


def load_policy(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(state_dict, meta) of a policy.safetensors, or of the one in a folder.

    Raises:
        DamagedCheckpoint: the file is truncated or no policy of ours.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = path / "policy.safetensors" if path.is_dir() else path
    try:
        with safe_open(path, framework="pt") as file:
            meta = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118 - it is no dict
    except (SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedCheckpoint(f"{path}: no policy of ppo_fast ({reason})") from error
