"""Keywords for an environment, `--env-kwargs is_slippery=False`: checked, and named where nobody takes them."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium

from ppo_fast.envs.faults import EnvironmentFault
from ppo_fast.names import first_line

LIMIT = "max_episode_steps"  # gymnasium.make's own
UNLIMITED = 2**31 - 1  # steps, where gymnasium.make says -1 for no limit
# What `make` itself says to a vector.
OURS = ("num_envs", "device")
NOT_TAKEN = re.compile(r"(?:unexpected|multiple values for) keyword argument '(\w+)'")


def checked(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with a limit of steps that gymnasium.make takes, or none.

    Raises:
        ValueError: naming --env-kwargs, where the limit is no number of steps.
    """
    kwargs = dict(env_kwargs)
    limit = kwargs.pop(LIMIT, None)
    if limit is None:
        return kwargs
    is_whole = isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit == int(limit)
    if not is_whole or (limit < 1 and limit != -1):
        raise ValueError(f"--env-kwargs: {LIMIT} must be a whole number of at least 1, or -1 for none, got {limit!r}")
    return {**kwargs, LIMIT: int(limit)}


def step_limit(envs: Any, env_kwargs: Mapping[str, Any]) -> int | None:
    """The steps at which an episode of these environments is truncated, as far as they say; None where none is known.

    Args:
        envs: of `make`.
        env_kwargs: that they were made with.
    """
    asked = env_kwargs.get(LIMIT)
    if asked is not None:
        return None if asked == -1 or asked >= UNLIMITED else int(asked)  # 200.0 is taken, too
    spec = gymnasium.registry.get(envs.spec_id.rpartition(":")[2])
    own = [getattr(each, LIMIT, None) for each in (envs, getattr(envs, "envs", None), spec)]
    return next((limit for limit in own if limit and limit < UNLIMITED), None)


def of_vector(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same for what knows no -1."""
    return {**env_kwargs, LIMIT: UNLIMITED} if env_kwargs.get(LIMIT) == -1 else dict(env_kwargs)


def not_taken(creator: Callable[..., Any] | None, env_kwargs: Mapping[str, Any]) -> list[str]:
    """Those of the keywords that are no parameters of `creator`, as far as its signature says; None takes all."""
    parameters = _parameters(creator)
    if parameters is None:
        return []
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in env_kwargs if name in OURS or not (takes_any or name in parameters)]


def names_one(problem: Exception) -> bool:
    """Whether Python says in it that a keyword is not taken."""
    return NOT_TAKEN.search(first_line(problem)) is not None


def _parameters(creator: Callable[..., Any] | None) -> Mapping[str, inspect.Parameter] | None:
    try:
        return None if creator is None else inspect.signature(creator).parameters
    except (TypeError, ValueError):  # it is written in C
        return None


def refusal(env_id: str, name: str, creator: Callable[..., Any] | None, has_limit: bool) -> ValueError:
    """That an environment does not take the keyword `name`, and what it takes, in a line.

    Args:
        creator: what is called with the keywords, if that is known.
        has_limit: whether it may be given `max_episode_steps` in any case.
    """
    if name == "render_mode":
        return ValueError(f"--env-kwargs: {env_id} takes no render_mode, so it can't be filmed")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = (_parameters(creator) or {}).values()
    taken = [each.name for each in parameters if each.kind in kinds and each.name not in (*OURS, "self", LIMIT)]
    taken += [LIMIT] if has_limit or LIMIT in (_parameters(creator) or {}) else []
    advice = f"; it takes {', '.join(taken)}" if taken else ""
    return ValueError(f"--env-kwargs: {env_id} does not take {name}{advice}")


@contextlib.contextmanager
def refused(
    env_id: str, creator: Callable[[], Any], env_kwargs: Mapping[str, Any], has_limit: bool = True
) -> Iterator[None]:
    """A keyword that is not taken inside is a ValueError naming it, whoever found out.

    Args:
        env_id, has_limit: see `refusal`.
        creator: gives what is called with the keywords; None where that is not known.
        env_kwargs: the keywords.
    """
    try:
        yield
    except (TypeError, ValueError, EnvironmentFault) as problem:
        cause = problem if isinstance(problem, TypeError) else problem.__cause__
        found = NOT_TAKEN.search(first_line(cause)) if isinstance(cause, TypeError) else None
        if found is None or found[1] not in env_kwargs:
            raise
        raise refusal(env_id, found[1], creator(), has_limit) from problem
