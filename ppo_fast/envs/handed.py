"""Environments that a caller from Python hands in, without registering them.

    with_these = take({"envs": Corridor, "wrappers": [Rescale]}, "", {})
    make(with_these.env_id, 8)      # "own/Corridor"

For as long as a program runs they are registered with gymnasium, under own/ and a name of theirs, so that all that
knows an environment by its id finds them. `registered` and `put_back` are how a program leaves the registry as it was.
"""

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, TypedDict

import gymnasium
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.vector import SyncVectorEnv, VectorEnv

from ppo_fast.envs.keywords import LIMIT
from ppo_fast.envs.tensor import TensorVectorEnv

PREFIX = "own/"
NO_NAME = re.compile(r"[^\w.-]")
Wrapper = Callable[[gymnasium.Env], gymnasium.Env]
# A function or class that makes one environment, or so many of them in a vector as its `num_envs` says; or a vector.
Envs = Callable[..., gymnasium.Env | VectorEnv] | VectorEnv


class Own(TypedDict, total=False):
    """What programs take as keywords: `train(args, envs=..., wrappers=[...])`."""

    envs: Envs | None
    """makes the environments; without it `wrappers` are for the environment of --env-id"""
    wrappers: Sequence[Wrapper]
    """applied to each single environment, the first one first, around gymnasium's limit of steps"""


@dataclass(frozen=True)
class Handed:
    """Environments that were handed in."""

    env_id: str
    """under which `make` finds them"""
    facts: dict[str, Any]
    """what config.json says of them"""
    num_envs: int | None = None
    """of a vector that was made already"""


def is_handed_in(env_id: str) -> bool:
    """Whether the environments of this id are such, here or in the run of a file."""
    return env_id.startswith(PREFIX)


def take(own: Own, env_id: str, env_kwargs: Mapping[str, Any]) -> Handed | None:
    """Register what was handed in; None for nothing.

    Args:
        own: the keywords of a program.
        env_id: of --env-id, which names the environments; with wrappers alone it is what they are for. "" where it
            was not given.
        env_kwargs: keywords for the environment.

    Raises:
        ValueError: "envs: ..." or "wrappers: ...", in one line.
    """
    envs, wrappers = own.get("envs"), own.get("wrappers") or ()
    if not isinstance(wrappers, list | tuple):
        raise ValueError(f"wrappers: a list of what takes an environment and gives one, got {_short(wrappers)}")
    wrappers = list(wrappers)
    if envs is None and not wrappers:
        return None
    for wrapper in wrappers:
        if not callable(wrapper):
            raise ValueError(f"wrappers: each takes an environment and gives one, got {_short(wrapper)}")
    what: dict[str, Any] = {}
    if envs is None:
        spec = _registered_single(env_id)
        name = env_id
    else:
        spec = _spec_of(envs, env_kwargs)
        name = env_id.removeprefix(PREFIX) or spec.id
        what["envs"] = _name_in_words(envs)
    if wrappers and spec.entry_point is None:
        raise ValueError("wrappers: they are for single environments, and envs makes vectors; wrap them there")
    own_id = PREFIX + NO_NAME.sub("_", name.rpartition(":")[2])
    spec = copy.copy(spec)
    spec.id = own_id
    if wrappers:
        spec.vector_entry_point = None
        wrapped = WrapperSpec("wrappers", f"{__name__}:in_wrappers", {"wrappers": _Kept(wrappers)})
        spec.additional_wrappers = (*spec.additional_wrappers, wrapped)
        what["wrappers"] = [_name_in_words(wrapper) for wrapper in wrappers]
    gymnasium.registry[own_id] = spec
    return Handed(own_id, what, envs.num_envs if isinstance(envs, VectorEnv) else None)


def registered() -> dict[str, EnvSpec]:
    """All that is handed in now."""
    return {env_id: spec for env_id, spec in gymnasium.registry.items() if is_handed_in(env_id)}


def put_back(before: Mapping[str, EnvSpec]) -> None:
    """Nothing is handed in but these."""
    for env_id in registered():
        del gymnasium.registry[env_id]
    gymnasium.registry.update(before)


def missing(env_id: str) -> ValueError:
    """That environments of this id are not here."""
    return ValueError(
        f"--env-id: {env_id} is no registered environment: it was handed to train() in Python; hand it in again, as in "
        "train(Args(resume=...), envs=...) or evaluate(Args(run=...), envs=...)"
    )


def borrowed(spec: EnvSpec) -> VectorEnv | None:
    """The vector that was handed in ready-made; None for anything else."""
    return getattr(spec.vector_entry_point, "ready", None)


def is_ready_made(env_id: str) -> bool:
    """Whether a vector of this id was handed in ready-made."""
    spec = gymnasium.registry.get(env_id)
    return spec is not None and borrowed(spec) is not None


def makes_tensors(creator: Any) -> bool:
    """Whether something makes a tensor environment: a class of such, or a function that was handed in and does."""
    if isinstance(creator, type):
        return issubclass(creator, TensorVectorEnv)
    return getattr(creator, "makes_tensors", False)


def in_wrappers(env: gymnasium.Env, wrappers: "_Kept") -> gymnasium.Env:
    """An environment in these wrappers, the first one innermost."""
    for wrapper in wrappers.items:
        env = wrapper(env)
    return env


class _Kept:
    """Objects of the caller's that gymnasium shall not copy."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __deepcopy__(self, memo: dict) -> "_Kept":
        return self


class _Maker:
    """Calls what was handed in, with the keywords that gymnasium gives, and is not copied.

    Args:
        call: of the caller's.
        is_vector: whether it takes `num_envs`.
    """

    def __init__(self, call: Callable[..., Any], is_vector: bool) -> None:
        self._call = call
        self.makes_tensors = False
        self.ready: VectorEnv | None = None
        self.metadata = getattr(call, "metadata", {"render_modes": ["human", "rgb_array"]})
        self._leaves_out = [name for name in ("render_mode", "device") if not _takes(call, name)]
        self._by_place = is_vector and not _takes(call, "num_envs")
        update_wrapper(self, call, updated=())

    def __call__(self, **kwargs: Any) -> Any:
        for name in self._leaves_out:
            kwargs.pop(name, None)
        if self._by_place:
            return self._call(kwargs.pop("num_envs"), **kwargs)
        return self._call(**kwargs)

    def __deepcopy__(self, memo: dict) -> "_Maker":
        return self


class _Ready(_Maker):
    """Gives the vector that was handed in, however many are asked for: there are no others."""

    def __init__(self, envs: VectorEnv) -> None:
        super().__init__(lambda num_envs: envs, is_vector=True)
        self.ready = envs


def _registered_single(env_id: str) -> EnvSpec:
    """The spec of a registered environment that wrappers are for."""
    name = env_id.rpartition(":")[2]
    try:
        spec = gymnasium.spec(env_id)
    except (gymnasium.error.Error, ImportError) as problem:
        raise ValueError(f"--env-id: no environment {env_id!r} that wrappers could be for") from problem
    if spec.entry_point is None:
        raise ValueError(f"wrappers: they are for single environments, and {name} is a vector of them only")
    return spec


def _spec_of(envs: Envs, env_kwargs: Mapping[str, Any]) -> EnvSpec:
    """What `envs` is to gymnasium: what makes one environment, or a vector of them; its id is its name."""
    if isinstance(envs, TensorVectorEnv):
        raise ValueError("envs: a tensor environment is made on the run's device; hand in its class, not an object")
    if isinstance(envs, VectorEnv):
        return _new_spec(_name_of(envs), vector=_Ready(envs))
    if isinstance(envs, gymnasium.Env):
        raise ValueError("envs: training makes several; hand in what makes one: a class, or lambda: MyEnv(...)")
    if not callable(envs):
        raise ValueError(f"envs: a callable that makes an environment, or a vector of them, got {_short(envs)}")
    if isinstance(envs, type) and issubclass(envs, (gymnasium.Env, VectorEnv)):
        if issubclass(envs, TensorVectorEnv):
            return _new_spec(envs.__name__, vector=envs)
        maker = _Maker(envs, is_vector=issubclass(envs, VectorEnv))
        return _new_spec(envs.__name__, **{"vector" if issubclass(envs, VectorEnv) else "single": maker})
    return _looked_at(envs, env_kwargs)


def _looked_at(envs: Callable[..., Any], env_kwargs: Mapping[str, Any]) -> EnvSpec:
    """The same of a function, which is called once to see what it makes."""
    is_vector = _takes(envs, "num_envs", of_any_name=False) or _needs_one(envs)
    maker = _Maker(envs, is_vector)
    kwargs = {name: value for name, value in env_kwargs.items() if name != LIMIT or _takes(envs, LIMIT)}
    if is_vector:
        kwargs |= {"num_envs": 1, **({"device": "cpu"} if _takes(envs, "device", of_any_name=False) else {})}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = maker(**kwargs)
    except Exception:  # of any kind, which is told when the environments are made
        return _new_spec(_name_in_words(envs), **{"vector" if is_vector else "single": maker})
    try:
        if isinstance(found, VectorEnv) != is_vector:
            kind = "a vector without being told how many: it needs a parameter num_envs" if not is_vector else "none"
            raise ValueError(f"envs: {_name_in_words(envs)} makes {kind}")
        maker.makes_tensors = isinstance(found, TensorVectorEnv)
        return _new_spec(_name_of(found), **{"vector" if is_vector else "single": maker})
    finally:
        close = getattr(found, "close", None)
        if close is not None:
            close()


def _name_of(env: Any) -> str:
    """Of an environment, or of the first one in a vector."""
    first = env.envs[0] if isinstance(env, SyncVectorEnv) else env
    spec = getattr(first, "spec", None)
    return spec.id if isinstance(spec, EnvSpec) else type(getattr(first, "unwrapped", first)).__name__


def _new_spec(name: str, single: Callable[..., Any] | None = None, vector: Callable[..., Any] | None = None) -> EnvSpec:
    return EnvSpec(NO_NAME.sub("", name.rpartition("/")[2]), entry_point=single, vector_entry_point=vector)  # type: ignore[arg-type]


def _takes(call: Callable[..., Any], name: str, of_any_name: bool = True) -> bool:
    """Whether something can be called with this keyword, as far as can be seen."""
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return of_any_name
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return name in parameters or (of_any_name and takes_any)


def _needs_one(call: Callable[..., Any]) -> bool:
    """Whether something has to be called with one argument, whatever its name: the number of environments."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.default is each.empty and each.kind in places for each in parameters) == 1


def _name_in_words(thing: Any) -> str:
    """How a callable, or a vector, is called in config.json: module and name."""
    if isinstance(thing, partial):
        return f"partial of {_name_in_words(thing.func)}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _short(thing: object) -> str:
    text = " ".join(repr(thing).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
