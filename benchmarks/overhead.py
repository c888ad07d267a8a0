"""What watching costs: training with panel, W&B, TensorBoard and videos on, beside `--quiet` without any of it.

    pip install -e ".[video,tensorboard]"
    python -m benchmarks.overhead
    python -m benchmarks.overhead --total-timesteps 8000000 --extra "--compile on"

Both are `python -m ppo_fast.train`, in processes of their own, alternating; the watched one has a terminal of its own
for the panel, and W&B is offline. Compared are the steps per second of training that each run writes into its
result.json; the evaluation and the report at the end are no part of it.
"""

import json
import os
import pty
import shlex
import subprocess
import sys
import tempfile
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks import peers
from ppo_fast.run import cli
from ppo_fast.run.cli import Range

WATCHED = ("--track", "--wandb-mode", "offline", "--tensorboard", "--capture-video")


@dataclass
class Args:
    """Flags of `python -m benchmarks.overhead`."""

    rounds: Annotated[int, Range(1)] = 5
    """runs of each kind"""
    total_timesteps: Annotated[int, Range(1)] = 500_000
    """steps of each run"""
    num_envs: Annotated[int, Range(1)] = 64
    """environments"""
    extra: str = ""
    """further flags for every run, as one text"""
    out: Path = Path("benchmarks/results")
    """folder that the JSON is written to"""


def command(args: Args, root: Path, watched: bool) -> list[str]:
    """The words of one run."""
    sizes = ["--num-envs", str(args.num_envs), "--total-timesteps", str(args.total_timesteps), "--run-root", str(root)]
    words = [*sizes, *shlex.split(args.extra), *(WATCHED if watched else ("--quiet",))]
    return [sys.executable, "-m", "ppo_fast.train", *words]


def one_run(args: Args, watched: bool) -> float:
    """SPS of one run. Raises RuntimeError with the end of what it said when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        status, said = on_terminal(command(args, root, watched)) if watched else captured(command(args, root, watched))
        results = list(root.glob("*/result.json"))
        if status or not results:
            raise RuntimeError(f"exit status {status}: {said[-500:]}")
        if watched and len(list(results[0].parent.glob("videos/*.mp4"))) != 4:
            raise RuntimeError(f"not all videos were made: {said[-500:]}")
        return json.loads(results[0].read_text())["sps"]


def captured(words: list[str]) -> tuple[int, str]:
    """Exit status and output of a run without a terminal."""
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def on_terminal(words: list[str]) -> tuple[int, str]:
    """Exit status and output of a run in a terminal of 30 rows and 100 columns."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (30, 100))
    said: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(controller, 1 << 16):
                said.append(part)
        except OSError:  # the other end is closed
            pass

    with subprocess.Popen(
        words, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm-256color"}
    ) as process:
        os.close(terminal)
        reader = threading.Thread(target=read)
        reader.start()
        process.wait()
        reader.join()
    os.close(controller)
    return process.returncode, b"".join(said).decode(errors="replace")


def run(args: Args) -> dict[str, Any]:
    """Measure, print and write; the record that was written."""
    cli.check_ranges(args)
    machine = peers.machine_facts()
    print(f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]}, Python {machine['python']}")
    rates: dict[str, list[float]] = {"quiet": [], "watched": []}
    for index in range(args.rounds):
        for name in list(rates)[:: 1 if index % 2 == 0 else -1]:
            rates[name].append(one_run(args, name == "watched"))
        print(
            f"round {index + 1}: " + ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items()),
            flush=True,
        )
    ratios = [watched / quiet for quiet, watched in zip(rates["quiet"], rates["watched"], strict=True)]
    ratio = peers.spread(ratios)
    print(f"watched / quiet: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    point = {name: getattr(args, name) for name in ("rounds", "total_timesteps", "num_envs", "extra")}
    record = {"machine": machine, "point": point, "flags": WATCHED, "sps": rates, "ratio": {**ratio, "rounds": ratios}}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"overhead-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")
    return record


if __name__ == "__main__":
    cli.run(run, Args, __doc__)
