"""ppo_fast beside Stable-Baselines3 and sbx (JAX) on the same CartPole work: env steps/s of the whole training.

    pip install -e ".[bench]"
    python -m benchmarks.peers                                    # 5 rounds, 64 envs x 128 steps
    python -m benchmarks.peers --ours-envs 1024 --ours-steps 32   # and ppo_fast at 1024 x 32, beside peers at 64 x 128
    python -m benchmarks.peers --peers sb3 --cuda
    python -m benchmarks.peers --peers sb3 --lstm 64    # train_lstm beside sb3-contrib's RecurrentPPO

Each measurement is a process of its own, sized by a calibration to run `--seconds`. Every round measures all
contenders, in an order that alternates, so a slow minute of the machine hits all of them. A ratio is taken within a
round, its median over the rounds.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.work import Work

# peer: (its module here, the package that must be installed)
PEERS = {"sb3": ("benchmarks.peer_sb3", "stable_baselines3"), "sbx": ("benchmarks.peer_sbx", "sbx")}
OURS = "benchmarks.peer_ppo_fast"
INSTALL = 'pip install -e ".[bench]"'
CALIBRATION_ITERATIONS = 20
QUIET_LOAD = 0.5


@dataclass
class Args:
    """Flags of `python -m benchmarks.peers`."""

    rounds: int = 5
    """rounds, each measuring every contender once; below 5 the figures are for trying out only"""
    envs: int = 64
    """environments of every contender"""
    steps: int = 128
    """rollout length of every contender"""
    ours_envs: int | None = None
    """a second row of ppo_fast at this many environments (with --ours-steps)"""
    ours_steps: int | None = None
    """rollout length of that second row"""
    peers: str = "sb3,sbx"
    """comma-separated peers, of sb3 and sbx"""
    lstm: int = 0
    """units of an LSTM behind one layer of 64, for those who have a memory; 0 measures without one"""
    seconds: float = 15.0
    """length of one measured segment; a short one flatters ppo_fast: untrained, the peers spend more time on resets"""
    cuda: bool = False
    """run on the GPU where the contender can"""
    out: Path = Path("benchmarks/results")
    """folder that the JSON is written to"""


@dataclass(frozen=True)
class Contender:
    """One row of the table: whose module does which work. `ours` marks ppo_fast's rows."""

    name: str
    module: str
    work: Work
    ours: bool


def check(args: Args) -> None:
    """Raise ValueError naming the flag that is wrong."""
    for flag, value in (("--rounds", args.rounds), ("--envs", args.envs), ("--steps", args.steps)):
        if value < 1:
            raise ValueError(f"{flag}: must be at least 1, got {value}")
    if not 0 < args.seconds < float("inf"):
        raise ValueError(f"--seconds: must be positive, got {args.seconds}")
    if (args.ours_envs is None) != (args.ours_steps is None):
        raise ValueError("--ours-envs: give it together with --ours-steps")
    if args.ours_envs is not None and args.ours_steps is not None and min(args.ours_envs, args.ours_steps) < 1:
        raise ValueError(f"--ours-envs, --ours-steps: must be at least 1, got {args.ours_envs}, {args.ours_steps}")
    if args.lstm < 0:
        raise ValueError(f"--lstm: must not be negative, got {args.lstm}")
    if args.lstm and "sbx" in split_peers(args.peers):
        raise ValueError("--peers: sbx has no memory; measure --lstm beside sb3")
    unknown = [name for name in split_peers(args.peers) if name not in PEERS]
    if unknown:
        raise ValueError(f"--peers: {', '.join(unknown)} unknown, choose from {', '.join(PEERS)}")


def split_peers(peers: str) -> list[str]:
    """The names in `--peers`; an empty string is none."""
    return [name for name in peers.split(",") if name]


def contenders(args: Args) -> list[Contender]:
    """ppo_fast's rows, then every installed peer that was asked for; says which are missing and how to get them."""
    work = Work(args.envs, args.steps, CALIBRATION_ITERATIONS, args.cuda)
    if args.lstm:
        work = dataclasses.replace(work, hidden=(64,), lstm=args.lstm)
    rows = [Contender(label("ppo_fast", work), OURS, work, ours=True)]
    if args.ours_envs is not None and args.ours_steps is not None:
        wide = dataclasses.replace(work, num_envs=args.ours_envs, num_steps=args.ours_steps)
        rows.append(Contender(label("ppo_fast", wide), OURS, wide, ours=True))
    for name in split_peers(args.peers):
        module, package = PEERS[name]
        if find_spec(package) is None:
            print(f"{name} is not installed and is left out; to measure it: {INSTALL}")
            continue
        rows.append(Contender(label(name, work), module, work, ours=False))
    return rows


def label(name: str, work: Work) -> str:
    """`name` with the work's sizes, as the table shows it."""
    return f"{name} {work.num_envs}x{work.num_steps}"


def run_contender(row: Contender, timeout: float) -> dict:
    """One measurement in a fresh process: its report. RuntimeError with the end of its output if it failed."""
    command = [sys.executable, "-m", row.module, row.work.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{row.name} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def calibrated(row: Contender, seconds: float) -> Contender:
    """`row` with as many iterations as it does in about `seconds`. This run also fills its compile caches."""
    sps = run_contender(row, timeout=900)["sps"]
    iterations = max(2, round(sps * seconds / row.work.batch_size))
    return dataclasses.replace(row, work=dataclasses.replace(row.work, iterations=iterations))


def round_order(rows: list[Contender], index: int) -> list[Contender]:
    """Forwards in even rounds, backwards in odd ones."""
    return rows if index % 2 == 0 else rows[::-1]


def measure_rounds(rows: list[Contender], rounds: int, seconds: float) -> dict[str, list[dict]]:
    """Every contender's reports, one a round, in round order."""
    reports: dict[str, list[dict]] = {row.name: [] for row in rows}
    for index in range(rounds):
        for row in round_order(rows, index):
            reports[row.name].append(run_contender(row, timeout=900 + 20 * seconds))
        line = "  ".join(f"{name} {found[-1]['sps']:,.0f}" for name, found in reports.items())
        print(f"round {index + 1}/{rounds}  {line}", flush=True)
    return reports


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratios(ours: list[dict], peer: list[dict]) -> list[float]:
    """ppo_fast's SPS over the peer's, round by round."""
    return [mine["sps"] / theirs["sps"] for mine, theirs in zip(ours, peer, strict=True)]


def summarize(rows: list[Contender], reports: dict[str, list[dict]]) -> dict:
    """SPS of each contender and the ratio of each row of ppo_fast to each peer: median, min, max, and every round."""
    speeds = {row.name: spread([found["sps"] for found in reports[row.name]]) for row in rows}
    ratios = {}
    for mine in (row for row in rows if row.ours):
        for peer in (row for row in rows if not row.ours):
            each = paired_ratios(reports[mine.name], reports[peer.name])
            ratios[f"{mine.name} / {peer.name}"] = {**spread(each), "rounds": each}
    return {"sps": speeds, "ratios": ratios}


def machine_facts() -> dict:
    """Processor, usable cores, load averages (1, 5, 15 minutes), Python and the thread setting inherited."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "cores": cores,
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def processor() -> str:
    """The processor's model name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def warnings_for(args: Args, machine: dict) -> list[str]:
    """What a reader of the figures should know before believing them."""
    found = []
    if machine["load"][0] > QUIET_LOAD:
        found.append(f"the machine is not quiet (load {machine['load'][0]}): figures will be low, ratios noisy")
    if args.rounds < 5:
        found.append("fewer than 5 rounds: for trying out only")
    if machine["OMP_NUM_THREADS"] is not None:
        found.append(f"OMP_NUM_THREADS={machine['OMP_NUM_THREADS']} is set and holds for every contender")
    return found


def table(summary: dict, reports: dict[str, list[dict]]) -> str:
    """The result as text: one line a contender, then one line a ratio."""
    width = max(len(name) for name in [*summary["sps"], *summary["ratios"]])
    lines = [f"{'training, env steps/s':<{width}}  {'median':>10}  {'min':>10}  {'max':>10}  device"]
    for name, speed in summary["sps"].items():
        figures = "  ".join(f"{speed[key]:>10,.0f}" for key in ("median", "min", "max"))
        lines.append(f"{name:<{width}}  {figures}  {reports[name][0]['device']}")
    for name, ratio in summary["ratios"].items():
        figures = "  ".join(f"{ratio[key]:>10.2f}" for key in ("median", "min", "max"))
        lines.append(f"{name:<{width}}  {figures}")
    return "\n".join(lines)


def write(out: Path, record: dict, cuda: bool) -> Path:
    """Write `record` as JSON under `out`, named by device and time; the path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"peers-{'cuda' if cuda else 'cpu'}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def run(args: Args) -> dict:
    """Measure, print and write; the record that was written."""
    check(args)
    machine = machine_facts()
    warned = warnings_for(args, machine)
    print(f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]}, Python {machine['python']}")
    for warning in warned:
        print(f"warning: {warning}")
    rows = contenders(args)
    print(f"calibrating {len(rows)} contenders", flush=True)
    rows = [calibrated(row, args.seconds) for row in rows]
    reports = measure_rounds(rows, args.rounds, args.seconds)
    summary = summarize(rows, reports)
    print("\n" + table(summary, reports))
    work = {row.name: dataclasses.asdict(row.work) for row in rows}
    record = {"machine": machine, "warnings": warned, "work": work, "summary": summary, "rounds": reports}
    print(f"\nwritten to {write(args.out, record, args.cuda)}")
    return record


def main() -> None:
    """Command line: a wrong flag is one line and exit status 2."""
    import tyro

    try:
        run(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
