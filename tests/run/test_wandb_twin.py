"""Weights & Biases: its offline file read back from disk, and every way it can be absent, refuse or hang."""

import json
import math
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from ppo_fast.run.rows import read_metrics
from ppo_fast.run.tracking import Run
from ppo_fast.run.wandb_twin import STEPPED_BY_GLOBAL_STEP, WandbFlags, WandbTwin

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_wandb_file(path):
    """The protobuf records of a .wandb file, which is a LevelDB log behind a header of its own.

    7 bytes of header, then blocks of 32 KiB (the header is part of the first). A block holds chunks of 7 bytes (CRC-32
    of type and data, length, type) and data; a record is one FULL chunk or a FIRST, MIDDLE..., LAST sequence. Fewer
    than 7 bytes at the end of a block are padding. A file that is still being written ends where its last record does.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    magic, number, version = struct.unpack_from("<4sHB", data)
    assert (magic, number, version) == (b":W&B", 0xBEE1, 0)
    at, parts, records = 7, [], []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + 7 : at + 7 + length]
        if len(chunk) < length:
            break
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        assert (kind in (FULL, FIRST)) == (not parts)
        parts.append(chunk)
        if kind in (FULL, LAST):
            records.append(wandb_internal_pb2.Record.FromString(b"".join(parts)))  # pyright: ignore
            parts = []
        at += 7 + length
    return records


def finished_records(path):
    """All records, waited for: wandb's service writes the last of them just after `finish` has returned."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = read_wandb_file(path) if path.stat().st_size >= 7 else []
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.02)
    raise AssertionError(f"{path} never got its exit record")


def read_offline_run(folder):
    """(config, rows, metric definitions, summary, run record, exit code) of the one offline run below `folder`."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    config, rows, metrics, summary, run, exit_code = {}, [], set(), {}, None, None
    for record in finished_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config.update({item.key: json.loads(item.value_json) for item in run.config.update})
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
        elif kind == "metric":
            metrics.add((record.metric.name or record.metric.glob_name, record.metric.step_metric))
        elif kind == "summary":
            summary.update({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update})
        elif kind == "exit":
            exit_code = record.exit.exit_code
    config.pop("_wandb", None)
    return config, rows, metrics, summary, run, exit_code


def clean_environment(home):
    """This environment without a W&B account, settings or key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    places = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home / "config")}
    return {**kept, **places, "WANDB_CACHE_DIR": str(home / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Makes tracked offline runs in a process without account, and stops wandb's service afterwards."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name, value in clean_environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    said = []

    def start(wandb=None, **overrides):
        settings = {"root": tmp_path / "runs", "env_id": "CartPole-v1", "exp_name": "train", "seed": 1, "config": {}}
        wandb = WandbFlags(**{"mode": "offline", **(wandb or {})})
        run = Run(**{**settings, **overrides}, track=True, wandb=wandb, say=said.append)
        return run, said

    yield start
    import wandb

    wandb.teardown()


def make_row(step):
    return {
        "global_step": step * 8192,
        "charts/episodic_return": 20.0 + step / 3,
        "charts/SPS": 231_042.123456789,
        "losses/value_loss": 1e-9 * step,
        "losses/explained_variance": math.nan if step % 7 == 0 else 0.5,
        "losses/policy_loss": -math.inf if step == 11 else -0.1,
        "health/clip_fraction": step % 2,
    }


@pytest.mark.slow
def test_rows_on_disk_equal_metrics_jsonl_and_config_is_complete(offline):
    config = {
        "env_id": "CartPole-v1",
        "exp_name": "train",
        "learning_rate": 2.5e-4,
        "hidden_sizes": (64, 64),
        "target_kl": None,
        "batch_size": 8192,
        "versions": {"torch": "2.13.0"},
        "long": "x" * 100_000,  # one record over several blocks
    }
    run, said = offline({"project_name": "project", "entity": "entity"}, config=config)
    with run:
        for step in range(1, 601):
            run.log(make_row(step))
        run.finish({"eval/mean_return": 499.5, "eval/episodes": 100, "sps": 5.0, "eval/std_return": math.nan})
    recorded_config, rows, metrics, summary, record, exit_code = read_offline_run(run.folder)
    assert len(rows) == 600
    assert rows == read_metrics(run.folder)
    assert recorded_config == json.loads((run.folder / "config.json").read_text())
    assert metrics == {("global_step", ""), *((pattern, "global_step") for pattern in STEPPED_BY_GLOBAL_STEP)}
    assert {key: value for key, value in summary.items() if key.startswith("eval/")} == {
        "eval/mean_return": 499.5,
        "eval/episodes": 100,
        "eval/std_return": None,
    }
    assert "sps" not in summary
    assert record is not None
    assert (record.display_name, record.project, record.entity) == (run.folder.name, "project", "entity")
    assert exit_code == 0
    (line,) = said
    assert line.startswith("W&B: offline; upload with `wandb sync ") and str(run.folder) in line


def test_group_name_tags_and_notes(offline):
    run, _ = offline({"group": "lr", "name": "mine", "tags": ("a", "b"), "notes": "first try"})
    with run:
        run.log({"global_step": 1})
    record = read_offline_run(run.folder)[4]
    assert record is not None
    assert (record.run_group, record.display_name, list(record.tags), record.notes) == (
        "lr",
        "mine",
        ["a", "b"],
        "first try",
    )
    assert record.run_id == run.wandb_id


def test_a_resumed_run_keeps_its_id_and_its_newest_file_is_complete(offline):
    first, _ = offline()
    with first:
        for step in range(1, 6):
            first.log(make_row(step))
    lines = (first.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (first.folder / "metrics.jsonl").write_text("".join(lines[:3]))  # the checkpoint was made after three rows
    known = set(first.folder.glob("wandb/offline-run-*"))
    time.sleep(1.1)  # wandb names the folder of its file by the second
    second, _ = offline({"run_id": first.wandb_id}, resume_folder=first.folder, run_id=first.run_id)
    with second:
        second.go_on(lambda folder: None)  # which has been cut back
        for step in range(4, 8):
            second.log(make_row(step))
        second.finish({"eval/mean_return": 5.0})
    assert second.wandb_id == first.wandb_id
    for folder in known:
        for path in folder.glob("*.wandb"):
            path.unlink()
    _, rows, _, summary, record, _ = read_offline_run(first.folder)
    assert rows == read_metrics(first.folder)
    assert [row["global_step"] for row in rows] == [step * 8192 for step in range(1, 8)]
    assert record is not None and record.run_id == first.wandb_id
    assert summary["eval/mean_return"] == 5.0


def test_rows_that_wandb_has_already_are_not_sent_again(tmp_path):
    """An online run that is resumed begins behind the last row that W&B has."""
    sent = []
    resumed: Any = SimpleNamespace(starting_step=16385, log=lambda row, step, commit: sent.append(step))
    twin = WandbTwin(resumed, tmp_path, artifacts=False)
    for step in (1, 2, 3, 4):
        twin.log(make_row(step))
    assert sent == [3 * 8192, 4 * 8192]


def test_artifacts_on_request(offline):
    run, said = offline({"artifacts": True})
    with run:
        run.log({"global_step": 1})
        for name in ("policy.safetensors", "best.safetensors"):
            (run.folder / name).write_bytes(b"weights")
        for step in (1, 2):
            (run.subfolder("checkpoints") / f"checkpoint-{step}.pt").write_bytes(b"state")
            os.utime(run.folder / "checkpoints" / f"checkpoint-{step}.pt", (step, step))
        run.finish({"eval/mean_return": 5.0})
    (path,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    artifacts = [
        record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        for record in finished_records(path)
        if record.HasField("artifact") or record.request.HasField("log_artifact")
    ]
    files = {a.type: {entry.path for entry in a.manifest.contents} for a in artifacts}
    assert files["model"] == {"policy.safetensors", "best.safetensors", "checkpoint-2.pt"}
    assert {"train.py", "run/tracking.py"} <= files["code"]
    assert len(said) == 1


def test_a_video_is_shown_beside_the_rows(offline):
    run, said = offline()
    with run:
        run.log(make_row(1))
        (run.folder / "greedy.mp4").write_bytes(b"not really")
        run.log_video(run.folder / "greedy.mp4", 8192)
        run.log(make_row(2))
    rows = read_offline_run(run.folder)[1]
    assert [row["global_step"] for row in rows] == [8192, 8192, 16384]
    assert len(read_metrics(run.folder)) == 2
    assert len(said) == 1


def test_rows_of_one_step_are_all_kept(offline):
    run, _ = offline()
    with run:
        for step in (5, 5, 3, 6, 7, 7):
            run.log({"global_step": step, "charts/SPS": 1.0 * step})
    assert [row["global_step"] for row in read_offline_run(run.folder)[1]] == [5, 5, 3, 6, 7, 7]


def test_an_exception_marks_the_run_as_failed(offline):
    with pytest.raises(RuntimeError, match="mine"):
        run, _ = offline()
        with run:
            run.log({"global_step": 1})
            raise RuntimeError("mine")
    _, rows, _, _, _, exit_code = read_offline_run(run.folder)
    assert exit_code == 1
    assert rows == [{"global_step": 1}]


def test_two_runs_in_one_process_stay_apart(offline):
    first, _ = offline()
    second, _ = offline(seed=2)
    with first, second:
        first.log({"global_step": 1})
        second.log({"global_step": 2})
    assert read_offline_run(first.folder)[1] == [{"global_step": 1}]
    assert read_offline_run(second.folder)[1] == [{"global_step": 2}]


def test_wandb_raising_in_training_is_said_once(offline, monkeypatch):
    run, said = offline()
    with monkeypatch.context() as patch:
        patch.setattr("wandb.Run.log", lambda *_, **__: 1 / 0)
        run.log({"global_step": 1})
        run.log({"global_step": 2})
    run.close()
    assert [line for line in said if line.startswith("warning")] == [
        "warning: W&B failed (division by zero); the run folder stays complete"
    ]
    assert len(read_metrics(run.folder)) == 2


def test_wandb_mode_disabled_turns_tracking_off(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run, said = offline()
    with run:
        run.log({"global_step": 1})
    assert said == ["W&B: off, because WANDB_MODE=disabled"]
    assert not (run.folder / "wandb").exists()


def test_wandb_missing_or_broken_leaves_the_run_alone(offline, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        run, said = offline()
        with run:
            run.log({"global_step": 1})
    assert len(said) == 1 and said[0].startswith("warning: W&B does not start")
    assert len(read_metrics(run.folder)) == 1


# One online run in a fresh process. It prints the seconds that starting and finishing took.
PROGRAM = """
import os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ppo_fast.run import wandb_twin
from ppo_fast.run.tracking import Run

class Host(BaseHTTPRequestHandler):
    # Enough of W&B's host to begin a run; from `hang` on it takes requests and answers none.
    hang = threading.Event()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if Host.hang.is_set():
            time.sleep(120)
        body = (b'{"data": {"upsertBucket": {"inserted": true, "bucket": {"id": "b", "name": "n", "displayName": "d", '
                b'"config": "{}", "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}}}}}')
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

case, root, seconds = sys.argv[1:]
if seconds:
    wandb_twin.INIT_SECONDS = wandb_twin.FINISH_SECONDS = float(seconds)
if case != "no key":
    os.environ["WANDB_API_KEY"] = "0123456789" * 4
if case == "hang at start":
    Host.hang.set()
if case in ("hang at start", "hang at end"):
    host = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    host.daemon_threads = True
    threading.Thread(target=host.serve_forever, daemon=True).start()
    os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{host.server_port}"
else:
    os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
begin = time.perf_counter()
say = lambda text: print(text, file=sys.stderr)
run = Run(root=root, env_id="E", exp_name="x", seed=1, config={"gamma": 0.9}, track=True, say=say)
print(time.perf_counter() - begin)
run.log({"global_step": 1})
run.log({"global_step": 2})
if case == "hang at end":
    Host.hang.set()
begin = time.perf_counter()
run.finish({"eval/mean_return": 1.0})
print(time.perf_counter() - begin)
print(time.time(), flush=True)
"""


class Online(NamedTuple):
    """What became of `PROGRAM`."""

    start: float  # seconds that each part took
    finish: float
    leave: float
    lines: list[str]  # on stderr
    folder: Path  # the run folder


def run_online(case: str, tmp_path: Path, seconds: str = "") -> Online:
    """`PROGRAM` in a process of its own; `seconds` instead of the real time-outs."""
    command = [sys.executable, "-c", PROGRAM, case, str(tmp_path / "runs"), seconds]
    environment = clean_environment(tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    ended = time.time()
    assert done.returncode == 0, done.stderr
    start, finish, last = map(float, done.stdout.split())
    (folder,) = Path(tmp_path / "runs").iterdir()
    assert len(read_metrics(folder)) == 2
    return Online(start, finish, ended - last, done.stderr.splitlines(), folder)


# Why there is no W&B, and the reason that is given.
REASONS = {"no key": "no API key", "unreachable": "connection refused", "hang at start": "Timed out"}


def assert_fell_back(online: Online, case: str) -> None:
    """The reason was said, and the run is on disk as an offline run."""
    assert len(online.lines) == 2
    assert online.lines[0].startswith("warning: W&B is not reachable") and REASONS[case] in online.lines[0]
    assert online.lines[1].startswith("W&B: offline")
    config, rows, _, _, _, exit_code = read_offline_run(online.folder)
    assert config.pop("run_id")
    assert (config, rows, exit_code) == ({"gamma": 0.9}, [{"global_step": 1}, {"global_step": 2}], 0)


def assert_stopped_waiting(online: Online) -> None:
    """The host was there at the start, and its silence at the end was said."""
    assert len(online.lines) == 2
    assert online.lines[0].startswith("W&B: http://127.0.0.1:")
    assert online.lines[1] == "warning: W&B failed (Timed out finishing run.); the run folder stays complete"


@pytest.mark.parametrize("case", REASONS)
def test_no_wandb_falls_back_to_offline(case, tmp_path):
    assert_fell_back(run_online(case, tmp_path, seconds="1"), case)


def test_a_host_that_hangs_at_the_end_does_not_hold_a_run_up(tmp_path):
    assert_stopped_waiting(run_online("hang at end", tmp_path, seconds="1"))


@pytest.mark.thorough
@pytest.mark.parametrize("case", REASONS)
def test_no_wandb_falls_back_to_offline_within_ten_seconds(case, tmp_path):
    online = run_online(case, tmp_path)
    assert_fell_back(online, case)
    assert max(online.start, online.finish, online.leave) < 10


@pytest.mark.slow
def test_a_host_that_hangs_at_the_end_holds_a_run_up_for_ten_seconds_at_most(tmp_path):
    online = run_online("hang at end", tmp_path)
    assert_stopped_waiting(online)
    assert max(online.start, online.finish) < 10
    assert online.leave < 5
