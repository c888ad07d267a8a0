"""The words of a command line: which are flags, which are their values, which belong to none."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from ppo_fast.run.flags import flags_of
from ppo_fast.run.words import parts_of, plain_words


@dataclass
class Args:
    """Flags that take no value, one and many."""

    cuda: bool = True
    num_envs: int = 4
    gamma: float = 0.99
    name: str = ""
    limit: float | None = None
    sizes: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass
class WithWords(Args):
    """The same, with words that belong to no flag."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()


# command line, each part as its name and its values
PARTS: list[tuple[str, list[tuple[str, ...]]]] = [
    ("", []),
    ("--num_envs 4 --gamma=0.5", [("--num-envs", "4"), ("--gamma", "0.5")]),
    ("--gamma -0.5 --num-envs -1", [("--gamma", "-0.5"), ("--num-envs", "-1")]),
    ("--name -inf --name -x", [("--name", "-inf"), ("--name",), ("-x",)]),
    ("--sizes 1 2 --cuda 3", [("--sizes", "1", "2"), ("--cuda",), ("",)]),
    ("--sizes --num-envs --cuda", [("--sizes",), ("--num-envs",), ("--cuda",)]),
    ("--name True --cuda True", [("--name", "True"), ("--cuda", "True")]),
    ("--no-cuda no", [("--no-cuda",), ("",)]),
    ("--zork 1", [("--zork",), ("",)]),
    ("--name=a=b --name=", [("--name", "a=b"), ("--name", "")]),
]


@pytest.mark.parametrize(("line", "expected"), PARTS)
def test_values_belong_to_the_flag_before_them(line: str, expected: list[tuple[str, ...]]) -> None:
    for args_type in (Args, WithWords):
        parts = parts_of(line.split(), flags_of(args_type))
        assert [(part.name, *part.values) for part in parts] == expected
        assert [word for part in parts for word in part.words] == line.split()


def test_a_flag_and_its_negative_are_of_one_field() -> None:
    parts = parts_of(["--cuda", "--no_cuda", "--no-gamma"], flags_of(Args))
    assert [part.flag.field if part.flag else None for part in parts] == ["cuda", "cuda", None]
    assert [part.is_negative for part in parts] == [False, True, False]
    assert [part.is_bare_boolean for part in parts] == [True, False, False]


def test_two_hyphens_are_a_word_where_a_program_takes_words() -> None:
    assert [part.name for part in parts_of(["a", "--", "b"], flags_of(WithWords))] == ["", "", ""]
    assert [part.name for part in parts_of(["a", "--", "b"], flags_of(Args))] == ["", "--", ""]


@pytest.mark.parametrize("yes", ["", "=True", "=true", "=1", " True", " yes", " ON"])
@pytest.mark.parametrize("no", ["=False", "=false", "=0", " False", " no", " off"])
def test_a_boolean_takes_every_spelling(yes: str, no: str) -> None:
    line = f"--num_envs 7 --cuda{yes} --cuda{no} --name yes"
    parts = parts_of(line.split(), flags_of(Args))
    assert plain_words(parts) == ["--num_envs", "7", "--cuda", "--no-cuda", "--name", "yes"]


SIZES = [
    "32 64",
    "32,64",
    "32, 64",
    "[32, 64]",
    "[32,64]",
    "(32, 64)",
    "[32 64]",
    "[32, 64,]",
    " [ 32 , 64 ] ",
    "32 64.0",
]
TAGS = ["['a b', 'c']", "('a b', 'c')", '["a b", "c"]', "[a b, c]"]


@pytest.mark.parametrize("name", ["--sizes=", "--sizes "])
@pytest.mark.parametrize("text", SIZES)
@pytest.mark.parametrize("by_the_shell", [True, False])
def test_several_numbers_are_written_in_many_ways(name: str, text: str, by_the_shell: bool) -> None:
    """As lists are written in a shell, by Python's str() (so `wandb agent` does) and in JSON."""
    words = [*name.split(), text]
    if by_the_shell:
        words = f"{name}{text}".split()
    parts = parts_of(["--cuda", *words, "--gamma", "1"], flags_of(Args))
    assert plain_words(parts) == ["--cuda", "--sizes", "32", "64", "--gamma", "1"]


@pytest.mark.parametrize("text", ["[]", "()", "[ ]"])
def test_none_of_several(text: str) -> None:
    assert plain_words(parts_of([f"--sizes={text}"], flags_of(Args))) == ["--sizes"]


@pytest.mark.parametrize("text", TAGS)
def test_several_texts_are_written_in_many_ways(text: str) -> None:
    assert plain_words(parts_of([f"--tags={text}"], flags_of(Args))) == ["--tags", "a b", "c"]
    assert plain_words(parts_of(["--tags", "a,b", "c d"], flags_of(Args))) == ["--tags", "a,b", "c d"]


def test_numbers_and_nothing_as_sweeps_write_them() -> None:
    line = "--num_envs=1e6 --num-envs 64.0 --gamma=1e-3 --limit=None --limit null --limit 3 --name=None"
    plain = "--num-envs=1000000 --num-envs=64 --gamma=1e-3 --limit=None --limit=None --limit 3 --name=None"
    assert plain_words(parts_of(line.split(), flags_of(Args))) == plain.split()


@pytest.mark.parametrize("line", ["--cuda=maybe", "--no-cuda=True", "--num-envs four", "junk --zork=1", "--name=no"])
def test_all_else_is_left_as_it_was_written(line: str) -> None:
    assert plain_words(parts_of(line.split(), flags_of(Args))) == line.split()
