"""How well ppo_fast learns: suites of environments over seeds, with the command line that a user would type.

    pip install -e ".[envpool,compare]"
    python -m benchmarks.learning --suite classic --seeds 1-10
    python -m benchmarks.learning --suite mujoco --seeds 1-3
    python -m benchmarks.learning --suite mujoco --seeds 1-3 --variant recipe --extra "--recipe"
    python -m benchmarks.learning --env-id Acrobot-v1 --seeds 101-105 --variant raw --extra "--no-norm-obs"

Each (environment, seed) is `python -m ppo_fast.train` in a process of its own, on one thread, so presets apply, and the
recipe where there is none. The headline is the final evaluation of 100 greedy episodes; the sampled one stands beside
it. Runs that are finished, with this command and what a preset or the recipe sets, are not done again (`--redo` does).
What comes out, under benchmarks/results/: learning-<suite>.json with every run, and learning-<suite>.png with the
training curves.

Presets are tuned on seeds of 101 and up; which of them stay was decided on seeds 1 to 10.
"""

import functools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

from benchmarks.peers import machine_facts
from ppo_fast.pictures import intervals
from ppo_fast.run import cli
from ppo_fast.run.settle import settle
from ppo_fast.train import Args as TrainArgs


class Task(NamedTuple):
    """One environment of a suite: how long, on which backend, and what CleanRL publishes for it."""

    env_id: str
    total_timesteps: int
    backend: str
    published: tuple[float, float] | None  # CleanRL's mean episodic return and its deviation, at the same steps
    note: str = ""  # what that figure is of, where it is not the same environment


PPO_DOCS = "https://docs.cleanrl.dev/rl-algorithms/ppo/"
SUITES = {
    "classic": (
        Task("CartPole-v1", 500_000, "tensor", (490.04, 6.12)),
        Task("Acrobot-v1", 500_000, "tensor", (-86.36, 1.32)),
        Task("MountainCar-v0", 500_000, "tensor", (-200.0, 0.0)),
        Task("Pendulum-v1", 500_000, "tensor", None, "reported not to learn: vwxyzjn/cleanrl#504"),
        Task("MountainCarContinuous-v0", 500_000, "tensor", None, "none published"),
    ),
    "mujoco": (
        Task("HalfCheetah-v5", 1_000_000, "envpool", (1442.64, 46.03), "v4"),
        Task("Hopper-v5", 1_000_000, "envpool", (2382.86, 271.74), "v4"),
        Task("Walker2d-v5", 1_000_000, "envpool", (2287.95, 571.78), "v4"),
    ),
    # No id of these has a preset: the recipe of their kind is tried, and nobody publishes CleanRL's figures for them.
    "tables": (
        Task("FrozenLake-v1", 500_000, "sync", None),
        Task("FrozenLake8x8-v1", 500_000, "sync", None),
        Task("CliffWalking-v1", 500_000, "sync", None),
        Task("Taxi-v4", 500_000, "sync", None),
        Task("Blackjack-v1", 500_000, "sync", None),
    ),
    "robots": (
        Task("InvertedPendulum-v5", 1_000_000, "envpool", None),
        Task("Pusher-v5", 1_000_000, "envpool", None),
        Task("Reacher-v5", 1_000_000, "envpool", None),
        Task("Swimmer-v5", 1_000_000, "envpool", None),
        Task("HumanoidStandup-v5", 1_000_000, "envpool", None),
    ),
    "control": (
        Task("CartpoleSwingup-v1", 1_000_000, "envpool", None),
        Task("CheetahRun-v1", 1_000_000, "envpool", None),
        Task("FingerSpin-v1", 1_000_000, "envpool", None),
        Task("ReacherEasy-v1", 1_000_000, "envpool", None),
        Task("WalkerWalk-v1", 1_000_000, "envpool", None),
        Task("BallInCupCatch-v1", 1_000_000, "envpool", None),
        Task("AcrobotSwingup-v1", 1_000_000, "envpool", None),
    ),
    "box2d": (
        Task("LunarLander-v2", 1_000_000, "envpool", None),
        Task("BipedalWalker-v3", 1_000_000, "envpool", None),
    ),
}
CURVE_POINTS, TABLE_POINTS = 50, 10
TYRO_LOCK = Lock()  # tyro is not made for threads, and sys.stderr, which is swapped for it, is theirs, too
INK, BAND, MEAN, PEER = "#333333", "#9ecae1", "#08519c", "#d55e00"  # they differ in lightness: no colour vision needed


@dataclass
class Args:
    """Flags of `python -m benchmarks.learning`."""

    suite: Literal["classic", "mujoco", "tables", "robots", "control", "box2d"] = "classic"
    """which environments"""
    seeds: str = "1-10"
    """seeds: 1-10, or 1,5,7"""
    env_id: tuple[str, ...] = ()
    """only these environments of the suite"""
    jobs: int = 0
    """runs at a time, each on one thread; 0: as many as there are cores"""
    extra: str = ""
    """further flags for every run, as one text; give the experiment a --variant then"""
    variant: str = ""
    """name of an experiment, part of the names of its files"""
    total_timesteps: int | None = None
    """steps of each run instead of the suite's"""
    redo: bool = False
    """run again what is finished"""
    run_root: Path = Path("runs/learning")
    """folder for the run folders and the records of finished runs"""
    out: Path = Path("benchmarks/results")
    """folder for the JSON and the figure"""


def check(args: Args) -> tuple[list[Task], list[int]]:
    """The tasks and seeds asked for. Raises ValueError naming the flag that is wrong."""
    known = {task.env_id: task for task in SUITES[args.suite]}
    for env_id in args.env_id:
        if env_id not in known:
            raise ValueError(f"--env-id: {env_id} is not in the suite {args.suite}: {', '.join(known)}")
    if args.extra and not args.variant:
        raise ValueError("--extra: give the experiment a name with --variant")
    if re.search(r"[^\w.-]", args.variant):
        raise ValueError(f"--variant: letters, digits, '.', '_' and '-' only, got {args.variant!r}")
    if args.jobs < 0:
        raise ValueError(f"--jobs: must be 0 or more, got {args.jobs}")
    if args.total_timesteps is not None and args.total_timesteps < 1:
        raise ValueError(f"--total-timesteps: must be at least 1, got {args.total_timesteps}")
    tasks = [known[env_id] for env_id in args.env_id or known]
    if args.total_timesteps is not None:
        tasks = [task._replace(total_timesteps=args.total_timesteps) for task in tasks]
    return tasks, parse_seeds(args.seeds)


def parse_seeds(text: str) -> list[int]:
    """`1-3,7` as [1, 2, 3, 7]. Raises ValueError naming --seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or not (last.isdecimal() if dash else True):
            raise ValueError(f"--seeds: write 1-10 or 1,5,7, got {text!r}")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: each seed once, and at least one, got {text!r}")
    return seeds


def command(task: Task, seed: int, extra: str = "") -> list[str]:
    """The words of one run, without the folder it is written to."""
    flags = ["--env-id", task.env_id, "--seed", str(seed), "--total-timesteps", str(task.total_timesteps)]
    return ["python", "-m", "ppo_fast.train", *flags, "--backend", task.backend, "--quiet", *shlex.split(extra)]


def record_path(args: Args, env_id: str, seed: int) -> Path:
    """Where the record of a finished run is kept."""
    return folder_of(args) / f"{re.sub(r'[^A-Za-z0-9.-]', '_', env_id)}__{seed}.json"


def folder_of(args: Args) -> Path:
    """The folder of a suite's runs and records."""
    return args.run_root / stem(args)


def stem(args: Args) -> str:
    """The part of file names that tells suite and variant."""
    return f"{args.suite}-{args.variant}" if args.variant else args.suite


def finished(args: Args, task: Task, seed: int) -> dict[str, Any] | None:
    """The record of a run that was done with the same command, for which the same was set, or None."""
    try:
        record = json.loads(record_path(args, task.env_id, seed).read_text())
    except (OSError, ValueError):
        return None
    words = command(task, seed, args.extra)
    return record if record.get("command") == words and record.get("preset") == what_is_set(words) else None


def what_is_set(words: Sequence[str]) -> dict[str, Any]:
    """The flags that a preset or the recipe sets for the command of a run, as JSON knows them."""
    without_seed = [word for i, word in enumerate(words) if "--seed" not in words[max(i - 1, 0) : i + 1]]
    with TYRO_LOCK:
        return json.loads(_set_by(tuple(without_seed[3:])))


@functools.cache
def _set_by(flags: tuple[str, ...]) -> str:
    """Looking at an environment takes a second or two."""
    typed = cli.parse(TrainArgs, flags, "")
    settled, _ = settle(typed)
    names = [field.name for field in fields(TrainArgs) if field.name != "exp_name"]
    found = {name: getattr(settled, name) for name in names}
    return json.dumps({name: value for name, value in found.items() if value != getattr(typed, name)})


def run_one(args: Args, task: Task, seed: int) -> dict[str, Any]:
    """The record of one run, made now or earlier; one with an "error" where the run failed."""
    found = None if args.redo else finished(args, task, seed)
    if found is not None:
        return found
    words = command(task, seed, args.extra)
    root = folder_of(args) / f"{record_path(args, task.env_id, seed).stem}__runs"
    root.mkdir(parents=True, exist_ok=True)
    before = set(root.iterdir())
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words[1:], "--run-root", str(root)], capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - started
    base = {
        "env_id": task.env_id,
        "seed": seed,
        "command": words,
        "preset": what_is_set(words),
        "seconds": seconds,
    }
    new = sorted(set(root.iterdir()) - before)
    if done.returncode != 0 or not new:
        last = (done.stderr.strip().splitlines() or ["no run folder"])[-1]  # no traceback: it is full of local paths
        return {**base, "error": f"exit status {done.returncode}: {last}"}
    record = {**base, **read_run(new[-1], task.total_timesteps)}
    path = record_path(args, task.env_id, seed)
    path.with_suffix(".tmp").write_text(json.dumps(record))
    os.replace(path.with_suffix(".tmp"), path)
    return record


def read_run(folder: Path, total: int) -> dict[str, Any]:
    """What a run folder says: evaluations, speed, versions, and the training return at fixed steps."""
    result = json.loads((folder / "result.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "greedy": result["eval/mean_return"],
        "sampled": result["eval/sampled_mean_return"],
        "episodes": result["eval/episodes"],
        "sps": result["sps"],
        "global_step": result["global_step"],
        "versions": config["versions"],
        "threads": config["threads"],
        "execution": config["execution"],
        "curve": returns_at(rows, total, CURVE_POINTS),
        "tenths": returns_at(rows, total, TABLE_POINTS),
    }


def returns_at(rows: Sequence[Mapping[str, Any]], total: int, points: int) -> list[float | None]:
    """Training return at `points` equally spaced steps: the mean over the iterations of the stretch that ends there.

    Sampled actions, episodes that ended in the stretch; None where no episode did.
    """
    stretches: list[list[float]] = [[] for _ in range(points)]
    for row in rows:
        value = row.get("charts/episodic_return")
        if value is not None:
            stretches[min(points - 1, (row["global_step"] - 1) * points // total)].append(value)
    return [statistics.fmean(found) if found else None for found in stretches]


def figures(values: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation, extremes, interquartile mean and its 95 % bootstrap interval over seeds."""
    low, high = intervals.bootstrap_interval(values, intervals.iqm)
    several = len(values) > 1
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if several else None,
        "min": min(values),
        "max": max(values),
        "iqm": intervals.iqm(values),
        "iqm_interval": [low, high] if several else None,
    }


def over_seeds(columns: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Mean, least and greatest over seeds at each point, None where no seed has a value there."""
    points = [[value for value in point if value is not None] for point in zip(*columns, strict=True)]
    return [[function(found) if found else None for found in points] for function in (statistics.fmean, min, max)]


def summarize(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One environment over its seeds; failed runs are counted and named, never left out silently."""
    good = [record for record in records if "error" not in record]
    summary: dict[str, Any] = {
        "total_timesteps": task.total_timesteps,
        "backend": task.backend,
        "preset": records[0]["preset"] if records else {},
        "cleanrl": {"return": task.published, "note": task.note, "source": PPO_DOCS},
        "failed": [{"seed": record["seed"], "error": record["error"]} for record in records if "error" in record],
    }
    if good:
        summary |= {
            "greedy": figures([record["greedy"] for record in good]),
            "sampled": figures([record["sampled"] for record in good]),
            "seconds": statistics.fmean(record["seconds"] for record in good),
            "sps": statistics.fmean(record["sps"] for record in good),
            "training_return_at_tenths": over_seeds([record["tenths"] for record in good])[0],
            "curve": dict(zip(("mean", "min", "max"), over_seeds([r["curve"] for r in good]), strict=True)),
        }
    return summary | {"runs": [without(record, "preset", "curve") for record in good]}


def without(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A record with some fields left out and its command as text."""
    kept = {name: value for name, value in record.items() if name not in names}
    return kept | {"command": shlex.join(kept["command"])}


def table(environments: Mapping[str, dict[str, Any]]) -> str:
    """The result as text: one line an environment."""
    lines = [f"{'environment':<26}{'seeds':>6}{'greedy mean ± std':>22}{'least':>10}{'IQM [95 %]':>28}{'sampled':>10}"]
    for env_id, found in environments.items():
        failed = f"  {len(found['failed'])} failed" if found["failed"] else ""
        if "greedy" not in found:
            lines.append(f"{env_id:<26}{0:>6}{failed}")
            continue
        greedy, count = found["greedy"], len(found["runs"])
        spread = f"{greedy['mean']:.2f} ± {greedy['std'] or 0:.2f}"
        low, high = greedy["iqm_interval"] or (greedy["iqm"], greedy["iqm"])
        iqm = f"{greedy['iqm']:.2f} [{low:.2f}, {high:.2f}]"
        sampled = found["sampled"]["mean"]
        lines.append(f"{env_id:<26}{count:>6}{spread:>22}{greedy['min']:>10.2f}{iqm:>28}{sampled:>10.2f}{failed}")
    return "\n".join(lines)


def draw(environments: Mapping[str, dict[str, Any]], path: Path) -> None:
    """A panel an environment: training return over steps, mean and range of the seeds, and CleanRL's final return."""
    from matplotlib.figure import Figure

    drawn = {env_id: found for env_id, found in environments.items() if "curve" in found}
    columns = min(3, max(1, len(drawn)))
    rows = -(-max(1, len(drawn)) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows + 0.4), dpi=110, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    for axes, (env_id, found) in zip(panels, drawn.items(), strict=False):
        draw_panel(axes, env_id, found)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)


def draw_panel(axes: Any, env_id: str, found: Mapping[str, Any]) -> None:
    """One environment of `draw`."""
    curve, total = found["curve"], found["total_timesteps"]
    points = [
        (total * (i + 1) / len(curve["mean"]) / 1000, *values)
        for i, values in enumerate(zip(curve["mean"], curve["min"], curve["max"], strict=True))
        if values[0] is not None
    ]
    steps, mean, low, high = zip(*points, strict=True) if points else ((), (), (), ())
    axes.fill_between(steps, low, high, color=BAND, alpha=0.6, linewidth=0, label="least to greatest seed")
    axes.plot(steps, mean, color=MEAN, linewidth=1.8, label="ppo_fast, mean of seeds (sampled actions)")
    published = found["cleanrl"]["return"]
    # An empty line keeps the legend the same in a suite whose first environment has no published figure.
    level = [] if published is None else [published[0]] * 2
    ends = [0, total / 1000] if level else []
    axes.plot(ends, level, color=PEER, linewidth=1.4, linestyle="--", label="CleanRL's published final return")
    axes.set_title(f"{env_id}, {len(found['runs'])} seeds", loc="left", fontsize=10, color=INK)
    axes.set_xlabel("environment steps, thousands", fontsize=8, color=INK)
    axes.set_xlim(0, total / 1000)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def run(args: Args) -> dict[str, Any]:
    """Run what is missing, print the table, write JSON and figure; what the JSON holds."""
    tasks, seeds = check(args)
    _set_by.cache_clear()
    intervals.iqm([0.0])  # a missing SciPy should be said before hours of training, not after
    machine = machine_facts()
    jobs = args.jobs or machine["cores"]
    todo = [(task, seed) for task in tasks for seed in seeds]
    print(f"{machine['processor']}, {machine['cores']} cores; {len(todo)} runs, {jobs} at a time", flush=True)

    def work(pair: tuple[Task, int]) -> dict[str, Any]:
        task, seed = pair
        record = run_one(args, task, seed)
        outcome = record.get("error") or f"greedy {record['greedy']:.2f}  sampled {record['sampled']:.2f}"
        print(f"{task.env_id} seed {seed}: {outcome}  ({record['seconds']:.0f} s)", flush=True)
        return record

    with ThreadPoolExecutor(jobs) as pool:
        records = list(pool.map(work, todo))
    environments = {
        task.env_id: summarize(task, [record for record in records if record["env_id"] == task.env_id])
        for task in tasks
    }
    del machine["load"]  # that of this moment, which may be hours after the runs
    words = ["python", "-m", "benchmarks.learning", "--suite", args.suite, "--seeds", args.seeds]
    words += [f"--variant={args.variant}"] * bool(args.variant) + [f"--extra={args.extra}"] * bool(args.extra)
    words += ["--env-id", *args.env_id] if args.env_id else []
    record = {"command": shlex.join(words), "jobs": jobs, "machine": machine, "environments": environments}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"learning-{stem(args)}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    draw(environments, path.with_suffix(".png"))
    print(f"\n{table(environments)}\n\nwritten to {path} and {path.with_suffix('.png').name}")
    return record


def main() -> None:
    """Command line: a wrong flag is one line and exit status 2; a failed run is exit status 1."""
    import tyro

    try:
        record = run(tyro.cli(Args, description=__doc__))
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if any(found["failed"] for found in record["environments"].values()) else 0)


if __name__ == "__main__":
    main()
