"""Whether files are of one run.

Each run has an id, which config.json, its checkpoints, its policy and result.json hold. Files of earlier versions have
none. They are told apart by the flags that a run can't change, such as seed and environment.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_fast import jsonl, names, reading

# Flags that may differ when a run goes on, besides W&B's. Any other would make it another run.
CHANGEABLE = (
    *("eval_max_steps", "eval_seconds", "eval_every", "eval_every_episodes"),
    *("total_timesteps", "eval_episodes", "capture_video", "quiet", "profile", "track", "tensorboard", "run_root"),
    *(
        "save_interval",
        "keep_checkpoints",
        "max_runtime",
        "on_nan",
        "env_timeout",
        "env_restarts",
        "resume",
        "trust",
        "preset",
        "recipe",
    ),
)


def new_id() -> str:
    """An id that no other run has, from the system's generator: the program's own stay where they are."""
    return secrets.token_hex(8)


def may_change(name: str) -> bool:
    """Whether a flag may be another one when a run goes on."""
    return name in CHANGEABLE or name.startswith("wandb_")


def config_of(folder: Path) -> dict[str, Any] | None:
    """What the folder's config.json holds; None where there is none, or it is no JSON object.

    Raises:
        OSError: it is there and can't be read.
    """
    path = folder / names.CONFIG_FILE
    return jsonl.json_object(reading.read_bytes(path, reading.SMALL)) if path.exists() else None


def id_in(facts: Mapping[str, Any]) -> str | None:
    """The id that facts of a run, which may be data from anywhere, hold; None where there is none."""
    found = facts.get(names.RUN_ID)
    return found if isinstance(found, str) else None


def difference(facts: Mapping[str, Any], others: Mapping[str, Any], flags: tuple[str, ...]) -> str | None:
    """What tells the run with these facts from the one with others, in words; None where they are the same.

    Args:
        facts, others: the flags of a run, its "program" and, but for earlier versions, its "run_id".
        flags: names of all flags that there are.
    """
    ids = id_in(facts), id_in(others)
    if None not in ids:
        if ids[0] == ids[1]:
            return None
        return f"it is of run {in_words(facts)}, not of {in_words(others)}"
    for name in ("env_id", "seed", "program", *flags):
        if may_change(name) or name not in facts or name not in others:
            continue
        if _as_json(facts[name]) != _as_json(others[name]):
            return f"its {name} is {_short(facts[name])}, not {_short(others[name])}"
    return None


def in_words(facts: Mapping[str, Any]) -> str:
    """A run as it is told: its id, environment and seed."""
    return f"{id_in(facts)} ({_short(facts.get('env_id'))}, seed {_short(facts.get('seed'))})"


def _as_json(value: Any) -> str:
    """Equal for what is equal in JSON, which has lists for tuples."""
    return json.dumps(names.jsonable(value), sort_keys=True)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
