"""TensorBoard: its event files read back."""

import math
import sys

import pytest
from run_folders import COLUMNS, make_row, make_run, resume

from ppo_fast.run.board_twin import BoardTwin


def events(folder):
    """(step, {tag: value}) of each record of rows in the TensorBoard files of a run, in their order."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = sorted((folder / "tensorboard").iterdir())
    found = [event for path in files for event in loader.LegacyEventFileLoader(str(path)).Load()]
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in found if e.summary.value]


def test_tensorboard_gets_the_rows_under_the_same_names(tmp_path):
    with make_run(tmp_path, tensorboard=True) as run:
        run.log(make_row(64, extra=math.nan, nothing=None, flag=True))
        run.log(make_row(128))
    first, second = events(run.folder)
    assert first == (64, {**dict.fromkeys(COLUMNS, 1.5), "flag": 1.0})
    assert second == (128, dict.fromkeys(COLUMNS, 1.5))


def test_a_resumed_run_has_all_its_rows_in_tensorboard_once(tmp_path):
    with make_run(tmp_path, tensorboard=True) as first:
        for step in (64, 128, 192):
            first.log(make_row(step))
    lines = (first.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (first.folder / "metrics.jsonl").write_text(lines[0])  # the checkpoint was made after the first row
    with resume(first, tensorboard=True) as second:
        second.log(make_row(128))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(first.folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("charts/SPS")] == [64, 128]


def test_tensorboard_missing_is_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"\A--tensorboard: needs tensorboard: pip install .*\Z"):
        make_run(tmp_path / "runs", tensorboard=True)
    assert not (tmp_path / "runs").exists()


def test_tensorboard_failing_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    def fail(self, row):
        raise RuntimeError("no room\nlong story")

    monkeypatch.setattr(BoardTwin, "log", fail)
    said = []
    with make_run(tmp_path, said, tensorboard=True) as run:
        run.log(make_row(64))
        run.log(make_row(128))
    assert said == ["warning: TensorBoard failed (no room); the run folder stays complete"]
    assert len(run.rows()) == 2
