"""The recipe beside our former defaults and CleanRL's published ones: families of tasks, seeds, the same steps.

    pip install -e ".[bench]"
    python -m benchmarks.learning_recipe
    python -m benchmarks.learning_recipe --family tables --seeds 1-3

Former are the defaults of train.py where neither preset nor recipe sets anything (`--no-preset`); CleanRL's are the
lines of docs/coming-from.md for ppo.py and ppo_continuous_action.py. Each run is a process of its own on one thread,
and its figure the mean of greedy episodes at its end. Runs that are finished are not done again, as in
benchmarks.learning.

Said for each task: the mean over seeds of each side, the 95 % interval of the recipe's lead (Welch's t), and the
seconds that 1M steps take. Then scores over all tasks, 0 for random actions and 1 for the best mean of a side:
interquartile means with stratified bootstrap intervals, of all and without each family (Agarwal et al. 2021, arXiv
2108.13264).
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro

from benchmarks.learning import Args as LearningArgs, Task, parse_seeds, run_one
from benchmarks.learning_peers import difference, our_line
from benchmarks.peers import machine_facts
from ppo_fast.envs import factory
from ppo_fast.envs.sight import look
from ppo_fast.pictures.intervals import RESAMPLES, iqm
from ppo_fast.run.flags import Range

SIDES = ("recipe", "former", "cleanrl")
RANDOM_EPISODES = 20


class Group(NamedTuple):
    """Tasks that are run alike."""

    backend: str
    total_timesteps: int
    env_ids: tuple[str, ...]
    words: str = ""  # further ones for their runs


FEW = "--eval-episodes 20"  # where an episode lasts a thousand steps
FAMILIES = {
    "classic": (
        Group(
            "tensor",
            500_000,
            ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "MountainCarContinuous-v0"),
        ),
    ),
    "tables": (Group("sync", 500_000, ("FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")),),
    "robots": (
        Group("envpool", 200_000, ("InvertedPendulum-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"), FEW),
        Group("envpool", 200_000, ("Pusher-v5", "HumanoidStandup-v5"), FEW),
    ),
    "control": (
        Group("envpool", 200_000, ("CartpoleSwingup-v1", "CheetahRun-v1", "FingerSpin-v1"), FEW),
        Group("envpool", 200_000, ("ReacherEasy-v1", "WalkerWalk-v1", "BallInCupCatch-v1"), FEW),
    ),
    "games": (
        Group("envpool", 200_000, ("LunarLander-v2",), FEW),
        Group("sync", 200_000, ("benchmarks.tasks:Walk-v0", "benchmarks.tasks:SteppedHopper-v0"), FEW),
    ),
}


@dataclass
class Args:
    """What to run."""

    family: tuple[str, ...] = ()
    """only these families"""
    seeds: str = "1-5"
    """seeds: 1-5, or 1,3,5"""
    jobs: Annotated[int, Range(1)] = 1
    """runs at a time, each on one thread"""
    run_root: Path = Path("runs/learning")
    """folder for the run folders and the records of finished runs"""
    out: Path = Path("benchmarks/results/learning-recipe.json")
    """the JSON file"""


class Job(NamedTuple):
    """One run."""

    family: str
    task: Task
    words: str
    side: str
    seed: int


def jobs_of(families: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The runs, seed by seed."""
    groups = [(family, group) for family in families for group in FAMILIES[family]]
    return [
        Job(family, Task(env_id, group.total_timesteps, group.backend, None), group.words, side, seed)
        for seed in seeds
        for family, group in groups
        for env_id in group.env_ids
        for side in SIDES
    ]


def run_job(args: Args, job: Job) -> dict[str, Any]:
    """The record of a run, made now or earlier. RuntimeError where the run failed."""
    words = [job.words, _words_of(job.side, job.task)]
    learning = LearningArgs(variant=f"{job.family}-{job.side}", extra=" ".join(words), run_root=args.run_root)
    record = run_one(learning, job.task, job.seed)
    if "error" in record:
        raise RuntimeError(f"{job.task.env_id}, {job.side}, seed {job.seed}: {record['error']}")
    print(f"{job.task.env_id} {job.side} {job.seed}: {record['greedy']:.1f} ({record['seconds']:.0f} s)", flush=True)
    return record


def _words_of(side: str, task: Task) -> str:
    """The flags of a side, beside those that all have."""
    if side != "cleanrl":
        return {"recipe": "--recipe", "former": "--no-preset"}[side]
    script = "ppo_continuous_action.py" if look(task.env_id, task.backend).actions == "continuous" else "ppo.py"
    words = our_line(script)
    named = {"--env-id", "--total-timesteps"}  # each run has its own
    kept = [word for i, word in enumerate(words) if not named & set(words[max(i - 1, 0) : i + 1])]
    return " ".join(kept)


def random_return(task: Task) -> float:
    """The mean return of random actions, such as a mask allows, over some episodes."""
    env = factory.make(task.env_id, 1, "cpu", task.backend)
    choices = np.random.default_rng(0)
    env.action_space.seed(0)
    returns, total = [], 0.0
    obs, _ = env.reset(seed=0)
    while len(returns) < RANDOM_EPISODES:
        action = env.action_space.sample()
        if env.mask_size:
            action = np.array([choices.choice(np.flatnonzero(obs[0, -env.mask_size :].numpy()))])
        obs, reward, terminated, truncated, _ = env.step(torch.as_tensor(action))
        total += float(reward[0])
        if terminated[0] or truncated[0]:
            returns.append(total)
            total = 0.0
    env.close()
    return statistics.fmean(returns)


def summary(job: Job, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A task over its seeds: what its sides reached, and by how much the recipe leads."""
    greedy = {side: [record["greedy"] for record in found] for side, found in records.items()}
    leads = {side: lead(greedy["recipe"], greedy[side]) for side in SIDES[1:]}
    return {
        "family": job.family,
        "total_timesteps": job.task.total_timesteps,
        "set_by_the_recipe": records["recipe"][0]["preset"],
        "random": random_return(job.task),
        "greedy": greedy,
        "sampled": {side: [record["sampled"] for record in found] for side, found in records.items()},
        "lead": leads,
        "seconds_of_1m_steps": {
            side: statistics.fmean(1e6 / record["sps"] for record in found) for side, found in records.items()
        },
        "curves": {side: [record["curve"] for record in found] for side, found in records.items()},
    }


def lead(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """By how much the mean is higher, and its interval, which one seed does not have: (NaN, NaN)."""
    found = difference(np.array(ours), np.array(theirs))
    return found if min(len(ours), len(theirs)) > 1 else (found[0], math.nan, math.nan)


def scores(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores of each side's seeds: 0 for random actions, 1 for the best mean of a side."""
    low = found["random"]
    best = max(statistics.fmean(values) for values in found["greedy"].values())
    if best <= low:  # nobody learned anything
        return {side: np.zeros(len(values)) for side, values in found["greedy"].items()}
    return {side: (np.array(values) - low) / (best - low) for side, values in found["greedy"].items()}


def overall(tasks: Sequence[Mapping[str, np.ndarray]], side: str) -> tuple[float, float, float]:
    """Interquartile mean of a side over tasks and seeds, and its interval: seeds drawn anew within each task."""
    drawn = np.random.default_rng(0)
    columns = [task[side] for task in tasks]
    again = [column[drawn.integers(len(column), size=(RESAMPLES, len(column)))] for column in columns]
    means = [iqm(row.tolist()) for row in np.concatenate(again, axis=1)]
    low, high = np.percentile(means, (2.5, 97.5))
    return iqm(np.concatenate(columns).tolist()), float(low), float(high)


def lines_of(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tables, as text."""
    lines = [f"{'task':<28}{'random':>9}" + "".join(f"{side:>11}" for side in SIDES)]
    lines[0] += f"{'over former':>26}{'over cleanrl':>26}{'s of 1M steps':>18}"
    for env_id, found in tasks.items():
        means = "".join(f"{statistics.fmean(found['greedy'][side]):>11.4g}" for side in SIDES)
        leads = "".join(f"{_interval(found['lead'][side]):>26}" for side in SIDES[1:])
        seconds = " ".join(f"{found['seconds_of_1m_steps'][side]:.0f}" for side in SIDES)
        lines.append(f"{env_id.rpartition(':')[2]:<28}{found['random']:>9.4g}{means}{leads}{seconds:>18}")
    for side in SIDES[1:]:
        leads = [found["lead"][side] for found in tasks.values()]
        better, alike = sum(x > 1e-9 for x, _, _ in leads), sum(abs(x) <= 1e-9 for x, _, _ in leads)
        clearly, worse = sum(low > 0 for _, low, _ in leads), sum(high < 0 for _, _, high in leads)
        lines.append(f"over {side}: better in {better} of {len(leads)} (clearly in {clearly}), equal in {alike}; ")
        lines[-1] += f"clearly worse in {worse}"
    families = list(dict.fromkeys(found["family"] for found in tasks.values()))
    lines.append(f"\n{'scores, interquartile mean':<28}" + "".join(f"{side:>22}" for side in SIDES))
    for name in ("all", *families, *(f"all but {family}" for family in families)):
        chosen = [
            scores(found)
            for found in tasks.values()
            if name in ("all", found["family"]) or (name.startswith("all but") and name != f"all but {found['family']}")
        ]
        if chosen:
            lines.append(f"{name:<28}" + "".join(f"{_interval(overall(chosen, side), 2):>22}" for side in SIDES))
    return lines


def _interval(figure: tuple[float, float, float], digits: int = 4) -> str:
    middle, low, high = (f"{x:.{digits}g}" if digits > 2 else f"{x:.{digits}f}" for x in figure)
    return f"{middle} [{low}, {high}]"


def main(args: Args) -> None:
    """Run what is missing, write it, print the tables."""
    unknown = set(args.family) - set(FAMILIES)
    if unknown:
        raise ValueError(f"--family: {sorted(unknown)[0]} is none of {', '.join(FAMILIES)}")
    seeds = parse_seeds(args.seeds)
    jobs = jobs_of(args.family or tuple(FAMILIES), seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        records = list(pool.map(lambda job: run_job(args, job), jobs))
    tasks = {}
    for first in jobs[: len(jobs) // len(seeds) : len(SIDES)]:
        of_task = [(job.side, record) for job, record in zip(jobs, records, strict=True) if job.task == first.task]
        tasks[first.task.env_id] = summary(first, {x: [record for side, record in of_task if side == x] for x in SIDES})
    machine = machine_facts()
    del machine["load"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"seeds": args.seeds, "machine": machine, "tasks": tasks}) + "\n")
    print(*lines_of(tasks), sep="\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
