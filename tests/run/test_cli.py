"""The command line: every spelling that works, and one line for everything that does not."""

import math
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import tyro

from ppo_fast.run import cli
from ppo_fast.run.cli import Range
from ppo_fast.train import Args as TrainArgs


@dataclass
class Args:
    """Flags of every kind."""

    cuda: bool = True
    """a switch that is on"""
    anneal_lr: bool = False
    """a switch that is off"""
    num_envs: Annotated[int, Range(1)] = 4
    """a bounded whole number"""
    seed: Annotated[int, Range(0, 2**31)] = 1
    """a whole number with two bounds"""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """a bounded number"""
    clip_coef: Annotated[float, Range(0, above=True)] = 0.2
    """a number above a bound"""
    target_kl: Annotated[float | None, Range(0, above=True)] = None
    """an optional number"""
    offset: int = 0
    """a number without bounds"""
    compile: Literal["auto", "on", "off"] = "auto"
    """a choice"""
    exp_name: str = "train"
    """a text"""
    wandb_entity: str | None = None
    """an optional text"""
    hidden_sizes: Annotated[tuple[int, ...], Range(1)] = (64, 64)
    """several whole numbers"""


def parsed(*argv: str) -> Args:
    return cli.parse(Args, argv, "test")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a refused command line gets."""
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("name", ["--cuda", "--anneal-lr", "--anneal_lr"])
@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (("{}",), True),
        (("{}=True",), True),
        (("{}=true",), True),
        (("{}=1",), True),
        (("{}", "True"), True),
        (("{}", "yes"), True),
        (("{}", "ON"), True),
        (("{}=False",), False),
        (("{}=false",), False),
        (("{}=0",), False),
        (("{}", "False"), False),
        (("{}", "no"), False),
        (("{}", "off"), False),
    ],
)
def test_a_boolean_takes_every_spelling(name: str, spelling: tuple[str, ...], expected: bool) -> None:
    field = name[2:].replace("-", "_")
    args = parsed("--num-envs", "7", *(word.format(name) for word in spelling), "--seed", "5")
    assert getattr(args, field) is expected
    assert (args.num_envs, args.seed) == (7, 5)


@pytest.mark.parametrize("word", ["--no-anneal-lr", "--no_anneal_lr", "--no-anneal_lr"])
def test_a_boolean_is_switched_off_by_no(word: str) -> None:
    assert parsed("--anneal-lr", word).anneal_lr is False


def test_a_word_like_a_boolean_after_another_flag_is_that_flags_value() -> None:
    args = parsed("--exp-name", "True", "--seed", "0", "--wandb-entity=no")
    assert (args.exp_name, args.seed, args.wandb_entity) == ("True", 0, "no")


@pytest.mark.parametrize("separator", ["=", " "])
@pytest.mark.parametrize("name", ["--num-envs", "--num_envs"])
def test_values_take_both_separators_and_both_name_styles(name: str, separator: str) -> None:
    assert parsed(*f"{name}{separator}12".split(" ")).num_envs == 12


def test_the_last_of_a_repeated_flag_wins() -> None:
    assert parsed("--num-envs", "4", "--num_envs=5").num_envs == 5


def test_several_values_and_none() -> None:
    args = parsed("--hidden-sizes", "128", "64", "32", "--target-kl", "0.02", "--wandb-entity", "team")
    assert (args.hidden_sizes, args.target_kl, args.wandb_entity) == ((128, 64, 32), 0.02, "team")
    args = parsed("--target-kl", "None", "--wandb-entity=None")
    assert args.target_kl is None and args.wandb_entity is None


def test_help_is_shown_on_stdout_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    out, err = capsys.readouterr()
    assert not stop.value.code and err == ""
    assert "--num-envs" in out and "a bounded whole number" in out


def test_help_names_the_command_and_its_reader_may_leave() -> None:
    command = [sys.executable, "-m", "ppo_fast.train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("usage: python -m ppo_fast.train ")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head` does once it has seen enough
        assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        # unknown flags
        ("--nun-envs 4", "--nun-envs: no such flag; did you mean --num-envs?"),
        ("--num_env=4", "--num-env: no such flag; did you mean --num-envs?"),
        ("--gama=1", "--gama: no such flag; did you mean --gamma?"),
        ("--num-envs 4 --gama 1 --zork 2", "--gama: no such flag; did you mean --gamma?"),
        ("--zork", "--zork: no such flag; --help lists all flags"),
        ("-n 4", "-n: no such flag; --help lists all flags"),
        ("--no-num-envs", "--no-num-envs: no such flag; did you mean --num-envs?"),
        # words that belong to no flag
        ("junk", "unexpected 'junk'; flags are written --name value, see --help"),
        ("num_envs=4", "unexpected 'num_envs=4'; flags are written --name value, see --help"),
        ("--num-envs 4 5", "unexpected '5' after --num-envs; flags are written --name value, see --help"),
        # missing values
        ("--num-envs", "--num-envs: needs a value: a whole number of at least 1"),
        ("--num-envs --cuda", "--num-envs: needs a value: a whole number of at least 1"),
        ("--cuda --gamma", "--gamma: needs a value: a finite number from 0 to 1"),
        ("--compile", "--compile: needs a value: auto, on or off"),
        ("--exp-name", "--exp-name: needs a value: a text"),
        # wrong types
        ("--num-envs four", "--num-envs: must be a whole number of at least 1, got 'four'"),
        ("--num-envs 4.5", "--num-envs: must be a whole number of at least 1, got '4.5'"),
        ("--num-envs=1e3", "--num-envs: must be a whole number of at least 1, got '1e3'"),
        ("--num-envs=", "--num-envs: must be a whole number of at least 1, got ''"),
        ("--seed True", "--seed: must be a whole number from 0 to 2147483648, got 'True'"),
        ("--offset x", "--offset: must be a whole number, got 'x'"),
        ("--gamma big", "--gamma: must be a finite number from 0 to 1, got 'big'"),
        ("--clip-coef 0,2", "--clip-coef: must be a finite number above 0, got '0,2'"),
        ("--target-kl x", "--target-kl: must be a finite number above 0, or None, got 'x'"),
        (
            "--hidden-sizes 64 x",
            "--hidden-sizes: must be whole numbers, separated by spaces, each of at least 1, got 'x'",
        ),
        # choices
        ("--compile fast", "--compile: must be auto, on or off, got 'fast'"),
        ("--compile=", "--compile: must be auto, on or off, got ''"),
        # booleans
        ("--cuda maybe", "--cuda: must be True or False, got 'maybe'"),
        ("--cuda=maybe", "--cuda: must be True or False, got 'maybe'"),
        ("--no-cuda=True", "--no-cuda: takes no value; write --cuda=True or --cuda=False"),
        ("--no-cuda True", "unexpected 'True' after --no-cuda; flags are written --name value, see --help"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(argv: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *argv.split(" ")) == line


def test_a_value_of_many_lines_still_makes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--num-envs" in refused(capsys, "--num-envs", "4\n5\n")


def test_tyros_own_words_where_ours_see_no_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "mistake", lambda argv, args_type: None)
    line = refused(capsys, "--exp-name", "x", "--nun-envs", "4")
    assert line == "Unrecognized options: --nun-envs, 4"
    line = refused(capsys, "--compile", "a-long-word-" * 5)
    assert line.startswith("invalid choice 'a-long-word-") and line.endswith("Expected one of ('auto', 'on', 'off').")


@pytest.mark.parametrize(
    "box",
    [
        "\x1b[31m╭─ Title ─╮\x1b[0m\n│ words  │\n│ go on  │\n│ ────── │\n│ more   │\n╰────────╯\n",
        " Title   \n ------- \n  words  \n  go on  \n  -------\n  more   \n         \n",
    ],
)
def test_a_box_in_one_line(box: str) -> None:
    assert cli.in_one_line(box) == "words go on"


def test_an_empty_box_still_says_something() -> None:
    assert cli.in_one_line("") == "the command line can't be read; see --help"


@pytest.mark.parametrize(
    "argv", ["--num-envs 4 --no-cuda --hidden-sizes 8 8", "--hidden-sizes", "--target-kl None", ""]
)
def test_no_mistake_is_seen_in_a_command_line_that_works(argv: str) -> None:
    assert cli.mistake(argv.split(), Args) is None
    parsed(*argv.split())


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("num_envs", [1, 10**9, np.int64(3), 10**400], [0, -5, 4.0, 4.5, math.nan, True, "4", None]),
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
        cli.check_ranges(Args(**{field: value}))
    flag = cli.flags_of(Args)["--" + field.replace("_", "-")]
    for value in bad:
        with pytest.raises(ValueError, match=f"^{flag.name}: must be ") as error:
            cli.check_ranges(Args(**{field: value}))
        assert flag.allowed in str(error.value)


def test_check_ranges_shows_the_wrong_one_of_several() -> None:
    with pytest.raises(ValueError, match=r"^--hidden-sizes: .* each of at least 1, got 0$"):
        cli.check_ranges(Args(hidden_sizes=(64, 0, 32)))


def test_the_words_of_a_range() -> None:
    ranges = [Range(1), Range(0, above=True), Range(0, 1), Range(0, 1, above=True), Range(0, 2**31)]
    words = ["of at least 1", "above 0", "from 0 to 1", "above 0 and up to 1", "from 0 to 2147483648"]
    assert [str(bound) for bound in ranges] == words


def test_every_flag_of_the_training_program_is_understood() -> None:
    flags = cli.flags_of(TrainArgs)
    assert list(flags) == ["--" + field.name.replace("_", "-") for field in fields(TrainArgs)]
    for flag in flags.values():
        default = getattr(TrainArgs(), flag.field)
        assert flag.holds(default), flag
        words = [str(item) for item in default] if flag.many else [str(default)]
        assert all(flag.reads(word) for word in words), flag
        assert cli.mistake([flag.name, *words], TrainArgs) is None
        if flag.kind in (int, float):
            assert flag.bound is not None, f"{flag.name} has no bounds"
            assert not flag.reads("a word")


# run(): what a program's end becomes


def status(monkeypatch: pytest.MonkeyPatch, program: Any, *argv: str) -> Any:
    """The exit status of `run`, 0 where it returns."""
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    try:
        cli.run(program, Args, "test")
    except SystemExit as stop:
        return stop.code
    return 0


def raises(error: BaseException) -> Any:
    def program(args: Args) -> None:
        raise error

    return program


def test_run_hands_the_flags_and_the_rest_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["program", "--num_envs", "9", "--cuda=False"])
    cli.run(lambda *given: seen.extend(given), Args, None, "watch")
    assert seen == [Args(num_envs=9, cuda=False), "watch"]


@pytest.mark.parametrize(
    ("error", "expected", "line"),
    [
        (ValueError("--num-envs: must be\n  even, got 3"), 2, "error: --num-envs: must be even, got 3\n"),
        (FloatingPointError("losses/value_loss is nan"), 3, "error: losses/value_loss is nan\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_the_ends_that_get_one_line(
    error: BaseException,
    expected: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status(monkeypatch, raises(error)) == expected
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error", [ValueError("shapes differ"), ValueError(), RuntimeError("--num-envs: no"), KeyError("--x")]
)
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)) as caught:
        status(monkeypatch, raises(error))
    assert caught.value is error


def test_a_wrong_flag_ends_run_before_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(monkeypatch, raises(AssertionError("the program ran")), "--num-envs", "x") == 2
    assert capsys.readouterr().err.startswith("error: --num-envs: ")


def test_a_program_stopped_by_a_signal_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(monkeypatch, lambda args: {"stopped": "SIGTERM", "exit_status": 143}) == 143


@pytest.mark.parametrize("result", [None, {}, {"global_step": 3}, 5])
def test_any_other_result_is_status_0(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(monkeypatch, lambda args: result) == 0


def test_nothing_is_written_where_a_flag_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, "--num-envs", "x")
    assert list(tmp_path.iterdir()) == []


@dataclass
class WithWords:
    """A program that is told what to work on."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("latest",)
    """words without a flag"""
    x: Literal["steps", "time"] = "steps"
    """a choice"""
    sizes: tuple[int, ...] = ()
    """several numbers"""
    json: bool = False
    """a switch"""


@dataclass
class WithOneWord:
    """A program that is told one thing to work on."""

    run: Annotated[str, tyro.conf.Positional] = "latest"
    """a word without a flag"""
    seed: int | None = None
    """a number"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", WithWords()),
        ("a b", WithWords(("a", "b"))),
        ("a --x time b", WithWords(("a", "b"), "time")),
        ("--x=time a --json b", WithWords(("a", "b"), "time", json=True)),
        ("--json a", WithWords(("a",), json=True)),
        ("--json yes a", WithWords(("a",), json=True)),
        ("a --sizes 1 2 --x time b", WithWords(("a", "b"), "time", (1, 2))),
        ("a -- b -- c", WithWords(("a", "--", "b", "--", "c"))),
        ("-- a", WithWords(("--", "a"))),
    ],
)
def test_words_without_a_flag_stand_anywhere(line, expected):
    assert cli.parse(WithWords, line.split(), "test") == expected


def test_one_word_without_a_flag(capsys):
    assert cli.parse(WithOneWord, ["--seed", "3", "a"], "test") == WithOneWord("a", 3)
    for line, said in (
        ("a b", "unexpected 'b' after 'a'; flags are written --name value, see --help"),
        ("a --sed 3", "--sed: no such flag; did you mean --seed?"),
        ("a --seed x", "--seed: must be a whole number, or None, got 'x'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.parse(WithOneWord, line.split(), "test")
        assert stop.value.code == 2 and capsys.readouterr().err == f"error: {said}\n"


def test_a_mistake_in_a_word_is_the_users(monkeypatch, capsys):
    def program(args):
        raise ValueError("run: there is none")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stop:
        cli.run(program, WithOneWord, "test")
    assert stop.value.code == 2 and capsys.readouterr().err == "error: run: there is none\n"
    with pytest.raises(ValueError, match="run: there is none"):
        cli.run(program, Args, "test")
