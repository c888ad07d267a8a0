"""The command line of a program: what reaches it, what its end becomes, and one line for everything that is wrong."""

import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from ppo_fast import doctor, evaluate, train, train_lstm
from ppo_fast.run import cli, presets
from ppo_fast.run.flags import Range
from ppo_fast.run.run_flags import GROUPS
from ppo_fast.run.settle import as_typed, settle


@dataclass
class Args:
    """Flags of every kind."""

    cuda: bool = True
    """a switch that is on"""
    anneal_lr: bool = False
    """a switch that is off"""
    num_envs: Annotated[int, Range(1)] = 4
    """a bounded whole number"""
    target_kl: Annotated[float | None, Range(0, above=True)] = None
    """an optional number"""
    compile: Literal["auto", "on", "off"] = "auto"
    """a choice"""
    exp_name: str = "train"
    """a text"""
    wandb_entity: str | None = None
    """an optional text"""
    hidden_sizes: Annotated[tuple[int, ...], Range(1)] = (64, 64)
    """several whole numbers"""


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


def parsed(line: str) -> Args:
    return cli.parse(Args, line.split(), "test")


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], args_type: type = Args) -> str:
    """The one line that a refused command line gets."""
    with pytest.raises(SystemExit) as stop:
        cli.parse(args_type, argv, "test")
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Args()),
        ("--num-envs 12", Args(num_envs=12)),
        ("--num_envs=12", Args(num_envs=12)),
        ("--num-envs 4 --num_envs=5", Args(num_envs=5)),
        ("--cuda=False --anneal_lr yes --num-envs 7", Args(cuda=False, anneal_lr=True, num_envs=7)),
        ("--no-cuda --anneal-lr --no_anneal_lr", Args(cuda=False)),
        ("--exp-name True --wandb-entity=no", Args(exp_name="True", wandb_entity="no")),
        ("--hidden-sizes 128 64 32 --target-kl 0.02", Args(hidden_sizes=(128, 64, 32), target_kl=0.02)),
        ("--hidden-sizes --target-kl None --wandb-entity=None", Args(hidden_sizes=())),
        ("--hidden_sizes=[32, 32] --target_kl=None --cuda=True", Args(hidden_sizes=(32, 32))),
        ("--hidden-sizes=() --num-envs=1e3 --target-kl=1e-2", Args(hidden_sizes=(), num_envs=1000, target_kl=0.01)),
    ],
)
def test_flags_reach_the_program(line: str, expected: Args) -> None:
    assert parsed(line) == expected


@pytest.mark.parametrize("program", ["train", "train_lstm"])
@pytest.mark.parametrize("line", ["--hidden_sizes=[32, 32]", "--hidden_sizes=32 32", "--hidden_sizes=(32,32)"])
def test_lists_as_other_programs_write_them_are_one_word(program: str, line: str) -> None:
    """`wandb agent` hands each flag on as one word, with the list as Python or its configuration spells it."""
    module = import_module(f"ppo_fast.{program}")
    assert cli.parse(module.Args, [line, "--seed=3"], "").hidden_sizes == (32, 32)


def test_the_flags_that_were_given_are_known() -> None:
    given: Any = parsed("--no-cuda --num_envs=4 --target-kl None")
    assert given.flags_given == {"cuda", "num_envs", "target_kl"}
    assert cli.RunFlags.flags_given is None


def test_help_is_shown_on_stdout_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    out, err = capsys.readouterr()
    assert not stop.value.code and err == ""
    assert "--num-envs" in out and "a bounded whole number" in out


def test_help_shows_the_flags_in_groups_and_what_a_user_needs(capsys: pytest.CaptureFixture[str]) -> None:
    for program in (train, train_lstm):
        with pytest.raises(SystemExit):
            cli.parse(program.Args, ["--env-id", "MountainCar-v0", "--help"], program.__doc__ or "")
        out = capsys.readouterr().out
        places = [out.index(f" {group} options ") for group in ("algorithm", *GROUPS)]
        assert places == sorted(places) and out.index("--learning-rate") < places[1] < out.index("--total-timesteps")
        assert out.count(f"python -m {program.__name__} ") >= 3 and "metrics.jsonl" in out[: places[0]]
        assert ("Preset of MountainCar-v0" in out) == program.Args.has_presets
        assert not program.Args.has_presets or as_typed(presets.flags("MountainCar-v0")) in " ".join(out.split())
        assert "the engine's business" not in out  # what a reader of the code is told
        assert all(f"{name} " in out or f"{name}," in out for name in cli.flags_of(program.Args))


def test_help_says_what_is_set_where_there_is_no_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(train.Args, ["--help", "--env-id", "LunarLander-v3"], train.__doc__ or "")
    said = " ".join(capsys.readouterr().out.split())
    assert "LunarLander-v3 has no preset: unless --no-preset, what nobody names is set by its kind" in said


def test_every_flag_of_a_run_has_its_group() -> None:
    grouped = [field for fields in GROUPS.values() for field in fields]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(cli.RunFlags))


@pytest.mark.parametrize("args_type", [train.Args, train_lstm.Args, evaluate.Args, doctor.Args])
def test_version(args_type: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.parse(args_type, ["--version"], "")
    assert stop.value.code == 0 and re.fullmatch(r"ppo_fast [\d.]+ \(torch .*\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("line", ["--lr 1e-4", "--lr=1e-4", "--learning_rate 1e-4"])
def test_an_alias_is_the_flag_itself(line: str) -> None:
    args: Any = cli.parse(train.Args, line.split(), "")
    assert args.learning_rate == 1e-4 and args.flags_given == {"learning_rate"}
    assert settle(cli.parse(train.Args, [*line.split(), "--env-id", "Pendulum-v1"], ""))[0].learning_rate == 1e-4


def test_a_mistake_behind_an_alias(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(train.Args, ["--lr", "fast"], "")
    assert capsys.readouterr().err == "error: --learning-rate: must be a finite number of at least 0, got 'fast'\n"


@pytest.mark.parametrize("word", ["1e6", "1_000_000", "1000000", "1.0e6"])
def test_ways_to_write_a_million(word: str) -> None:
    assert cli.parse(train.Args, ["--total-timesteps", word], "").total_timesteps == 1_000_000


def test_help_names_the_command_and_its_reader_may_leave() -> None:
    command = [sys.executable, "-m", "ppo_fast.train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("usage: python -m ppo_fast.train ")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head` does once it has seen enough
        assert process.stderr.read() == "" and process.wait() == 141


def test_a_mistake_is_one_line_that_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of it; tests/run/test_mistakes.py has more of each."""
    for line, name in (
        ("--nun-envs 4", "--nun-envs"),
        ("--num-envs 4 5", "unexpected '5' after --num-envs"),
        ("--num-envs", "--num-envs"),
        ("--num-envs four", "--num-envs"),
        ("--exp-name -x", "--exp-name"),
        ("--hidden-sizes 64 x", "--hidden-sizes"),
        ("--compile fast", "--compile"),
        ("--cuda maybe", "--cuda"),
        ("--no-cuda=True", "--no-cuda"),
        ("--no-cuda True", "unexpected 'True' after --no-cuda"),
    ):
        assert refused(capsys, line.split()).startswith(name)
    assert refused(capsys, ["--num-envs", "4\n5\n"]).startswith("--num-envs")


class Colour(Enum):
    """Not a type that flags.py knows."""

    RED = 1
    BLUE = 2


@dataclass
class Inner:
    """Flags with a dot in their name."""

    rate: float = 0.1


@dataclass
class Changed:
    """What a user may add to a program: tyro reads it, and says what is wrong."""

    out: Path = Path("out")
    colour: Colour = Colour.RED
    inner: Inner = field(default_factory=Inner)


def test_types_that_only_tyro_knows(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--out a/b --colour BLUE --inner.rate 0.5"
    assert cli.parse(Changed, line.split(), "") == Changed(Path("a/b"), Colour.BLUE, Inner(0.5))
    line = refused(capsys, ["--colour", "a-long-word-" * 5], Changed)
    assert line.startswith("invalid choice 'a-long-word-") and line.endswith("Expected one of ('RED', 'BLUE').")


# run(): what a program's end becomes


def status(monkeypatch: pytest.MonkeyPatch, program: Any, *argv: str, args_type: type = Args) -> Any:
    """The exit status of `run`, 0 where it returns."""
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    try:
        cli.run(program, args_type, "test")
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
    "error",
    [
        ValueError("shapes differ"),
        ValueError(),
        ValueError("run: none"),
        RuntimeError("--num-envs: no"),
        KeyError("--x"),
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)) as caught:
        status(monkeypatch, raises(error))
    assert caught.value is error


def test_a_wrong_flag_ends_run_before_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(monkeypatch, raises(AssertionError("the program ran")), "--num-envs", "x") == 2
    assert capsys.readouterr().err.startswith("error: --num-envs: ")
    assert list(tmp_path.iterdir()) == []


def test_a_program_stopped_by_a_signal_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(monkeypatch, lambda args: {"stopped": "SIGTERM", "exit_status": 143}) == 143
    for result in (None, {}, {"global_step": 3}, 5):
        assert status(monkeypatch, lambda args, result=result: result) == 0


# words that belong to no flag


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
def test_words_without_a_flag_stand_anywhere(line: str, expected: WithWords) -> None:
    assert cli.parse(WithWords, line.split(), "test") == expected


def test_one_word_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.parse(WithOneWord, ["--seed", "3", "a"], "test") == WithOneWord("a", 3)
    assert refused(capsys, ["a", "b"], WithOneWord).startswith("unexpected 'b' after 'a'")
    assert refused(capsys, ["a", "--sed", "3"], WithOneWord).startswith("--sed: no such flag")
    assert refused(capsys, ["a", "--seed", "x"], WithOneWord).startswith("--seed: must be")


def test_a_mistake_in_a_word_is_the_users(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(monkeypatch, raises(ValueError("run: there is none")), args_type=WithOneWord) == 2
    assert capsys.readouterr().err == "error: run: there is none\n"
