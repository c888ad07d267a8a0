"""Flags read from the types of a dataclass: what each one allows, in words and in checks."""

import collections
import dataclasses
import enum
import importlib
import math
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
import tyro
from house_rules import is_program

import ppo_fast
from ppo_fast.run.flags import Range, check_ranges, flags_of, plain_args, positional_of
from ppo_fast.run.mistakes import mistake
from ppo_fast.run.words import parts_of
from ppo_fast.train import Args as TrainArgs


@dataclass
class Args:
    """Flags of every kind."""

    cuda: bool = True
    num_envs: Annotated[int, Range(1)] = 4
    seed: Annotated[int, Range(0, 2**31)] = 1
    gamma: Annotated[float, Range(0, 1)] = 0.99
    clip_coef: Annotated[float, Range(0, above=True)] = 0.2
    target_kl: Annotated[float | None, Range(0, above=True)] = None
    offset: int = 0
    compile: Literal["auto", "on", "off"] = "auto"
    exp_name: str = "train"
    wandb_entity: str | None = None
    wandb_tags: tuple[str, ...] = ()
    hidden_sizes: Annotated[tuple[int, ...], Range(1)] = (64, 64)
    out: Path = Path("out")
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()


def test_the_allowed_values_in_words() -> None:
    words = {flag.field: flag.allowed for flag in flags_of(Args).values()}
    assert words == {
        "cuda": "True or False",
        "num_envs": "a whole number of at least 1",
        "seed": "a whole number from 0 to 2147483648",
        "gamma": "a finite number from 0 to 1",
        "clip_coef": "a finite number above 0",
        "target_kl": "a finite number above 0, or None",
        "offset": "a whole number",
        "compile": "auto, on or off",
        "exp_name": "a text",
        "wandb_entity": "a text, or None",
        "wandb_tags": "texts, separated by spaces",
        "hidden_sizes": "whole numbers, separated by spaces, each of at least 1",
        "out": "a text",
        "runs": "texts, separated by spaces",
    }
    assert str(Range(0, 1, above=True)) == "above 0 and up to 1"


def test_one_field_may_take_the_words_without_a_flag() -> None:
    positional = positional_of(flags_of(Args))
    assert positional is not None and positional.field == "runs"
    assert positional_of(flags_of(TrainArgs)) is None


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("num_envs", [1, 10**9, np.int64(3), 10**400, 4.0, 1e6], [0, -5, 4.5, math.nan, math.inf, True, "4", None]),
        ("seed", [0, 2**31], [-1, 2**31 + 1]),
        (
            "gamma",
            [0, 1, 0.0, 1.0, 0.99, np.float32(0.5)],
            [-1e-9, 1.0000001, math.nan, math.inf, -math.inf, "0.9", True],
        ),
        ("clip_coef", [1e-9, 100], [0, 0.0, -0.1, math.nan, math.inf]),
        ("target_kl", [None, 0.01], [0, -1, math.nan, math.inf]),
        ("offset", [-3, 0], [0.5, None]),
        ("compile", ["auto", "on", "off"], ["fast", "", None, 1]),
        ("hidden_sizes", [(), (1,), (64, 64), [8]], [(0,), (64, -1), (64, 1.5), (None,), 64]),
    ],
)
def test_check_ranges(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_ranges(Args(**{field: value}))
    flag = flags_of(Args)["--" + field.replace("_", "-")]
    for value in bad:
        with pytest.raises(ValueError, match=f"^{flag.name}: must be ") as error:
            check_ranges(Args(**{field: value}))
        assert flag.allowed in str(error.value)


def test_check_ranges_shows_the_wrong_one_of_several() -> None:
    with pytest.raises(ValueError, match=r"^--hidden-sizes: .*, got 0$"):
        check_ranges(Args(hidden_sizes=(64, 0, 32)))


def test_all_that_is_wrong_is_named_in_one_error() -> None:
    with pytest.raises(ValueError, match=r"^--num-envs: must be [^;]*, got 'x'; --hidden-sizes: must be [^;]*, got 0$"):
        check_ranges(Args(num_envs="x", hidden_sizes=(8, 0)))  # type: ignore[arg-type]


def programs() -> list[type]:
    """The Args of all programs."""
    modules = [path.stem for path in Path(ppo_fast.__file__).parent.glob("*.py") if is_program(f"ppo_fast.{path.stem}")]
    return [importlib.import_module(f"ppo_fast.{name}").Args for name in modules]


def wrapped(value: Any) -> list[Any]:
    """A flag's value as callers from Python may have it."""
    if isinstance(value, bool):
        return [np.bool_(value), np.array(value), torch.tensor(value)]
    if isinstance(value, int):
        return [np.int64(value), np.array(value), torch.tensor(value), float(value)]
    if isinstance(value, float):
        exact = [np.float64(value), np.array(value), torch.tensor(value, dtype=torch.float64)]
        return [*exact, int(value)] if value.is_integer() else exact
    if isinstance(value, str):
        return [np.str_(value), enum.Enum("Word", {"ONE": value})["ONE"]]
    if isinstance(value, tuple):
        return [list(value), np.array(value), [item for item in map(np.asarray, value)]]
    if isinstance(value, dict):
        return [dict(value), collections.OrderedDict(value), types.MappingProxyType(value)]
    return [None]


@pytest.mark.parametrize("args_type", programs(), ids=lambda found: found.__module__)
def test_every_flag_of_every_program_takes_what_python_calls_hand_over(args_type: type) -> None:
    default: Any = args_type()
    for flag in flags_of(args_type).values():
        expected = getattr(default, flag.field)
        for value in wrapped(expected):
            found = getattr(plain_args(dataclasses.replace(default, **{flag.field: value})), flag.field)
            assert type(found) is type(expected) and found == expected, (flag, value)
            if flag.many:
                assert [type(item) for item in found] == [type(item) for item in expected], (flag, value)
        if flag.kind is str and not flag.choices and not flag.many:
            found = plain_args(dataclasses.replace(default, **{flag.field: Path("a/b")}))
            assert getattr(found, flag.field) == "a/b"


@dataclass
class Unusual:
    """Types that a program of one's own may have."""

    size: int | str = "auto"
    pair: tuple[int, str] = (1, "a")
    names: list[str] = dataclasses.field(default_factory=list)
    level: Literal[1, 2] = 1
    out: Path = Path("out")


def test_types_that_only_tyro_knows_are_not_judged() -> None:
    args = Unusual("large", (2, "b"), ["c"], np.int64(2), Path("there"))  # type: ignore[arg-type]
    assert plain_args(args) == Unusual("large", (2, "b"), ["c"], 2, Path("there"))
    assert flags_of(Unusual)["--level"].allowed == "1 or 2"


def test_every_flag_of_the_training_program_is_understood() -> None:
    flags = flags_of(TrainArgs)
    assert list(flags) == ["--" + field.name.replace("_", "-") for field in fields(TrainArgs)]
    for flag in flags.values():
        default = getattr(TrainArgs(), flag.field)
        assert flag.plain(default) == default, flag
        words = [str(item) for item in default] if flag.many else [str(default)]
        assert [flag.spell(word) for word in words] == words, flag
        assert mistake(parts_of([flag.name, *words], flags), flags) is None
        if flag.kind in (int, float):
            assert flag.bound is not None, f"{flag.name} has no bounds"
            assert flag.spell("a word") is None
