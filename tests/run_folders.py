"""Run folders made by hand or by a `Run`, and rows for them."""

import json
from pathlib import Path
from typing import Any

from ppo_fast import names
from ppo_fast.run.tracking import Run

COLUMNS = (
    *(names.EPISODIC_RETURN, names.EPISODIC_LENGTH, names.SPS, names.LEARNING_RATE, names.POLICY_LOSS),
    *(names.VALUE_LOSS, names.ENTROPY, names.APPROX_KL, names.CLIPFRAC, names.EXPLAINED_VARIANCE),
)


def write_run(root, name, rows, config=None, result=None):
    """A run folder; `rows` are dicts or raw lines."""
    folder = root / name
    folder.mkdir(parents=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    for kind, content in (("config", config), ("result", result)):
        if content is not None:
            (folder / f"{kind}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def config(**changes):
    """The flags of config.json that tests look at, with changes."""
    return {"env_id": "CartPole-v1", "exp_name": "train", "seed": 1, "gamma": 0.99, "ent_coef": 0.01, **changes}


def make_row(step: int, **values: Any) -> dict[str, Any]:
    """A row of metrics: 1.5 everywhere, but for `values`."""
    return {names.GLOBAL_STEP: step, **dict.fromkeys(COLUMNS, 1.5), **values}


def make_run(root: Path, said: list[str] | None = None, **overrides: Any) -> Run:
    """A `Run` below `root` that adds what it says to `said`."""
    settings = {"root": root, "env_id": "CartPole-v1", "exp_name": "train", "seed": 3, "config": {"gamma": 0.99}}
    return Run(**{**settings, **overrides}, say=([] if said is None else said).append)


def resume(run: Run, said: list[str] | None = None, **overrides: Any) -> Run:
    """Another `Run` that goes on in the folder of one that has ended."""
    changes = {"config": {"gamma": 0.5}, "resume_folder": run.folder, "run_id": run.run_id, **overrides}
    other = make_run(run.folder.parent, said, **changes)
    other.go_on(lambda folder: None)
    return other
