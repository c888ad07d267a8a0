"""metrics.jsonl: rows are appended whole, a torn one costs no other, and a file is cut back to a checkpoint."""

import json
import os

import pytest
from run_folders import make_row

from ppo_fast.run.rows import RowFile, Tally, read_metrics, reason_against, truncate_rows


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
    again = RowFile(rows.path)
    again.append(make_row(2))
    again.close()
    assert steps(tmp_path) == [1, 2]


def test_a_copy_made_of_hard_links_stays_as_it_is(tmp_path):
    """As `cp -al` makes them: what is appended to one would stand in the other, too."""
    rows = RowFile(tmp_path / "metrics.jsonl")
    rows.append(make_row(1))
    rows.close()
    copy = tmp_path / "copy"
    os.link(rows.path, copy)
    assert truncate_rows(rows.path, 9) == 0
    again = RowFile(rows.path)
    again.append(make_row(2))
    again.close()
    assert len(copy.read_text().splitlines()) == 1 and steps(tmp_path) == [1, 2]


def test_rows_are_known_again_and_what_is_missing_is_told(tmp_path):
    rows = RowFile(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        rows.append(make_row(step))
        if step == 4:
            tally = rows.tally()
    rows.close()
    path, lines = rows.path, rows.path.read_text().splitlines(keepends=True)

    def said(text):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        return reason_against(path, 4, tally, 4), reason_against(path, 4, None, 4)

    assert said("".join(lines)) == (None, None)
    assert said("".join(lines[:4]) + lines[4][:9]) == (None, None)  # torn by a kill
    assert said("".join(lines[:2]) + "torn\n" + "".join(lines[2:])) == (None, None)  # by a full disk
    for missing in ("", lines[4]):
        for reason in said(missing):
            assert reason is not None and "has no row up to step 4: 4 rows are lost" in reason
    for hole in (lines[1:], lines[:3], lines[:1] + lines[3:]):
        for reason in said("".join(hole)):
            assert reason is not None and "that were written" in reason
    reason = said("".join([*lines[:2], lines[2].replace("1.5", "1.6"), *lines[3:]]))[0]
    assert reason is not None and "is not as it was" in reason
    for reason in said(None):
        assert reason is not None and "is missing: 4 rows are lost" in reason
    path.write_text("".join(json.dumps(make_row(step, other=step)) + "\n" for step in range(1, 6)))
    with pytest.raises(ValueError, match="is of another run"):
        reason_against(path, 4, tally, 4)


TALLIES = ("null", "[1]", '{"count": 1}', '{"count": "1", "digest": "", "first": "", "last": ""}')


@pytest.mark.parametrize("text", TALLIES)
def test_only_a_tally_is_taken_for_one(text):
    assert Tally.from_plain(json.loads(text)) is None


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
