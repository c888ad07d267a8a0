"""`--help` of a program: a head, and the flags in groups. `--version`.

Fields of `RunFlags` stand in the groups that run_flags.GROUPS says, all others of a training program under "algorithm",
which comes first. Other programs have few flags: theirs are not grouped, and their head is their whole docstring.
"""

import ast
import dataclasses
import inspect
import platform
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Annotated, Any, get_type_hints

import ppo_fast
from ppo_fast.run import presets
from ppo_fast.run.flags import as_typed, flags_of
from ppo_fast.run.run_flags import GROUPS, RunFlags
from ppo_fast.run.words import Part

ALGORITHM = "algorithm"
LEAVES = """\
What it leaves, in runs/<env_id>__<exp_name>__<seed>__<unix time>/:

    config.json, metrics.jsonl      every flag; a row an iteration
    result.json, curves.png         how the run ended
    policy.safetensors              what was learned
    checkpoints/                    for --resume

What comes next:

    python -m ppo_fast.evaluate     plays the newest run
    python -m ppo_fast.plot         draws curves of runs
    python -m ppo_fast              lists all programs"""


def version() -> str:
    """What `--version` prints."""
    return f"ppo_fast {ppo_fast.__version__} (torch {metadata.version('torch')}, Python {platform.python_version()})"


def head(args_type: type, description: str, parts: Sequence[Part]) -> str:
    """What stands above the flags: of a training program what a user needs, and the preset of its environment."""
    if not issubclass(args_type, RunFlags):
        return description
    paragraphs = description.split("\n\n")
    examples = [text for text in paragraphs[1:3] if text.startswith("    ")]
    env_id = next((part.values[-1] for part in parts if part.name == "--env-id" and part.values), args_type.env_id)
    tuned = presets.flags(env_id) if args_type.has_presets else {}
    said = f"{env_id} has no preset: the defaults below are used."
    if args_type.by_kind is not None:
        said = f"{env_id} has no preset: unless --no-preset, what nobody names is set by its kind, and printed first."
    if tuned:
        said = f"Preset of {env_id}, in place of defaults below unless --no-preset: {as_typed(tuned)}"
    return "\n\n".join([paragraphs[0], *examples, LEAVES, said])


def grouped(args_type: type) -> type:
    """A dataclass that tyro shows like `args_type`, with its fields in groups; itself where there are none."""
    if not issubclass(args_type, RunFlags):
        return args_type
    import tyro

    group_of = {field: group for group, fields in GROUPS.items() for field in fields}
    members: dict[str, list[Any]] = {name: [] for name in (ALGORITHM, *GROUPS)}
    texts = docstrings(args_type)
    aliases_of = {flag.field: flag.aliases for flag in flags_of(args_type).values()}
    hints = get_type_hints(args_type, include_extras=True)
    for field in dataclasses.fields(args_type):
        aliases = aliases_of[field.name]
        note = tyro.conf.arg(help=texts.get(field.name), aliases=aliases or None)
        copy = dataclasses.field(default=field.default, default_factory=field.default_factory)  # pyright: ignore
        members[group_of.get(field.name, ALGORITHM)].append((field.name, Annotated[hints[field.name], note], copy))
    groups: list[Any] = []
    for name, fields in members.items():
        group = dataclasses.make_dataclass(name.capitalize(), fields)
        group.__doc__ = ""  # or dataclasses says there what it is made of
        groups.append((name, tyro.conf.OmitArgPrefixes[group], dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("Help", groups)


def docstrings(args_type: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of those that it is made from; none without their source."""
    found: dict[str, str] = {}
    for owner in reversed(args_type.__mro__):
        if dataclasses.is_dataclass(owner):
            with suppress(OSError, SyntaxError):
                found |= _in_source(textwrap.dedent(inspect.getsource(owner)))
    return found


def _in_source(source: str) -> Mapping[str, str]:
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(before, ast.AnnAssign) or not isinstance(before.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[before.target.id] = inspect.cleandoc(after.value.value)
    return found
