"""What can be seen of an environment before anything is trained on it."""

import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ppo_fast.envs import EnvironmentFault, sight
from ppo_fast.envs.sight import Actions, Sight, look


@pytest.mark.parametrize(
    ("env_id", "backend", "seen"),
    [
        ("CartPole-v1", "auto", Sight("discrete", 2, "numbers", 4, 500)),
        ("CartPole-v1", "async", Sight("discrete", 2, "numbers", 4, 500)),
        ("CartPole-v1", "envpool", Sight("discrete", 2, "numbers", 4, 500)),
        ("Pendulum-v1", "auto", Sight("continuous", 1, "numbers", 3, 200, reach=2.0)),
        ("MountainCarContinuous-v0", "auto", Sight("continuous", 1, "numbers", 2, 999, sparse=True)),
        ("MountainCarContinuous-v0", "sync", Sight("continuous", 1, "numbers", 2, 999, sparse=True)),
        (
            "InvertedPendulum-v5",
            "sync",
            Sight("continuous", 1, "numbers", 4, 1000, reach=3.0, falls=True),
        ),
        ("BallInCupCatch-v1", "auto", Sight("continuous", 2, "numbers", 8, 1000, sparse=True)),
        ("Hopper-v5", "envpool", Sight("continuous", 3, "numbers", 11, 1000, falls=True)),
        ("Reacher-v5", "envpool", Sight("continuous", 2, "numbers", 10, 50)),  # a time limit is no fall
        ("FrozenLake-v1", "auto", Sight("discrete", 4, "table", 16, 100, unrewarded=True)),
        ("CliffWalking-v1", "auto", Sight("discrete", 4, "table", 48, None)),
        ("CheetahRun-v1", "auto", Sight("continuous", 6, "numbers", 17, 1000)),  # envpool's alone
        ("ppo_fast/MemoryChain-v0", "auto", Sight("discrete", 2, "numbers", 3, 21)),
    ],
)
def test_what_is_seen(env_id: str, backend: str, seen: Sight) -> None:
    assert look(env_id, backend) == seen


def test_it_is_seen_as_the_program_will_see_it() -> None:
    """With columns hidden and a time limit of one's own, in groups or not."""
    assert look("CartPole-v1", "async", groups=2, hide=(1, 3), env_kwargs={"max_episode_steps": 70}) == Sight(
        "discrete", 2, "numbers", 2, 70
    )


def test_no_limit_is_seen_where_it_is_taken_away() -> None:
    assert look("CartPole-v1", "sync", env_kwargs={"max_episode_steps": -1}).time_limit is None


class Parts(gymnasium.Env):
    """Several discrete actions at once."""

    observation_space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3))
    action_space = spaces.MultiDiscrete([2, 5])

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


def test_parts_are_counted_together() -> None:
    gymnasium.register("SightOfParts-v0", lambda **_: Parts())
    assert look("SightOfParts-v0") == Sight("discrete", 7, "numbers", 5, None)


class Paid(gymnasium.Env):
    """Rewarded by a sequence, over and over, for at most so many steps."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, rewards, ends_at=None):
        self.rewards, self.ends_at, self.actions = rewards, ends_at, []

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        reward = self.rewards[self.steps % len(self.rewards)]
        return np.zeros(2, np.float32), reward, self.steps == self.ends_at, False, {}


@pytest.mark.parametrize(
    ("low", "high", "bounds", "reach"),
    [
        ([-2, -2], [2, 2], "auto", 2.0),
        ([-1, -1], [1, 1], "auto", 1.0),
        ([-2, -1], [2, 1], "auto", 1.41421),  # the geometric mean
        ([-0.4, -0.4], [0.4, 0.4], "auto", 1.0),  # mapped from [-1, 1]
        ([-0.4, -0.4], [0.4, 0.4], "clip", 0.4),
        ([0, -1], [4, 1], "clip", 1.41421),
        ([-np.inf, -2], [np.inf, 2], "auto", 2.0),
        ([-np.inf, 0], [np.inf, np.inf], "auto", 1.0),
        ([-1e20, -1e20], [1e20, 1e20], "clip", 1.0),  # as some write infinity
        ([3, 3], [3, 3], "clip", 1.0),
        ([-1e-10, -1e-10], [1e-10, 1e-10], "clip", 1e-10),
    ],
)
def test_how_far_actions_reach(low: list[float], high: list[float], bounds: str, reach: float) -> None:
    class Bounded(Paid):
        """Of two numbers."""

        action_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))

    gymnasium.register("SightOfReach-v0", lambda **_: Bounded([0.0, 1.0]))
    try:
        assert look("SightOfReach-v0", "sync", action_bounds=bounds).reach == reach
    finally:
        gymnasium.registry.pop("SightOfReach-v0")


@pytest.mark.parametrize(
    ("rewards", "ends_at", "limit", "sparse", "falls"),
    [
        ([-0.3], None, 1000, True, False),
        ([1.0], None, None, True, False),
        ([1.0], 200, None, False, True),
        ([1.0, 2.0], 256, 1000, False, True),
        ([1.0, 2.0], 257, 1000, False, False),
        ([1.0], 200, 100, True, False),  # an end that nobody reaches
        ([0.0, 1e-3], None, 1000, False, False),
        ([0.0] * 200 + [1.0], None, 1000, False, False),
        ([0.0], None, 2, False, False),  # one reward says nothing
        ([0.0], None, 1, False, False),
    ],
)
def test_doing_nothing_tells_whether_rewards_are_sparse_and_what_falls(
    rewards: list[float], ends_at: int | None, limit: int | None, sparse: bool, falls: bool
) -> None:
    made = Paid(rewards, ends_at)
    gymnasium.register("SightOfRewards-v0", lambda **_: made, max_episode_steps=limit)
    try:
        seen = look("SightOfRewards-v0", "sync")
    finally:
        gymnasium.registry.pop("SightOfRewards-v0")
    assert (seen.sparse, seen.falls) == (sparse, falls)
    assert all(np.array_equal(action, [0]) for action in made.actions)


@pytest.mark.parametrize(
    "space", [gymnasium.spaces.Discrete(3, start=5), gymnasium.spaces.MultiDiscrete([3, 2])], ids=str
)
@pytest.mark.parametrize(
    ("rewards", "ends_at", "unrewarded"),
    [
        ([0.0], None, True),
        ([0.0], 3, True),  # episodes that end are no reward
        ([-1.0], None, False),
        ([0.0] * 256 + [1e-6], None, False),  # at the last step that is watched
        ([0.0] * 257 + [1.0], None, True),
    ],
)
def test_doing_anything_tells_whether_something_is_rewarded(
    space: gymnasium.Space, rewards: list[float], ends_at: int | None, unrewarded: bool
) -> None:
    made = Paid(rewards, ends_at)
    made.action_space = space
    gymnasium.register("SightOfChoices-v0", lambda **_: made)
    try:
        seen = [look("SightOfChoices-v0", "sync") for _ in range(2)]
    finally:
        gymnasium.registry.pop("SightOfChoices-v0")
    assert [x.unrewarded for x in seen] == [unrewarded] * 2 and not seen[0].sparse and not seen[0].falls
    tried = [tuple(np.ravel(action).tolist()) for action in made.actions]
    assert len(set(tried[:200])) == (3 if isinstance(space, gymnasium.spaces.Discrete) else 6) or not unrewarded
    assert tried[: len(tried) // 2] == tried[len(tried) // 2 :]  # the same each time
    assert all(space.contains(np.asarray(action).reshape(space.shape).astype(np.int64)) for action in made.actions)


class Choosing(Paid):
    """Never rewarded, with actions to choose from."""

    action_space = spaces.Discrete(3)

    def __init__(self, masked=False):
        super().__init__([0.0])
        self.masked = masked

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, {**info, **self.mask()}

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, **self.mask()}

    def mask(self):
        return {"action_mask": np.array([1, 0, 0], np.int8)} if self.masked else {}


def test_actions_are_tried_only_where_somebody_wants_to_know_and_nothing_is_forbidden() -> None:
    cases: list[tuple[bool, tuple[Actions, ...], int]] = [
        (False, ("discrete",), 256),
        (False, ("continuous",), 0),
        (False, (), 0),
        (True, ("discrete", "continuous"), 0),
    ]
    for masked, watches, tried in cases:
        made = Choosing(masked)
        gymnasium.register("SightOfMasks-v0", lambda made=made, **_: made)
        try:
            assert look("SightOfMasks-v0", "sync", watches=watches).unrewarded is (tried > 0)
        finally:
            gymnasium.registry.pop("SightOfMasks-v0")
        assert len(made.actions) == tried


def test_a_limit_may_be_written_as_a_float() -> None:
    seen = look("Pendulum-v1", env_kwargs={"max_episode_steps": 50.0})
    assert seen.time_limit == 50 and isinstance(seen.time_limit, int)


def test_a_time_limit_that_nobody_told_of_is_no_fall() -> None:
    class Limited(Paid):
        """Ends by a limit of its own."""

        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, False, self.steps == self.ends_at, info

    gymnasium.register("SightOfLimit-v0", lambda **_: Limited([1.0], 50))
    try:
        seen = look("SightOfLimit-v0", "sync")
    finally:
        gymnasium.registry.pop("SightOfLimit-v0")
    assert not seen.falls and not seen.sparse and seen.time_limit is None


class Failing(Paid):
    def step(self, action):
        if self.steps == 90:
            raise ZeroDivisionError("with the action 0 alone")
        return super().step(action)


class Slow(Paid):
    def step(self, action):
        time.sleep(0.02)
        return super().step(action)


class FailingChoice(Failing):
    action_space = spaces.Discrete(3)


class SlowChoice(Slow):
    action_space = spaces.Discrete(3)


def test_a_fault_or_a_slow_environment_is_for_the_training_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "WATCH_SECONDS", 0.2)
    for kind in (Failing, Slow, FailingChoice, SlowChoice):
        gymnasium.register("SightOfFaults-v0", lambda kind=kind, **_: kind([0.0]))
        try:
            for backend in ("sync", "async"):
                before = time.monotonic()
                seen = look("SightOfFaults-v0", backend)
                assert not seen.sparse and not seen.unrewarded
                assert time.monotonic() - before < 5
        finally:
            gymnasium.registry.pop("SightOfFaults-v0")


def test_it_is_watched_only_where_somebody_wants_to_know() -> None:
    made = Paid([0.0])
    gymnasium.register("SightUnwatched-v0", lambda **_: made)
    assert look("SightUnwatched-v0", "sync").sparse and len(made.actions) == 256
    assert not look("SightUnwatched-v0", "sync", watches=()).sparse and len(made.actions) == 256


def test_a_vector_that_cannot_be_made_of_one() -> None:
    def vector(num_envs: int, **_) -> gymnasium.vector.VectorEnv:
        assert num_envs == 4
        return gymnasium.vector.SyncVectorEnv([lambda: Paid([0.0])] * num_envs)

    gymnasium.register("SightOfFour-v0", vector_entry_point=vector)
    assert look("SightOfFour-v0", num_envs=4).sparse
    with pytest.raises(EnvironmentFault, match="AssertionError"):
        look("SightOfFour-v0")


def test_a_reward_of_one_environment_is_a_reward() -> None:
    made = [Choosing() for _ in range(4)]

    def vector(num_envs: int, **_) -> gymnasium.vector.VectorEnv:
        assert num_envs == 4
        return gymnasium.vector.SyncVectorEnv([lambda env=env: env for env in made])

    gymnasium.register("SightOfOne-v0", vector_entry_point=vector)
    try:
        assert look("SightOfOne-v0", num_envs=4).unrewarded
        made[2].rewards = [1.0]
        assert not look("SightOfOne-v0", num_envs=4).unrewarded
    finally:
        gymnasium.registry.pop("SightOfOne-v0")


def test_an_unknown_id_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^--env-id: no environment 'CartPool-v1'; did you mean"):
        look("CartPool-v1")
