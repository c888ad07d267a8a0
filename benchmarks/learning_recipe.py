"""The recipe beside our former defaults and CleanRL's published ones: families of tasks, seeds, the same steps.

    pip install -e ".[bench]"
    python -m benchmarks.learning_recipe
    python -m benchmarks.learning_recipe --family tables --seeds 1-3

Former are the defaults of train.py where neither preset nor recipe sets anything (`--no-preset`); CleanRL's are the
lines of docs/coming-from.md for ppo.py and ppo_continuous_action.py. Each run is a process of its own on one thread,
and its figure the mean of greedy episodes at its end. Runs that are finished are not done again, as in
benchmarks.learning; nor are those whose records the JSON file holds already, which it does as soon as they are there.
So the runs of a result may be made on several days: a call's tables are of all that the file holds, of each task the
seeds that all sides have.

Said for each task: the mean over seeds of each side, the 95 % interval of the recipe's lead (Welch's t), and the
seconds that 1M steps take. Then scores over all tasks, 0 for random actions and 1 for the best mean of a side:
interquartile means with stratified bootstrap intervals, of all and without each family (Agarwal et al. 2021, arXiv
2108.13264). Where random actions lose without a limit, as beside a cliff, all scores are near 1.
"""

import functools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro

from benchmarks.learning import (
    Args as LearningArgs,
    Task,
    command,
    finished,
    parse_seeds,
    record_path,
    run_one,
    what_is_set,
)
from benchmarks.learning_peers import difference, our_line
from benchmarks.peers import machine_facts
from ppo_fast.envs import factory
from ppo_fast.envs.sight import look
from ppo_fast.pictures.intervals import RESAMPLES, iqm, iqm_along
from ppo_fast.run.flags import Range
from ppo_fast.writing import write_atomically

SIDES = ("recipe", "former", "cleanrl")
Interval = tuple[float, float | None, float | None]  # a figure, and its 95 % interval, which one seed does not have
RANDOM_EPISODES = 20


class Group(NamedTuple):
    """Tasks that are run alike."""

    backend: str
    total_timesteps: int
    env_ids: tuple[str, ...]
    extra_flags: str = ""


FEWER_EPISODES = "--eval-episodes 20"  # instead of 100: an episode may last a thousand steps
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
        Group(
            "envpool", 200_000, ("InvertedPendulum-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"), FEWER_EPISODES
        ),
        Group("envpool", 200_000, ("Pusher-v5", "HumanoidStandup-v5"), FEWER_EPISODES),
    ),
    "control": (
        Group("envpool", 200_000, ("CartpoleSwingup-v1", "CheetahRun-v1", "FingerSpin-v1"), FEWER_EPISODES),
        Group("envpool", 200_000, ("ReacherEasy-v1", "WalkerWalk-v1", "BallInCupCatch-v1"), FEWER_EPISODES),
    ),
    "games": (
        Group("envpool", 200_000, ("LunarLander-v2",), FEWER_EPISODES),
        Group("sync", 200_000, ("benchmarks.tasks:Walk-v0", "benchmarks.tasks:SteppedHopper-v0"), FEWER_EPISODES),
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
    extra_flags: str
    side: str
    seed: int


def jobs_of(families: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The runs, seed by seed."""
    groups = [(family, group) for family in families for group in FAMILIES[family]]
    return [
        Job(family, Task(env_id, group.total_timesteps, group.backend, None), group.extra_flags, side, seed)
        for seed in seeds
        for family, group in groups
        for env_id in group.env_ids
        for side in SIDES
    ]


def run_job(args: Args, job: Job, ledger: "Ledger") -> None:
    """A run, made now or earlier, for the ledger. RuntimeError where the run failed."""
    ledger.put_back(args, job)
    record = run_one(_as_learning(args, job), job.task, job.seed)
    if "error" in record:
        raise RuntimeError(f"{job.task.env_id}, {job.side}, seed {job.seed}: {record['error']}")
    print(f"{job.task.env_id} {job.side} {job.seed}: {record['greedy']:.1f} ({record['seconds']:.0f} s)", flush=True)
    ledger.keep(job, record)


def _as_learning(args: Args, job: Job) -> LearningArgs:
    """A run as benchmarks.learning knows it."""
    extra = f"{job.extra_flags} {_flags_of(job.side, job.task)}"
    return LearningArgs(variant=f"{job.family}-{job.side}", extra=extra, run_root=args.run_root)


class Ledger:
    """The JSON file, written anew after each run: records of finished runs, also of earlier calls.

    It holds a summary of each task, too, over the seeds that all sides have run.

    Raises:
        ValueError: the file that is there is none of this program.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._machine = {name: x for name, x in machine_facts().items() if name != "load"}
        self._records: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._summaries: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                found = json.loads(path.read_text())
                self._records = {(x["env_id"], x["side"], x["seed"]): x for x in found["records"]}
                self._summaries = dict(found["tasks"])
            except (ValueError, KeyError, TypeError) as problem:
                raise ValueError(f"--out: {path} is no result of benchmarks.learning_recipe") from problem
        path.parent.mkdir(parents=True, exist_ok=True)

    def drop_outdated(self, jobs: Sequence[Job]) -> None:
        """Forget the records of these tasks and sides, of any seed, that today's flags or recipe would not make."""
        for job in {job._replace(seed=0) for job in jobs}:
            for key, record in list(self._records.items()):
                if key[:2] != (job.task.env_id, job.side):
                    continue
                words = command(job.task, record["seed"], _as_learning(Args(), job).extra)
                if record["command"] != words or record["preset"] != what_is_set(words):
                    del self._records[key]
                    self._summaries.pop(job.task.env_id, None)

    def put_back(self, args: Args, job: Job) -> None:
        """Let a run whose record is here count as finished."""
        record = self._records.get((job.task.env_id, job.side, job.seed))
        learning = _as_learning(args, job)
        path = record_path(learning, job.task.env_id, job.seed)
        if record is not None and finished(learning, job.task, job.seed) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))

    def keep(self, job: Job, record: dict[str, Any]) -> None:
        """Write the record of a run, with the machine that it was made on, and sum up its task anew."""
        with self._lock:
            kept = {"side": job.side, "machine": self._machine, **record}
            self._records[job.task.env_id, job.side, job.seed] = kept
            self._summarize(job)
            self._write()

    def summarize(self, jobs: Sequence[Job]) -> None:
        """Summarise the tasks of these jobs by the records that there are."""
        for job in jobs:
            if job.side == SIDES[0]:
                self._summarize(job)

    def _summarize(self, job: Job) -> None:
        env_id = job.task.env_id
        by_side = {side: {key[2] for key in self._records if key[:2] == (env_id, side)} for side in SIDES}
        seeds = sorted(set.intersection(*by_side.values()))
        if not seeds:
            return
        known = self._summaries.get(env_id)
        random = random_return(job.task) if known is None else known["random"]
        records = {side: [self._records[env_id, side, seed] for seed in seeds] for side in SIDES}
        self._summaries[env_id] = summary(job, records, random)

    def tasks(self) -> dict[str, dict[str, Any]]:
        """The summaries by the tasks' ids, family by family."""
        order = [env_id for groups in FAMILIES.values() for group in groups for env_id in group.env_ids]
        return {env_id: self._summaries[env_id] for env_id in order if env_id in self._summaries}

    def _write(self) -> None:
        records = [self._records[key] for key in sorted(self._records)]
        write_atomically(self._path, (json.dumps({"tasks": self.tasks(), "records": records}) + "\n").encode())


@functools.cache
def _flags_of(side: str, task: Task) -> str:
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
    rng = np.random.default_rng(0)
    env.action_space.seed(0)
    returns, total = [], 0.0
    obs, _ = env.reset(seed=0)
    while len(returns) < RANDOM_EPISODES:
        action = env.action_space.sample()
        if env.mask_size:
            action = np.array([rng.choice(np.flatnonzero(obs[0, -env.mask_size :].numpy()))])
        obs, reward, terminated, truncated, _ = env.step(torch.as_tensor(action))
        total += float(reward[0])
        if terminated[0] or truncated[0]:
            returns.append(total)
            total = 0.0
    env.close()
    return statistics.fmean(returns)


def summary(job: Job, records: Mapping[str, Sequence[Mapping[str, Any]]], random: float) -> dict[str, Any]:
    """A task over its seeds: what random actions and its sides reached, and by how much the recipe leads."""
    greedy = {side: [record["greedy"] for record in found] for side, found in records.items()}
    return {
        "family": job.family,
        "seeds": [record["seed"] for record in records["recipe"]],
        "total_timesteps": job.task.total_timesteps,
        "set_by_the_recipe": records["recipe"][0]["preset"],
        "random": random,
        "greedy": greedy,
        "lead": {side: lead(greedy["recipe"], greedy[side]) for side in SIDES[1:]},
        "seconds_of_1m_steps": {
            side: statistics.fmean(1e6 / record["sps"] for record in found) for side, found in records.items()
        },
    }


def lead(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """By how much the mean is higher."""
    middle, low, high = difference(np.array(ours), np.array(theirs))
    return (middle, low, high) if min(len(ours), len(theirs)) > 1 else (middle, None, None)


def scores(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores of each side's seeds: 0 for random actions, 1 for the best mean of a side."""
    low = found["random"]
    best = max(statistics.fmean(values) for values in found["greedy"].values())
    if best <= low:  # nobody learned anything
        return {side: np.zeros(len(values)) for side, values in found["greedy"].items()}
    return {side: (np.array(values) - low) / (best - low) for side, values in found["greedy"].items()}


def overall(tasks: Sequence[Mapping[str, np.ndarray]], side: str) -> Interval:
    """Interquartile mean of a side over tasks and seeds, and its interval: seeds drawn anew within each task."""
    columns = [task[side] for task in tasks]
    middle = iqm(np.concatenate(columns).tolist())
    if min(len(column) for column in columns) < 2:
        return middle, None, None
    rng = np.random.default_rng(0)
    resampled = [column[rng.integers(len(column), size=(RESAMPLES, len(column)))] for column in columns]
    low, high = np.percentile(iqm_along(np.concatenate(resampled, axis=1), axis=1), (2.5, 97.5))
    return middle, float(low), float(high)


def lines_of(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tables, as text."""
    return [*_table_of_tasks(tasks), *_counts(tasks), "", *_table_of_scores(tasks)]


def _table_of_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sides = "".join(f"{side:>11}" for side in SIDES)
    over = "".join(f"{f'over {side}':>26}" for side in SIDES[1:])
    lines = [f"{'task':<28}{'seeds':>7}{'random':>11}{sides}{over}{'s of 1M steps':>18}"]
    for env_id, found in tasks.items():
        means = "".join(f"{statistics.fmean(found['greedy'][side]):>11.4g}" for side in SIDES)
        leads = "".join(f"{_interval_text(found['lead'][side]):>26}" for side in SIDES[1:])
        seconds = " ".join(f"{found['seconds_of_1m_steps'][side]:.0f}" for side in SIDES)
        seeds = len(found["greedy"]["recipe"])
        lines.append(f"{env_id.rpartition(':')[2]:<28}{seeds:>7}{found['random']:>11.4g}{means}{leads}{seconds:>18}")
    return lines


def _counts(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for side in SIDES[1:]:
        leads = [found["lead"][side] for found in tasks.values()]
        better = sum(middle > 1e-9 for middle, _, _ in leads)
        equal = sum(abs(middle) <= 1e-9 for middle, _, _ in leads)
        clearly = sum(low is not None and low > 0 for _, low, _ in leads)
        worse = sum(high is not None and high < 0 for _, _, high in leads)
        counts = (
            f"better in {better} of {len(leads)} (clearly in {clearly}), equal in {equal}; clearly worse in {worse}"
        )
        lines.append(f"over {side}: {counts}")
    return lines


def _table_of_scores(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"{'scores, interquartile mean':<28}" + "".join(f"{side:>22}" for side in SIDES)]
    by_family: dict[str, list[dict[str, np.ndarray]]] = {}
    for found in tasks.values():
        by_family.setdefault(found["family"], []).append(scores(found))
    everything = [task for family in by_family.values() for task in family]
    rows = {"all": everything, **by_family}
    for left_out in by_family:
        rows[f"all but {left_out}"] = [x for family, of_it in by_family.items() if family != left_out for x in of_it]
    for name, chosen in rows.items():
        if chosen:
            figures = (_interval_text(overall(chosen, side), 2) for side in SIDES)
            lines.append(f"{name:<28}" + "".join(f"{figure:>22}" for figure in figures))
    return lines


def _interval_text(found: Interval, digits: int = 4) -> str:
    middle, *ends = (None if x is None else f"{x:.{digits}g}" if digits > 2 else f"{x:.{digits}f}" for x in found)
    return f"{middle}" if None in ends else f"{middle} [{', '.join(map(str, ends))}]"


def main(args: Args) -> None:
    """Run what is missing, write it, print the tables."""
    unknown = set(args.family) - set(FAMILIES)
    if unknown:
        raise ValueError(f"--family: {sorted(unknown)[0]} is none of {', '.join(FAMILIES)}")
    jobs = jobs_of(tuple(dict.fromkeys(args.family)) or tuple(FAMILIES), parse_seeds(args.seeds))
    ledger = Ledger(args.out)
    everything = jobs_of(tuple(FAMILIES), [0])
    ledger.drop_outdated(everything)
    ledger.summarize(everything)
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(lambda job: run_job(args, job, ledger), jobs):
            pass
    print(*lines_of(ledger.tasks()), sep="\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
