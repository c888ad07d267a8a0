"""Staggered resets: first episodes are cut at other lengths, all that follow are whole, and nothing else is changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ppo_fast.envs import EnvironmentFault, HostGroups, HostVectorEnv, make
from ppo_fast.envs.factory import _first_lengths
from ppo_fast.envs.keywords import step_limit
from ppo_fast.envs.sight import look
from ppo_fast.envs.tensor import TensorVectorEnv
from ppo_fast.run import recipe, resume, settle
from ppo_fast.run.run_flags import env_view
from ppo_fast.train import Args

LIMIT = 20
N = 4
FIRST = [5, 10, 15, 20]
KINDS: dict[str, dict[str, Any]] = {
    "tensor": {"backend": "tensor"},
    "sync": {"backend": "sync"},
    "async": {"backend": "async", "num_workers": 2},
    "async in groups": {"backend": "async", "groups": 2, "num_workers": 1},
    "envpool": {"backend": "envpool"},
    "envpool in groups": {"backend": "envpool", "groups": 2},
}
Envs = TensorVectorEnv | HostVectorEnv | HostGroups


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Iterator[Callable[..., Envs]]:
    """Makes pendulums, which only a time limit ends, and closes them."""
    opened: list[Envs] = []

    def one(kind: str, env_id: str = "Pendulum-v1", limit: int = LIMIT, **more: Any) -> Envs:
        if kind.startswith("envpool"):
            pytest.importorskip("envpool")
        opened.append(make(env_id, N, max_episode_steps=limit, **KINDS[kind], **more))
        return opened[-1]

    yield one
    for envs in opened:
        envs.close()


def still(envs: Envs) -> torch.Tensor:
    """Actions that do nothing, (N, A)."""
    return torch.zeros(envs.action_space.shape or ())


def ends(envs: Envs, steps: int) -> list[list[int]]:
    """The steps at which episodes of each environment end, each a truncation."""
    found: list[list[int]] = [[] for _ in range(N)]
    action = still(envs)
    for step in range(1, steps + 1):
        _, _, terminated, truncated, _ = envs.step(action)
        assert not terminated.any()
        for index in truncated.nonzero().flatten().tolist():
            found[index].append(step)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_episodes_are_shorter(kind: str, made: Callable[..., Envs]) -> None:
    envs = made(kind, stagger_resets=True)
    for _ in range(2):  # after the second reset of all as after the first
        envs.reset(seed=3)
        assert ends(envs, 45) == [list(range(first, 46, LIMIT)) for first in FIRST]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_cut_episode_leads_to_is_its_true_successor(kind: str, made: Callable[..., Envs]) -> None:
    """Beside the same environments without it: each goes the same way until its first episode is cut."""
    staggered, plain = made(kind, stagger_resets=True), made(kind)
    assert torch.equal(staggered.reset(seed=3)[0], plain.reset(seed=3)[0])
    for step in range(1, LIMIT + 1):
        action = still(plain) + 0.1 * step
        obs, reward, terminated, truncated, info = staggered.step(action)
        expected, expected_reward, _, expected_truncated, expected_info = plain.step(action)
        same = torch.tensor(FIRST) >= step
        assert torch.equal(info["final_obs"][same], expected_info["final_obs"][same])
        assert torch.equal(reward[same], expected_reward[same])
        cut = torch.tensor(FIRST) == step
        assert torch.equal(truncated, cut) and not terminated.any() and info["valid"].all()
        assert torch.equal(info["_final_obs"], cut)
        goes_on = same & ~cut
        assert torch.equal(obs[goes_on], expected[goes_on])
        assert not (obs[cut] == info["final_obs"][cut]).all(-1).any()  # a new episode
        assert torch.equal(expected_truncated, torch.tensor([step == LIMIT] * N))


@pytest.mark.parametrize("kind", ["tensor", "sync", "envpool"])
def test_what_ends_before_is_not_cut_any_more(kind: str, made: Callable[..., Envs]) -> None:
    """A pole that is pushed one way falls after some ten steps."""
    envs = made(kind, "CartPole-v1", 100, stagger_resets=True)  # the first episodes are to end at 25, 50, 75, 100
    envs.reset(seed=1)
    for _ in range(110):
        truncated = envs.step(torch.ones(N, dtype=torch.int64))[3]
        assert not truncated.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_of_some_ends_their_first_episode(kind: str, made: Callable[..., Envs]) -> None:
    """All of a group or all there are, named one by one, are such a reset as well; no mask means all."""
    envs = made(kind, stagger_resets=True)
    for mask, expected in (
        (np.array([True, False, True, False]), [[20], [9], [20], [19]]),
        (np.array([True, True, False, False]), [[20], [20], [14], [19]]),
        (np.full(N, True), [[20]] * N),
        (None, [[5], [10], [15], [20]]),
    ):
        envs.reset(seed=3)
        envs.step(still(envs))
        envs.reset(options={"reset_mask": mask})
        assert ends(envs, 20) == expected


def test_a_seed_beside_a_mask_cuts_nothing(made: Callable[..., Envs]) -> None:
    """An envpool begins all anew then."""
    envs = made("envpool", stagger_resets=True)
    envs.reset(seed=3)
    envs.step(still(envs))
    envs.reset(seed=4, options={"reset_mask": np.array([True, False, False, False])})
    assert ends(envs, LIMIT) == [[LIMIT]] * N


def test_several_processes_share_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    lengths = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        envs = make("Pendulum-v1", 2, backend="tensor", max_episode_steps=60)
        lengths += _first_lengths(envs, {"max_episode_steps": 60}).tolist()
    assert sorted(lengths) == [10, 20, 30, 40, 50, 60]


def test_a_longer_limit_than_its_own_is_not_what_counts() -> None:
    envs = make("Pendulum-v1", N, backend="tensor", max_episode_steps=LIMIT)
    assert _first_lengths(envs, {"max_episode_steps": 500}).tolist() == FIRST


def test_a_vector_that_is_told_to_reset_and_one_that_resets_alone() -> None:
    def vector(mode: AutoresetMode) -> HostVectorEnv:
        pendulum = [lambda: gymnasium.make("Pendulum-v1", max_episode_steps=LIMIT)] * N
        return HostVectorEnv(SyncVectorEnv(pendulum, autoreset_mode=mode), spec_id="Pendulum-v1")

    told = vector(AutoresetMode.DISABLED)
    told.stagger(_first_lengths(told, {"max_episode_steps": LIMIT}))
    told.reset(seed=3)
    assert ends(told, 45) == [list(range(first, 46, LIMIT)) for first in FIRST]
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        alone = vector(mode)
        assert not alone.resets_singly
        with pytest.raises(ValueError, match="--stagger-resets: the vector of Pendulum-v1 can't reset some"):
            _first_lengths(alone, {"max_episode_steps": LIMIT})


def test_more_environments_than_steps() -> None:
    envs = make("Pendulum-v1", 50, backend="tensor", max_episode_steps=LIMIT)
    lengths = _first_lengths(envs, {"max_episode_steps": LIMIT})
    assert lengths.min() == 1 and lengths.max() == LIMIT
    assert set(np.bincount(lengths)[2:-1]) == {2, 3}  # evenly


def test_without_a_time_limit_it_is_refused() -> None:
    with pytest.raises(ValueError, match="--stagger-resets: Pendulum-v1 has no time limit that is known"):
        make("Pendulum-v1", N, backend="sync", max_episode_steps=-1, stagger_resets=True)
    with pytest.raises(ValueError, match="--stagger-resets: needs more than one"):
        make("Pendulum-v1", 1, stagger_resets=True)


class _Breaks(gymnasium.Wrapper):
    """Can't begin a third episode."""

    begun = 0

    def reset(self, **kwargs: Any) -> Any:
        self.begun += 1
        if self.begun > 2:
            raise RuntimeError("no further episode")
        return super().reset(**kwargs)


def test_a_fault_of_such_a_reset_names_the_environment() -> None:
    spec = gymnasium.spec("Pendulum-v1")
    gymnasium.register("Breaks-v0", lambda **kwargs: _Breaks(gymnasium.make(spec, **kwargs)), max_episode_steps=LIMIT)
    try:
        envs = make("Breaks-v0", N, backend="sync", stagger_resets=True)
        envs.reset(seed=1)
        with pytest.raises(EnvironmentFault, match="environment 0 raised RuntimeError: no further episode"):
            ends(envs, 30)
        envs.close()
    finally:
        gymnasium.registry.pop("Breaks-v0")


def _taxis() -> HostVectorEnv:
    """A vector that is told when to reset."""
    taxis = [lambda: gymnasium.make("Taxi-v4", max_episode_steps=LIMIT)] * N
    envs = HostVectorEnv(SyncVectorEnv(taxis, autoreset_mode=AutoresetMode.DISABLED), spec_id="Taxi-v4")
    envs.stagger(_first_lengths(envs, {"max_episode_steps": LIMIT}))
    return envs


@pytest.mark.parametrize("is_told_to_reset", [False, True])
def test_first_observations_come_with_their_masks(is_told_to_reset: bool) -> None:
    ours: dict[str, Any] = {"backend": "sync", "max_episode_steps": LIMIT, "stagger_resets": True}
    envs = _taxis() if is_told_to_reset else make("Taxi-v4", N, **ours)
    assert envs.mask_size == 6
    envs.reset(seed=1)
    plain = make("Taxi-v4", 1, backend="sync")
    masks = {}  # of the states that an episode begins in
    for seed in range(2000):
        row = plain.reset(seed=seed)[0][0]
        masks[int(row[:500].argmax())] = row[500:]
    for step in range(1, LIMIT + 1):
        obs, _, terminated, truncated, _ = envs.step(torch.full((N,), 5))  # a drop of nobody: the taxi stays
        assert not terminated.any()
        for index in truncated.nonzero().flatten().tolist():
            assert step == FIRST[index]
            assert torch.equal(obs[index, 500:], masks[int(obs[index, :500].argmax())])
    envs.close()
    plain.close()


@pytest.mark.fitted
def test_the_recipe_says_why_and_nobody_else_plays_with_it() -> None:
    args = Args(env_id="Pendulum-v1", recipe=True, env_kwargs={"max_episode_steps": 1000})
    settled, beginning = settle.settle(args)
    assert settled.stagger_resets
    assert "--stagger-resets (episodes of 1000 steps" in "\n".join(beginning.notes)
    assert "stagger_resets" in settled.env_options and "stagger_resets" not in env_view(vars(settled))


@pytest.mark.fitted
def test_what_falls_is_seen_although_all_else_is_named() -> None:
    named = {"gamma": 0.98, "log_std_init": 0.1, "desired_kl": 0.02, "ent_coef": 0.1, "stagger_resets": True}
    named |= {"learning_rate": 1e-4, "lr_schedule": "constant"}
    assert named.keys() == set(recipe.VECTORS.watched["continuous"])
    far = {"gamma": 0.999, "log_std_init": 1.0, "desired_kl": 0.015, "learning_rate": 3e-4, "lr_schedule": "kl"}
    for left_out, chosen in (*far.items(), ("stagger_resets", False), ("ent_coef", 0.0)):
        args = Args(env_id="MountainCarContinuous-v0", **{x: value for x, value in named.items() if x != left_out})
        assert getattr(settle.settle(args)[0], left_out) == chosen


def test_a_run_of_before_the_flag_does_not_take_it_when_it_goes_on() -> None:
    """Its environments would not have the state that a staggered one has."""
    saved = {name: value for name, value in vars(Args()).items() if name not in ("stagger_resets", "adv_std_min")}
    wanted = Args(stagger_resets=True)
    with pytest.raises(ValueError, match="--stagger-resets: is False in old and can't change"):
        resume.flags(wanted, saved, Path("old"), ["stagger_resets"])
    with pytest.raises(ValueError, match=r"--adv-std-min: is 0\.0 in old and can't change"):
        resume.flags(Args(adv_std_min=0.1), saved, Path("old"), ["adv_std_min"])


@pytest.mark.parametrize("limit", [2**31 - 1, 10**10])
def test_a_limit_that_means_none_is_none(limit: int) -> None:
    """As where gymnasium's -1 is written as a number, or where a vector says so itself."""
    envs = make("Pendulum-v1", N, backend="tensor")
    assert isinstance(envs, TensorVectorEnv)
    assert step_limit(envs, {"max_episode_steps": limit}) is None
    envs.max_episode_steps, envs.spec_id = limit, "Nobody-v0"
    assert step_limit(envs, {}) is None


def test_a_vector_that_cannot_reset_some_is_seen_as_such() -> None:
    def vector(num_envs: int = 1, **_: Any) -> SyncVectorEnv:
        pendulums = [lambda: gymnasium.make("Pendulum-v1")] * num_envs
        return SyncVectorEnv(pendulums, autoreset_mode=AutoresetMode.NEXT_STEP)

    gymnasium.register("Alone-v0", vector_entry_point=vector)
    try:
        assert not look("Alone-v0").resets_singly
    finally:
        gymnasium.registry.pop("Alone-v0")
    assert look("Pendulum-v1").resets_singly
