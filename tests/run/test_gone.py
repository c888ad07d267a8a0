"""What a run does when its folder, or the room on the disk, goes while it trains."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_resume import tiny
from victims import whole_rows

from ppo_fast import names
from ppo_fast.run.agent_log import AgentLog
from ppo_fast.run.find import latest
from ppo_fast.run.lock import FolderLock
from ppo_fast.run.policy import load_policy
from ppo_fast.train import Args, train

STEP = 16  # of one iteration of `tiny`
ITERATIONS = 6
AT = 3  # the iteration after which it happens

Happens = Callable[[Path], object]  # with the run folder


def replace_by_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("mine")


def replace_by_copy(run: Path) -> None:
    shutil.copytree(run, run.with_name("copy"))
    shutil.rmtree(run)
    run.with_name("copy").rename(run)


GONE: dict[str, Happens] = {
    "the folder": shutil.rmtree,
    "the folder of all runs": lambda run: shutil.rmtree(run.parent),
    "metrics.jsonl": lambda run: (run / names.METRICS_FILE).unlink(),
    "metrics.jsonl and config.json": lambda run: [
        (run / name).unlink() for name in (names.METRICS_FILE, "config.json")
    ],
    "the checkpoints": lambda run: shutil.rmtree(run / "checkpoints"),
    "the folder, renamed": lambda run: run.rename(run.with_name("renamed")),
    "the folder, by a copy": replace_by_copy,
}


def when(happens: Happens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen after iteration AT."""
    record = AgentLog.record

    def first_record(log: AgentLog, means: Any, totals: Any, progress: Any, *rest: Any) -> None:
        record(log, means, totals, progress, *rest)
        if progress.iteration == AT:
            happens(log.run.folder)

    monkeypatch.setattr(AgentLog, "record", first_record)


def run(root: Path, **more: Any) -> dict[str, Any]:
    return train(tiny(root, save_interval=1, total_timesteps=STEP * ITERATIONS, **more))


@pytest.mark.parametrize("what", GONE)
def test_what_is_gone_is_there_again(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    when(GONE[what], monkeypatch)
    result = run(tmp_path)
    assert "exit_status" not in result and "not_saved" not in result
    folder = next(path for path in tmp_path.iterdir() if path.name.startswith("CartPole"))
    rows, torn = whole_rows(folder)
    assert [row["global_step"] for row in rows] == [STEP * (i + 1) for i in range(ITERATIONS)] and torn == 0
    assert latest(folder / "checkpoints")[1]["progress"]["iteration"] == ITERATIONS
    assert load_policy(folder)[1][names.RUN_ID]
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    assert ("is there again" in said.err + said.out) == (what != "the checkpoints")
    FolderLock(folder).release()
    more = train(Args(resume=str(folder), quiet=True, total_timesteps=STEP * (ITERATIONS + 2)))
    assert more["global_step"] == STEP * (ITERATIONS + 2)


def test_the_folder_that_is_there_again_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[bool] = []

    def happens(folder: Path) -> None:
        shutil.rmtree(folder)
        record = AgentLog.record

        def later(log: AgentLog, *arguments: Any) -> None:
            record(log, *arguments)
            with pytest.raises(BlockingIOError):
                FolderLock(log.run.folder)
            refused.append(True)

        monkeypatch.setattr(AgentLog, "record", later)

    when(happens, monkeypatch)
    run(tmp_path)
    assert len(refused) == ITERATIONS - AT


def test_a_place_that_is_lost_is_told_by_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    when(replace_by_file, monkeypatch)
    result = run(tmp_path)
    assert result["exit_status"] == 7
    said = capsys.readouterr()
    assert "not saved: no checkpoint of step 96 could be written, and no policy.safetensors" in said.err + said.out
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_the_end_of_a_complete_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    when(lambda folder: monkeypatch.setattr(os, "fsync", no_room), monkeypatch)
    result = run(tmp_path, quiet=False)
    assert result["exit_status"] == 7 and "no checkpoint of step 96" in result["not_saved"]
    said = capsys.readouterr()
    assert "not saved: no checkpoint of step 96 could be written, and no policy" in said.err + said.out
    monkeypatch.undo()
    [folder] = tmp_path.iterdir()
    assert train(Args(resume=str(folder), quiet=True))["global_step"] == STEP * ITERATIONS  # what was there is whole


def test_a_full_disk_at_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def happens(folder: Path) -> None:
        monkeypatch.setattr(os, "fsync", no_room)
        os.kill(os.getpid(), signal.SIGTERM)

    when(happens, monkeypatch)
    result = run(tmp_path, quiet=False)
    assert result["exit_status"] == 7 and result["stopped"] == "SIGTERM"
    said = capsys.readouterr()
    assert "NOT saved" in said.out and "the run is saved" not in said.out


def test_a_policy_without_its_checkpoint_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for the small file: a complete run has what was wanted of it, a stopped one can't go on."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object) -> None:
        raise full

    monkeypatch.setattr("ppo_fast.run.checkpoint.save", refuse)
    assert "exit_status" not in run(tmp_path / "complete")
    when(lambda folder: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    stopped = run(tmp_path / "stopped")
    assert stopped["exit_status"] == 7 and stopped["not_saved"].endswith("could be written")
