"""The flags that an environment gets where nobody names them: by what it is, never by its name.

    for choice in VECTORS.choose(sight, {"num_envs": 64}):   # Choice({"num_steps": 32, ...}, "continuous actions: ...")

A recipe is at heart a function of what can be seen of an environment before training (`envs.sight`) and of the flags
that are fixed. What it chooses is plain data. A run says in its first lines what of it differs from the program's
defaults, with the reasons, and keeps all flags in config.json. How the recipe was found is in benchmarks/LOG.md.
Letters: T steps, N envs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ppo_fast.envs.sight import Actions, Sight

SHORT_EPISODE = 200  # steps

# What has to be seen to with continuous actions: that a goal far away is found, that a robot which falls goes on from
# standing to walking, that noise lasts because what is good may be found late, that a policy of many short episodes
# settles at the end; or nothing of these.
Kind = Literal["far", "falls", "late", "short", "plain"]


class Choice(NamedTuple):
    """Flags, and why they have these values."""

    flags: dict[str, Any]
    why: str


# Advantages are divided by their deviation. Where nothing is rewarded they are errors of the values; made as large as
# any others, these would drive the policy to few actions before it has seen any reward.
QUIET = Choice({"adv_std_min": 0.1}, "small advantages, mostly errors of the values, stay small")
FAR = Choice({"log_std_init": 1.0, "gamma": 0.999}, "rewards only at a goal: varied widely, and what is far counts")


class Recipe(NamedTuple):
    """What sets the flags that nobody names."""

    choose: Callable[[Sight, Mapping[str, Any]], list[Choice]]
    """From what is seen, and the flags that it may not set with their values, to choices. One of these flags is always
    total_timesteps."""
    defaults: Mapping[str, Any]
    """What the program's defaults are where it chooses. A copy that changes one of them keeps what it says."""
    watched: Mapping[Actions, Sequence[str]]
    """By the kind of actions, the flags that depend on what some steps of the environment show."""


def vectors(sight: Sight, fixed: Mapping[str, Any]) -> list[Choice]:
    """For observations that show everything."""
    if sight.actions == "continuous":
        return [_scales(sight), *_continuous(sight, fixed)]
    return [_scales(sight), *_discrete(sight, fixed)]


def memory(sight: Sight, fixed: Mapping[str, Any]) -> list[Choice]:
    """For a policy that remembers, whose defaults fit discrete actions otherwise."""
    if sight.actions == "continuous":
        follow = Choice({"lr_schedule": "kl"}, "continuous actions: steps as large as the policy bears")
        return [follow, FAR] if _is_far(sight) else [follow]
    return [Choice({"target_kl": 0.08}, "discrete actions: no epoch after one that moved the policy far")]


def _scales(sight: Sight) -> Choice:
    """Running statistics, since nobody knows the scales of an environment that nobody tuned."""
    # Scaled returns differ by more than clip_coef, so a clipped value would crawl.
    scaled = {"norm_reward": True, "clip_vloss": False}
    if sight.observation == "table":
        # The 1 of a row that is rarely seen would become a 10.
        return Choice(scaled, "rewards of unknown scale")
    return Choice({"norm_obs": True, **scaled}, "observations and rewards of unknown scale")


def _discrete(sight: Sight, fixed: Mapping[str, Any]) -> list[Choice]:
    """Actions to choose from."""
    rollout = _rollout(fixed, num_envs=64, rows=4096, most_steps=128)
    num_minibatches = _minibatches(rollout, 512, 8)
    # 0.1 is meant for scaled rewards.
    quiet = [QUIET] if fixed.get("norm_reward", True) and fixed.get("norm_adv", True) else []
    if sight.observation == "table":
        # What follows an action may be chance (FrozenLake), and more updates fit the luck of a rollout. With 3 epochs
        # of 4 minibatches the way past a cliff stays longer than it need be (LOG.md).
        sizes = {**rollout, "update_epochs": 4, "num_minibatches": num_minibatches}
        return [
            Choice(sizes, "a table: more updates, but not so many that luck is learned"),
            *quiet,
            Choice({"gamma": 0.999}, "a table: what is far counts"),
        ]
    passes = {"update_epochs": 8, "num_minibatches": num_minibatches}
    choices = [
        Choice(rollout, "discrete actions: large rollouts"),
        Choice({**passes, "learning_rate": 2e-3}, "discrete actions: many updates from each rollout"),
        Choice({"ent_coef": 0.005}, "scaled rewards: less of an entropy bonus"),
    ]
    return [*choices, *quiet] if sight.unrewarded else choices


def _continuous(sight: Sight, fixed: Mapping[str, Any]) -> list[Choice]:
    """Actions that are numbers."""
    rollout = _rollout(fixed, num_envs=16, rows=2048, most_steps=2048)
    rows = rollout["num_envs"] * rollout["num_steps"]
    # In rollouts of more rows, half the epochs take as many steps of the optimizer as are of use.
    epochs = 10 if rows <= 16_384 else 5
    passes = {"update_epochs": epochs, "num_minibatches": _minibatches(rollout, 128, 16)}
    kind = _kind(sight, fixed)
    bonus = 0.005 * sight.action_size if kind == "late" else 0.0
    choices = [
        Choice(rollout, "continuous actions: small rollouts"),
        Choice(passes, "continuous actions: many minibatches"),
        CHANGES[kind],
        Choice({"ent_coef": bonus}, "a bonus that keeps noise" if bonus else "noise is learned without a bonus"),
    ]
    if kind == "far":  # instead of the noise and the discount that others get, whatever the reach and the time limit
        return [*choices, FAR]
    limit = sight.time_limit
    if kind == "late" and _should_stagger(sight, rollout, fixed["total_timesteps"]):
        choices.append(Choice({"stagger_resets": True}, f"episodes of {limit} steps: not all at the same one of them"))
    choices.append(_noise(sight, wide=kind == "falls"))
    if limit is not None and limit <= SHORT_EPISODE:
        choices.append(Choice({"gamma": 0.95}, f"episodes of {limit} steps: what comes soon counts"))
    return choices


BY_KL = {"lr_schedule": "kl", "learning_rate": 3e-4}

# How much an update may change the policy, and with it how soon noise is given up.
CHANGES: dict[Kind, Choice] = {
    "far": Choice({**BY_KL, "desired_kl": 0.015}, "changes as large as the policy bears"),
    "falls": Choice({**BY_KL, "desired_kl": 0.01}, "smaller changes for what falls if nothing is done"),
    "late": Choice(
        {**BY_KL, "desired_kl": 0.01}, "smaller changes, so that noise is not gone before anything is found"
    ),
    "short": Choice(
        {"lr_schedule": "linear", "learning_rate": 5e-4},
        "many short episodes: a rate that falls, so that the policy settles",
    ),
    "plain": Choice({**BY_KL, "desired_kl": 0.015}, "changes as large as the policy bears"),
}


def _kind(sight: Sight, fixed: Mapping[str, Any]) -> Kind:
    """The first that fits, with continuous actions, of those that the named flags allow."""
    if _is_far(sight):
        return "far"
    # With one number, as of an inverted pendulum, smaller changes seem only to take longer (LOG.md).
    if sight.falls:
        return "falls" if sight.action_size > 1 else "plain"
    if sight.time_limit is None:
        return "plain"
    # With a rate by the KL some swing-ups of a pendulum (200 steps) stay poor; Reacher and Pusher lose nothing by one
    # that falls (LOG.md).
    if sight.time_limit <= SHORT_EPISODE:
        return "short" if _may_anneal(fixed) else "plain"
    # Chosen on tasks of 1,000 steps and 16 environments. A robot of more numbers lost by a like change; between 200 and
    # 1,000 steps nothing was tried (LOG.md).
    return "late" if 1 <= sight.action_size <= 2 else "plain"


def _is_far(sight: Sight) -> bool:
    """Whether a goal has to be found by one number."""
    # Small noise, drawn anew in each step, would find no reward. Of more numbers one finds something, and more noise
    # helps some of such tasks and harms others (LOG.md).
    return sight.sparse and sight.action_size == 1


def _may_anneal(fixed: Mapping[str, Any]) -> bool:
    """Whether no flag that is named asks for another learning rate than one that falls linearly."""
    is_linear = fixed.get("lr_schedule", "linear") == "linear" and fixed.get("anneal_lr", True)
    return is_linear and "desired_kl" not in fixed


def _should_stagger(sight: Sight, rollout: Mapping[str, Any], total_timesteps: int) -> bool:
    """Whether environments that begin together would stay together, each rollout seeing one part of their episodes, and
    can be staggered. A swing-up learns twice as much so (LOG.md)."""
    limit = sight.time_limit
    # Of a run that is too short for each of them to reach its limit, staggering would cut most episodes.
    if limit is None or limit * rollout["num_envs"] > total_timesteps:
        return False
    return limit > 4 * rollout["num_steps"] and sight.resets_singly and rollout["num_envs"] > 1


def _noise(sight: Sight, wide: bool) -> Choice:
    """How far actions are varied at the start: the more numbers, the less each, and none by less than a third of its
    reach."""
    # A power of -0.5 keeps the norm of the noise at that of one number, up to seven numbers. Beyond these the floor of
    # -1 holds, since a humanoid would hardly move with less. What falls gets -0.25: with -0.5 the noise may be gone
    # before anything better than standing still is found, and with still more, walking is found late (LOG.md).
    power = -0.25 if wide else -0.5
    log_deviation = max(power * math.log(max(sight.action_size, 1)), -1.0)
    noise = {"log_std_init": round(log_deviation + math.log(sight.reach), 2) + 0.0}  # 0.0 instead of -0.0
    how_many = "one number" if sight.action_size == 1 else f"{sight.action_size} numbers"
    why = "for so many, and more for what falls" if wide else "for so many"
    return Choice(noise, f"actions of {how_many} within ±{sight.reach:g}: noise {why}")


def _rollout(fixed: Mapping[str, Any], num_envs: int, rows: int, most_steps: int) -> dict[str, Any]:
    """N, and T for so many rows: from 32 to `most_steps`, or fewer where the whole run is shorter."""
    envs = fixed.get("num_envs", num_envs)
    steps = max(32, min(rows // envs, most_steps))
    return {"num_envs": envs, "num_steps": fixed.get("num_steps", max(1, min(steps, fixed["total_timesteps"] // envs)))}


def _minibatches(rollout: Mapping[str, Any], rows: int, most: int) -> int:
    """So many minibatches that each has so many rows, from 4 to `most`; of fewer rows than 4 one for each."""
    available = rollout["num_envs"] * rollout["num_steps"]
    return max(min(4, available), min(available // rows, most))


VECTORS = Recipe(
    vectors,
    {
        "num_envs": 64,
        "num_steps": 64,
        "num_minibatches": 4,
        "update_epochs": 3,
        "learning_rate": 2.5e-3,
        "lr_schedule": "linear",
        "desired_kl": 0.01,
        "gamma": 0.99,
        "norm_obs": False,
        "norm_reward": False,
        "adv_std_min": 0.0,
        "clip_vloss": True,
        "ent_coef": 0.01,
        "log_std_init": 0.0,
        "stagger_resets": False,
    },
    {
        "discrete": ("adv_std_min",),
        "continuous": (
            *("learning_rate", "lr_schedule", "desired_kl", "gamma", "ent_coef", "log_std_init"),
            "stagger_resets",
        ),
    },
)
MEMORY = Recipe(
    memory,
    {"lr_schedule": "linear", "target_kl": None, "gamma": 0.99, "log_std_init": 0.5},
    {"discrete": (), "continuous": ("gamma", "log_std_init")},
)
