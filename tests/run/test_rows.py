"""metrics.jsonl: rows are appended whole, a torn one costs no other, and a file is cut back to a checkpoint."""

import json

import pytest
from run_folders import make_row

from ppo_fast.run.rows import RowFile, read_metrics, truncate_rows


class FullDisk:
    """An open file on a disk that takes `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def close(self):
        self.file.close()


def steps(folder):
    return [row["global_step"] for row in read_metrics(folder)]


def test_a_row_is_in_the_file_when_append_returns(tmp_path):
    rows = RowFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        rows.append(make_row(step))
        assert steps(tmp_path) == list(range(1, step + 1))
    rows.close()


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ("", []),
        (json.dumps(make_row(64)) + "\n", [64]),
        (json.dumps(make_row(64)), [64]),
        (json.dumps(make_row(64)) + "\n" + json.dumps(make_row(65))[:9], [64]),
    ],
)
def test_a_half_row_of_the_run_before_costs_no_row_after_it(tmp_path, left, kept):
    (tmp_path / "metrics.jsonl").write_text(left)
    rows = RowFile(tmp_path / "metrics.jsonl")
    rows.append(make_row(128))
    rows.append(make_row(192))
    rows.close()
    assert steps(tmp_path) == [*kept, 128, 192]


def test_a_full_disk_costs_no_row_but_those_it_refuses(tmp_path, monkeypatch):
    rows = RowFile(tmp_path / "metrics.jsonl")
    rows.append(make_row(1))
    with monkeypatch.context() as full:
        full.setattr(rows, "_file", FullDisk(rows._file, room=30))
        with pytest.raises(OSError, match=r"30 of .* bytes written"):
            rows.append(make_row(2))  # torn
        for step in (3, 4):
            with pytest.raises(OSError, match="No space left"):
                rows.append(make_row(step))
    rows.append(make_row(5))
    rows.append(make_row(6))
    rows.close()
    assert steps(tmp_path) == [1, 5, 6]


def test_appending_goes_on_behind_what_another_file_holds(tmp_path):
    rows = RowFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        rows.append(make_row(step))
    rows.close()
    truncate_rows(rows.path, 1)  # puts another file under the old name
    rows.open()
    rows.append(make_row(2))
    rows.close()
    assert steps(tmp_path) == [1, 2]


def row(step):
    return json.dumps({"global_step": step, "losses/kl": float("nan"), "text": "ü"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("before", "after", "dropped"),
    [
        (b"", b"", 0),
        (row(1) + row(2), row(1) + row(2), 0),
        (row(1) + row(2) + row(3) + row(4), row(1) + row(2), 2),
        (row(1) + row(2)[:-9], row(1), 1),
        (row(1) + row(2)[:-1], row(1) + row(2), 0),
        (row(1) + b'{"global_step": 2', row(1), 1),
        (row(1) + row(2)[:-9] + b"\n" + row(2), row(1) + row(2), 1),
        (row(1) + b"\xff\xfe\n" + b"[1]\n" + b"3\n" + b'{"a": 1}\n' + row(2), row(1) + row(2), 4),
        (row(7), b"", 1),
    ],
)
def test_rows_beyond_a_checkpoint_and_torn_ones_are_dropped(tmp_path, before, after, dropped):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(before)
    assert truncate_rows(path, 2) == dropped
    assert path.read_bytes() == after
    assert truncate_rows(path, 2) == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_where_there_is_no_file_nothing_is_dropped(tmp_path):
    assert truncate_rows(tmp_path / "metrics.jsonl", 5) == 0
    assert not list(tmp_path.iterdir())


def test_a_kill_at_any_byte_of_the_last_row_loses_at_most_that_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    data = row(1) + row(2)
    for size in range(len(row(1)), len(data)):
        path.write_bytes(data[:size])
        truncate_rows(path, 9)
        assert path.read_bytes() in (row(1), data)
