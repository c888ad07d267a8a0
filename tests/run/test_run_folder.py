"""A run folder that a run goes on in: its files are of one run, all is checked before anything is changed, and one
process at a time trains there."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import contents
from test_resume import tiny
from victims import BATCH, SMALL, Forge, Pair, newest, only_run, wait_until, whole_rows

from ppo_fast import names, writing
from ppo_fast.evaluate import Args as EvaluateArgs, evaluate
from ppo_fast.run import checkpoint, lock
from ppo_fast.run.lock import FolderLock
from ppo_fast.run.policy import load_policy, save_policy
from ppo_fast.train import Args, train

STEP = 16  # of one iteration of `tiny`


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two complete runs, a and b, that differ in their seed alone."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 1), ("b", 2)):
        train(tiny(root / name, seed=seed, save_interval=1, norm_obs=True))
        only_run(root / name).rename(root / "run")
        (root / name).rmdir()
        (root / "run").rename(root / name)
    return root


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of run a."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(runs / "a", tmp_path / "run"))


def saved(run: Path, iteration: int) -> Path:
    return run / "checkpoints" / f"checkpoint-{iteration * STEP:012d}.pt"


def everything(folder: Path) -> dict[str, Any]:
    """All below a folder: what a file holds, where a link points, and that a folder is there."""
    links = {str(path): os.readlink(path) for path in folder.rglob("*") if path.is_symlink()}
    folders = {str(path): "" for path in folder.rglob("*") if path.is_dir()}
    return contents(folder) | links | folders


def refused(says: str, folder: Path, resume: Path, **more: Any) -> None:
    """`--resume` is refused in one line, and nothing is changed."""
    before = everything(folder)
    with pytest.raises(ValueError, match=r"\A--resume: [^\n]+\Z") as problem:
        train(Args(resume=str(resume), quiet=True, total_timesteps=STEP * 8, **more))
    assert says in str(problem.value)
    assert everything(folder) == before


# ---------------------------------------------------------------- all is checked before anything is changed


def tensors_of(payload: dict[str, Any]) -> dict[str, torch.Tensor]:
    return payload["ranks"][0]["tensors"]


def generators_of(payload: dict[str, Any]) -> list[torch.Tensor]:
    return payload["ranks"][0]["generators"]


def rng_of(payload: dict[str, Any]) -> dict[str, Any]:
    return payload["ranks"][0]["rng"]


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, Any]], object]:
    return lambda payload: tensors_of(payload).__setitem__(name, value)


# What is wrong with a whole checkpoint, and what is said of it. Each is found late, when all has been made.
LATE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no observations": (lambda payload: tensors_of(payload).pop("obs"), "it has no obs"),
    "no learning rate": (lambda payload: tensors_of(payload).pop("learning_rate"), "it has no learning_rate"),
    "no second moment": (lambda payload: tensors_of(payload).pop("moment2"), "it has no moment2"),
    "no sum of returns": (lambda payload: tensors_of(payload).pop("carry_return"), "it has no carry_return"),
    "other observations": (put("obs", torch.zeros(2, 5)), "its obs does not fit"),
    "complex returns": (
        put("carry_return", torch.zeros(2, dtype=torch.complex64)),
        "its carry_return holds torch.comp",
    ),
    "NaN in the parameters": (
        lambda payload: tensors_of(payload)["theta"].__setitem__(3, torch.nan),
        "its theta holds",
    ),
    "infinity in a moment": (lambda payload: tensors_of(payload)["moment1"].fill_(torch.inf), "its moment1 holds NaN"),
    "no generators": (lambda payload: generators_of(payload).clear(), "it has 0 random generators, not 2"),
    "half a generator": (
        lambda payload: generators_of(payload).__setitem__(0, torch.zeros(9)),
        "another kind of device",
    ),
    "no state of torch": (lambda payload: rng_of(payload).pop("torch"), "KeyError"),
    "no state of Python": (lambda payload: rng_of(payload).__setitem__("python", 5), "TypeError"),
}


@pytest.mark.parametrize("kind", LATE)
def test_a_checkpoint_that_is_refused_late_costs_a_complete_run_nothing(run: Path, kind: str) -> None:
    older = saved(run, 4)
    payload = checkpoint.load(older)
    LATE[kind][0](payload)
    checkpoint.write(older, payload)
    assert (run / "result.json").exists()
    refused(LATE[kind][1], run, older)


def test_the_result_of_a_complete_run_stays_until_there_is_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "result.json").read_bytes()
    monkeypatch.setattr("ppo_fast.run.ending.evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(Args(resume=str(run), quiet=True, eval_episodes=2))
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    "error", [(28, "No space left on device"), (30, "Read-only file system"), (13, "Permission denied")]
)
def test_a_folder_that_cannot_be_written_to(run: Path, error: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No inodes, a disk mounted read-only, another user's folder."""

    def refuse(path: Path) -> None:
        raise OSError(*error)

    monkeypatch.setattr("ppo_fast.writing.new_file", refuse)
    refused(f"cannot write to {run}: {error[1]}", run, run)
    monkeypatch.setattr("ppo_fast.run.tracking.FolderLock", refuse)
    refused(f"cannot write to {run}: {error[1]}", run, run)


def test_a_new_folder_that_cannot_be_written_to_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ppo_fast.run.rows.appended_file", refuse)
    with pytest.raises(ValueError, match=r"\A--run-root: cannot write to [^\n]*: No space left on device\Z"):
        train(tiny(tmp_path / "runs"))
    assert not list((tmp_path / "runs").iterdir())


# ---------------------------------------------------------------- files of another run


def without_id(path: Path) -> None:
    """A checkpoint as earlier versions wrote it."""
    payload = checkpoint.load(path)
    del payload["run_id"], payload["rows"]
    checkpoint.write(path, payload)


@pytest.mark.parametrize("name", ["checkpoint-000000000999.pt", "checkpoint-000000000001.pt", "best.pt"])
@pytest.mark.parametrize("of_an_earlier_version", [False, True])
def test_a_checkpoint_of_another_run_is_not_taken(
    runs: Path, run: Path, name: str, of_an_earlier_version: bool
) -> None:
    """Neither to go on from nor to be renamed or deleted when the run goes on."""
    other = run / "checkpoints" / name
    shutil.copy(saved(runs / "b", 6), other)
    if of_an_earlier_version:
        without_id(other)
    says = "its seed is 2, not 1" if of_an_earlier_version else "it is of run "
    refused(says, run, run)
    if name != "best.pt":
        refused(says, run, saved(run, 6))
    if name.endswith("999.pt"):
        os.utime(other, (4e9, 4e9))
        with pytest.raises(ValueError, match=r"\Arun: [^\n]*is not of this run: [^\n]*\Z"):
            evaluate(EvaluateArgs(run=str(run), episodes=1))


def test_a_policy_of_another_run_is_played_only_by_its_own_name(
    runs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(runs / "b" / "policy.safetensors", run)
    with pytest.raises(ValueError, match=r"\Arun: [^\n]*policy.safetensors is not of this run: it is of run [^\n]*\Z"):
        evaluate(EvaluateArgs(run=str(run), episodes=1))
    evaluate(EvaluateArgs(run=str(run / "policy.safetensors"), episodes=1))
    assert "note: run/policy.safetensors is not of this run: it is of run " not in capsys.readouterr().out
    weights, facts = load_policy(run)
    save_policy(run, weights, {name: value for name, value in facts.items() if name != "run_id"})
    with pytest.raises(ValueError, match="its seed is 2, not 1"):
        evaluate(EvaluateArgs(run=str(run), episodes=1))


def test_a_configuration_or_metrics_of_another_run(runs: Path, run: Path) -> None:
    for name, says in (("config.json", "it is of run "), ("metrics.jsonl", "is of another run")):
        kept = (run / name).read_bytes()
        shutil.copy(runs / "b" / name, run)
        refused(says, run, run)
        (run / name).write_bytes(kept)


LOST: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "empty": (lambda rows: [], "has no row up to step 96: 6 rows are lost"),
    "a hole": (lambda rows: rows[:2] + rows[3:], "has 5 rows up to step 96, of 6 that were written"),
    "no beginning": (lambda rows: rows[3:], "has 3 rows up to step 96, of 6"),
    "no end": (lambda rows: rows[:-1], "has 5 rows up to step 96, of 6"),
    "a row twice": (lambda rows: [*rows[:2], *rows[1:]], "has 7 rows up to step 96, of 6"),
    "another value": (lambda rows: [rows[0].replace("0.", "1."), *rows[1:]], "is not as it was"),
}


@pytest.mark.parametrize("of_an_earlier_version", [False, True])
@pytest.mark.parametrize("kind", [*LOST, "missing"])
def test_rows_that_are_lost_are_a_warning(
    run: Path, kind: str, of_an_earlier_version: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    says = "metrics.jsonl is missing: 6 rows are lost"
    if kind == "missing":
        path.unlink()
    else:
        path.write_text("".join(LOST[kind][0](rows)))
        says = LOST[kind][1]
    if of_an_earlier_version:
        without_id(saved(run, 6))
    train(Args(resume=str(run), total_timesteps=STEP * 8, quiet=True))
    said = capsys.readouterr().err
    if of_an_earlier_version and kind == "another value":
        assert "warning" not in said  # only a tally knows
    else:
        assert f"warning: {path}" in said and says in said
    assert [row["global_step"] for row in whole_rows(run)[0]][-2:] == [STEP * 7, STEP * 8]


def test_a_folder_of_an_earlier_version_goes_on_and_gets_an_id(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["run_id"]
    (run / "config.json").write_text(json.dumps(config))
    for path in (run / "checkpoints").glob("*.pt"):
        without_id(path)
    (run / ".lock").unlink()
    train(Args(resume=str(run), total_timesteps=STEP * 8, quiet=True))
    assert "warning" not in capsys.readouterr().err
    now = json.loads((run / "config.json").read_text())
    run_id = now.pop("run_id")
    assert now == config and len(run_id) == 16
    assert newest(run)["run_id"] == run_id == load_policy(run)[1]["run_id"]
    assert json.loads((run / "result.json").read_text())["run_id"] == run_id
    train(Args(resume=str(run), total_timesteps=STEP * 9, quiet=True))
    assert "warning" not in capsys.readouterr().err


def test_a_lost_configuration_is_written_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / "config.json").read_text())
    for text in (None, "", "[1]", "{" * 100_000):
        (run / "config.json").unlink()
        if text is not None:
            (run / "config.json").write_text(text)
        train(Args(resume=str(run), quiet=True))
        assert f"warning: {run / 'config.json'} " in capsys.readouterr().err
        assert json.loads((run / "config.json").read_text())["run_id"] == config["run_id"]


def test_two_runs_of_one_configuration_have_ids_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        train(tiny(tmp_path))
    ids = {json.loads(path.read_text())["run_id"] for path in tmp_path.glob("*/config.json")}
    assert len(ids) == 2
    for run in tmp_path.iterdir():
        of_result = json.loads((run / "result.json").read_text())["run_id"]
        assert {newest(run)["run_id"], of_result, load_policy(run)[1]["run_id"]} <= ids
        assert all(names.is_number(value) for row in whole_rows(run)[0] for value in row.values() if value is not None)


# ---------------------------------------------------------------- one process at a time


def test_a_run_that_is_in_use_is_refused(run: Path) -> None:
    held = FolderLock(run)
    refused(f"{run} is in use: another process trains there", run, run)
    held.release()
    held.release()
    train(Args(resume=str(run), quiet=True))


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As workers and films are, which may outlive a killed run for a moment."""
    held = FolderLock(tmp_path)
    (is_there, say), (wait, go) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.write(say, b".")
        os.read(wait, 1)
        os._exit(0)
    os.read(is_there, 1)
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path)
    held.release()
    FolderLock(tmp_path).release()
    for end in (is_there, say, wait, go):
        os.close(end)
    os.waitpid(child, 0)


@pytest.mark.parametrize("number", lock.NO_LOCKS)
def test_where_there_are_no_locks_it_is_said(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    train(tiny(tmp_path))
    run = only_run(tmp_path)
    assert f"warning: {run} can't be locked here: start no second process in it" in capsys.readouterr().err
    train(Args(resume=str(run), quiet=True))


def test_a_run_that_has_gone_on_in_the_meantime(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the moment when the checkpoint was read and that of the lock: the newer one is not thrown away."""
    before = writing.try_out

    def meanwhile(folder: Path) -> None:
        before(folder)
        shutil.copy(saved(run, 6), saved(run, 7))

    monkeypatch.setattr("ppo_fast.run.tracking.try_out", meanwhile)
    with pytest.raises(ValueError, match=r"\A--resume: [^\n]* has gone on in the meantime; try again\Z"):
        train(Args(resume=str(run), quiet=True))
    assert saved(run, 7).exists() and (run / "result.json").exists() and len(whole_rows(run)[0]) == 6
    FolderLock(run).release()  # which that attempt has left


def assert_whole(run: Path, iterations: int) -> None:
    """No row is there twice or missing, and no file of another future is left."""
    rows, torn = whole_rows(run)
    assert torn == 0 and [row["global_step"] for row in rows] == [BATCH * (i + 1) for i in range(iterations)]
    assert not list(run.rglob("superseded-*")) and not list(run.rglob(".*tmp"))
    assert newest(run)["progress"]["global_step"] == BATCH * iterations


def resume_while_it_runs(forge: Forge, folder: Path, count: int) -> None:
    flags = [*SMALL, "--save-interval", "2", "--run-root", str(folder), "--total-timesteps", str(BATCH * 100_000)]
    living = forge.start(*flags)
    wait_until(lambda: any(folder.glob("*/checkpoints/checkpoint-*.pt")))
    run = only_run(folder)
    for _ in range(count):
        with pytest.raises(ValueError, match=r"\A--resume: [^\n]* is in use: another process trains there\Z"):
            train(Args(resume=str(run), quiet=True))
    living.send(signal.SIGKILL)
    living.wait()
    reached = newest(run)["progress"]["iteration"] + 5
    train(Args(resume=str(run), quiet=True, total_timesteps=BATCH * reached))  # nothing is left of the lock
    assert_whole(run, reached)
    print(f"{count} attempts on a living run refused, and gone on with after kill -9: no row twice, none missing")


def test_a_living_run_is_refused_and_a_killed_one_is_not(eager: Forge, tmp_path: Path) -> None:
    resume_while_it_runs(eager, tmp_path, 3)


@pytest.mark.thorough
def test_a_living_run_is_refused_often(eager: Forge, tmp_path: Path, reliability_count: int) -> None:
    resume_while_it_runs(eager, tmp_path, max(10, reliability_count))


def resume_twice_at_once(pair: Pair, folder: Path, count: int) -> None:
    flags = [*SMALL, "--save-interval", "3"]
    done = pair[0].run(*flags, "--run-root", str(folder), "--total-timesteps", str(BATCH * 5))
    assert done.status == 0, done.errors()
    run = only_run(folder)
    kept = folder / "kept"
    shutil.copytree(run, kept)
    one_refused = 0
    for _ in range(count):
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        older = run / "checkpoints" / f"checkpoint-{BATCH * 3:012d}.pt"
        words = ["--resume", str(older), "--quiet", "--total-timesteps", str(BATCH * 40)]
        both = [forge.start(*words) for forge in pair]
        statuses = sorted(victim.wait() for victim in both)
        assert statuses in ([0, 0], [0, 2]), [victim.errors() for victim in both]
        one_refused += statuses == [0, 2]
        for victim in both:
            if victim.status == 2:
                assert victim.errors().count("\n") == 1 and "error: --resume: " in victim.errors()
        assert_whole(run, 40)
    print(f"{count} times two processes at once: {one_refused} times one was refused; no row twice, none missing")


def test_two_processes_go_on_with_one_run(pair: Pair, tmp_path: Path) -> None:
    resume_twice_at_once(pair, tmp_path, 2)


@pytest.mark.thorough
def test_two_processes_go_on_with_one_run_often(pair: Pair, tmp_path: Path, reliability_count: int) -> None:
    resume_twice_at_once(pair, tmp_path, max(10, reliability_count))
