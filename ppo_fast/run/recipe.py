"""The flags that an environment gets where nobody names them: by what it is, never by its name.

    for choice in VECTORS.choose(sight, {"num_envs": 64}):   # Choice({"num_steps": 32, ...}, "continuous actions: ...")

A recipe is at heart a function of what can be seen of an environment before training (`envs.sight`) and of the flags
that are given. What it chooses is plain data, which a run says in its first lines, with the reasons, and keeps in
config.json. How it was found is in benchmarks/LOG.md.
Letters: T steps, N envs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ppo_fast.envs.sight import Sight

SHORT = 200  # steps of an episode


class Choice(NamedTuple):
    """Flags, and why they have these values."""

    flags: dict[str, Any]
    why: str


FAR = Choice({"log_std_init": 1.0, "gamma": 0.999}, "rewards only at a goal: varied widely, and what is far counts")


class Recipe(NamedTuple):
    """What sets the flags that nobody names."""

    choose: Callable[[Sight, Mapping[str, Any]], list[Choice]]
    """From what is seen, and the flags that are given, to choices. A flag that is given stays as it is in any case; no
    run is without a given total_timesteps."""
    defaults: Mapping[str, Any]
    """What the program's defaults are where it chooses. A copy that changes one of them keeps what it says."""


def vectors(sight: Sight, given: Mapping[str, Any]) -> list[Choice]:
    """For observations that show everything."""
    if sight.actions == "continuous":
        return [_scales(sight), *_continuous(sight, given)]
    return [_scales(sight), *_discrete(sight, given)]


def memory(sight: Sight, given: Mapping[str, Any]) -> list[Choice]:
    """For a policy that remembers, whose defaults fit discrete actions otherwise."""
    if sight.actions == "continuous":
        follow = Choice({"lr_schedule": "kl"}, "continuous actions: steps as large as the policy bears")
        return [follow, FAR] if _reward_is_far(sight) else [follow]
    return [Choice({"target_kl": 0.08}, "discrete actions: no epoch after one that moved the policy far")]


def _scales(sight: Sight) -> Choice:
    """Running statistics, since nobody knows the scales of an environment that nobody tuned."""
    # Scaled returns differ by more than clip_coef, so a clipped value would crawl.
    scaled = {"norm_reward": True, "clip_vloss": False}
    if sight.observation == "table":
        # The 1 of a row that is rarely seen would become a 10.
        return Choice(scaled, "rewards of unknown scale")
    return Choice({"norm_obs": True, **scaled}, "observations and rewards of unknown scale")


def _discrete(sight: Sight, given: Mapping[str, Any]) -> list[Choice]:
    """Actions to choose from."""
    rollout = _rollout(given, num_envs=64, rows=4096, most=128)
    if sight.observation == "table":
        # Updates stay few, as by default: where chance moves along, many of them learn what was chance.
        sizes = {**rollout, "num_minibatches": _minibatches(rollout, 1024, 4)}
        return [Choice(sizes, "a table: few updates"), Choice({"gamma": 0.999}, "a table: what is far counts")]
    passes = {"update_epochs": 8, "num_minibatches": _minibatches(rollout, 512, 8)}
    return [
        Choice(rollout, "discrete actions: large rollouts"),
        Choice({**passes, "learning_rate": 2e-3}, "discrete actions: many updates from each rollout"),
        Choice({"ent_coef": 0.005}, "scaled rewards: less of an entropy bonus"),
    ]


def _continuous(sight: Sight, given: Mapping[str, Any]) -> list[Choice]:
    """Actions that are numbers."""
    rollout = _rollout(given, num_envs=16, rows=2048, most=2048)
    rows = rollout["num_envs"] * rollout["num_steps"]
    # Of thousands of environments, half the epochs take as many steps of the optimizer as are of use.
    epochs = 10 if rows <= 16_384 else 5
    passes = {"update_epochs": epochs, "num_minibatches": _minibatches(rollout, 128, 16)}
    rate = {"lr_schedule": "kl", "learning_rate": 3e-4}
    # What falls and has one number, as an inverted pendulum, has noise enough, and smaller updates seem only to take
    # longer (LOG.md).
    falls_with_several = sight.falls and sight.action_size > 1
    may_be_found_late = _may_be_found_late(sight)
    if falls_with_several:
        step = Choice({"desired_kl": 0.01}, "smaller steps for what falls if nothing is done")
    elif may_be_found_late:
        step = Choice({"desired_kl": 0.01}, "smaller steps, so that noise is not gone before anything is found")
    else:
        step = Choice({"desired_kl": 0.015}, "steps as large as the policy bears")
    bonus = 0.005 * sight.action_size if may_be_found_late else 0.0
    choices = [
        Choice(rollout, "continuous actions: small rollouts"),
        Choice({**passes, **rate}, "many small updates from each, their size by the KL"),
        step,
        Choice(
            {"ent_coef": bonus}, "a bonus that keeps noise" if bonus else "a deviation that is learned without a bonus"
        ),
    ]
    limit = sight.time_limit
    if _reward_is_far(sight):  # its episodes are taken to end at the goal, so at different times
        return [*choices, FAR]
    if may_be_found_late and _stays_in_step(sight, rollout, given["total_timesteps"]):
        choices.append(Choice({"stagger_resets": True}, f"episodes of {limit} steps: not all at the same one of them"))
    choices.append(_noise(sight, wide=falls_with_several))
    if limit is not None and limit <= SHORT:
        choices.append(Choice({"gamma": 0.95}, f"episodes of {limit} steps: what comes soon counts"))
    return choices


def _noise(sight: Sight, wide: bool) -> Choice:
    """How far actions are varied at the start: the more numbers, the less each, and none by less than a third of its
    reach."""
    # A power of -0.5 keeps the norm of the noise at that of one number, up to seven numbers. Beyond these the floor of
    # -1 holds, since a humanoid would hardly move with less. What falls gets -0.25: with -0.5 the noise may be gone
    # before anything better than standing still is found, and with still more, walking is found late (LOG.md).
    power = -0.25 if wide else -0.5
    log_deviation = max(power * math.log(max(sight.action_size, 1)), -1.0)
    noise = {"log_std_init": round(log_deviation + math.log(sight.reach), 2) + 0.0}  # 0.0 instead of -0.0
    numbers = "one number" if sight.action_size == 1 else f"{sight.action_size} numbers"
    size = "for so many, and more for what falls" if wide else "for so many"
    return Choice(noise, f"actions of {numbers} within ±{sight.reach:g}: noise {size}")


def _may_be_found_late(sight: Sight) -> bool:
    """Whether noise has to last because what is good may be found late: one or two numbers, in long episodes of which
    nothing is seen to end one. Where a goal is far, its own noise sees to that."""
    # Chosen on tasks of 1,000 steps and 16 environments. A pendulum (200 steps) and a robot of more numbers lost by a
    # like change; between 200 and 1,000 steps nothing was tried (LOG.md).
    is_long = sight.time_limit is not None and sight.time_limit > SHORT
    return is_long and 1 <= sight.action_size <= 2 and not sight.falls and not _reward_is_far(sight)


def _stays_in_step(sight: Sight, rollout: Mapping[str, Any], total_timesteps: int) -> bool:
    """Whether environments that begin together stay together, each rollout seeing one part of their episodes, and can
    be staggered. A swing-up learns twice as much so (LOG.md)."""
    limit = sight.time_limit
    if limit is None or limit * rollout["num_envs"] > total_timesteps:  # no episode is known to reach its limit
        return False
    return limit > 4 * rollout["num_steps"] and sight.resets_singly and rollout["num_envs"] > 1


def _reward_is_far(sight: Sight) -> bool:
    """Whether small noise, drawn anew in each step, would find no reward."""
    # With more numbers it need not be larger, since one of them finds something (LOG.md: of five such tasks more noise
    # helps one, and harms two).
    return sight.sparse and sight.action_size == 1


def _rollout(given: Mapping[str, Any], num_envs: int, rows: int, most: int) -> dict[str, Any]:
    """N, and T for so many rows, within 32 and `most` steps, and no more than all the steps of the run."""
    envs = given.get("num_envs", num_envs)
    steps = max(32, min(rows // envs, most))
    return {"num_envs": envs, "num_steps": given.get("num_steps", max(1, min(steps, given["total_timesteps"] // envs)))}


def _minibatches(rollout: Mapping[str, Any], rows: int, most: int) -> int:
    """So many that each has so many rows, within 4 and `most`. A rollout of fewer rows than 4 has one for each row."""
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
        "clip_vloss": True,
        "ent_coef": 0.01,
        "log_std_init": 0.0,
        "stagger_resets": False,
    },
)
MEMORY = Recipe(memory, {"lr_schedule": "linear", "target_kl": None, "gamma": 0.99, "log_std_init": 0.5})
