"""check_vector_env holds an environment to the contract of ppo_fast.envs; an AssertionError says what broke."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

Predicate = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Taken:
    """What one step returned, and the action that led there."""

    action: torch.Tensor
    obs: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    final_obs: torch.Tensor
    valid: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        return [self.obs, self.reward, self.terminated, self.truncated, self.final_obs, self.valid]


def check_vector_env(
    make_fn: Callable[[], Any],
    steps: int = 60,
    limit: int | None = None,
    terminal: Predicate | None = None,
    continuous: bool = True,
    fixed_start: bool = False,
    resets: int = 60,
) -> None:
    """Check a vector environment of at least two sub-environments that ends several episodes within `steps` steps.

    Args:
        make_fn: makes a fresh, equal environment at each call.
        steps: how many steps each check takes.
        limit: the number of steps at which an episode is truncated.
        terminal: from observations (K, *S) to (K,) bool, whether these end an episode by termination.
        continuous: whether the state changes on every step, so that two observations in a row differ.
        fixed_start: whether every episode starts in the same state.
        resets: how many are taken to learn what a start looks like.

    Raises:
        AssertionError: naming the broken line of the contract.
    """
    env = make_fn()
    _check_attributes(env)
    # First, since the checks below compare equal runs and many seeds.
    _check_seeding(make_fn, steps)
    start, record = play(env, steps, seed=1)
    for step in record:
        _check_types(env, step)
    _check_ends(env, start, record, limit)
    _check_final_obs(start, record, terminal, continuous)
    _check_bounds(env, record)
    _check_fresh_starts(env, record, continuous, fixed_start, resets)
    _check_wrong_actions(env)
    env.close()
    env.close()
    _check_aliasing(make_fn, steps)
    _check_advance(make_fn, steps)


def play(env: Any, steps: int, seed: int, scribble: bool = False) -> tuple[torch.Tensor, list[Taken]]:
    """Reset and step with random actions that are equal in all sub-environments: the first obs and the steps.

    With `scribble` every returned tensor is overwritten before the next step.
    """
    rng = np.random.default_rng(0)
    space = env.single_action_space
    obs, _ = env.reset(seed=seed)
    start, record = obs.clone(), []
    for _ in range(steps):
        action = torch.as_tensor(np.stack([_sample(space, rng)] * env.num_envs), device=env.device)
        obs, reward, terminated, truncated, info = env.step(action)
        assert "final_obs" in info, "info lacks final_obs"
        assert "valid" in info, "info lacks valid"
        step = Taken(action, obs, reward, terminated, truncated, info["final_obs"], info["valid"])
        if scribble:
            kept = Taken(action, *[tensor.clone() for tensor in step.tensors()])
            for tensor in step.tensors():
                # Flipped, not filled: True in place of True would hide a shared mask.
                tensor.logical_not_() if tensor.dtype == torch.bool else tensor.fill_(77)
            step = kept
        record.append(step)
    return start, record


def _sample(space: spaces.Space, rng: np.random.Generator) -> np.ndarray:
    if isinstance(space, spaces.Discrete):
        return np.asarray(rng.integers(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec)
    assert isinstance(space, spaces.Box)
    return rng.uniform(np.maximum(space.low, -2), np.minimum(space.high, 2)).astype(np.float32)


def _check_attributes(env: Any) -> None:
    assert env.num_envs >= 2, "the checker needs at least two sub-environments"
    assert env.backend in ("tensor", "entry_point", "sync", "async", "envpool"), f"backend is {env.backend!r}"
    assert isinstance(env.device, torch.device), "device is not a torch.device"
    assert isinstance(env.spec_id, str), "spec_id is not a string"
    single, batched = env.single_observation_space, env.observation_space
    assert isinstance(single, spaces.Box) and single.dtype == np.float32, "observation space is not a float32 Box"
    assert batched.shape == (env.num_envs, *single.shape), "observation_space is not a batch of the single one"
    action = env.single_action_space
    assert isinstance(action, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)), "unknown action space"
    assert env.action_space.shape == (env.num_envs, *(action.shape or ())), (
        "action_space is not a batch of the single one"
    )
    assert isinstance(env.metadata.get("autoreset_mode"), AutoresetMode), "metadata names no AutoresetMode"
    assert env.metadata is not type(env).metadata, "metadata is shared by all instances"
    assert isinstance(env.pure, bool), "pure is no bool"
    for name, columns in env.columns.items():
        assert 0 <= columns.start < columns.stop <= single.shape[-1], f"the columns of {name!r} are {columns}"


def _check_types(env: Any, step: Taken) -> None:
    shape, rows = (env.num_envs, *env.single_observation_space.shape), (env.num_envs,)
    wanted = {
        "obs": (shape, torch.float32),
        "final_obs": (shape, torch.float32),
        "reward": (rows, torch.float32),
        "terminated": (rows, torch.bool),
        "truncated": (rows, torch.bool),
        "valid": (rows, torch.bool),
    }
    for name, (size, dtype) in wanted.items():
        tensor = getattr(step, name)
        assert isinstance(tensor, torch.Tensor), f"{name} is not a tensor"
        assert tensor.shape == size, f"{name} has the shape {tuple(tensor.shape)}, not {size}"
        assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, not {dtype}"
        assert tensor.device.type == env.device.type, f"{name} is on {tensor.device}"
        assert bool(tensor.isfinite().all()), f"{name} is not finite"


def _check_bounds(env: Any, record: list[Taken]) -> None:
    box = env.single_observation_space
    low, high = torch.tensor(box.low) - 1e-4, torch.tensor(box.high) + 1e-4
    for step in record:
        for obs in (step.obs.cpu(), step.final_obs.cpu()):
            assert bool(((obs >= low) & (obs <= high)).all()), "an observation lies outside its space"


def _check_ends(env: Any, start: torch.Tensor, record: list[Taken], limit: int | None) -> None:
    """The valid mask follows the autoreset mode, and episodes have the length they should."""
    next_step = env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    ended = torch.zeros(len(start), dtype=torch.bool)
    length = torch.zeros(len(start), dtype=torch.int64)
    ends = 0
    for step in record:
        done = (step.terminated | step.truncated).cpu()
        valid = step.valid.cpu()
        wanted = ~ended if next_step else torch.ones_like(ended)
        assert torch.equal(valid, wanted), "valid is not False exactly on the reset rows of a NEXT_STEP environment"
        assert not bool((done & ~valid).any()), "an episode ends on a reset row"
        assert not bool((step.reward.cpu()[~valid] != 0).any()), "a reset row has a reward"
        length = torch.where(valid, length + 1, torch.zeros_like(length))
        if limit is not None:
            at_limit = valid & (length == limit)
            assert torch.equal(step.truncated.cpu(), at_limit), f"not truncated exactly at {limit} steps"
        length = torch.where(done, torch.zeros_like(length), length)
        ends += int(done.sum())
        ended = done
    assert ends >= 2, f"only {ends} episodes ended: nothing is known about autoreset; take more steps"


def _check_final_obs(start: torch.Tensor, record: list[Taken], terminal: Predicate | None, continuous: bool) -> None:
    """final_obs is obs where nothing ended, and the true successor where something did."""
    before = start
    for step in record:
        done = step.terminated | step.truncated
        running = step.valid & ~done
        assert torch.equal(step.final_obs[running], step.obs[running]), "final_obs differs from obs in mid-episode"
        if continuous and bool(done.any()):
            stale = (step.final_obs[done] == before[done]).flatten(1).all(1)
            assert not bool(stale.any()), "final_obs is the observation before the last, not the successor"
        if terminal is not None and bool(step.valid.any()):
            reached = terminal(step.final_obs[step.valid])
            assert torch.equal(reached, step.terminated[step.valid]), "terminated does not fit final_obs"
        before = step.obs


def _check_fresh_starts(env: Any, record: list[Taken], continuous: bool, fixed_start: bool, resets: int) -> None:
    """After an end the next observation is one that a reset gives, and not always the same one."""
    starts = torch.cat([env.reset(seed=seed)[0] for seed in range(100, 100 + resets)]).flatten(1)
    low, high = starts.amin(0), starts.amax(0)
    margin = 0.25 * (high - low) + 1e-5
    fresh = []
    next_step = env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    for step, following in itertools.pairwise(record):
        done = step.terminated | step.truncated
        if not next_step and bool(done.any()):
            changed = (step.obs[done] != step.final_obs[done]).flatten(1).any(1)
            assert bool(changed.any()) or fixed_start, "obs after an end is the final observation, not a reset one"
        fresh.append((following if next_step else step).obs[done].flatten(1))
    rows = torch.cat(fresh)
    inside = ((rows >= low - margin) & (rows <= high + margin)).all(1)
    # The box of some sampled starts says nothing about one-hot states, unless there is only one start.
    assert bool(inside.all()) or not (continuous or fixed_start), "obs after an end is not a fresh start"
    if not fixed_start:
        assert len(torch.unique(rows, dim=0)) > 1, "every episode starts in the same state"


def _check_wrong_actions(env: Any) -> None:
    env.reset(seed=1)
    one_too_many = np.concatenate([env.action_space.sample(), env.action_space.sample()[:1]])
    try:
        env.step(torch.as_tensor(one_too_many, device=env.device))
    except ValueError:
        return
    raise AssertionError("a wrong number of actions is accepted")


def _check_aliasing(make_fn: Callable[[], Any], steps: int) -> None:
    """What was returned never changes afterwards, and changing it changes nothing else."""
    env = make_fn()
    _, record = play(env, steps, seed=3)
    env.close()
    env = make_fn()
    _, kept = play(env, steps, seed=3, scribble=True)
    env.close()
    for step, copied in zip(record, kept, strict=True):
        places = {tensor.untyped_storage().data_ptr() for tensor in step.tensors()}
        assert len(places) == len(step.tensors()), "two tensors that one step returned share memory"
        for tensor, wanted in zip(step.tensors(), copied.tensors(), strict=True):
            assert torch.equal(tensor, wanted), "a returned tensor shares memory with the environment or a later step"


def _check_advance(make_fn: Callable[[], Any], steps: int) -> None:
    """Stepped by `advance`, part by part, an environment gives what `step` gives."""
    env = make_fn()
    _, record = play(env, steps, seed=4)
    env.close()
    env = make_fn()
    env.reset(seed=4)
    parts = list(env.parts)
    sizes = [part.num_envs for part in parts]
    assert sum(sizes) == env.num_envs, "the parts are not all environments"
    states = [part.state for part in parts]
    assert all(state == () for state in states) or env.pure, "an environment that is not pure shows a state"
    for wanted in record:
        given = []
        for number, action in enumerate(wanted.action.split(sizes)):
            noise = parts[number].draw_noise(1)[0]
            assert noise.shape[0] == sizes[number], "draw_noise has not a row for each environment"
            before = states[number]
            states[number], step = parts[number].advance(before, action, noise)
            given.append(step)
            if env.pure:
                _, again = parts[number].advance(before, action, noise)
                assert torch.equal(again.obs, step.obs), "advance is not a pure function: it gives other numbers again"
        for name in ("obs", "reward", "terminated", "truncated", "final_obs"):
            together = torch.cat([getattr(step, name) for step in given])
            assert torch.equal(together, getattr(wanted, name)), f"advance gives another {name} than step"
        if env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            together = torch.cat([step.valid for step in given])
            assert torch.equal(together, wanted.valid), "advance gives another valid than step"
        else:
            assert all(step.valid is None for step in given), "advance tells of reset rows where there are none"
    env.close()


def _check_seeding(make_fn: Callable[[], Any], steps: int) -> None:
    def stream(seed: int) -> torch.Tensor:
        env = make_fn()
        start, record = play(env, steps, seed)
        env.close()
        return torch.stack([start, *[step.final_obs for step in record]])  # (steps + 1, N, *S)

    first = stream(5)
    assert torch.equal(first, stream(5)), "the same seed gives another stream"
    assert not torch.equal(first, stream(6)), "another seed gives the same stream"
    rows = first.transpose(0, 1).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows), "two sub-environments have the same stream"
