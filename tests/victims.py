"""Training processes to be stopped, killed and started again, and what is compared of their runs.

Importing torch takes seconds, a fork takes milliseconds: a `Forge` is a process that has imported the trainer, and
forks each victim. A victim behaves like `python -m ppo_fast.train <flags>`, in a process group of its own. The fixtures
`eager` (one forge) and `pair` (one for each of two ranks) are there for all tests.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ppo_fast.run import find

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
# Small and quick, but with all that a resume has to bring back.
SMALL = (
    *("--num-envs", "4", "--num-steps", "4", "--update-epochs", "2", "--num-minibatches", "2"),
    *("--hidden-sizes", "8", "--norm-obs", "--norm-reward", "--target-kl", "0.02"),
    *("--eval-episodes", "0", "--compile", "off", "--quiet"),
)
BATCH = 4 * 4
SIGKILL = signal.SIGKILL

FORGE = """
import ctypes, importlib, json, os, signal, sys, traceback
import torch
from ppo_fast.run import cli
from ppo_fast.run.stopwatch import Stopwatch
import short_end
train = importlib.import_module(os.environ.get("PROGRAM", "ppo_fast.train"))
short_end.leave_out(setattr)
torch.set_num_threads(1)  # a forked child would wait for threads that only its parent has
def die_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing outlives a killed test
die_with_parent()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
for signum in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
    signal.signal(signum, signal.SIG_DFL)  # under nohup they are born deaf to SIGHUP, and a run stays so
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        die_with_parent()
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, order["out"]), (2, order["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(order["env"])
        sys.argv = ["train", *order["argv"]]
        try:
            exec(order["before"], {"train": train})
            if order["trains"]:
                cli.run(train.train, train.Args, "test", Stopwatch())
        except KeyboardInterrupt:
            os._exit(130)  # before cli.run took over
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Victim:
    """One forked training process; `status` is known after `wait`: an exit status, or minus a signal."""

    def __init__(self, forge: subprocess.Popen, pid: int, out: Path, err: Path) -> None:
        self.forge, self.pid, self.out, self.err, self.status = forge, pid, out, err, None

    def send(self, signum: int) -> None:
        """Send a signal, to this process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def wait(self) -> int:
        """The exit status."""
        assert self.forge.stdout is not None
        if self.status is None:
            self.status = int(self.forge.stdout.readline())
        return self.status

    def errors(self) -> str:
        """What it printed to stderr."""
        return self.err.read_text()


class Forge:
    """Forks victims one after the other; `folder` takes what they print. PROGRAM names what trains, if not train.py."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.count = folder, 0
        self.latest: Victim | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{TESTS}", **env},
        )

    def start(self, *flags: str, before: str = "", terminal: str = "", **env: str) -> Victim:
        """Fork a victim with these flags, on the terminal of that name, if any.

        `before` is Python that it runs first, with the module `train`.
        """
        return self._fork(env, terminal, argv=flags, before=before, trains=True)

    def start_script(self, script: str, **env: str) -> Victim:
        """Fork a victim that runs this Python and does not train."""
        return self._fork(env, "", argv=(), before=script, trains=False)

    def _fork(self, env: Mapping[str, str], terminal: str, **order: Any) -> Victim:
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.latest is None:
            assert self.process.stdout.readline() == "ready\n"
        elif self.latest.status is None:  # a test that failed has left it
            self.latest.send(SIGKILL)
            self.latest.wait()
        self.count += 1
        out = Path(terminal or self.folder / f"{self.count}.out")
        err = Path(terminal or self.folder / f"{self.count}.err")
        order |= {"out": str(out), "err": str(err), "env": env}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.latest = Victim(self.process, int(self.process.stdout.readline()), out, err)
        return self.latest

    def run(self, *flags: str, **more: Any) -> Victim:
        """Start a victim and wait for its end."""
        victim = self.start(*flags, **more)
        victim.wait()
        return victim

    def close(self) -> None:
        """End the process, and the victims that a failed test has left."""
        end([*children_of(self.process.pid), self.process.pid])
        self.process.communicate()


@contextmanager
def forge(folder: Path, **env: str) -> Iterator[Forge]:
    """A `Forge` that is closed at the end."""
    made = Forge(folder, **env)
    try:
        yield made
    finally:
        made.close()


Pair = tuple[Forge, Forge]  # what forks rank 0, and what forks rank 1


def start_pair(pair: Pair, *flags: str, before: str = "", **env: str) -> tuple[Victim, Victim]:
    """Two ranks that train together, without torchrun, which would end the second itself."""
    shared = {**meeting_place(), **env}
    first, second = (
        forge.start(*flags, before=before, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank, forge in enumerate(pair)
    )
    return first, second


def start_scripts(pair: Pair, script: str) -> tuple[Victim, Victim]:
    """Two ranks that run the same Python."""
    shared = meeting_place()
    first, second = (
        forge.start_script(script, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank, forge in enumerate(pair)
    )
    return first, second


def meeting_place() -> dict[str, str]:
    """The variables by which two ranks on this machine find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}


def only_run(root: Path) -> Path:
    """The one run folder below `root`."""
    [folder] = [path for path in root.iterdir() if path.is_dir()]
    return folder


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look 200 times a second until `holds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def whole_rows(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of metrics.jsonl, and how many lines are no row."""
    path = run / "metrics.jsonl"
    rows, torn = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            torn += 1
    return rows, torn


def newest(run: Path) -> dict[str, Any]:
    """The contents of a run's newest checkpoint."""
    return find.latest(run / "checkpoints")[1]


# What two runs that end alike may differ in: how long they took and how they were asked for. Python's own generator is
# the libraries' to draw from; nothing that is trained does.
INCIDENTAL = (
    *("elapsed", "first_seconds", "wandb_id", "run_id", "rows", "python", "exp_name", "run_root", "resume"),
    "max_runtime",
)


def difference(a: Any, b: Any, but: tuple[str, ...] = INCIDENTAL, where: str = "") -> str | None:
    """Where two payloads differ in a bit, None where they don't; entries named in `but` are not looked at."""
    if type(a) is not type(b):
        return f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return None if same else f"{where}: {a} and {b}"
    if isinstance(a, Mapping):
        if a.keys() != b.keys():
            return f"{where}: keys {sorted(set(a) ^ set(b))}"
        items = [(key, a[key], b[key]) for key in a if key not in but]
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: lengths {len(a)} and {len(b)}"
        items = list(zip(range(len(a)), a, b, strict=True))
    else:
        return None if a == b or (a != a and b != b) else f"{where}: {a} and {b}"
    found = (difference(x, y, but, f"{where}/{key}") for key, x, y in items)
    return next((line for line in found if line), None)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock says."""
    return [{name: x for name, x in row.items() if "SPS" not in name and "time/" not in name} for row in rows]


def assert_equal_ends(run: Path, reference: Path, but: tuple[str, ...] = ()) -> None:
    """Every tensor and number of the last checkpoint and every row, bit for bit; no row twice, none missing.

    `but` names parts of the checkpoint that are not looked at either.
    """
    found = difference(newest(run), newest(reference), (*INCIDENTAL, *but))
    assert found is None, found
    rows, torn = whole_rows(run)
    wanted, _ = whole_rows(reference)
    assert torn == 0 and [row["global_step"] for row in rows] == [row["global_step"] for row in wanted]
    assert timeless(rows) == timeless(wanted)


def children_of(pid: int) -> list[int]:
    """Living processes below `pid`, at any depth."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, pending = [], [pid]
    while pending:
        below = parents.get(pending.pop(), [])
        found += below
        pending += below
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(pids: list[int]) -> None:
    """Kill what a failed test left behind."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
