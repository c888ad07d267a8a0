"""Which runs belong together: the configuration of a run, what tells it from others, and a label that says so.

    for label, members in group_runs(runs).items():      # "CartPole-v1 train", or "gamma=0.9" beside "gamma=0.99"
        ...

A configuration is the flags that define what was trained. The seed and where it ran do not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppo_fast import names
from ppo_fast.pictures.records import RunRecord

# What may differ between two runs of one configuration: the seed, where and how it ran, what was recorded of it.
INCIDENTAL = {
    *("seed", "run_root", "quiet", "track", "tensorboard", "capture_video", "eval_episodes", "verify", "profile"),
    *("torch_deterministic", "execution", "versions", "device", "device_in_words", "threads", "backend_used", "cuda"),
    *(
        "resume",
        "trust",
        "resumed_from",
        "save_interval",
        "keep_checkpoints",
        "max_runtime",
        "env_timeout",
        "env_restarts",
    ),
    *("eval_max_steps", "eval_seconds", "on_nan", "run_id", "world_size", "observation_space", "action_space"),
    *(
        "spaces",
        "handed_in",
        "parameters",
        "num_iterations",
        "batch_size",
        "max_entropy",
        "no_preset",
        "preset",
        "recipe",
        "exit_status",
    ),
}
INCIDENTAL_PREFIX = "wandb_"
LABEL_FLAGS = ("env_id", "exp_name")  # a label is made of these where they are enough
MOST_FLAGS = 3  # that a label names besides

Groups = Mapping[str, Sequence[RunRecord]]  # the runs of each configuration, by its label


def incidental(name: str) -> bool:
    """Whether an entry of config.json does not define what was trained."""
    return name in INCIDENTAL or name.startswith(INCIDENTAL_PREFIX)


def configuration(run: RunRecord) -> dict[str, Any]:
    """The flags that define what was trained, without the seed and what is incidental. Keywords for the environment
    that are none count as in a run of an earlier version, which could not have any."""
    return {name: value for name, value in run.config.items() if not incidental(name) and value != {}}


def group_runs(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs of one configuration together, under a label that says what tells it from the others.

    A run without a readable config.json is a configuration of its own.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(_key_of(run), []).append(run)
    members = list(groups.values())
    configs = [configuration(group[0]) for group in members]
    folders = [group[0].folder.name for group in members]
    return dict(zip(labels_of(configs, folders), members, strict=True))


def one_a_seed(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """The runs but those that a newer one of the same configuration and seed repeats, and a line for each left out.

    Twice the same seed is no second sample: it would narrow every interval. Runs that don't say their seed all count.
    """
    newest: dict[str, RunRecord] = {}
    for run in runs:
        key = _seed_key(run)
        if key not in newest or _age(run) >= _age(newest[key]):
            newest[key] = run
    kept = [run for run in runs if newest[_seed_key(run)] is run]
    lines: list[str] = []
    for run in runs:
        counted = newest[_seed_key(run)]
        if counted is not run:
            seed = names.printable(run.config["seed"])
            older, newer = names.printable(run.folder.name), names.printable(counted.folder.name)
            lines.append(f"{older} left out: {newer} is newer, of the same configuration and seed {seed}")
    return kept, lines


def _seed_key(run: RunRecord) -> str:
    """Equal for runs of one configuration and seed; each run has its own where it does not say."""
    if "seed" not in run.config:
        return str(run.folder)
    return json.dumps([_key_of(run), run.config["seed"]])


def _age(run: RunRecord) -> tuple[int, int]:
    """Larger for a later run: when it began, as its folder's name says, and when it last wrote a row."""
    began = re.search(r"__(\d{1,18})$", run.folder.name)
    return int(began[1]) if began else 0, (run.folder / names.METRICS_FILE).stat().st_mtime_ns


def _key_of(run: RunRecord) -> str:
    """Equal for runs of one configuration."""
    return json.dumps(configuration(run), sort_keys=True) if run.config else str(run.folder)


def labels_of(configs: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[str]:
    """What tells configurations apart, one label each, no two alike.

    That is environment and experiment where they are enough, else the flags that differ, and for a configuration that
    is not known its name in `folders`.
    """
    differing = differences(configs)
    first = [name for name in LABEL_FLAGS if name in differing]
    others = [name for name in differing if name not in LABEL_FLAGS]
    plain = [" ".join(str(config[name]) for name in first or LABEL_FLAGS if name in config) for config in configs]
    labels: list[str] = []
    for config, folder, label in zip(configs, folders, plain, strict=True):
        if not label:
            label = folder
        elif plain.count(label) > 1:
            label = _with_flags(label if first else "", config, others) or label
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    return labels


def _with_flags(label: str, config: Mapping[str, Any], differing: Sequence[str]) -> str:
    """A label with what a configuration says about the flags that differ, a few of them in full."""
    flags = [f"{name}={_short(config[name])}" for name in differing if name in config]
    parts = [label] if label else []
    parts += flags[:MOST_FLAGS]
    left_out = len(flags) - MOST_FLAGS
    return ", ".join(parts) + (f" and {left_out} more" if left_out > 0 else "")


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same in all configurations that are known."""
    known = [config for config in configs if config]
    return [name for name in names_in(known) if len({json.dumps(config.get(name)) for config in known}) > 1]


def names_in(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that any of the configurations holds, each once, in their order."""
    found: dict[str, None] = {}  # a set that keeps its order
    for config in configs:
        found.update(dict.fromkeys(config))
    return list(found)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
