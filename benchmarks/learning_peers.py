"""How the lines of docs/coming-from.md learn, beside what they stand for: whole training curves over seeds.

    pip install -e ".[bench]"
    python -m benchmarks.learning_peers --peer sb3
    python -m benchmarks.learning_peers --peer sb3 --env-id Hopper-v5 --total-timesteps 60000
    python -m benchmarks.learning_peers --peer cleanrl --script cleanrl/ppo.py
    python -m benchmarks.learning_peers --peer cleanrl --script cleanrl/ppo_continuous_action.py --env-id Hopper-v4 \\
        --total-timesteps 60000 --python-path gymnasium-0.29

CleanRL's scripts are not installed with this: name one of a checkout. Those that write the returns of Gymnasium before
1.0 need that one, in a folder of its own, which `--python-path` puts first.

Each run is a process of its own on one thread, and its curve a list of [environment step, return]: of single episodes
there, and here the mean of those that ended in an iteration, at its end. So theirs are put together in the same way.
The steps are cut into stretches; what is compared in each is the mean over seeds, by the 95 % interval of the
difference (Welch's t). Runs that are there already are not done again.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from ppo_fast.run import cli
from ppo_fast.run.flags import Range
from ppo_fast.train import Args as TrainArgs

SB3 = "Stable-Baselines3's PPO"  # the name of its line there; CleanRL's have those of its scripts

Curve = list[tuple[int, float]]


@dataclass
class Args:
    """What to run."""

    peer: Literal["sb3", "cleanrl"] = "sb3"
    """whose line"""
    script: Path | None = None
    """CleanRL's ppo.py or ppo_continuous_action.py"""
    python_path: Path | None = None
    """folder that comes first on the path of CleanRL's script"""
    env_id: str = "CartPole-v1"
    """the environment"""
    total_timesteps: Annotated[int, Range(1)] = 100_000
    """steps of each run"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """seeds of both sides"""
    stretches: Annotated[int, Range(1)] = 10
    """in which the curves are compared"""
    out: Path = Path("benchmarks/results")
    """folder of the JSON file"""


def our_line(name: str) -> list[str]:
    """The words behind the program's name of the command of docs/coming-from.md that ends with this comment."""
    page = Path(__file__).resolve().parent.parent / "docs" / "coming-from.md"
    text = page.read_text().replace("\\\n", " ")
    [line] = re.findall(rf"^python -m ppo_fast\.train (.*)  # {re.escape(name)}$", text, re.MULTILINE)
    return shlex.split(line)


def _name(args: Args) -> str:
    """Of the line of docs/coming-from.md."""
    return SB3 if args.script is None else args.script.name


def our_curve(args: Args, seed: int) -> Curve:
    """ppo_fast's."""
    with tempfile.TemporaryDirectory() as root:
        words = [sys.executable, "-m", "ppo_fast.train", *our_line(_name(args)), *_common(args, seed)]
        words += ["--run-root", root, "--eval-episodes", "0", "--quiet"]
        _run(words, Path.cwd())
        [metrics] = Path(root).glob("*/metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    name = "charts/episodic_return"
    return [(row["global_step"], row[name]) for row in rows if row.get(name) is not None]


def curve_of_sb3(args: Args, seed: int) -> Curve:
    """Stable-Baselines3's, with all of its defaults."""
    import torch
    from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    curve: Curve = []

    def note(found: dict, _: dict) -> bool:
        steps = found["self"].num_timesteps
        curve.extend((steps, float(info["episode"]["r"])) for info in found["infos"] if "episode" in info)
        return True  # to go on

    PPO("MlpPolicy", args.env_id, seed=seed, device="cpu").learn(args.total_timesteps, callback=note)
    return curve


def curve_of_cleanrl(args: Args, seed: int) -> Curve:
    """That of CleanRL's script, from what it writes for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    assert args.script is not None
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(args.script.resolve()), *_common(args, seed), "--no-cuda"]
        _run(words, Path(folder), args.python_path)
        [events] = Path(folder).glob("runs/*")
        found = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
        return [(event.step, event.value) for event in found.Scalars("charts/episodic_return")]


def _common(args: Args, seed: int) -> list[str]:
    return ["--env-id", args.env_id, "--total-timesteps", str(args.total_timesteps), "--seed", str(seed)]


def _run(words: list[str], folder: Path, first: Path | None = None) -> None:
    """Run a command on one thread. RuntimeError with the end of what it said, where it fails."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    if first is not None:
        variables["PYTHONPATH"] = str(first.resolve())
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: exit status {done.returncode}\n{done.stderr[-2000:]}")


def by_iterations(curve: Curve, batch_size: int) -> Curve:
    """The means of the episodes that ended in each iteration of so many steps, at its end."""
    found: dict[int, list[float]] = {}
    for step, value in curve:
        found.setdefault(-(-step // batch_size) * batch_size, []).append(value)
    return [(step, float(np.mean(values))) for step, values in found.items()]


def stretches_of(curve: Curve, total_timesteps: int, count: int) -> np.ndarray:
    """The mean return in each stretch (count,). One in which nothing ended has that of the one before."""
    steps, returns = np.array(curve, dtype=float).T
    stretch = np.minimum(steps * count // total_timesteps, count - 1)
    means = np.full(count, np.nan)
    for i in range(count):
        inside = returns[stretch == i]
        means[i] = inside.mean() if len(inside) else means[i - 1]
    return means


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Ours minus theirs, over seeds: the mean, and Welch's 95 % interval. Nothing varies: the interval is the mean."""
    from scipy.stats import ttest_ind

    middle = float(ours.mean() - theirs.mean())
    if max(np.ptp(ours), np.ptp(theirs)) < 1e-9:
        return middle, middle, middle
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss")  # one side alone may not vary
        interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return middle, float(interval.low), float(interval.high)


def table(args: Args, curves: dict[str, list[Curve]]) -> list[str]:
    """Lines with the mean of both sides in each stretch and over all, and the interval of the difference."""
    batch_size = cli.parse(TrainArgs, our_line(_name(args)), "").batch_size
    ours, theirs = (
        np.array([stretches_of(by_iterations(x, batch_size), args.total_timesteps, args.stretches) for x in curves[y]])
        for y in ("ours", "theirs")
    )
    lines, alike = [f"{'steps':>10}{'ours':>10}{args.peer:>10}   difference, 95 % interval"], 0
    for i in range(args.stretches):
        middle, low, high = difference(ours[:, i], theirs[:, i])
        alike += low <= 0 <= high
        steps = (i + 1) * args.total_timesteps // args.stretches
        means = f"{ours[:, i].mean():>10.1f}{theirs[:, i].mean():>10.1f}"
        lines.append(f"{steps:>10,}{means}   {middle:.1f} [{low:.1f}, {high:.1f}]")
    middle, low, high = difference(ours.mean(1), theirs.mean(1))
    lines.append(f"{'all':>10}{ours.mean():>10.1f}{theirs.mean():>10.1f}   {middle:.1f} [{low:.1f}, {high:.1f}]")
    lines.append(f"the interval holds 0 in {alike} of {args.stretches} stretches")
    return lines


def main(args: Args) -> None:
    """Run what is missing, write it, print the table."""
    if (args.script is None) != (args.peer == "sb3"):
        raise ValueError("--script: is CleanRL's, and needed for it")
    args.out.mkdir(parents=True, exist_ok=True)
    their_curve = curve_of_sb3 if args.peer == "sb3" else curve_of_cleanrl
    path = args.out / f"learning-{args.peer}-{args.env_id.replace('/', '-')}.json"
    what = {"peer": args.peer, "env_id": args.env_id, "total_timesteps": args.total_timesteps}
    what["script"] = None if args.script is None else args.script.name
    found: dict = json.loads(path.read_text()) if path.exists() else {}
    if found.get("what") != what:
        found = {"what": what, "ours": {}, "theirs": {}}
    for seed in args.seeds:
        for side, run in (("ours", our_curve), ("theirs", their_curve)):
            if str(seed) not in found[side]:
                found[side][str(seed)] = run(args, seed)
                path.write_text(json.dumps(found) + "\n")
    curves = {side: [found[side][str(seed)] for seed in args.seeds] for side in ("ours", "theirs")}
    print(*table(args, curves), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
