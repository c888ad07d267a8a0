"""The command line of a program: a dataclass of flags read by tyro, with mistakes told in one line and exit status 2.

A field is documented by the docstring under it. `Annotated[float, Range(0, 1)]` bounds it; `check_ranges` holds all
bounds and choices, for calls from Python too. Hyphens and underscores are the same in a flag's name. One field may be
`Annotated[tuple[str, ...], tyro.conf.Positional]`, or the same with `str`: it takes the words that belong to no flag.

    if __name__ == "__main__":
        cli.run(train, Args, __doc__)

| exit status | what happened                                                             |
|-------------|---------------------------------------------------------------------------|
| 0           | the program ended                                                         |
| 2           | a flag is wrong: one line, nothing written                                |
| 3           | training broke down (NaN or infinity): one line                           |
| 4           | `--verify` found the fast path to differ from the eager one               |
| 5           | `--max-runtime` is over: saved, `--resume` goes on                        |
| 6           | an environment raised, died or hung: one line; what was trained is saved  |
| 7           | a disk took neither checkpoint nor policy of what was learned last        |
| 128 + n     | signal n stopped it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1     |
| 141         | the reader of a --help or a table has gone, such as `head`                |
| 1           | standard output takes nothing: one line; or a fault of ours, its traceback |
| 1           | `doctor`: the environment has a fault                                     |
"""

import contextlib
import dataclasses
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ppo_fast import begin
from ppo_fast.run import pairs, streams
from ppo_fast.run.flags import Flag, Range, check_ranges, flags_of, one_of, positional_of
from ppo_fast.run.mistakes import in_one_line, mistake
from ppo_fast.run.run_flags import RunFlags
from ppo_fast.run.words import Part, parts_of, plain_words
from ppo_fast.stops import EnvironmentFault

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Range", "RunFlags", "check_ranges", "fail", "flags_of", "one_of", "parse", "program_of", "run"]

T = TypeVar("T")

FAULT_STATUS = 6  # an environment failed
VERSION = "--version"
HELP = ("-h", "--help")


def parse(args_type: Callable[..., T], argv: Sequence[str] | None, description: str) -> T:
    """Read the flags of a dataclass from argv (sys.argv when None). A mistake is one line on stderr, exit status 2."""
    assert isinstance(args_type, type)
    flags = flags_of(args_type)
    positional = positional_of(flags)
    parts = parts_of(sys.argv[1:] if argv is None else argv, flags)
    if any(part.name == VERSION and part.flag is None for part in parts):
        from ppo_fast.run import help_text

        streams.say(help_text.version())
        streams.flush()
        raise SystemExit(0)
    words: list[str] = []
    if positional is not None:
        words = [part.words[0] for part in parts if not part.name]
        parts = [part for part in parts if part.name]
    pairs_parts = [part for part in parts if part.flag is not None and part.flag.pairs]
    wrong = mistake(pairs_parts, flags)
    if wrong is not None:
        fail(wrong)
    parts_of_tyro = [part for part in parts if part not in pairs_parts]
    args = _read_by_tyro(args_type, parts_of_tyro, flags, description)
    for flag in {part.flag for part in pairs_parts if part.flag is not None}:
        said = [word for part in pairs_parts if part.flag == flag for word in part.values]
        args = dataclasses.replace(args, **{flag.field: pairs.gathered(said)})
    if positional is not None and words:
        if len(words) > 1 and not positional.many:
            fail(f"unexpected {words[1]!r} after {words[0]!r}; flags are written --name value, see --help")
        args = dataclasses.replace(args, **{positional.field: tuple(words) if positional.many else words[0]})
    args.flags_given = frozenset(part.flag.field for part in parts if part.flag is not None)
    return args


def _read_by_tyro(args_type: type, parts: Sequence[Part], flags: Mapping[str, Flag], description: str) -> Any:
    """tyro decides whether something is wrong; the wording is ours, and tyro's where it sees something we do not."""
    import tyro

    said = io.StringIO()
    name = f"python -m {_module(args_type)}"
    if any(part.name in HELP or part.words[0] in HELP for part in parts):
        from ppo_fast.run import help_text  # which nothing else needs

        description = help_text.head(args_type, description, parts)
        args_type, parts = help_text.grouped(args_type), [part for part in parts if part.words[0] in HELP]
    try:
        with contextlib.redirect_stderr(said), streams.told_apart():
            words = plain_words(parts)
            return tyro.cli(args_type, prog=name, args=words, description=description, registry=_dictionaries())
    except SystemExit as stop:
        if stop.code:
            fail(mistake(parts, flags) or in_one_line(said.getvalue()))
        streams.flush()  # of --help
        raise


def _dictionaries() -> Any:
    """How tyro shows a flag whose value is a dictionary; `parse` reads it."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type is not dict and info.type_origin is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME=VALUE",
            instance_from_str=pairs.gathered,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [pairs.spelled({name: item}) for name, item in value.items()],
        )

    return registry


def fail(text: str, status: int = 2) -> NoReturn:
    """Say what was wrong in one line on stderr and exit with this status."""
    streams.complain(f"error: {' '.join(text.split())}")
    raise SystemExit(status)


def program_of(args: "DataclassInstance") -> str:
    """The module that a program's flags come from, by the name under which it can be imported, also where it runs as
    __main__: "my_ppo" of `python my_ppo.py`."""
    return _module(type(args))


def _module(args_type: type) -> str:
    module = sys.modules[args_type.__module__]
    if module.__spec__:
        return module.__spec__.name
    file = getattr(module, "__file__", None)  # None in a notebook
    return Path(file).stem if file else module.__name__


def run(program: Callable[..., Any], args_type: type, description: str | None, *rest: Any) -> None:
    """Run `program(args, *rest)` from the command line and exit with the status of the table above.

    `ValueError("--flag: ...")` is the user's mistake ("field: ..." where the field is positional), FloatingPointError
    training that broke down. A program that a signal stopped cleanly returns a mapping with the "exit_status" that says
    so.
    """
    streams.prepare()
    gc.freeze()  # what imports left stays until the end: no collection need look through it
    try:
        args = parse(args_type, None, (description or "").strip())
        begin.imported()
        result = program(args, *rest)
        streams.flush()
        gc.freeze()  # nor the interpreter, which would take a second of its user's time at the end
    except ValueError as error:
        if begin.was_interrupted():
            _end_as_interrupted()
        if not _is_mistake(str(error), args_type):
            raise
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), 3)
    except EnvironmentFault as fault:
        if fault.trace:
            streams.complain(fault.trace.rstrip())
        fail(str(fault), FAULT_STATUS)
    except KeyboardInterrupt:
        _end_as_interrupted()
    except streams.ReaderGone:  # the reader of a --help or a table has seen enough: `| head`
        _leave_silently()
    except streams.OutputLost as error:
        fail(str(error), 1)
    except Exception:
        if begin.was_interrupted():
            _end_as_interrupted()
        raise
    finally:
        if args_type.__module__ == "__main__":  # a process of its own, which is at its end
            begin.finished()
    if isinstance(result, Mapping) and "exit_status" in result:
        raise SystemExit(result["exit_status"])


def _end_as_interrupted() -> NoReturn:
    fail("interrupted", 128 + signal.SIGINT)


def _leave_silently() -> NoReturn:
    """Exit with the status of a process that SIGPIPE killed."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
    raise SystemExit(141)


def _is_mistake(text: str, args_type: type) -> bool:
    """Whether an error names a flag, or the field that takes the words without one: then it is the user's."""
    positional = positional_of(flags_of(args_type))
    return text.startswith("--") or (positional is not None and text.startswith(f"{positional.field}: "))
