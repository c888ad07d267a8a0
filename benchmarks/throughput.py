"""Throughput of ppo_fast over the number of environments: SPS, where the time goes, and the distance to the limit.

    python -m benchmarks.throughput                                  # 64 to 65,536 environments, or what memory holds
    python -m benchmarks.throughput --against eager                  # compiled beside eager: the judge of a change
    python -m benchmarks.throughput --beside-busy --num-envs 64      # and beside a process that takes a core
    python -m benchmarks.throughput --backend sync --num-envs 64     # training SPS against the environment's own
    python -m benchmarks.throughput --backend envpool --env-id HalfCheetah-v5 --num-envs 64 --num-steps 64
    python -m benchmarks.throughput --compile off --num-envs 64 1024

The work is that of `benchmarks.peers` unless flags say otherwise: 4 epochs of 4 minibatches, two 64-64 tanh networks.
Each number of environments is measured in a process of its own, in rounds whose median counts. `--against eager` builds
both paths in one process and lets them alternate; its ratio is taken round by round.
"""

import dataclasses
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from benchmarks import peers
from benchmarks.iteration import BUSY, Point
from ppo_fast.run import cli
from ppo_fast.run.cli import Range

# Bytes that an iteration holds per environment step: rollout, batch, and activations with their gradients; measured
# with the default networks, rounded up. A quarter of the free memory is left to it.
BYTES_PER_STEP = 4_000
PAIRED_ROUNDS = 10  # below this a ratio is for trying out only
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73")


@dataclass
class Args:
    """Flags of `python -m benchmarks.throughput`."""

    num_envs: Annotated[tuple[int, ...], Range(1)] = (64, 256, 1024, 4096, 16_384, 65_536)
    """numbers of environments, each measured in a process of its own"""
    num_steps: Annotated[int, Range(1)] = 128
    """rollout length; halved until a batch has at most max-batch rows and fits into memory"""
    max_batch: Annotated[int, Range(1)] = 2**20
    """most rows (num-envs x num-steps) of an iteration"""
    env_id: str = "CartPole-v1"
    """environment"""
    update_epochs: Annotated[int, Range(1)] = 4
    """passes over each rollout"""
    num_minibatches: Annotated[int, Range(1)] = 4
    """minibatches of a pass"""
    backend: Literal["tensor", "entry_point", "sync", "async", "envpool"] = "tensor"
    """how it runs; any but tensor is measured beside the environment alone, and the bottleneck is named"""
    compile: Literal["on", "off"] = "on"
    """measure the compiled (captured, on a GPU) path, or the eager one"""
    against: Literal["eager"] | None = None
    """measure this path too, alternating in one process, and print the ratio"""
    beside_busy: bool = False
    """measure it beside a process that keeps one core busy too, alternating, and print the ratio"""
    rounds: Annotated[int, Range(1)] = 10
    """timed stretches of each path"""
    seconds: Annotated[float, Range(0, above=True)] = 1.0
    """length of a stretch"""
    cuda: bool = False
    """run on the GPU"""
    out: Path = Path("benchmarks/results")
    """folder that the JSON and the PNG are written to"""


def check(args: Args) -> None:
    """Raise ValueError naming the flag that is wrong."""
    cli.check_ranges(args)
    if not args.num_envs:
        raise ValueError("--num-envs: at least one number is needed")
    if args.against and args.compile == "off":
        raise ValueError("--against: there is nothing to compare with --compile off")
    if args.against and args.backend != "tensor":
        raise ValueError("--against: takes the tensor backend")


def free_bytes(cuda: bool) -> int:
    """Memory that is free now, on the GPU or the host; half of all where the host's system does not tell."""
    if cuda:
        import torch

        return torch.cuda.mem_get_info()[0]
    names = os.sysconf_names
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def steps_for(num_envs: int, args: Args, free: int) -> int:
    """Rollout length at `num_envs`: `num_steps`, halved until the batch fits `max_batch` and memory; 0: never."""
    rows = min(args.max_batch, free // 4 // BYTES_PER_STEP)
    steps = args.num_steps
    while steps and num_envs * steps > rows:
        steps //= 2
    return steps


def points(args: Args, free: int) -> list[Point]:
    """What to measure; says where the rollout is shorter than asked for, and which numbers do not fit."""
    found = []
    for num_envs in args.num_envs:
        steps = steps_for(num_envs, args, free)
        if steps == 0:
            print(f"{num_envs:,} environments do not fit and are left out")
            continue
        if steps < args.num_steps:
            print(f"{num_envs:,} environments: {steps} steps instead of {args.num_steps}, so that a batch fits")
        plain = {"num_envs": num_envs, "num_steps": steps, "iterations": 1, "cuda": args.cuda, "env_id": args.env_id}
        plain |= {"update_epochs": args.update_epochs, "num_minibatches": args.num_minibatches}
        how = {"backend": args.backend, "compile": args.compile == "on", "against_eager": args.against is not None}
        how["busy"] = args.beside_busy
        found.append(Point(**plain, **how, rounds=args.rounds, seconds=args.seconds))
    return found


def measured(point: Point) -> dict[str, Any]:
    """One point's report, from a fresh process, with its load average; and what was derived from its rounds."""
    row = peers.Contender(peers.label("ppo_fast", point), "benchmarks.iteration", point, ours=True)
    load = peers.machine_facts()["load"]
    report = peers.run_contender(row, timeout=1800 + 20 * point.rounds * point.seconds)
    return {**report, "load": load, **derived(point, report)}


def derived(point: Point, report: dict[str, Any]) -> dict[str, Any]:
    """The spread of the rounds; with `--against eager` the ratio round by round; else the bottleneck, by name."""
    rates = report["rates"]
    found: dict[str, Any] = {"spread": {name: peers.spread(values) for name, values in rates.items()}}
    if "eager" in rates:
        ratios = [mine / other for mine, other in zip(rates["training"], rates["eager"], strict=True)]
        found["ratio"] = {**peers.spread(ratios), "rounds": ratios}
    if BUSY in rates:
        ratios = [mine / other for mine, other in zip(rates["training"], rates[BUSY], strict=True)]
        found["lost_beside_busy"] = {**peers.spread(ratios), "rounds": ratios}
    if "environment" in rates:
        shares = [mine / alone for mine, alone in zip(rates["training"], rates["environment"], strict=True)]
        found["of_environment"] = {**peers.spread(shares), "rounds": shares}
        found["milliseconds_by_part"] = parts(point, report)
        found["bottleneck"] = max(found["milliseconds_by_part"].items(), key=lambda part: part[1])[0]
    return found


def parts(point: Point, report: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of an iteration by part, where the environment was measured alone as well."""
    step = {name: peers.spread(report["rates"][name])["median"] for name in ("environment", "environment in tensors")}
    alone, ours = (1e3 * point.batch_size / sps for sps in step.values())
    collect, learn = report["milliseconds"]["collect"], report["milliseconds"]["learn"]
    return {
        "environment": alone,
        "conversion to tensors": max(0.0, ours - alone),
        "policy": max(0.0, collect - max(alone, ours)),
        "learning": learn,
    }


def table(results: list[tuple[Point, dict[str, Any]]]) -> str:
    """The results as text."""
    head = f"{'envs x steps':>14}{'SPS':>13}{'collect ms':>12}{'learn ms':>10}{'B/step':>8}{'peak':>8}"
    lines = [head + f"{'GFLOP/s':>10}{'ceiling':>9}{'compile s':>11}  ratio to eager"]
    for point, report in results:
        ms, ratio = report["milliseconds"], report.get("ratio")
        line = f"{point.num_envs:>8,} x{point.num_steps:>4}{report['sps']:>13,.0f}"
        line += f"{ms['collect']:>12.2f}{ms['learn']:>10.2f}"
        line += f"{report['rollout_bytes_per_step']:>8.0f}{report['peak_bytes_per_step']:>8,.0f}"
        line += f"{report['flops_per_second'] / 1e9:>10.1f}{100 * report['fraction_of_ceiling']:>7.0f} %"
        line += f"{report['compile_seconds']:>11.1f}"
        line += f"  {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        lines.append(line)
    lines += [told for point, report in results for told in environment_lines(point, report)]
    for point, report in results:
        if lost := report.get("lost_beside_busy"):
            told = f"{lost['median']:.2f} times slower ({lost['min']:.2f} to {lost['max']:.2f})"
            lines.append(f"{point.num_envs:,} envs beside a busy process: {told}")
    return "\n".join(lines)


def environment_lines(point: Point, report: dict[str, Any]) -> list[str]:
    """Training beside the environment alone, and the bottleneck; nothing where that was not measured."""
    if "bottleneck" not in report:
        return []
    alone, share = report["spread"]["environment"]["median"], report["of_environment"]
    shown = ", ".join(f"{name} {ms:.1f}" for name, ms in report["milliseconds_by_part"].items())
    return [
        f"{point.num_envs:,} envs, {point.backend}: environment alone {alone:,.0f} SPS; training is "
        f"{share['median']:.2f} of that ({share['min']:.2f} to {share['max']:.2f})",
        f"  ms an iteration: {shown}; the bottleneck: {report['bottleneck']}",
    ]


def plot(results: list[tuple[Point, dict[str, Any]]], path: Path) -> None:
    """SPS, and the milliseconds of 1,000 steps by phase, over the number of environments."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    speed, phases = figure.subplots(1, 2)
    envs = [point.num_envs for point, _ in results]
    speed.loglog(envs, [report["sps"] for _, report in results], color=COLOURS[0], marker="o", label="training")
    for name, colour, marker in (("eager", COLOURS[1], "s"), ("environment", COLOURS[2], "^")):
        medians = [report["spread"].get(name, {}).get("median", math.nan) for _, report in results]
        if not all(math.isnan(x) for x in medians):
            speed.loglog(envs, medians, color=colour, marker=marker, label=name)
    speed.set(xlabel="environments", ylabel="environment steps / s")
    for name, colour, marker in (("collect", COLOURS[0], "o"), ("learn", COLOURS[1], "s")):
        costs = [1e3 * report["milliseconds"][name] / point.batch_size for point, report in results]
        phases.loglog(envs, costs, color=colour, marker=marker, label=name)
    phases.set(xlabel="environments", ylabel="ms / 1,000 environment steps")
    for axes in (speed, phases):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def run(args: Args) -> dict[str, Any]:
    """Measure, print and write; the record that was written."""
    check(args)
    machine = peers.machine_facts()
    print(f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]}, Python {machine['python']}")
    warned = warnings_for(args, machine)
    for warning in warned:
        print(f"warning: {warning}")
    results = []
    for point in points(args, free_bytes(args.cuda)):
        print(f"measuring {point.num_envs:,} x {point.num_steps}", flush=True)
        results.append((point, measured(point)))
    if not results:
        raise ValueError("--num-envs: none of them fits into memory")
    print("\n" + table(results))
    rows = [{"point": dataclasses.asdict(point), **report} for point, report in results]
    record = {"machine": machine, "warnings": warned, "results": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"throughput-{'cuda' if args.cuda else 'cpu'}-{time.strftime('%Y%m%d-%H%M%S')}"
    (args.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(results, args.out / f"{name}.png")
    print(f"\nwritten to {args.out / name}.json and .png")
    return record


def warnings_for(args: Args, machine: dict[str, Any]) -> list[str]:
    """What a reader of the figures should know before believing them."""
    found = []
    if machine["load"][0] > peers.QUIET_LOAD:
        found.append(f"the machine is not quiet (load {machine['load'][0]}): figures will be low, ratios noisy")
    if args.against and args.rounds < PAIRED_ROUNDS:
        found.append(f"fewer than {PAIRED_ROUNDS} rounds: for trying out only")
    if machine["OMP_NUM_THREADS"] is not None:
        found.append(f"OMP_NUM_THREADS={machine['OMP_NUM_THREADS']} is set and holds for every process")
    return found


if __name__ == "__main__":
    cli.run(run, Args, __doc__)
