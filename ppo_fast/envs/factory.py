"""make: an environment by its id, from the fastest exact backend that there is, or one line about what is wrong."""

import contextlib
import difflib
import importlib
import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import error
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from ppo_fast.envs import envpool, handed, keywords
from ppo_fast.envs.actions import ActionBounds
from ppo_fast.envs.faults import blame
from ppo_fast.envs.groups import HostGroups
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.settings import theirs_of
from ppo_fast.envs.singles import SingleVectorEnv, find_kind, made
from ppo_fast.envs.tensor import TensorVectorEnv
from ppo_fast.envs.workers import WorkerVectorEnv
from ppo_fast.names import first_line
from ppo_fast.stops import EnvironmentFault

BACKENDS = ("auto", "tensor", "entry_point", "sync", "async", "envpool")

# Gymnasium's JAX vector environments drop the transition of every environment whenever one of them ends (seen in
# 1.4.0), so `auto` passes them over; naming the backend still uses them.
_FAULTY_ENTRY_POINTS = ("gymnasium.envs.phys2d.", "gymnasium.envs.tabular.")

# Such as a worker of multiprocessing.Pool.
ALONE = "--backend async: a daemonic process can't start workers; its environments are stepped in the process itself"

# Which extra of ppo_fast brings what an entry point needs.
_EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco"}

# Packages that register their ids when they are imported, by what stands before the slash.
PACKAGES = {"ALE": "ale_py"}


@dataclass(frozen=True)
class _Wanted:
    """What `make` was asked for; see there."""

    env_id: str
    num_envs: int
    device: torch.device
    backend: str
    timeout: float
    num_workers: int | None
    env_kwargs: dict[str, Any]
    action_bounds: ActionBounds = "clip"
    hide: tuple[int, ...] = ()


def make(
    env_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    *,
    timeout: float = 60.0,
    num_workers: int | None = None,
    groups: int = 1,
    action_bounds: ActionBounds = "clip",
    hide: Sequence[int] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    stagger_resets: bool = False,
    **more_kwargs: Any,
) -> TensorVectorEnv | HostVectorEnv | HostGroups:
    """Make N environments behind the contract of ppo_fast.envs.

    `auto` takes the first of these that exists and takes `env_kwargs`: a tensor environment, a registered vector
    entry point, sync. It never takes async, which needs a second CPU and a step that takes longer than a message to a
    worker, about 0.1 ms. It takes envpool only for an id that gymnasium does not know and envpool does: where both
    have an id, the environments differ in their rounding, their random numbers and sometimes their observations.

    Args:
        env_id: a gymnasium id, `module:Env-v0` imports the module first, which registers the id; or one of envpool's.
        num_envs: N.
        device: where tensors are returned.
        backend: one of BACKENDS.
        timeout: async only: seconds that one environment may take for a step, a reset or its start; a worker beyond
            it is a fault.
        num_workers: async only: processes, each with a block of environments; None for one on each usable CPU.
        groups: async and envpool only: parts that step side by side (see HostGroups), each with its own workers.
        action_bounds: how Box actions get into their bounds: "clip", "rescale" from [-1, 1] or, by the bounds, one of
            these, "auto" (see actions.py).
        hide: numbers of a flat observation that are left out of it.
        env_kwargs: for the environment, e.g. `max_episode_steps`; `render_mode` needs the sync or envpool backend, and
            `auto` picks sync then.
        stagger_resets: truncate first episodes, those after a reset of all, at lengths spread over the time limit.
            Otherwise environments whose episodes are all equally long stay at the same step, and each rollout shorter
            than an episode holds only one part of it (Bharthulwar et al. 2025, arXiv 2511.21011).
        more_kwargs: the same, and these win.

    Returns:
        An environment with all that ppo_fast.envs.Environments names; `backend` is the choice made, `spec_id` is
        env_id. Those of sync, async and envpool raise EnvironmentFault where they know which one failed.

    Raises:
        ValueError: naming --env-id, --env-kwargs, --num-envs, --backend, --env-groups, --hide or --stagger-resets, in
            one line.
        EnvironmentFault: when an environment's code raises, dies or hangs while it is imported or made.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"--num-envs: must be a whole number of at least 1, got {num_envs}")
    if backend not in BACKENDS:
        raise ValueError(f"--backend: no backend {backend!r}; choose from {', '.join(BACKENDS)}")
    kwargs = keywords.checked({**(env_kwargs or {}), **more_kwargs})
    wanted = _Wanted(
        env_id, num_envs, torch.device(device), backend, timeout, num_workers, kwargs, action_bounds, tuple(hide)
    )
    envs = _make_one(wanted) if groups == 1 else _make_groups(wanted, groups)
    if stagger_resets:
        try:
            envs.stagger(_first_lengths(envs, kwargs))
        except BaseException:  # also of a signal: no worker may be left behind
            envs.close()
            raise
    return envs


def _first_lengths(envs: TensorVectorEnv | HostVectorEnv | HostGroups, env_kwargs: Mapping[str, Any]) -> np.ndarray:
    """Steps of the first episode of each environment, (N,).

    Those of all processes of torchrun together are spread evenly over the time limit; the longest is as long as it.

    Raises:
        ValueError: naming --stagger-resets, where they can't end so.
    """
    limit = keywords.step_limit(envs.parts[0].envs if isinstance(envs, HostGroups) else envs, env_kwargs)
    if limit is not None and isinstance(envs, TensorVectorEnv):
        limit = min(limit, envs.max_episode_steps)  # a longer one than its own has no effect
    if limit is None:
        advice = "--env-kwargs max_episode_steps=1000 gives it one"
        raise ValueError(f"--stagger-resets: {envs.spec_id} has no time limit that is known; {advice}")
    if not envs.resets_singly:
        raise ValueError(f"--stagger-resets: the vector of {envs.spec_id} can't reset some environments alone")
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    total = envs.num_envs * processes
    if total == 1:
        raise ValueError("--stagger-resets: needs more than one environment")
    number = np.arange(envs.num_envs) * processes + rank + 1  # of each environment among those of all processes, from 1
    return np.maximum(limit * number // total, 1)


def _make_groups(wanted: _Wanted, groups: int) -> HostGroups:
    """The environments in groups, the first ones larger by one where they don't come out even."""
    backend = wanted.backend
    if backend not in ("async", "envpool"):
        raise ValueError(f"--env-groups: needs --backend async or envpool, which step beside the policy, not {backend}")
    if groups > wanted.num_envs:
        raise ValueError(f"--env-groups: {wanted.num_envs} environments can't be parted into {groups} groups")
    size, larger = divmod(wanted.num_envs, groups)
    made: list[Any] = []
    try:
        for number in range(groups):
            made.append(_make_one(replace(wanted, num_envs=size + 1 if number < larger else size)))
    except BaseException:  # also of a signal: no worker may be left behind
        for group in made:
            group.close()
        raise
    return HostGroups(made)


def _make_one(wanted: _Wanted) -> TensorVectorEnv | HostVectorEnv:
    """One group, all checked but the id and the backend's fitness for it."""
    env_id, backend = wanted.env_id, wanted.backend
    if backend == "envpool" and not envpool.installed():
        raise ValueError('--backend: envpool needs a package that is missing; pip install "ppo_fast[envpool]"')
    spec = find_spec(env_id)
    if backend == "envpool" or (backend == "auto" and spec is None):
        return _make_envpool(spec, wanted)
    if spec is None:
        raise ValueError(f"--backend: {env_id} has no {backend} backend; it has envpool")
    wanted = replace(wanted, backend=_choose(spec, wanted))
    if wanted.backend == "async" and multiprocessing.current_process().daemon:
        warnings.warn(ALONE, stacklevel=2)
        wanted = replace(wanted, backend="sync")
    has_limit = wanted.backend in ("tensor", "sync", "async")
    try:
        with keywords.refused(env_id, partial(_creator, spec, wanted.backend), wanted.env_kwargs, has_limit):
            if wanted.backend == "tensor":
                return _make_tensor(spec, wanted)
            ready = handed.borrowed(spec)
            if ready is not None:
                return _adapt(lambda: ready, wanted, is_borrowed=True)
            return _adapt(_remaker(spec, wanted), wanted)
    except (error.DependencyNotInstalled, ImportError) as problem:
        raise ValueError(f"--env-id: {env_id} needs a package that is missing; {_remedy(spec, problem)}") from problem
    except error.Error as problem:
        raise ValueError(f"--env-id: {env_id} can't be made: {first_line(problem)}") from problem


def available_backends(env_id: str) -> tuple[str, ...]:
    """The backends that `env_id` has, in the order in which `auto` would take them, without "auto".

    Raises:
        ValueError: naming --env-id, when there is no such environment.
    """
    spec = find_spec(env_id)
    found = [] if spec is None else _registered_backends(spec)
    return (*found, "envpool") if env_id in envpool.all_ids() else tuple(found)


def auto_backend(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> str:
    """The backend that `auto` takes where `make` is given these keywords and no further arguments.

    Raises:
        ValueError: naming --env-id, when there is no such environment.
    """
    spec = find_spec(env_id)
    if spec is None:
        return "envpool"
    kwargs = keywords.checked(env_kwargs or {})
    return _choose(spec, _Wanted(env_id, 1, torch.device("cpu"), "auto", 0.0, None, kwargs))


def _registered_backends(spec: EnvSpec) -> list[str]:
    """The backends that gymnasium's registry offers."""
    found = []
    if _tensor_spec(spec) is not None:
        found.append("tensor")
    if spec.vector_entry_point is not None and not spec.id.startswith("ppo_fast/") and _tensor_spec(spec) is not spec:
        found.append("entry_point")
    if spec.entry_point is not None:
        found += ["sync", "async"]
    return found


def _choose(spec: EnvSpec, wanted: _Wanted) -> str:
    """The backend to use; see make()."""
    if wanted.backend != "auto":
        _check_named(spec, wanted)
        return wanted.backend
    available = _registered_backends(spec)
    if "render_mode" in wanted.env_kwargs and "sync" in available:
        return "sync"
    if "tensor" in available and not _not_taken(spec, "tensor", wanted):
        return "tensor"
    faulty = str(spec.vector_entry_point).startswith(_FAULTY_ENTRY_POINTS)
    if "entry_point" in available and not faulty and not _not_taken(spec, "entry_point", wanted):
        return "entry_point"
    if "sync" in available:
        return "sync"
    _check_keywords(spec, available[0], wanted)
    return available[0]


def _check_named(spec: EnvSpec, wanted: _Wanted) -> None:
    """Raise unless there is the backend that was named, and it takes the arguments."""
    backend = wanted.backend
    if backend not in _registered_backends(spec):
        available = ", ".join(available_backends(wanted.env_id))
        raise ValueError(f"--backend: {wanted.env_id} has no {backend} backend; it has {available}")
    if backend in ("tensor", "entry_point"):
        _check_keywords(spec, backend, wanted)


def _check_keywords(spec: EnvSpec, backend: str, wanted: _Wanted) -> None:
    """Raise where a vector does not take a keyword, which a single environment might."""
    wrong = _not_taken(spec, backend, wanted)
    if not wrong:
        return
    if spec.entry_point is not None and not keywords.not_taken(_creator(spec, "sync"), {wrong[0]: None}):
        raise ValueError(f"--backend: {backend} {wanted.env_id} does not take {wrong[0]}; use sync")
    raise keywords.refusal(wanted.env_id, wrong[0], _creator(spec, backend), backend == "tensor")


def _not_taken(spec: EnvSpec, backend: str, wanted: _Wanted) -> list[str]:
    """The keywords that a vector's creator does not take; each tensor environment can be given a limit of steps."""
    wrong = keywords.not_taken(_creator(spec, backend), wanted.env_kwargs)
    return [name for name in wrong if backend != "tensor" or name != keywords.LIMIT]


def find_spec(env_id: str) -> EnvSpec | None:
    """Gymnasium's spec, or None where only envpool knows the id. It imports the module that an id names.

    Raises:
        ValueError: naming --env-id, when there is no such environment, or its module can't be imported.
        EnvironmentFault: when the import raises something else.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            with theirs_of(env_id).hold():
                importlib.import_module(module)
        except ImportError as problem:
            raise ValueError(f"--env-id: can't import {module!r} of {env_id!r}: {first_line(problem)}") from problem
        except BaseException as problem:
            blame(None, problem, f"the import of {module!r}")
    spec = gymnasium.registry.get(name)
    if spec is None and not module:
        spec = _registered_by_package(name)
    if spec is not None:
        return spec
    if handed.is_handed_in(env_id):
        raise handed.missing(env_id)
    pools = envpool.all_ids()
    if env_id in pools:
        return None
    near = _near(module, name, pools)
    if near:
        raise ValueError(f"--env-id: no environment {env_id!r}; did you mean {' or '.join(near)}?")
    raise ValueError(f"--env-id: no environment {env_id!r}; ids of other packages are written module:Env-v0")


def _registered_by_package(env_id: str) -> EnvSpec | None:
    """The spec of an id whose package registers it when it is imported; None where no such package is known.

    Raises:
        ValueError: naming the package, where it is not installed.
    """
    package = PACKAGES.get(env_id.partition("/")[0])
    if package is None or "/" not in env_id:
        return None
    try:
        with theirs_of(env_id).hold():
            importlib.import_module(package)
    except ImportError as problem:
        advice = f"pip install {package.replace('_', '-')}"
        raise ValueError(f"--env-id: {env_id} needs {package}: {first_line(problem)}; {advice}") from problem
    except BaseException as problem:
        blame(None, problem, f"the import of {package!r}")
    return gymnasium.registry.get(env_id)


def _near(module: str, name: str, pools: Collection[str]) -> list[str]:
    """Ids like `name`, written so that they can be used as they stand.

    Args:
        module: that was named with it and is imported by now, "" for none. Its ids are there only where it is named.
        pools: envpool's ids, which stand without a module.
    """
    # Of a tensor environment and its original the original is named, which `auto` takes to the other.
    known = {env_id for env_id in gymnasium.registry if not _is_twin(env_id)}
    if not module:
        return difflib.get_close_matches(name, sorted(known.union(pools)))
    own = {env_id for env_id in known if _is_of(gymnasium.registry[env_id], module)}
    for ids in (own, known - own):  # a module may register environments of others
        near = difflib.get_close_matches(name, sorted(ids))
        if near:
            return [f"{module}:{env_id}" for env_id in near]
    return difflib.get_close_matches(name, pools)


def _is_of(spec: EnvSpec, module: str) -> bool:
    """Whether an environment is made by something of a module, or of the package that it stands in."""
    place = spec.entry_point or spec.vector_entry_point
    home = place if isinstance(place, str) else getattr(place, "__module__", "")
    return re.split(r"[.:]", home)[0] == module.split(".")[0]


def _is_twin(env_id: str) -> bool:
    """Whether an id is that of our own tensor environment of an original that is registered, too."""
    return env_id.startswith("ppo_fast/") and env_id.removeprefix("ppo_fast/") in gymnasium.registry


def _tensor_spec(spec: EnvSpec) -> EnvSpec | None:
    """The spec whose vector entry point is a tensor environment of `spec`: our own twin of it, or itself."""
    twin = gymnasium.registry.get(f"ppo_fast/{spec.id}")
    if twin is not None:
        return twin
    try:
        creator = _load(spec.vector_entry_point)
    except ImportError:
        return None
    return spec if handed.makes_tensors(creator) else None


def _creator(spec: EnvSpec, backend: str) -> Any:
    """What is called with the environment's arguments, or None where it can't be imported: making it will tell why."""
    chosen = _tensor_spec(spec) if backend == "tensor" else spec
    try:
        if chosen is None:
            return None
        return _load(chosen.entry_point if backend in ("sync", "async") else chosen.vector_entry_point)
    except (ImportError, AttributeError, error.Error):
        return None


def _load(entry_point: str | Callable | None) -> Any:
    if not isinstance(entry_point, str):
        return entry_point
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)


def _make_tensor(spec: EnvSpec, wanted: _Wanted) -> TensorVectorEnv:
    tensor_spec = _tensor_spec(spec)
    assert tensor_spec is not None
    kwargs = keywords.of_vector(wanted.env_kwargs)
    limit = kwargs.get(keywords.LIMIT, tensor_spec.max_episode_steps)
    limits_itself = not keywords.not_taken(_creator(spec, "tensor"), {keywords.LIMIT: limit})
    if not limits_itself:
        kwargs.pop(keywords.LIMIT, None)
        tensor_spec = replace(tensor_spec, max_episode_steps=None)
    mode = "vector_entry_point"
    make = partial(gymnasium.make_vec, tensor_spec, wanted.num_envs, vectorization_mode=mode, device=wanted.device)
    try:
        env = made(partial(make, **kwargs), None, theirs_of(wanted.env_id))
    except EnvironmentFault as fault:
        # Of a keyword's value; a name that is not taken is said by `keywords.refused`.
        if kwargs and isinstance(fault.__cause__, (TypeError, ValueError)) and not keywords.names_one(fault.__cause__):
            raise ValueError(f"--env-kwargs: {wanted.env_id}: {first_line(fault.__cause__)}") from fault
        raise
    assert isinstance(env, TensorVectorEnv)
    if env.device.type != wanted.device.type:
        raise ValueError(f"envs: {wanted.env_id} is on {env.device}, not on {wanted.device}: let it take `device`")
    if limit is not None and not limits_itself:
        env.limit_steps(limit)
    env.spec_id = wanted.env_id
    env.bound_actions(wanted.action_bounds)
    if wanted.hide:
        env.hide(wanted.hide)
    return env


def _make_envpool(spec: EnvSpec | None, wanted: _Wanted) -> HostVectorEnv:
    env_id = wanted.env_id
    if env_id not in envpool.all_ids():
        found = [] if spec is None else _registered_backends(spec)
        raise ValueError(f"--backend: {env_id} has no envpool backend; it has {', '.join(found)}")
    kwargs = keywords.of_vector(wanted.env_kwargs)
    with keywords.refused(env_id, lambda: None, kwargs):
        remake = partial(envpool.EnvPoolVectorEnv, env_id, wanted.num_envs, **kwargs)
        return _adapt(remake, replace(wanted, backend="envpool"))


def _adapt(remake: Callable[[], VectorEnv], wanted: _Wanted, is_borrowed: bool = False) -> HostVectorEnv:
    """The environments that `remake` makes, behind the contract; what is borrowed is not closed."""
    envs = remake()
    try:
        return HostVectorEnv(
            envs, wanted.device, wanted.backend, wanted.env_id, remake, wanted.action_bounds, wanted.hide, is_borrowed
        )
    except BaseException:
        envs.close()
        raise


def _remaker(spec: EnvSpec, wanted: _Wanted) -> Callable[[], VectorEnv]:
    """What makes the environments of a host backend, as often as it is called."""
    if wanted.backend == "entry_point":
        mode = "vector_entry_point"
        kwargs = keywords.of_vector(wanted.env_kwargs)
        make = partial(gymnasium.make_vec, spec, wanted.num_envs, vectorization_mode=mode, **kwargs)
        return partial(made, make, None, theirs_of(wanted.env_id))

    if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        with contextlib.suppress(ImportError):  # so that find_kind can keep it quiet; gymnasium tells what is missing
            importlib.import_module("mujoco")
    # The spec, not its id: in a process that is not forked nobody has registered the id.
    make_env = partial(gymnasium.make, spec, disable_env_checker=True, **wanted.env_kwargs)
    kind = find_kind(make_env, wanted.env_id)
    makers = [make_env] * wanted.num_envs
    if wanted.backend == "async":
        return partial(WorkerVectorEnv, makers, kind, wanted.num_workers, wanted.timeout)
    return partial(SingleVectorEnv, makers, kind)


def _remedy(spec: EnvSpec, problem: Exception) -> str:
    """How to get the missing package."""
    for prefix, extra in _EXTRAS.items():
        if str(spec.entry_point).startswith(prefix):
            return f'pip install "ppo_fast[{extra}]"'
    return first_line(problem)
