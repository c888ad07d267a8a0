"""C functions that are compiled when they are first called, and what happens where they can't be."""

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppo_fast import native
from ppo_fast.algorithm import lstm

SEVEN = "int seven(void) { return 7; }"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing compiled in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_compiled", native.functools.cache(native._compiled.__wrapped__))
    return tmp_path / "cache" / "ppo_fast" / "native"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "seven.c"
    path.write_text(SEVEN)
    return path


def test_it_is_compiled_once_and_kept(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.compiled(source)
    assert library is not None and library.seven() == 7 and native.compiled(source) is library
    [kept] = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(native, "_compiled", native.functools.cache(native._compiled.__wrapped__))
    monkeypatch.setattr(subprocess, "run", refuse)
    again = native.compiled(source)  # as by the next process
    assert again is not None and again.seven() == 7 and [*cache.iterdir()] == [kept]


def test_another_text_is_another_library(cache: Path, source: Path, tmp_path: Path) -> None:
    native.compiled(source)
    eight = tmp_path / "other" / "seven.c"
    eight.parent.mkdir()
    eight.write_text(SEVEN.replace("7", "8"))
    library = native.compiled(eight)
    assert library is not None and library.seven() == 8 and len([*cache.iterdir()]) == 2


def test_it_can_be_done_without(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "")
    assert native.compiled(source) is None and not cache.exists()


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "true"])
def test_a_compiler_that_does_not_work_is_told_once(
    cache: Path, source: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match=r"\Aseven\.c can't be compiled, a slower way is taken: [^\n]+\Z") as warned:
        assert native.compiled(source) is None and native.compiled(source) is None
    assert len(warned) == 1 and not [*cache.iterdir()]


def test_no_compiler_is_told(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with pytest.warns(UserWarning, match="no C compiler, none of no-such-compiler"):
        assert native.compiled(source) is None


def test_flags_for_this_machine_may_be_unknown(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FOR_THIS_MACHINE", ("-march=no-such-machine",))
    library = native.compiled(source)
    assert library is not None and library.seven() == 7


def test_c_that_is_wrong_is_none(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.c"
    path.write_text("int seven(void) { return }")
    with pytest.warns(UserWarning, match="wrong.c can't be compiled"):
        assert native.compiled(path) is None


@pytest.mark.parametrize("kind", ["a file in its place", "others may write", "somebody else's"])
def test_a_cache_that_is_not_to_be_trusted_is_not_used(
    cache: Path, source: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    if kind == "a file in its place":
        cache.touch()
    else:
        cache.mkdir()
    if kind == "others may write":
        cache.chmod(0o777)
    if kind == "somebody else's":
        monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    library = native.compiled(source)
    assert library is not None and library.seven() == 7
    assert not cache.is_dir() or not [*cache.iterdir()]


def test_many_processes_at_once(cache: Path, source: Path) -> None:
    code = (
        f"from pathlib import Path; from ppo_fast import native; print(native.compiled(Path({str(source)!r})).seven())"
    )
    words = [sys.executable, "-c", code]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in running] == [b"7"] * 4
    assert len([*cache.iterdir()]) == 1


def loops(steps: int, rows: int, size: int) -> list[torch.Tensor]:
    """What both loops of the LSTM give, from the same numbers each time."""
    draw = torch.Generator().manual_seed(steps + 10 * rows + 100 * size)
    inputs = torch.randn(steps, rows, 4 * size, generator=draw)
    weight = torch.randn(4 * size, size, generator=draw) / size**0.5
    first = torch.rand(steps, rows, generator=draw) < 0.2
    hidden, cell = torch.randn(2, rows, size, generator=draw).unbind()
    hiddens, cells, gates = lstm.forward_loop(inputs, weight, first, hidden, cell)
    by_hidden = torch.randn(steps, rows, size, generator=draw)
    return [hiddens, cells, gates, lstm.backward_loop(by_hidden, weight, first, cell, cells, gates)]


# Sizes that fill blocks and vectors, and sizes that leave rests.
@pytest.mark.parametrize("sizes", [(9, 8, 64), (5, 4, 16), (7, 3, 5), (3, 9, 33), (2, 1, 1), (6, 5, 20), (1, 13, 128)])
def test_the_loops_in_c_are_those_in_numpy(
    sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert lstm.in_c(torch.zeros(1)) is not None, "tests need a C compiler"
    in_c = loops(*sizes)
    monkeypatch.setattr(lstm, "in_c", lambda x: None)
    for mine, theirs in zip(in_c, loops(*sizes), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)


def test_nan_and_infinity_stay_what_they_are() -> None:
    """A run has to see them: nothing of the loop may swallow one, as fast arithmetic does."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        inputs = torch.zeros(2, 3, 4 * 16)
        inputs[0, 1, 50] = bad
        nothing = torch.zeros(3, 16)
        hiddens, _, _ = lstm.forward_loop(
            inputs, torch.eye(64, 16), torch.zeros(2, 3, dtype=torch.bool), nothing, nothing
        )
        assert bool(hiddens[0, 1].isnan().any()) == (bad != bad)
        assert hiddens[:, (0, 2)].isfinite().all()


def test_other_numbers_are_not_for_c() -> None:
    assert lstm.in_c(torch.zeros(1, dtype=torch.float64)) is None
    assert isinstance(lstm.in_c(torch.zeros(1)), ctypes.CDLL)
