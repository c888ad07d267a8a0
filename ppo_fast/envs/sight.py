"""look: what can be known of an environment before anything is trained on it.

    sight = look("Hopper-v5", "auto")     # Sight(actions="continuous", ..., time_limit=1000)

One environment is made, asked for its spaces and its time limit, and closed. It is also watched for some steps, in
which nothing is done where actions are continuous, and actions are random where they are discrete.
"""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from ppo_fast.envs import factory, handed
from ppo_fast.envs.actions import LARGEST_BOUND, map_to
from ppo_fast.envs.contract import Environments
from ppo_fast.envs.faults import EnvironmentFault
from ppo_fast.envs.keywords import step_limit
from ppo_fast.envs.own import OwnSpaces

SEED = 0
WATCH_STEPS = 256  # within which what falls has fallen, and what is rewarded often has been rewarded once
WATCH_SECONDS = 5.0  # at most, for them


Actions = Literal["discrete", "continuous"]


@dataclass(frozen=True)
class Sight:
    """What is known of an environment. Its name is none of it."""

    actions: Actions
    """MultiDiscrete actions are discrete."""
    action_size: int
    """How many actions there are to choose from, or numbers in one, summed over the parts of a MultiDiscrete."""
    observation: Literal["table", "numbers"]
    """A table has a row for each observation: they are Discrete, and encoded one-hot."""
    observation_size: int
    """Numbers of an observation, as a program sees it."""
    time_limit: int | None
    """Steps after which an episode is truncated; None where nobody says so."""
    reach: float = 1.0
    """Half of the range that a policy's own actions are clipped to: 2 for [-2, 2]; 1 where [-1, 1] is mapped to the
    bounds, or where there are none. The geometric mean, where an action has several numbers."""
    sparse: bool = False
    """The action 0, again and again for up to 256 steps, ends no episode and is rewarded the same each time: what a
    reward is for has to be found first."""
    falls: bool = False
    """The action 0, again and again, terminates an episode within these steps (truncation does not count): a robot
    that has to keep upright, or a lander above the ground. A goal that is reached so counts as well."""
    unrewarded: bool = False
    """Random discrete actions, for 256 steps, are each rewarded by 0: nothing is known before something is found."""
    resets_singly: bool = True
    """Whether some environments can begin new episodes while others go on."""
    # `sparse` and `falls` are looked for where actions are continuous, `unrewarded` where they are discrete and no mask
    # forbids some. They are False where nobody asks (`watches`), where an environment fails or takes long, and for a
    # vector that was handed in ready-made, which is the caller's to step.


class Watched(NamedTuple):
    """What was seen, as in Sight."""

    sparse: bool = False
    falls: bool = False
    unrewarded: bool = False


NOTHING_SEEN = Watched()


def look(
    env_id: str,
    backend: str = "auto",
    *,
    watches: Collection[Actions] = ("discrete", "continuous"),
    num_envs: int | None = None,
    **options: Any,
) -> Sight:
    """Look at an environment.

    Args:
        env_id: as `make` takes it, as are backend and options.
        watches: the kinds of actions whose environments somebody wants to see some steps of.
        num_envs: how many are made where a vector can't be made of one.

    Raises:
        ValueError: as `make` does.
        EnvironmentFault: as `make` does.
    """
    options = {name: value for name, value in options.items() if name not in ("groups", "stagger_resets")}
    try:
        env = factory.make(env_id, 1, "cpu", backend, **options)
    except EnvironmentFault:
        if num_envs is None or num_envs == 1:
            raise
        env = factory.make(env_id, num_envs, "cpu", backend, **options)
    try:
        space = env.single_action_space
        if isinstance(space, spaces.Box):
            actions, action_size = "continuous", math.prod(space.shape)
        elif isinstance(space, spaces.MultiDiscrete):
            actions, action_size = "discrete", int(space.nvec.sum())
        else:
            actions, action_size = "discrete", int(getattr(space, "n", 1))
        limit = step_limit(env, options.get("env_kwargs") or {})
        may_watch = actions in watches and not handed.is_ready_made(env_id)
        watched = _watch(env, limit or WATCH_STEPS + 1) if may_watch else NOTHING_SEEN
        return Sight(
            actions=actions,
            action_size=action_size,
            observation="table" if isinstance(env.own_spaces.observation, spaces.Discrete) else "numbers",
            observation_size=math.prod(env.single_observation_space.shape),
            time_limit=limit,
            reach=_reach(env.own_spaces) if actions == "continuous" else 1.0,
            sparse=watched.sparse,
            falls=watched.falls,
            unrewarded=watched.unrewarded,
            resets_singly=env.resets_singly,
        )
    finally:
        env.close()


def _reach(own: OwnSpaces) -> float:
    """See Sight.reach."""
    assert isinstance(own.action, spaces.Box)
    box = map_to(own.action, own.action_bounds)
    reach = (box.high.astype(np.float64) - box.low) / 2
    reach = reach[(reach > 0) & (reach <= LARGEST_BOUND)]
    return float(f"{np.exp(np.log(reach).mean()):.6g}") if len(reach) else 1.0


def _watch(env: Environments, limit: int) -> Watched:
    """What is seen, for at most WATCH_SECONDS. Whether a fault ends the training is for the training to say:
    --env-restarts may save it."""
    deadline = time.monotonic() + WATCH_SECONDS
    try:
        if isinstance(env.single_action_space, spaces.Box):
            return _do_nothing(env, env.single_action_space, limit, deadline)
        return NOTHING_SEEN if env.mask_size else _act_at_random(env, deadline)
    except EnvironmentFault:
        return NOTHING_SEEN


def _do_nothing(env: Environments, space: spaces.Box, limit: int, deadline: float) -> Watched:
    """The action 0 until an episode ends, for at most WATCH_STEPS, up to the step before the time limit, and until the
    deadline."""
    nothing = torch.zeros(env.num_envs, *space.shape)
    env.reset(seed=SEED)
    steps = min(limit - 1, WATCH_STEPS)
    first_reward = None
    all_the_same = True
    for _ in range(steps):
        _, reward, terminated, truncated, _ = env.step(nothing)
        if (terminated | truncated).any():
            return Watched(falls=bool(terminated.any()))
        if time.monotonic() > deadline:
            return NOTHING_SEEN
        if first_reward is None:
            first_reward = reward[0].item()
        all_the_same = all_the_same and bool((reward == first_reward).all())
    return Watched(sparse=steps > 1 and all_the_same)


def _act_at_random(env: Environments, deadline: float) -> Watched:
    """Random actions for WATCH_STEPS, over as many episodes, until something is rewarded, or the deadline."""
    space = env.single_action_space
    assert not isinstance(space, spaces.Box)
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [int(space.n)]
    draw = torch.Generator().manual_seed(SEED)
    env.reset(seed=SEED)
    for _ in range(WATCH_STEPS):
        numbers = torch.stack([torch.randint(size, (env.num_envs,), generator=draw) for size in sizes], -1)
        action = numbers if isinstance(space, spaces.MultiDiscrete) else numbers[:, 0]
        _, reward, _, _, _ = env.step(action)
        if reward.any() or time.monotonic() > deadline:
            return NOTHING_SEEN
    return Watched(unrewarded=True)
