"""Which checkpoint is meant by a folder, a run, "latest": damaged ones are passed over and named."""

import os
from pathlib import Path

import pytest

from ppo_fast.run import checkpoint, find
from ppo_fast.run.checkpoint import DamagedCheckpoint


@pytest.fixture
def two(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path, 1, {"step": 1})
    checkpoint.save(tmp_path, 2, {"step": 2})
    return tmp_path


def test_all_damaged_or_none_there(two: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        find.latest(two / "nowhere")
    for path in two.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match=r"none of 2 checkpoints is valid; .*000000000002\.pt: truncated"):
        find.latest(two)


def test_unreadable_is_passed_over(two: Path) -> None:
    newest = find.latest(two)[0]
    newest.unlink()
    newest.mkdir()
    _, payload, skipped = find.latest(two)
    assert payload["step"] == 1 and skipped == [f"{newest}: Is a directory"]


def test_best_is_the_last_resort(two: Path) -> None:
    path, _, _ = find.latest(two)
    (two / "best.pt").write_bytes(path.read_bytes())
    for damaged in two.glob("checkpoint-*"):
        damaged.write_bytes(b"")
    found, payload, skipped = find.latest(two)
    assert found.name == "best.pt" and payload["step"] == 2 and len(skipped) == 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for age, run in enumerate(["new", "old", "damaged"]):
        path = checkpoint.save(tmp_path / run / "checkpoints", 10 - age, {"run": run})
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    path.write_bytes(b"")
    os.utime(path, (2_000_000, 2_000_000))
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_resolve_run_folder_file_and_latest(root: Path) -> None:
    by_run = find.resolve(str(root / "old"), root)
    assert (by_run.payload["run"], by_run.run, by_run.skipped) == ("old", root / "old", [])
    by_folder = find.resolve(str(root / "old" / "checkpoints"), root)
    by_file = find.resolve(str(by_run.path), root)
    assert by_folder.run == by_file.run == root / "old" and by_file.path == by_run.path
    found = find.resolve("latest", root)
    assert found.run == root / "new" and found.payload["run"] == "new"
    assert len(found.skipped) == 1 and "damaged" in found.skipped[0]


def test_resolve_names_what_it_passed_over_within_a_run(two: Path) -> None:
    newest = find.latest(two)[0]
    newest.write_bytes(b"")
    found = find.resolve(str(two), two)
    assert found.payload["step"] == 1 and len(found.skipped) == 1 and newest.name in found.skipped[0]


@pytest.mark.parametrize("spec", ["", "nowhere", "empty", "damaged", "new/config.json", "x" * 5000, "nul\0byte"])
def test_resolve_refuses_in_one_line(root: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (root / "new" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        find.resolve(spec, root)


def test_resolve_latest_without_any_run(root: Path) -> None:
    with pytest.raises(ValueError, match=r"\Ano run with a valid checkpoint below [^\n;]+\Z"):
        find.resolve("latest", root / "empty")
