"""The command line of a program: a dataclass of flags read by tyro, with mistakes told in one line and exit status 2.

A field is documented by the docstring under it. `Annotated[float, Range(0, 1)]` bounds it; `check_ranges` holds all bounds.
"""

import contextlib
import dataclasses
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_type_hints

T = TypeVar("T")


class Range(NamedTuple):
    """Allowed values of a number, both ends included unless `above` is set, which excludes the lower one."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"a finite number {'above' if self.above else 'of at least'} {self.low:g}"
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"


def flag_name(field: str) -> str:
    """The flag of a field: `num_envs` -> `--num-envs`."""
    return "--" + field.replace("_", "-")


def check_ranges(args: Any) -> None:
    """Raise ValueError naming the flag and the allowed values for the first field outside its `Range`. None passes."""
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        for bound in get_args(hint)[1:]:
            value = getattr(args, name)
            values = value if isinstance(value, tuple) else (value,)
            wrong = [v for v in values if v is not None and v not in bound] if isinstance(bound, Range) else []
            if wrong:
                raise ValueError(f"{flag_name(name)}: must be {bound}, got {wrong[0]!r}")


def with_plain_booleans(argv: Sequence[str], args_type: type) -> list[str]:
    """`--cuda=True`, `--cuda False` and `--cuda=0` become `--cuda` and `--no-cuda`, as sweeps and older scripts write."""
    flags = {flag_name(f.name): f.name for f in dataclasses.fields(args_type) if f.type in (bool, "bool")}
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    result: list[str] = []
    pending = list(argv)
    while pending:
        word = pending.pop(0)
        name, _, value = word.partition("=")
        name = name.replace("_", "-")
        if name in flags and not value and pending and pending[0].lower() in words:
            value = pending.pop(0)
        if name in flags and value.lower() in words:
            word = name if words[value.lower()] else "--no-" + name[2:]
        result.append(word)
    return result


def parse(args_type: Callable[..., T], argv: Sequence[str] | None, description: str) -> T:
    """Read the flags of a dataclass from argv (sys.argv when None). A mistake is one line on stderr, exit status 2."""
    import tyro

    argv = with_plain_booleans(sys.argv[1:] if argv is None else argv, args_type)  # pyright: ignore[reportArgumentType]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(args_type, args=argv, description=description)
    except SystemExit as stop:
        if stop.code:
            fail(in_one_line(said.getvalue()))
        raise


def in_one_line(box: str) -> str:
    """The text of tyro's boxed message: what is wrong and, for an unknown flag, the flags it resembles."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │\n") for line in plain.splitlines() if line.startswith("│")]
    parts = " ".join(lines).split("─" * 5)  # the rules between the sections of the box
    near = re.findall(r"(--[\w-]+)", parts[1]) if len(parts) > 1 and "Perhaps" in " ".join(parts) else []
    near = re.findall(r"(?:^|\s)(--[\w-]+) (?:[A-Z{]|$)", " ".join(parts[1:])) or near
    text = parts[0].strip()
    if "Perhaps" in " ".join(parts) and near:
        text += f"; did you mean {' or '.join(dict.fromkeys(near))}?"
    return text or "the command line could not be read; see --help"


def fail(text: str, status: int = 2) -> NoReturn:
    """Say what was wrong in one line on stderr and exit with this status."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def run(program: Callable[..., Any], args_type: type, description: str | None, *rest: Any) -> None:
    """Run `program(args, *rest)` from the command line.

    `ValueError("--flag: ...")` is the user's mistake: one line, status 2. FloatingPointError is training that broke down:
    one line, status 3.
    """
    args = parse(args_type, None, (description or "").strip())
    try:
        program(args, *rest)
    except ValueError as error:
        if not str(error).startswith("--"):
            raise
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), 3)
