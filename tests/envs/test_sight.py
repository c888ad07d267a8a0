"""What can be seen of an environment before anything is trained on it."""

import gymnasium
import pytest
from gymnasium import spaces

from ppo_fast.envs.sight import Sight, look


@pytest.mark.parametrize(
    ("env_id", "backend", "seen"),
    [
        ("CartPole-v1", "auto", Sight("discrete", 2, "numbers", 4, 500)),
        ("CartPole-v1", "async", Sight("discrete", 2, "numbers", 4, 500)),
        ("CartPole-v1", "envpool", Sight("discrete", 2, "numbers", 4, 500)),
        ("Pendulum-v1", "auto", Sight("continuous", 1, "numbers", 3, 200)),
        ("FrozenLake-v1", "auto", Sight("discrete", 4, "table", 16, 100)),
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


def test_an_unknown_id_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^--env-id: no environment 'CartPool-v1'; did you mean"):
        look("CartPool-v1")
