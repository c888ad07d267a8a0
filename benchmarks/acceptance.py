"""Whether the fast path keeps its promises on this machine: run it once on every new kind of device.

    python -m benchmarks.acceptance                                  # on the GPU where there is one
    python -m benchmarks.acceptance --no-cuda --variants discrete    # one variant, on the CPU
    python -m benchmarks.throughput --cuda                           # its speed, afterwards, alone

1. Every variant of an iteration is verified: the compiled (captured, on a GPU) path beside the eager one, from equal
   state and noise, each in a process of its own (`python -m ppo_fast.train --verify`).
2. An iteration is profiled: how often the host waits for the device, and how long the device idles.
3. A run of the default command, from Enter to exit: what it costs and whether it solves its task.
Exit status 1 where something does not hold; speed is never a reason.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks import peers
from ppo_fast.run import cli
from ppo_fast.run.cli import Range

VARIANTS = {
    "discrete": "",
    "continuous": "--env-id Pendulum-v1",
    "normalised": "--norm-obs --norm-reward --lr-schedule kl",
    "shared backbone": "--shared-backbone --no-clip-vloss",
    "early stop": "--target-kl 0.003",
    "uneven minibatches": "--num-envs 13 --num-steps 10",
    "host environments": "--backend sync",
    "groups of host environments": "--backend async --env-groups 2",
    "bf16": "--precision bf16",
    "tf32": "--precision tf32",
}
GPU_ONLY = ("tf32",)
SIZES = "--num-envs 64 --num-steps 32 --total-timesteps 1000000 --no-preset --quiet"
SYNCS, SOLVED = 1.0, 475.0  # waits of an iteration, and the mean return of CartPole-v1, that are asked for
LIMIT = 1800.0  # seconds that one process gets


@dataclass
class Args:
    """Flags of `python -m benchmarks.acceptance`."""

    variants: tuple[str, ...] = ()
    """verify these only; all by default"""
    updates: Annotated[int, Range(1)] = 5
    """updates of each"""
    jobs: Annotated[int, Range(1)] = 2
    """variants at the same time"""
    cuda: bool = True
    """on the GPU, where there is one"""
    out: Path = Path("benchmarks/results")
    """folder that the JSON is written to"""


def check(args: Args) -> None:
    """Raise ValueError naming the flag that is wrong."""
    cli.check_ranges(args)
    for name in args.variants:
        if name not in VARIANTS:
            raise ValueError(f"--variants: no {name!r}; there are {', '.join(VARIANTS)}")


def ran(words: str, folder: str) -> dict[str, Any]:
    """`python -m ppo_fast.train` with these flags: its exit status, seconds from start to end, and what it said."""
    command = [sys.executable, "-m", "ppo_fast.train", *words.split(), "--run-root", folder]
    began = time.perf_counter()
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        status, said = found.returncode, found.stdout + found.stderr
    except subprocess.TimeoutExpired:
        status, said = -1, f"not done in {LIMIT:.0f} s"
    return {"flags": words, "exit_status": status, "seconds": time.perf_counter() - began, "said": said}


def verified(args: Args, on_gpu: bool, folder: str) -> dict[str, dict[str, Any]]:
    """Each variant's run with `--verify`, by name; `holds` is its verdict."""
    device = "" if args.cuda else " --no-cuda"
    names = [name for name in args.variants or VARIANTS if on_gpu or name not in GPU_ONLY]

    def one(name: str) -> dict[str, Any]:
        found = ran(f"{SIZES} {VARIANTS[name]} --verify {args.updates}{device}", folder)
        found["holds"] = found["exit_status"] == 0
        last = found["said"].strip().splitlines()[-1:] or ["it said nothing"]
        print(f"  {name:<28}{found['seconds']:7.1f} s  {last[0]}", flush=True)
        return found

    with ThreadPoolExecutor(args.jobs) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def profiled(args: Args, on_gpu: bool, folder: str) -> dict[str, Any]:
    """A compiled run with `--profile`: waits of the host an iteration, and the share of the time that the GPU idles."""
    device = "" if args.cuda else " --no-cuda"
    short = "--num-envs 4096 --num-steps 32 --total-timesteps 1310720 --no-preset --eval-episodes 0"
    found = ran(f"{short} --compile on --profile{device}", folder)
    waits = re.search(r"the host (?:waits|looks) .*? ([\d.e+-]+) times an iteration", found["said"])
    idle = re.search(r"device idle .*? ([\d.]+) %", found["said"])
    found["waits"] = seen = float(waits[1]) if waits else None
    found["idle_percent"] = float(idle[1]) if idle else None
    # On a CPU nothing is waited for: its looks are counted, and are free.
    found["holds"] = found["exit_status"] == 0 and seen is not None and (not on_gpu or seen <= SYNCS)
    print(f"  waits an iteration: {found['waits']}; the device idles {found['idle_percent']} %", flush=True)
    return found


def trained(args: Args, folder: str) -> dict[str, Any]:
    """The default run: its result, and whether it solved CartPole-v1."""
    found = ran("--num-envs 64 --quiet" + ("" if args.cuda else " --no-cuda"), folder)
    results = sorted(Path(folder).glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    found["result"] = json.loads(results[-1].read_text()) if results and found["exit_status"] == 0 else {}
    mean = found["result"].get("eval/mean_return")
    found["holds"] = mean is not None and mean >= SOLVED
    print(f"  {found['seconds']:.1f} s from Enter to exit, mean return {mean}", flush=True)
    return found


def run(args: Args) -> dict[str, Any]:
    """Do all of it, print and write; the record that was written, with the exit status."""
    check(args)
    import torch

    on_gpu = args.cuda and torch.cuda.is_available()
    machine = peers.machine_facts() | {"torch": torch.__version__}
    machine["device"] = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(f"{machine['device']}; {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}")
    with tempfile.TemporaryDirectory() as folder:
        print(f"fast beside eager, {args.updates} updates (compiling takes most of the time)", flush=True)
        record: dict[str, Any] = {"machine": machine, "verified": verified(args, on_gpu, folder)}
        print("under the profiler", flush=True)
        record["profiled"] = profiled(args, on_gpu, folder)
        print("python -m ppo_fast.train --num-envs 64", flush=True)
        record["trained"] = trained(args, folder)
    parts = {**record["verified"], "profile": record["profiled"], "training": record["trained"]}
    failed = [name for name, part in parts.items() if not part["holds"]]
    for name in failed:
        print(f"\n{name}: does not hold\n{parts[name]['said'][-2000:]}")
    print(f"\n{'all holds' if not failed else 'does not hold: ' + ', '.join(failed)}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"acceptance-{'cuda' if on_gpu else 'cpu'}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")
    return {**record, "exit_status": int(bool(failed))}


if __name__ == "__main__":
    cli.run(run, Args, __doc__)
