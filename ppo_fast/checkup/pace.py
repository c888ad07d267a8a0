"""How fast each backend steps an environment with random actions."""

import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppo_fast import envs as environments
from ppo_fast.checkup.findings import Findings, within
from ppo_fast.checkup.player import Player
from ppo_fast.names import first_line

WARM_UP = 3  # steps that are not counted
DRAWN = 16  # different actions, drawn beforehand: drawing them is not what is timed


class Pace(NamedTuple):
    """What one backend reached."""

    backend: str
    num_envs: int
    start_seconds: float  # to make it and to reset it
    steps_per_second: float  # of all environments together
    problem: str = ""  # why it can't run, in a line


def measure(
    env_id: str,
    backend: str,
    num_envs: int,
    seconds: float,
    timeout: float,
    found: Findings,
    env_kwargs: Mapping[str, Any],
) -> Pace:
    """Time a backend for so many seconds. What is wrong with it goes into its line and into the findings."""
    place = f"made with {num_envs} environments"
    reached: list[Pace] = []

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reached.append(_measure(env_id, backend, num_envs, seconds, env_kwargs))

    found.at(place)
    try:
        within(seconds + timeout, work, found)
    except ValueError as problem:
        found.error("misfit", place, first_line(problem))
    if reached:
        return reached[0]
    return Pace(backend, num_envs, 0.0, 0.0, found.all[0].what if found.all else "it did not run")


def _measure(env_id: str, backend: str, num_envs: int, seconds: float, env_kwargs: Mapping[str, Any]) -> Pace:
    started = time.perf_counter()
    envs = environments.make(env_id, num_envs, "cpu", backend, env_kwargs=env_kwargs)
    try:
        obs, _ = envs.reset(seed=1)
        start_seconds = time.perf_counter() - started
        size = envs.mask_size
        players = [Player(envs.single_action_space, i) for i in range(num_envs)]
        drawn = [np.array([player.draw() for player in players]) for _ in range(DRAWN)]
        steps = 0
        begun = end = time.perf_counter()
        while end - begun < seconds or steps <= WARM_UP:
            actions = drawn[steps % DRAWN]
            if size:  # what is allowed is only known now
                rows = obs.cpu().numpy()
                actions = np.array([player.draw(row[-size:]) for player, row in zip(players, rows, strict=True)])
            obs = envs.step(actions)[0]
            steps += 1
            if steps == WARM_UP:
                begun = time.perf_counter()
            end = time.perf_counter()
        return Pace(backend, num_envs, start_seconds, (steps - WARM_UP) * num_envs / max(end - begun, 1e-9))
    finally:
        envs.close()
