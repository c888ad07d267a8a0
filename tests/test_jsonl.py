"""ppo_fast/jsonl.py: rows of a file as far as it goes."""

import pytest

from ppo_fast import jsonl, reading


def test_rows_are_told_from_what_is_broken(tmp_path):
    """What a kill, a full disk or another program may leave."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \n{"a": nu\n[1, 2]\nnull\n\x00\x00\n"\xff"\n{"b": [null, NaN]}\r\n{"a": 2')
    lines = jsonl.rows_of(reading.lines(path))
    assert [list(row) for row in lines.rows] == [["a"], ["b"]]
    assert lines.rows[0] == {"a": 1} and lines.rows[1]["b"][0] is None
    assert lines.broken == 6


def test_an_empty_file_has_no_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n\n")
    assert jsonl.rows_of(reading.lines(path)) == ([], 0)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        jsonl.rows_of(reading.lines(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"a": {"b": 2}}', {"a": {"b": 2}}), ("{}", {}), ("[]", None), ("3", None), ("", None), ("{", None)],
)
def test_only_an_object_counts(text, found):
    assert jsonl.json_object(text) == found
