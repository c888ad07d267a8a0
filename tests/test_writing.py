"""Files written whole or not at all."""

import os

import pytest

from ppo_fast.writing import temporary_name, write_atomically


def test_a_file_that_cannot_be_written_keeps_what_it_held(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert [other.name for other in tmp_path.iterdir()] == ["result.json"]


def test_what_dead_writers_left_is_removed_and_nothing_else(tmp_path):
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    of_the_dead = tmp_path / f".result.json.{process}.ppo_fast-tmp"
    ours = temporary_name(tmp_path / "result.json")
    of_another = tmp_path / ".result.json.1.ppo_fast-tmp"
    of_the_user = tmp_path / ".result.json.mine.ppo_fast-tmp"
    for path in (of_the_dead, ours, of_another, of_the_user):
        path.write_text("half")
    write_atomically(tmp_path / "result.json", b"new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"result.json", of_another.name, of_the_user.name}
