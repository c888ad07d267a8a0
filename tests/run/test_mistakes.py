"""What is wrong with a command line: one line for each kind of mistake."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from ppo_fast.run.flags import Range, flags_of
from ppo_fast.run.mistakes import in_one_line, mistake
from ppo_fast.run.words import parts_of


@dataclass
class Args:
    """Flags of every kind."""

    cuda: bool = True
    num_envs: Annotated[int, Range(1)] = 4
    gamma: Annotated[float, Range(0, 1)] = 0.99
    target_kl: Annotated[float | None, Range(0, above=True)] = None
    compile: Literal["auto", "on", "off"] = "auto"
    exp_name: str = "train"
    hidden_sizes: Annotated[tuple[int, ...], Range(1)] = (64, 64)


def found(line: str) -> str | None:
    flags = flags_of(Args)
    return mistake(parts_of(line.split(" ") if line else [], flags), flags)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # a flag that is not there
        ("--nun-envs 4", "--nun-envs: no such flag; did you mean --num-envs?"),
        ("--zork", "--zork: no such flag; --help lists all flags"),
        # a word that belongs to no flag
        ("junk", "unexpected 'junk'; flags are written --name value, see --help"),
        ("--num-envs 4 5", "unexpected '5' after --num-envs; flags are written --name value, see --help"),
        # no value
        ("--num-envs", "--num-envs: needs a value: a whole number of at least 1"),
        # a value of another type
        ("--num-envs four", "--num-envs: must be a whole number of at least 1, got 'four'"),
        ("--compile fast", "--compile: must be auto, on or off, got 'fast'"),
        ("--cuda maybe", "--cuda: must be True or False, got 'maybe'"),
        # a value where none is taken
        ("--no-cuda=True", "--no-cuda: takes no value; write --cuda=True or --cuda=False"),
    ],
)
def test_the_words_of_each_kind(line: str, says: str) -> None:
    assert found(line) == says


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        ("--num_env=4", "--num-env: no such flag"),
        ("--num-envs 4 --gama 1 --zork 2", "--gama: no such flag"),  # the first one is told
        ("-n 4", "-n: no such flag"),
        ("--cuda --zork", "--zork: no such flag"),
        ("--no-num-envs", "--no-num-envs: no such flag"),
        ("num_envs=4", "unexpected 'num_envs=4'"),
        ("--no-cuda True", "unexpected 'True' after --no-cuda"),
        ("--cuda True maybe", "unexpected 'maybe' after --cuda"),
        ("--num-envs --cuda", "--num-envs: needs a value"),
        ("--cuda --gamma", "--gamma: needs a value"),
        ("--compile", "--compile: needs a value"),
        ("--exp-name -x", "--exp-name: needs a value"),
        ("--num-envs 4.5", "--num-envs: must be"),
        ("--num-envs=1e-3", "--num-envs: must be"),
        ("--num-envs=", "--num-envs: must be"),
        ("--num-envs -x", "--num-envs: must be"),
        ("--gamma 0,2", "--gamma: must be"),
        ("--target-kl x", "--target-kl: must be"),
        ("--hidden-sizes 64 x", "--hidden-sizes: must be"),
        ("--hidden-sizes=64 x", "--hidden-sizes: must be"),
        ("--hidden-sizes=[64, x]", "--hidden-sizes: must be"),
        ("--hidden-sizes=[64, 32", "--hidden-sizes: must be"),
        ("--num-envs=[64]", "--num-envs: must be"),
        ("--num-envs=None", "--num-envs: must be"),
        ("--num-envs=1e999999999", "--num-envs: must be"),
        ("--compile=", "--compile: must be"),
        ("--cuda=maybe", "--cuda: must be"),
        ("--cuda -1", "--cuda: must be"),
    ],
)
def test_the_first_wrong_flag_is_named(line: str, begins: str) -> None:
    assert (found(line) or "").startswith(begins)


@pytest.mark.parametrize(
    "line",
    ["", "--num-envs 4 --no-cuda --hidden-sizes 8 8", "--hidden-sizes", "--target-kl None", "--cuda=no --no_cuda"],
)
def test_no_mistake_is_seen_in_a_command_line_that_works(line: str) -> None:
    assert found(line) is None


@pytest.mark.parametrize(
    "box",
    [
        "\x1b[31m╭─ Title ─╮\x1b[0m\n│ words  │\n│ go on  │\n│ ────── │\n│ more   │\n╰────────╯\n",
        "╭─ Title ─╮\n│ words  │\n│ go on  │\n╰────────╯\n",
        " Title   \n ------- \n  words  \n  go on  \n  -------\n  more   \n         \n",
    ],
)
def test_a_box_in_one_line(box: str) -> None:
    assert in_one_line(box) == "words go on"


def test_an_empty_box_still_says_something() -> None:
    assert "--help" in in_one_line("")
