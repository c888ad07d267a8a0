"""Run folders made by hand, for the tests of what reads them."""

import json


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
