"""Equal seeds, equal numbers: short runs of another commit and of this tree, compared bit for bit.

    python -m benchmarks.golden --against HEAD~1          # every case, some three minutes
    python -m benchmarks.golden --against v0.1 --only sync pendulum

For a change that may move no number, such as a function that goes to another file. Each case trains in a process of its
own from the command line, once with the other commit's code and once with this tree's. Compared are every row of
metrics.jsonl, times aside, all weights in policy.safetensors and the final evaluation. Bits belong to a machine: both
sides run here, nothing is stored.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro

SMALL = "--num-envs 32 --num-steps 32 --total-timesteps 30720 --eval-episodes 8 --no-preset --quiet"
CASES = {
    "recorded": f"{SMALL}",
    "preset": "--total-timesteps 98304 --eval-episodes 8 --quiet",
    "eager": f"{SMALL} --compile off",
    "compiled": f"{SMALL} --compile on --num-envs 128 --total-timesteps 81920",
    "compiled, small minibatches": f"{SMALL} --compile on",
    "sync": f"{SMALL} --backend sync",
    "async in groups": f"{SMALL} --backend async --env-groups 2",
    "entry point": f"{SMALL} --backend entry_point",
    "envpool": f"{SMALL} --backend envpool --env-groups 2",
    "pendulum": f"{SMALL} --env-id Pendulum-v1 --num-steps 205 --total-timesteps 196800 --norm-obs --norm-reward",
    "target kl": f"{SMALL} --target-kl 0.005 --learning-rate 0.01",
    "kl schedule": f"{SMALL} --lr-schedule kl --norm-obs",
    "shared, uneven": f"{SMALL} --shared-backbone --num-minibatches 7",
    "no norm adv": f"{SMALL} --no-norm-adv --no-clip-vloss --update-epochs 1",
    "bf16": f"{SMALL} --precision bf16",
    "torchrun": f"{SMALL} --norm-obs --norm-reward",
    "torchrun, sync": f"{SMALL} --backend sync",
}
TIMED = ("time/", "charts/SPS")


@dataclasses.dataclass
class Args:
    """What to compare."""

    against: str = "HEAD"
    """commit whose numbers are to be kept"""
    only: tuple[str, ...] = ()
    """names of cases; all unless given"""
    ignore: tuple[str, ...] = ()
    """columns of metrics.jsonl that may differ"""


def run(tree: Path, name: str, folder: Path) -> dict[str, Any]:
    """Train one case with the code in `tree`; returns what it left, in comparable form."""
    start = [sys.executable, "-m"]
    if name.startswith("torchrun"):
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = [*start, "ppo_fast.train", "--run-root", str(folder), *shlex.split(CASES[name])]
    found = subprocess.run(
        words, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    if found.returncode:
        return {"failed": found.stderr.strip()[-2000:]}
    return left_by(next(folder.iterdir()))


def left_by(run: Path) -> dict[str, Any]:
    """Rows without times, weights as bytes, and the evaluation of a run folder."""
    from safetensors import safe_open

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    with safe_open(run / "policy.safetensors", framework="np") as file:
        weights = {key: file.get_tensor(key).tobytes().hex() for key in file.keys()}  # noqa: SIM118
    return {
        "rows": [{key: x for key, x in row.items() if not key.startswith(TIMED)} for row in rows],
        "weights": weights,
        "eval": {key: x for key, x in result.items() if key.startswith("eval/")},
    }


def difference(old: dict[str, Any], new: dict[str, Any], ignore: tuple[str, ...]) -> str:
    """Where two runs part first, in words; "" where they are equal."""
    for side, found in (("before", old), ("now", new)):
        if "failed" in found:
            return f"{side}: failed: {found['failed']}"
    for index, (before, now) in enumerate(zip(old["rows"], new["rows"], strict=False)):
        columns = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - set(ignore)
        if columns:
            return f"row {index}: " + ", ".join(f"{key} {before.get(key)} / {now.get(key)}" for key in sorted(columns))
    if len(old["rows"]) != len(new["rows"]):
        return f"{len(old['rows'])} and {len(new['rows'])} rows"
    for part in ("weights", "eval"):
        if old[part] != new[part]:
            keys = old[part].keys() | new[part].keys()
            return f"{part}: {sorted(key for key in keys if old[part].get(key) != new[part].get(key))}"
    return ""


def main(args: Args) -> int:
    """Run every case on both sides and print a line each; 1 when one differs."""
    wrong = 0
    unknown = [name for name in args.only if name not in CASES]
    if unknown:
        sys.exit(f"error: --only: no case {unknown[0]!r}; there are {', '.join(map(repr, CASES))}")
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(other), args.against], cwd=root, check=True, capture_output=True
        )
        try:
            for name in args.only or CASES:
                before = run(other, name, Path(scratch) / f"{name}-before")
                now = run(root, name, Path(scratch) / f"{name}-now")
                parted = difference(before, now, args.ignore)
                wrong += bool(parted)
                print(f"{name:<30}{parted or 'equal'}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=root, check=False)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
