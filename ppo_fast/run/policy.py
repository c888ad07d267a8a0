"""policy.safetensors: the weights of a policy alone, for other programs, with the facts of its run as metadata.

How the file is made up is told in policy_file.py, which reads it without torch. Here are its tensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ppo_fast import names
from ppo_fast.run import policy_file
from ppo_fast.run.checkpoint import DamagedCheckpoint, plain
from ppo_fast.run.policy_file import CHECKSUM_KEY, FORMAT, FORMAT_KEY, NO_CHECKSUM
from ppo_fast.writing import write_atomically


class PolicyFile(NamedTuple):
    """What a policy file holds."""

    weights: dict[str, Tensor]
    """A state_dict."""
    facts: dict[str, Any]
    """Of its run."""
    is_checked: bool
    """Whether it had a checksum, which was right. Earlier versions wrote none."""


def save_policy(
    folder: Path, state_dict: dict[str, Tensor], meta: dict[str, Any], name: str = names.POLICY_FILE
) -> Path:
    """Write a policy file of this name, atomically: the weights, and `meta` as one JSON string a key in its metadata.

    Raises:
        TypeError: a value of `meta` is no JSON.
        OSError: disk full, quota, no permission; an earlier file is as it was.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    facts = {**meta, FORMAT_KEY: FORMAT, CHECKSUM_KEY: NO_CHECKSUM}
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    data = to_bytes(plain(dict(state_dict), "state_dict"), metadata)
    path = folder / name
    write_atomically(path, policy_file.with_checksum(data))
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
    try:
        return _with_tensors(policy_file.read(path))
    except ValueError as error:
        raise DamagedCheckpoint(f"{path}: {names.first_line(error)}") from error


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all numbers are finite."""
    for name, x in tensors.items():
        if (x.is_floating_point() or x.is_complex()) and not bool(x.isfinite().all()):
            return name
    return None


def _with_tensors(contents: policy_file.Contents) -> PolicyFile:
    """A file with its tensors. ValueError with the reason where they can't be used."""
    try:
        from safetensors.torch import load as from_bytes

        weights = from_bytes(contents.data)
    except Exception as error:  # SafetensorError, and what an unknown type of numbers leads to
        raise ValueError(f"no policy of ppo_fast ({names.first_line(error)})") from error
    bad = first_not_finite(weights)
    if bad is not None:
        raise ValueError(f"its {bad} holds NaN or infinity")
    return PolicyFile(weights, contents.facts, contents.is_checked)
