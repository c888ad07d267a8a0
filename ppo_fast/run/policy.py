"""policy.safetensors: the weights of a policy alone, for other programs, with the facts of its run as metadata."""

import json
from pathlib import Path
from typing import Any

import torch

from ppo_fast import names
from ppo_fast.run.checkpoint import DamagedCheckpoint, plain
from ppo_fast.run.files import write_atomically


def save_policy(folder: Path, state_dict: dict[str, torch.Tensor], meta: dict[str, Any]) -> Path:
    """Write folder/policy.safetensors, atomically: the weights, and `meta` as one JSON string a key in its metadata.

    Raises:
        TypeError: a value of `meta` is no JSON.
        OSError: disk full, quota, no permission; an earlier file is as it was.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value) for key, value in meta.items()}
    path = folder / names.POLICY_FILE
    write_atomically(path, to_bytes(plain(dict(state_dict), "state_dict"), metadata))
    return path


def load_policy(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(state_dict, meta) of a policy.safetensors, or of the one in a folder.

    Raises:
        DamagedCheckpoint: the file is truncated or no policy of ours.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = path / names.POLICY_FILE if path.is_dir() else path
    try:
        with safe_open(path, framework="pt") as file:
            meta = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: no policy of ppo_fast ({names.first_line(error)})") from error
    return weights, meta
