"""What anybody may have put into a run folder in place of its files: one line, no waiting, no gigabytes."""

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import tiny
from victims import only_run

from ppo_fast import compare, evaluate, plot, reading, replay
from ppo_fast.run import checkpoint
from ppo_fast.run.checkpoint import DamagedCheckpoint
from ppo_fast.run.policy import load_policy, save_policy
from ppo_fast.train import Args, train

STEP = 16  # of one iteration of `tiny`
NEWEST = f"checkpoints/checkpoint-{6 * STEP:012d}.pt"
CRASH = f"crash-{2 * STEP}.pt"
READERS = {
    "config.json": ("plot", "compare", "evaluate"),
    "metrics.jsonl": ("plot", "compare"),
    "result.json": ("plot", "compare"),
    "policy.safetensors": ("evaluate", "evaluate latest", "evaluate the policy"),
    NEWEST: ("evaluate a checkpoint",),
    CRASH: ("replay",),
}
PROGRAMS: dict[str, Callable[[Path], Any]] = {
    "resume": lambda run: train(Args(resume=str(run), quiet=True, total_timesteps=STEP * 8)),
    "resume auto": lambda run: train(tiny(run.parent, resume="auto")),
    "evaluate": lambda run: evaluate.evaluate(evaluate.Args(run=str(run), episodes=1)),
    "evaluate latest": lambda run: evaluate.evaluate(evaluate.Args(run_root=str(run.parent), episodes=1)),
    "evaluate the policy": lambda run: evaluate.evaluate(evaluate.Args(run=f"{run}/policy.safetensors", episodes=1)),
    "evaluate a checkpoint": lambda run: evaluate.evaluate(evaluate.Args(run=str(run / NEWEST), episodes=1)),
    "plot": lambda run: plot.load((str(run),), Path("runs")),  # drawing takes a second
    "compare": lambda run: compare.load(compare.Args(runs=(str(run), "--", "whole"))),
    "replay": lambda run: replay.main(replay.Args(file=str(run / CRASH))),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, with a crash file beside."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppo_fast.pictures.panels.plot_curves", lambda *_: True)
        train(tiny(root, save_interval=1, norm_obs=True))
    return only_run(root)


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in the working folder, beside another one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "whole")
    copy = Path("runs") / "run"
    shutil.copytree(whole, copy)
    payload = checkpoint.load(copy / NEWEST)
    crash = {name: payload[name] for name in ("program", "flags")} | {"finding": "x", "at": 2, "stream": torch.zeros(2)}
    checkpoint.write(copy / CRASH, {**crash, "tensors": payload["ranks"][0]["tensors"]})
    return copy


@contextmanager
def little_memory(megabytes: int = 700) -> Iterator[None]:
    """No more than so much beside what the process has already: reading gigabytes is a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(name: str, run: Path) -> str:
    """What a program says of a folder that it refuses, in one line; "" where it makes do without the file."""
    with little_memory():
        try:
            PROGRAMS[name](run)
        except ValueError as problem:
            assert "\n" not in str(problem) and str(problem).startswith(("--", "run: ", "runs: ", "file: ")), name
            return str(problem)
    return ""


def sparse(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 20 * 2**30)  # takes no room on the disk


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")  # such a path must be short
    Path("s").rename(path)


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": lambda path: os.mkfifo(path),
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a socket": unix_socket,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "20 GB": sparse,
    "nothing in it": lambda path: path.write_bytes(b""),
    "100,000 levels": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "100,000 levels of objects": lambda path: path.write_text('{"a":' * 100_000),
    "49 levels": lambda path: path.write_text('{"a":' * 49 + "1" + "}" * 49),
    "one long line": lambda path: path.write_bytes(b'{"global_step": 1, "a": "' + b"x" * 2**21 + b'"}'),
    "a whole number without an end": lambda path: path.write_text('{"global_step": 1' + "0" * 4000 + "}"),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "UTF-16": lambda path: path.write_text('{"global_step": 1}', encoding="utf-16"),
}


QUICK = ("a folder", "a pipe", "a device without an end", "20 GB", "100,000 levels")
PARAMETERS = [pytest.param(place, marks=() if place in QUICK else pytest.mark.slow) for place in PLACES]


@pytest.mark.parametrize("place", PARAMETERS)
def test_something_else_in_place_of_a_file(run: Path, place: str) -> None:
    """Each file of a run in turn, each program: a line, or the program makes do without the file."""
    for name, programs in READERS.items():
        kept = (run / name).read_bytes()
        (run / name).unlink()
        PLACES[place](run / name)
        for program in programs:
            said = attempt(program, run)
            assert name not in (NEWEST, CRASH) or Path(name).name in said
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        (run / name).write_bytes(kept)


@pytest.mark.parametrize("place", PARAMETERS)
def test_something_else_in_place_of_a_file_when_a_run_goes_on(whole: Path, run: Path, place: str) -> None:
    for name in ("config.json", "metrics.jsonl", "result.json", NEWEST, "checkpoints/best.pt"):
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        (run / name).unlink(missing_ok=True)
        PLACES[place](run / name)
        for program in ("resume auto", "resume"):
            attempt(program, run)
        for other in Path("runs").iterdir():
            if other != run:  # auto has begun a new one
                shutil.rmtree(other)


def test_a_log_that_is_read_while_it_grows_is_read_as_far_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"1\n2\n3\n")
    lines = reading.lines(path)
    assert next(lines) == b"1"
    with path.open("ab") as file:
        file.write(b"4\n")
    assert list(lines) == [b"2", b"3"]
    assert list(reading.lines(path)) == [b"1", b"2", b"3", b"4"]


# ---------------------------------------------------------------- whole files with other contents


def shared(depth: int) -> Any:
    """A list of ten lists of ten lists ..., in a file of a few hundred bytes."""
    value: Any = 1
    for _ in range(depth):
        value = [value] * 10
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def sealed(payload: Any) -> bytes:
    """An archive with a right checksum, of things that `checkpoint.save` would not take."""
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save(payload, buffer)
    data = buffer.getvalue()[:-2] + checkpoint.COMMENT_SIZE.to_bytes(2, "little")
    return data + checkpoint.COMMENT + hashlib.sha256(data).hexdigest().encode()


BOMBS: dict[str, Callable[[], Any]] = {
    "a billion items": lambda: {"a": shared(9)},
    "itself": lambda: {"a": endless()},
    "a tensor that is one number a billion times": lambda: {"a": torch.zeros(1).expand(1 << 34)},
    "one tensor a thousand times": lambda: {"a": [torch.zeros(1 << 18)] * 10_000},
    "a tensor without memory": lambda: {"a": torch.empty(1 << 40, device="meta")},
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_checkpoint_that_unfolds_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint-000000000001.pt"
    path.write_bytes(sealed(BOMBS[kind]()))
    with little_memory(), pytest.raises(DamagedCheckpoint, match=r"\A[^\n]+\Z"):
        checkpoint.load(path)


def test_a_checkpoint_that_is_packed_is_refused(tmp_path: Path) -> None:
    import hashlib
    import io
    import zipfile

    plain = io.BytesIO()
    torch.save({"a": torch.zeros(1 << 20)}, plain)
    packed = io.BytesIO()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    data = packed.getvalue()[:-2] + checkpoint.COMMENT_SIZE.to_bytes(2, "little")
    path = tmp_path / "checkpoint-000000000001.pt"
    path.write_bytes(data + checkpoint.COMMENT + hashlib.sha256(data).hexdigest().encode())
    with pytest.raises(DamagedCheckpoint, match="it is compressed"):
        checkpoint.load(path)


STRANGE = (
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    "",
    "x" * 10_000,
    "\x1b[2J\n",
    "\udc80",
    [],
    [[1]],
    {},
    {"a": []},
)


@pytest.mark.parametrize("program", ["plot", "compare"])
@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_any_value_in_json(run: Path, name: str, program: str) -> None:
    path = run / name
    text = path.read_text()
    facts = json.loads(text.splitlines()[-1] if name == "metrics.jsonl" else text)
    for key in [*list(facts)[:6], "env_id", "seed", "run_id", "eval/mean_return", "seconds", "stopped"]:
        for value in STRANGE:
            changed = json.dumps({**facts, key: value})
            path.write_text(text + changed + "\n" if name == "metrics.jsonl" else changed)
            attempt(program, run)


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: ascii(value)[:9])
def test_any_value_is_drawn_and_reported(run: Path, value: Any) -> None:
    for name in READERS:
        if name.endswith(("json", "jsonl")):
            *rows, last = (run / name).read_text().splitlines() if name.endswith("l") else ((run / name).read_text(),)
            facts = json.loads(last)
            keys = (
                list(facts)[:6] if name == "metrics.jsonl" else ["env_id", "seed", "sps", "eval/mean_return", "stopped"]
            )
            changed = json.dumps({**facts, **dict.fromkeys(keys, value)})
            (run / name).write_text("\n".join([*rows, changed]))
    plot.plot(plot.Args(runs=(str(run),), out="p.svg", html="p.html"))
    # Environments of different names are refused.
    (run / "config.json").write_text("{}")
    compare.compare(compare.Args(runs=(str(run), "--", "whole")))


# What is done to the flags or the tensors of a policy and a checkpoint.
FLAGS = {
    "hidden layers of terabytes": ("hidden_sizes", (10**6, 10**6)),
    "hidden layers of gigabytes": ("hidden_sizes", (60_000, 60_000)),
    "environments without end": ("num_envs", 10**12),
    "an environment as a list": ("env_id", ["CartPole-v1"]),
    "another environment": ("env_id", "Acrobot-v1"),
    "a precision of a later version": ("precision", "fp4"),
    "a seed as a text": ("seed", "x"),
    "a program of a later version": ("program", "ppo_fast.train_dreams"),
    "a program as a list": ("program", ["ppo_fast.train"]),
}


@pytest.mark.parametrize("kind", FLAGS)
def test_a_file_whose_flags_are_strange(run: Path, kind: str) -> None:
    name, value = FLAGS[kind]
    weights, facts = load_policy(run)
    save_policy(run, weights, {**facts, name: value})
    (run / "config.json").unlink()
    payload = checkpoint.load(run / NEWEST)
    if name == "program":
        payload["program"] = value
    else:
        payload["flags"][name] = value
    for path in (run / "checkpoints").glob("*.pt"):
        path.unlink()
    checkpoint.write(run / NEWEST, payload)
    if kind != "environments without end":  # a policy is played in as many as one asks for
        assert attempt("evaluate the policy", run)
        assert attempt("evaluate a checkpoint", run)
    assert attempt("resume", run)


# A checkpoint or a crash file in which something is missing or is something else.
PARTS = ("program", "flags", "progress", "ranks", "format", "tensors", "stream", "finding", "at")


@pytest.mark.parametrize("name", [NEWEST, CRASH])
@pytest.mark.parametrize("value", [None, 5, "x", [], [5], {}, {"theta": 5}, torch.zeros(1), torch.zeros(0)], ids=str)
def test_parts_of_a_checkpoint_or_a_crash_file_are_strange(run: Path, name: str, value: Any) -> None:
    good = checkpoint.load(run / name)
    (run / "policy.safetensors").unlink()
    for part in PARTS:
        if part in good:
            checkpoint.write(run / name, {**good, part: value})
            for program in ("resume", "evaluate a checkpoint") if name == NEWEST else ("replay",):
                attempt(program, run)
    for tensor in ("theta", "step", "obs") if name == CRASH else ("theta", "obs"):
        payload = checkpoint.load(run / NEWEST) if name == NEWEST else {**good, "tensors": {**good["tensors"]}}
        tensors = payload["ranks"][0]["tensors"] if name == NEWEST else payload["tensors"]
        tensors[tensor] = value
        checkpoint.write(run / name, payload)
        attempt("resume" if name == NEWEST else "replay", run)
