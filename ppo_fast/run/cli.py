"""The command line of a program: a dataclass of flags read by tyro, with mistakes told in one line and exit status 2.

A field is documented by the docstring under it. `Annotated[float, Range(0, 1)]` bounds it; `check_ranges` holds all
bounds and choices, for calls from Python too. Hyphens and underscores are the same in a flag's name. One field may be
`Annotated[tuple[str, ...], tyro.conf.Positional]`, or the same with `str`: it takes the words that belong to no flag.

| exit status | what happened                                                             |
|-------------|---------------------------------------------------------------------------|
| 0           | the program ended                                                         |
| 2           | a flag is wrong: one line, nothing written                                |
| 3           | training broke down (NaN or infinity): one line                           |
| 4           | `--verify` found the fast path to differ from the eager one               |
| 5           | `--max-runtime` is over: saved, `--resume` goes on                        |
| 6           | an environment died or hung: saved, `--resume` goes on                    |
| 128 + n     | signal n stopped it: 130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1 (Linux)         |
| 1           | a fault of ours, with its traceback                                       |
"""

import contextlib
import dataclasses
import difflib
import gc
import io
import math
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

# The words of strtobool, which older scripts of the field read.
BOOLEANS = {
    **{word: True for word in ("true", "1", "yes", "y", "t", "on")},
    **{word: False for word in ("false", "0", "no", "n", "f", "off")},
}


class Range(NamedTuple):
    """Allowed values of a number, both ends included unless `above` is set, which excludes the lower one."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real):
            return False
        number: Any = value  # an int may be too large for a float, so nothing is converted; NaN is in no range
        return (self.low < number if self.above else self.low <= number) and number <= self.high and number < math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low}" if self.above else f"of at least {self.low}"
        return f"above {self.low} and up to {self.high}" if self.above else f"from {self.low} to {self.high}"


class Flag(NamedTuple):
    """What a field's type says about its flag."""

    name: str  # "--num-envs"
    field: str  # "num_envs"
    kind: type  # bool, int, float or str
    choices: tuple[str, ...]  # of a Literal
    bound: Range | None
    optional: bool  # takes None
    many: bool  # a tuple
    positional: bool = False  # written without its name

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            text = one_of(self.choices)
        else:
            text = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}[self.kind]
        if self.many:
            text = text.removeprefix("a ") + "s, separated by spaces, each"
        text += f" {self.bound}" if self.bound else ""
        return text.removesuffix(", each") + (", or None" if self.optional else "")

    def holds(self, value: object) -> bool:
        """Whether a value is allowed: a choice, a number in bounds. Other texts and truth values are not judged."""
        if self.many and isinstance(value, (tuple, list)):
            return all(self._replace(many=False).holds(item) for item in value)
        if value is None and self.optional:
            return True
        if self.choices:
            return value in self.choices
        if self.kind not in (int, float):
            return True
        number = isinstance(value, Integral if self.kind is int else Real) and not isinstance(value, bool)
        return number and not self.many and (self.bound is None or value in self.bound)

    def reads(self, word: str) -> bool:
        """Whether a word of the command line is a value of this flag's type."""
        if self.optional and word == "None":
            return True
        if self.choices:
            return word in self.choices
        if self.kind is bool:
            return word.lower() in BOOLEANS
        try:
            self.kind(word)
        except ValueError:
            return False
        return True


def flags_of(args_type: type) -> dict[str, Flag]:
    """The flags of a dataclass by name, `num_envs` as `--num-envs`."""
    hints = get_type_hints(args_type, include_extras=True)
    flags = [_flag(field.name, hints[field.name]) for field in dataclasses.fields(args_type)]
    return {flag.name: flag for flag in flags}


def _flag(field: str, hint: Any) -> Flag:
    bound, optional, many, positional = None, False, False, False
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        positional = any(str(note) == "Positional" for note in notes)  # tyro's mark, known without importing tyro
        bound = next((note for note in notes if isinstance(note, Range)), None)
    if get_origin(hint) in (Union, types.UnionType):
        optional = type(None) in get_args(hint)
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        hint, many = get_args(hint)[0], True
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = hint if hint in (bool, int, float) else str
    return Flag("--" + field.replace("_", "-"), field, kind, choices, bound, optional, many, positional)


def positional_of(args_type: type) -> Flag | None:
    """The field that takes the words without a flag, None where a program has none."""
    return next((flag for flag in flags_of(args_type).values() if flag.positional), None)


def split_words(argv: Sequence[str], args_type: type) -> tuple[list[str], list[str]]:
    """The words of a command line that belong to no flag, wherever they stand, and the rest.

    A bare `--` is such a word: what it divides is the program's to say.
    """
    flags, words, rest, pending = flags_of(args_type), [], [], list(argv)
    while pending:
        word = pending.pop(0)
        if word == "--" or not word.startswith("-"):
            words.append(word)
            continue
        rest.append(word)
        flag = flags.get(word.replace("_", "-"))
        if flag is not None and flag.kind is not bool:
            rest += _values(pending, flag.many)
    return words, rest


def check_ranges(args: Any) -> None:
    """Raise ValueError naming the flag and the allowed values for the first field outside its range or choices."""
    for flag in flags_of(type(args)).values():
        value = getattr(args, flag.field)
        if not flag.holds(value):
            values = value if flag.many and isinstance(value, (tuple, list)) else ()
            wrong = next((item for item in values if not flag.holds((item,))), value)
            raise ValueError(f"{flag.name}: must be {flag.allowed}, got {wrong!r}")


def with_plain_booleans(argv: Sequence[str], args_type: type) -> list[str]:
    """`--cuda=True`, `--cuda False` and `--cuda=0`, as sweeps and older scripts write, become `--cuda`, `--no-cuda`."""
    flags = {name for name, flag in flags_of(args_type).items() if flag.kind is bool}
    result: list[str] = []
    pending = list(argv)
    while pending:
        word = pending.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in flags and not equals and pending and pending[0].lower() in BOOLEANS:
            value = pending.pop(0)
        if name in flags and value.lower() in BOOLEANS:
            word = name if BOOLEANS[value.lower()] else "--no-" + name[2:]
        result.append(word)
    return result


def parse(args_type: Callable[..., T], argv: Sequence[str] | None, description: str) -> T:
    """Read the flags of a dataclass from argv (sys.argv when None). A mistake is one line on stderr, exit status 2."""
    import tyro

    assert isinstance(args_type, type)
    argv = with_plain_booleans(sys.argv[1:] if argv is None else argv, args_type)
    positional, words = positional_of(args_type), []
    if positional is not None:
        words, argv = split_words(argv, args_type)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            name = f"python -m {_module(args_type)}"
            args: Any = tyro.cli(args_type, prog=name, args=argv, description=description)
    except SystemExit as stop:
        if stop.code:
            # tyro decides what is wrong; the wording is ours, and tyro's where it sees something that we do not.
            fail(mistake(argv, args_type) or in_one_line(said.getvalue()))
        raise
    if positional is not None and len(words) > 1 and not positional.many:
        fail(f"unexpected {words[1]!r} after {words[0]!r}; flags are written --name value, see --help")
    if positional is not None and words:
        args = dataclasses.replace(args, **{positional.field: tuple(words) if positional.many else words[0]})
    args.flags_given = _given(argv, args_type)
    return args


def _given(argv: Sequence[str], args_type: type) -> frozenset[str]:
    """The fields that a command line names, whatever value it gives them."""
    names = {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    flags = flags_of(args_type).values()
    return frozenset(flag.field for flag in flags if names & {flag.name, "--no-" + flag.name[2:]})


def mistake(argv: Sequence[str], args_type: type) -> str | None:
    """What is wrong with the first wrong word of a command line: the flag and what it takes. None if nothing is."""
    flags = flags_of(args_type)
    words, before = list(argv), ""
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("-"):
            after = f" after {before}" if before else ""
            return f"unexpected {name + equals + value!r}{after}; flags are written --name value, see --help"
        name = before = name.replace("_", "-")
        flag = flags.get(name)
        if flag is None:
            positive = flags.get("--" + name.removeprefix("--no-"))
            if name.startswith("--no-") and positive and positive.kind is bool and not equals:
                continue
            return _unknown(name, positive if equals else None, flags)
        values = [value] if equals else _values(words, flag.many)
        if not values and flag.kind is not bool and not flag.many:
            return f"{name}: needs a value: {flag.allowed}"
        for word in values:
            if not flag.reads(word):
                return f"{name}: must be {flag.allowed}, got {word!r}"
    return None


def _values(words: list[str], many: bool) -> list[str]:
    """Takes the values of a flag off the front of `words`: one or, for a tuple, all up to the next flag."""
    values = []
    while words and not words[0].startswith("--") and (many or not values):
        values.append(words.pop(0))
    return values


def _unknown(name: str, positive: Flag | None, flags: Mapping[str, Flag]) -> str:
    if positive is not None and positive.kind is bool:
        return f"{name}: takes no value; write {positive.name}=True or {positive.name}=False"
    near = difflib.get_close_matches(name, flags, n=2, cutoff=0.7)
    return f"{name}: no such flag; " + (f"did you mean {one_of(near)}?" if near else "--help lists all flags")


def one_of(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def in_one_line(box: str) -> str:
    """What a boxed message of tyro says, without its frame, its title and its further sections."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    sections = [" ".join(section.split()) for section in re.split(r"(?m)^[─-]+$", "\n".join(lines))]
    # Where the terminal has no line-drawing characters the frame is blank and the title is a section.
    return next(filter(None, sections["╭" not in plain :]), "the command line can't be read; see --help")


def fail(text: str, status: int = 2) -> NoReturn:
    """Say what was wrong in one line on stderr and exit with this status."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def program_of(args: Any) -> str:
    """The module that a program's flags come from, by its own name also where it runs as __main__."""
    return _module(type(args))


def _module(args_type: type) -> str:
    module = sys.modules[args_type.__module__]
    return module.__spec__.name if module.__spec__ else module.__name__


def run(program: Callable[..., Any], args_type: type, description: str | None, *rest: Any) -> None:
    """Run `program(args, *rest)` from the command line and exit with the status of the table above.

    `ValueError("--flag: ...")` is the user's mistake ("field: ..." where the field is positional), FloatingPointError
    training that broke down. A program that a signal stopped cleanly returns a mapping with the "exit_status" that says
    so.
    """
    gc.freeze()  # what imports left stays until the end: no collection need look through it
    try:
        args = parse(args_type, None, (description or "").strip())
        result = program(args, *rest)
        gc.freeze()  # nor the interpreter, which would take a second of its user's time at the end
    except ValueError as error:
        positional = positional_of(args_type)
        if not str(error).startswith(("--", f"{positional.field}: ") if positional else "--"):
            raise
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), 3)
    except KeyboardInterrupt:
        fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of a --help or a table has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
        raise SystemExit(141) from None
    if isinstance(result, Mapping) and "exit_status" in result:
        raise SystemExit(result["exit_status"])


@dataclasses.dataclass
class RunFlags:
    """The flags that every training program has: plumbing, not algorithm. A program's `Args` adds its own to them."""

    env_id: str = "CartPole-v1"
    """gymnasium id; `module:Env-v0` imports the module first"""
    backend: str = "auto"
    """how the environments run: auto, tensor, entry_point, sync, async or envpool"""
    total_timesteps: Annotated[int, Range(1)] = 500_000
    """environment steps, all environments together"""
    exp_name: str = "train"
    """name of the experiment, part of the run folder's name"""
    seed: Annotated[int, Range(0, 2**31)] = 1
    """seed of the networks, the actions, the minibatches and the environments"""
    torch_deterministic: bool = True
    """ask cuDNN for deterministic kernels"""
    cuda: bool = True
    """use a CUDA device where there is one"""
    track: bool = False
    """send the rows of metrics.jsonl to Weights & Biases too"""
    wandb_mode: Literal["online", "offline"] = "online"
    """online falls back to offline when W&B cannot be reached or has no key"""
    wandb_project_name: str = "ppo_fast"
    """W&B project"""
    wandb_entity: str | None = None
    """W&B entity (team)"""
    wandb_group: str | None = None
    """W&B group, which gathers runs that belong together, such as the seeds of one configuration"""
    wandb_name: str | None = None
    """name of the W&B run, that of the run folder when not given"""
    wandb_tags: tuple[str, ...] = ()
    """W&B tags"""
    wandb_notes: str | None = None
    """W&B notes"""
    wandb_artifacts: bool = False
    """upload the package's code, the policy and the newest checkpoint to W&B"""
    tensorboard: bool = False
    """write the rows of metrics.jsonl to a TensorBoard event file in the run folder too (extra `tensorboard`)"""
    capture_video: bool = False
    """record a greedy episode after each quarter of training into the run folder's videos/ (extra `video`)"""
    run_root: str = "runs"
    """folder that holds the run folders"""
    quiet: bool = False
    """print warnings and one line at the end only"""
    eval_episodes: Annotated[int, Range(0)] = 100
    """episodes of the final evaluation, greedy and as many sampled; 0 skips it"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto only where it pays within this run, else a CPU records; on a GPU CUDA graphs unless off"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """of the networks' products: tf32 (GPU) rounds their inputs to 10 bits of mantissa, bf16 to 7; the rest is fp32"""
    verify: Annotated[int, Range(0)] = 0
    """instead of training, run this many iterations compiled and eagerly in fp32; exit status 4 if they differ"""
    profile: bool = False
    """profile three iterations after training: a table, and a trace in the run folder"""
    preset: bool = True
    """apply the tuned flags that the environment has, if any; flags given on the command line win"""
    resume: str = ""
    """go on with a run: its folder, a checkpoint, latest, or auto: the newest unfinished one like this, else new"""
    save_interval: Annotated[int, Range(1)] = 100
    """iterations between two checkpoints; one more is saved at the end and at every stop"""
    keep_checkpoints: Annotated[int, Range(1)] = 3
    """newest checkpoints that are kept, besides the best one"""
    max_runtime: Annotated[float | None, Range(0, above=True)] = None
    """seconds after which the run saves and stops with exit status 5, to be resumed"""
    on_nan: Literal["stop", "rollback"] = "stop"
    """at NaN or infinity: stop, or go back to the last checkpoint with half the learning rate, 3 times at most"""
    env_groups: Annotated[int, Range(1)] = 1
    """groups that step by turns, the policy acting for one while another steps; with async and envpool"""
    env_timeout: Annotated[float, Range(0, above=True)] = 60.0
    """seconds after which a silent worker of --backend async counts as dead"""
    env_restarts: Annotated[int, Range(0)] = 0
    """how often environments whose worker died are started again; then the run saves and stops with exit status 6"""

    @property
    def env_options(self) -> dict[str, Any]:
        """What `ppo_fast.envs.make` takes of them besides the environment and the backend."""
        return {"timeout": self.env_timeout, "groups": self.env_groups}
