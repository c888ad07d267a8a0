"""This tree's speed over another commit's: whole runs of both, by turns, in fresh processes.

    python -m benchmarks.pace --against HEAD~1               # every case; some 15 minutes, on an otherwise idle machine
    python -m benchmarks.pace --against v0.1 --only sync --rounds 9

For a change that may cost no speed. Each round runs a case once with the other commit's code and once with this one's,
in changing order; its ratio is above 1 where this tree is faster. What is told is the median ratio, the least and the
largest. Steps per second are those of result.json; seconds are from the start of the process to its end, or of an
import. Compiled cases run once on each side beforehand, to fill the compiler's cache.
"""

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from ppo_fast.run.flags import Range


class Case(NamedTuple):
    """What is run, and what of it is compared."""

    flags: str
    measure: str  # "sps" or "seconds"
    warm_up: bool = False


QUIET = "--quiet --eval-episodes 0 --no-preset"
CASES = {
    "default run, Enter to exit": Case("--quiet", "seconds"),
    "default run": Case("--quiet --eval-episodes 0", "sps"),
    "compiled 64 x 128": Case(f"{QUIET} --num-steps 128 --compile on --total-timesteps 1500000", "sps", True),
    "compiled 1024 x 32": Case(
        f"{QUIET} --num-envs 1024 --num-steps 32 --compile on --total-timesteps 2500000", "sps", True
    ),
    "sync": Case(f"{QUIET} --backend sync --total-timesteps 250000", "sps"),
    "async, 2 groups": Case(f"{QUIET} --backend async --env-groups 2 --total-timesteps 200000", "sps"),
    "envpool": Case(f"{QUIET} --backend envpool --total-timesteps 400000", "sps"),
    "import": Case("", "seconds"),
}


@dataclasses.dataclass
class Args:
    """What to compare."""

    against: str = "HEAD"
    """commit to compare with"""
    only: tuple[str, ...] = ()
    """names of cases; all unless given"""
    rounds: Annotated[int, Range(1)] = 5
    """runs of each side"""
    json: str = ""
    """file for the figures"""


def run(tree: Path, case: Case, folder: Path) -> float:
    """One run with the code in `tree`: steps per second, or seconds."""
    words = [sys.executable, "-m", "ppo_fast.train", "--run-root", str(folder), *shlex.split(case.flags)]
    if not case.flags:
        words = [sys.executable, "-c", "import ppo_fast.train"]
    began = time.perf_counter()
    variables = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(words, cwd=tree, env=variables, capture_output=True, check=True)
    seconds = time.perf_counter() - began
    if case.measure == "seconds":
        return seconds
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return json.loads((newest / "result.json").read_text())["sps"]


def compare(case: Case, before: Path, now: Path, scratch: Path, rounds: int) -> dict[str, list[float]]:
    """Figures of both sides and their ratios, one a round."""
    found: dict[str, list[float]] = {"before": [], "now": [], "ratio": []}
    for number in range(-1 if case.warm_up else 0, rounds):
        sides = {"before": before, "now": now}
        order = list(sides) if number % 2 else list(reversed(sides))
        measured = {side: run(sides[side], case, scratch / side) for side in order}
        if number < 0:
            continue
        for side in sides:
            found[side].append(measured[side])
        faster = measured["now"] / measured["before"]
        found["ratio"].append(faster if case.measure == "sps" else 1 / faster)
    return found


def main(args: Args) -> None:
    """Run every case and print a line each."""
    unknown = [name for name in args.only if name not in CASES]
    if unknown:
        sys.exit(f"error: --only: no case {unknown[0]!r}; there are {', '.join(map(repr, CASES))}")
    root = Path(__file__).resolve().parent.parent
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        other = scratch / "tree"
        checkout = ["git", "worktree", "add", "--detach", str(other), args.against]
        subprocess.run(checkout, cwd=root, check=True, capture_output=True)
        try:
            for name in args.only or CASES:
                found = compare(CASES[name], other, root, scratch, args.rounds)
                figures[name] = found
                ratio, unit = found["ratio"], CASES[name].measure
                middle = {side: statistics.median(found[side]) for side in ("before", "now")}
                told = f"{middle['before']:,.2f} -> {middle['now']:,.2f} {unit}"
                limits = f"{min(ratio):.2f} to {max(ratio):.2f}"
                print(f"{name:<28}{statistics.median(ratio):.3f}  ({limits})   {told}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=root, check=False)
    if args.json:
        Path(args.json).write_text(json.dumps({"against": args.against, "cases": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
