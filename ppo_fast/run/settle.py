"""The flags that a run really has: those of the checkpoint that it goes on from, of a preset, or of a recipe."""

import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ppo_fast.envs import Own, handed
from ppo_fast.envs.sight import Actions, look
from ppo_fast.run import checkpoint, find, modules, presets, recipe, resume
from ppo_fast.run.cli import program_of
from ppo_fast.run.film import render_without_a_display
from ppo_fast.run.flags import as_typed, flags_of, plain_args
from ppo_fast.run.randomness import seeded
from ppo_fast.run.run_flags import saved_flags

WIDTH = 100  # columns of a line that a run says


@dataclass(frozen=True)
class Beginning:
    """Where a run begins."""

    origin: resume.Origin | None = None
    """The checkpoint that it goes on from; None for a new run."""
    notes: tuple[str, ...] = ()
    """Lines to say of it."""
    handed_in: Mapping[str, Any] | None = None
    """What config.json says of environments that a caller from Python has handed in; None where they are not."""

    @property
    def iteration(self) -> int:
        """How many iterations are complete already; 0 for a new run."""
        return 0 if self.origin is None else self.origin.checkpoint.progress.iteration


def settle(args: Any, own: Own | None = None) -> tuple[Any, Beginning]:
    """The flags to train with, and where the run begins: `--resume`, preset and recipe applied.

    From here on they are in Python's own types (`flags.plain_args`). Flags that were named stay as they are
    (RunFlags.flags_given).

    Args:
        args: a program's flags, as they were typed.
        own: environments that a caller from Python hands in, if any. They are registered from here on.

    Raises:
        ValueError: "--resume: ..." or, for a flag that is wrong or may not change, its name; "envs: ..." and
            "wrappers: ..." where these can't be used.
    """
    named = args.flags_given
    args = plain_args(args)
    _can_be_saved(args)
    if args.capture_video:
        render_without_a_display()
    handed_in = None
    if own and args.resume in ("", "auto"):
        args, handed_in = _hand_in(args, own, args.env_kwargs)
    found = _find(args)
    if found is not None:
        origin = resume.origin_of(found, program_of(args), type(args))
        if own and handed_in is None:
            args, handed_in = _hand_in_again(args, own, origin)
        given = named or _given(args)
        settled = resume.flags(args, origin.checkpoint.flags, origin.run, given)
        wrong = resume.too_small(settled, origin)
        if wrong is not None:
            raise ValueError(f"--resume: can't go on from {origin.path}: {wrong}")
        notes = _module_of(settled.env_id, origin, args.trust or "env_id" in given)
        return settled, Beginning(origin, notes, handed_in)
    args, notes = _fitted(args, _given(args) if named is None else named)
    args = replace(args, exp_name=_name_of_experiment(args))
    return args, Beginning(notes=tuple(notes), handed_in=handed_in)


def what_is_set(args: Any) -> tuple[str, ...]:
    """What training would set where nobody named it, in the lines that it says of it.

    Raises:
        ValueError: naming the flag: the environment can't be made.
        EnvironmentFault: when the environment fails while it is made.
    """
    return tuple(_fitted(args, args.flags_given or _given(args))[1])


def _fitted(args: Any, given: Collection[str]) -> tuple[Any, Sequence[str]]:
    """The preset of the environment where it has one, else what the program's recipe chooses for it; and lines to say
    of it."""
    if not args.preset:
        return args, ()
    if args.has_presets and not args.recipe:
        tuned = {name: value for name, value in presets.flags(args.env_id).items() if name not in given}
        if tuned:
            return replace(args, **tuned), _lines("preset", as_typed(tuned))
    return (args, ()) if type(args).by_kind is None else _by_recipe(args, type(args).by_kind, given)


def _by_recipe(args: Any, own: recipe.Recipe, given: Collection[str]) -> tuple[Any, Sequence[str]]:
    """What a program's own recipe chooses for this environment where nothing was given, and lines to say of it."""
    defaults = {field.name: _default(field) for field in fields(args)}
    free = {
        name
        for name, value in own.defaults.items()
        if name in defaults and defaults[name] == value and name not in given  # a copy may lack a flag
    }
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or handed.is_ready_made(args.env_id):
        free.discard("num_envs")  # it has to be shared out evenly, which the default can be by more processes
    fixed = {name: value for name, value in vars(args).items() if name not in free}
    notes = []
    watches: list[Actions] = [kind for kind, names in own.watched.items() if free.intersection(names)]
    with seeded(args.seed):  # what is seen is the same each time, and in every process
        sight = look(args.env_id, args.backend, watches=watches, num_envs=args.num_envs, **args.env_options)
    for choice in own.choose(sight, fixed):
        chosen = {name: value for name, value in choice.flags.items() if name in free and value != defaults[name]}
        if chosen:
            args = replace(args, **chosen)
            notes += _lines("" if notes else "recipe", f"{as_typed(chosen)} ({choice.why})")
    return args, notes


def _hand_in(args: Any, own: Own, env_kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any] | None]:
    """The flags with the id under which these environments are found, and what config.json says of them.

    Raises:
        ValueError: they can't be used, or not with these flags.
    """
    is_named = args.env_id != type(args).env_id or own.get("envs") is None
    found = handed.take(own, args.env_id if is_named else "", env_kwargs)
    if found is None:
        return args, None
    args = replace(args, env_id=found.env_id)
    if found.num_envs is None:
        return args, found.facts
    if args.num_envs not in (found.num_envs, type(args).num_envs):
        raise ValueError(f"--num-envs: is {args.num_envs}, and envs is a vector of {found.num_envs}")
    for flag in ("verify", "eval_every"):
        if getattr(args, flag):
            name = flag.replace("_", "-")
            raise ValueError(f"--{name}: needs more environments; hand in what makes them, not a vector ready-made")
    return replace(args, num_envs=found.num_envs), found.facts


def _hand_in_again(args: Any, own: Own, origin: resume.Origin) -> tuple[Any, Mapping[str, Any] | None]:
    """The same for a run that goes on: they have the id that they have there."""
    saved = saved_flags(origin.checkpoint.flags)
    env_id, kwargs = saved.get("env_id"), saved["env_kwargs"]
    if not isinstance(env_id, str) or not handed.is_handed_in(env_id):
        what = f"its environment is {env_id}, and none was handed in then: leave out envs and wrappers"
        raise ValueError(f"--resume: can't go on from {origin.path}: {what}")
    is_named = args.env_id != type(args).env_id
    named = args if is_named else replace(args, env_id=env_id.removeprefix(handed.PREFIX))
    return _hand_in(named, own, kwargs if isinstance(kwargs, dict) else {})


def _name_of_experiment(args: Any) -> str:
    """As it is given, else the program's: "my_ppo" of my_ppo.py; "train" where it has no file, as in a notebook."""
    return args.exp_name or program_of(args).rpartition(".")[2].replace("__main__", "train")


def _module_of(env_id: str, origin: resume.Origin, trusts: bool) -> tuple[str, ...]:
    """Lines to say of the module that an environment of a checkpoint imports. ValueError where it is not imported."""
    try:
        return tuple(modules.check(env_id, origin.run, trusts))
    except ValueError as problem:
        raise ValueError(f"--resume: can't go on from {origin.path}: {problem}") from problem


def _lines(label: str, text: str) -> list[str]:
    """As a run's first lines are: a label, and what it is about beside it."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label:<14}",
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _given(args: Any) -> set[str]:
    """The fields that differ from their default."""
    return {field.name for field in fields(args) if getattr(args, field.name) != _default(field)}


def _default(field: Field) -> Any:
    """The value of a field that nobody named."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _can_be_saved(args: Any) -> None:
    """ValueError naming the first field of a program of one's own that no checkpoint can hold."""
    for flag in flags_of(type(args)).values():
        try:
            checkpoint.plain(getattr(args, flag.field))
        except TypeError as problem:
            kind = type(getattr(args, flag.field)).__name__
            advice = "a flag is a bool, int, float, str, Literal, None or a tuple of one of these"
            raise ValueError(f"{flag.name}: a {kind} can't be kept in a checkpoint; {advice}") from problem


def _find(args: Any) -> find.Found | None:
    """The checkpoint that `--resume` means; None for a new run."""
    args = replace(args, exp_name=_name_of_experiment(args))
    root = Path(args.run_root)
    # torchrun starts the ranks anew, with the same words, after one of them died.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    spec = args.resume or ("auto" if restarted else "")
    if not spec:
        return None
    if spec == "auto":
        alike = {name: getattr(args, name) for name in ("env_id", "env_kwargs", "exp_name", "seed")}
        return find.unfinished(root, program_of(args), alike)
    try:
        return find.resolve(spec, root)
    except ValueError as problem:
        raise ValueError(f"--resume: {problem}") from problem
