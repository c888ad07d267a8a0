"""Folders for what is kept between runs: accounts without a home or a name, folders that can't be written."""

import getpass
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import write_run

import ppo_fast
from ppo_fast import plot
from ppo_fast.engine import caches, plan
from ppo_fast.evaluate import Args as EvaluateArgs, evaluate
from ppo_fast.run import cli
from ppo_fast.train import Args, train

CODE = "TORCHINDUCTOR_CACHE_DIR"
VARIABLES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "WANDB_CACHE_DIR", CODE)
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def small(root: Path, **more: Any) -> Args:
    flags = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "num_minibatches": 1, "eval_episodes": 1}
    return Args(**{**flags, "cuda": False, "run_root": str(root), **more})  # type: ignore[arg-type]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of an account whose environment says nothing about folders but its home."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test leaves there is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def nobody(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `docker run --user 12345` without HOME: the system knows neither the account's name nor its home."""
    for name in ("HOME", *NAMES):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    return scratch


@pytest.fixture
def no_room(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written to any folder for temporary files, as in a container that is read-only."""

    def none_usable() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none_usable)


def file_in(folder: Path) -> Path:
    """A file, below which there can't be a folder, not even for root."""
    path = folder / "file"
    path.write_text("")
    return path


# ---------------------------------------------------------------- no home, no name


def test_an_account_without_home_or_name_has_them_inside(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with caches.home():
        home = Path.home()
        assert home == Path(os.environ["HOME"]) == nobody / f"ppo_fast-{os.getuid()}"
        assert home.stat().st_mode & 0o777 == 0o700
        assert getpass.getuser() == f"user-{os.getuid()}"
    assert not {"HOME", *NAMES} & set(os.environ)
    said = f"warning: this account has no home folder; {home} stands in for it (HOME)\n"
    assert capsys.readouterr() == ("", said)


def test_such_an_account_trains_plays_and_draws(
    nobody: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(tmp_path / "runs"))
    evaluate(EvaluateArgs(run_root=str(tmp_path / "runs"), episodes=1))
    plot.plot(plot.Args(runs=(str(tmp_path / "runs"),), out=str(tmp_path / "plot.png")))
    assert (tmp_path / "plot.png").is_file()
    assert len(capsys.readouterr().err.splitlines()) == 3  # each says where its home is


def test_who_has_a_home_is_left_alone(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    with caches.home():
        assert os.environ == before
    assert not any(scratch.iterdir()) and capsys.readouterr() == ("", "")


def test_a_home_that_is_no_path_is_none(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "somewhere")
    with caches.home():
        assert os.environ["HOME"] == str(scratch / f"ppo_fast-{os.getuid()}")
    assert capsys.readouterr().err.count("\n") == 1


def test_where_no_home_can_be_made_there_is_none(
    nobody: Path, no_room: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with caches.home():
        assert "HOME" not in os.environ


# ---------------------------------------------------------------- folders


def test_compiled_code_is_kept_for_the_next_run(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user says, else among his caches; torch's own place is emptied at every start of the machine."""
    assert caches.for_compiled_code() == []
    assert os.environ.pop(CODE) == str(tmp_path / "home" / ".cache" / "ppo_fast" / "inductor")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert caches.for_compiled_code() == []
    assert os.environ[CODE] == str(tmp_path / "caches" / "ppo_fast" / "inductor")
    monkeypatch.setenv(CODE, str(tmp_path / "mine"))
    assert caches.for_compiled_code() == []
    assert os.environ[CODE] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("prepare", "set_to_file", "variable"),
    [
        (caches.for_compiled_code, CODE, CODE),
        (caches.for_compiled_code, "XDG_CACHE_HOME", CODE),
        (caches.for_compiled_code, "HOME", CODE),
        (lambda: caches.for_wandb(artifacts=False), "HOME", "WANDB_CACHE_DIR"),
        (caches.for_pictures, "HOME", "MPLCONFIGDIR"),
        (caches.for_pictures, "MPLCONFIGDIR", "MPLCONFIGDIR"),
    ],
)
def test_a_folder_that_cannot_be_made_has_a_stand_in(
    prepare: Any, set_to_file: str, variable: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(set_to_file, str(file_in(scratch) / "below"))
    [line] = prepare()
    stand_in = scratch / f"ppo_fast-{os.getuid()}" / variable.lower()
    assert os.environ[variable] == str(stand_in)
    assert line.startswith(f"warning: {scratch / 'file'}") and "can't be written (Not a directory)" in line
    assert line.endswith(f"; {stand_in} is used instead ({variable})")
    assert prepare() == []  # it can be written


def test_a_stand_in_is_never_a_folder_that_others_can_write_to(scratch: Path) -> None:
    """What lies in a cache is run."""
    usual = scratch / f"ppo_fast-{os.getuid()}"
    assert caches.private_folder() == usual
    usual.chmod(0o777)
    assert caches.private_folder() != usual
    usual.rmdir()
    (scratch / "theirs").mkdir(mode=0o700)
    usual.symlink_to(scratch / "theirs")
    assert caches.private_folder().stat().st_mode & 0o777 == 0o700
    assert caches.private_folder() not in (usual, scratch / "theirs")


# ---------------------------------------------------------------- no room at all


def test_without_room_for_temporary_files_nothing_is_compiled(
    no_room: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = plan.decide(Args(compile="on"), torch.device("cpu"), 1000)
    assert how.mode == "eager"
    assert how.reason.startswith("warning: torch.compile needs room for temporary files; No usable temporary directory")
    train(small(tmp_path, compile="on"))
    with pytest.raises(ValueError, match=r"^--verify: torch\.compile needs room for temporary files; No usable"):
        train(small(tmp_path, verify=1))
    assert "Traceback" not in "".join(capsys.readouterr())


def test_where_nothing_can_be_written_a_line_says_what_to_set(
    no_room: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(file_in(tmp_path)))
    [line] = caches.for_pictures()
    assert line.endswith("(Not a directory), nor can a folder for temporary files; MPLCONFIGDIR may name another")
    assert "MPLCONFIGDIR" not in os.environ


@pytest.mark.parametrize("flag", ["--out", "--html"])
def test_a_picture_that_cannot_be_drawn_there_is_one_line(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Matplotlib requires access to a writable cache directory")  # as its import does

    monkeypatch.setattr(plot, "draw_figure", refuse)
    monkeypatch.setattr(plot, "report", refuse)
    run = write_run(tmp_path, "run", [{"global_step": 1, "charts/episodic_return": 1.0}])
    path = tmp_path / f"plot{'.png' if flag == '--out' else '.html'}"
    monkeypatch.setattr(sys, "argv", ["plot", str(run), flag, str(path)])
    with pytest.raises(SystemExit) as stop:
        cli.run(plot.plot, plot.Args, "")
    said = f"error: {flag}: can't write {path}: Matplotlib requires access to a writable cache directory\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, said)


COMPILES = """
import torch
from ppo_fast.engine import caches
from ppo_fast.engine.compiled import Compiled
print(caches.for_compiled_code(), Compiled(lambda x: (x + 1).sin())(torch.zeros(3)).sum().item())
"""


@pytest.mark.slow
def test_compiling_does_without_a_folder_of_its_compiler(tmp_path: Path) -> None:
    """torch keeps compiled headers in a place that TORCHINDUCTOR_CACHE_DIR doesn't name, such as another user's."""
    (tmp_path / "torchinductor_someone").write_text("")
    paths = {"PYTHONPATH": str(Path(ppo_fast.__file__).parent.parent), CODE: str(tmp_path / "code")}
    env = {**os.environ, "TMPDIR": str(tmp_path), "LOGNAME": "someone", **paths}
    done = subprocess.run([sys.executable, "-c", COMPILES], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:6]) == (0, "[] 2.5"), done.stderr
