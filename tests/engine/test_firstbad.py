"""The operation that makes NaN is named with its line; what was bad before, or may be, is not."""

import math
from types import ModuleType

import pytest
import torch
from iterations import built, small

from ppo_fast.algorithm import ppo
from ppo_fast.engine.firstbad import FirstBad

GOOD = torch.tensor([1.0, 4.0])
CALLS = """
def root(x):
    return x.sqrt()

def overwrite(x):
    x.log_()
"""


def program(name: str) -> ModuleType:
    """A module of this name, which lies nowhere near the package."""
    module = ModuleType(name)
    exec(compile(CALLS, f"/somewhere/{name}.py", "exec"), vars(module))
    return module


def test_the_line_of_a_program_that_lies_elsewhere() -> None:
    mine = program("my_train")
    with FirstBad("my_train") as watch:
        mine.root(GOOD)
        assert watch.found == ""
        mine.root(-GOOD)
        mine.overwrite(-GOOD)  # the first one counts
    assert watch.found.startswith("the result (2,) of aten.sqrt.default at my_train.py:3 in root")


def test_writing_in_place_is_noticed() -> None:
    mine = program("my_train")
    with FirstBad("my_train") as watch:
        mine.overwrite(-GOOD)
    assert "aten.log_.default at my_train.py:6 in overwrite" in watch.found


def test_a_line_of_this_package_is_quoted() -> None:
    with FirstBad() as watch:
        ppo.policy_loss(torch.tensor([1e30, 1.0]), torch.tensor([1e30, 1.0]), 0.2, None)
    assert " at ppo.py:" in watch.found and "policy_loss: " in watch.found


def test_bad_numbers_that_came_from_outside_are_no_operations_fault() -> None:
    mine = program("my_train")
    with FirstBad("my_train") as watch:
        mine.root(torch.tensor([math.nan, 1.0]))
        (-GOOD).sqrt()  # of no program
    assert watch.found == ""


def test_functions_whose_answer_may_be_nan() -> None:
    """Returns that don't vary have no variance to explain."""
    same = torch.ones(4)
    with FirstBad() as watch:
        assert bool(ppo.explained_variance(torch.zeros(4), same).isnan())
    assert watch.found == ""
    mine = program("my_train")
    with FirstBad("my_train", may_be_nan=[mine.root]) as watch:
        mine.root(-GOOD)
    assert watch.found == ""


@pytest.mark.parametrize("flags", [{}, {"norm_obs": True, "norm_reward": True, "env_id": "Pendulum-v1"}])
def test_a_sound_iteration_has_none(flags: dict) -> None:
    """With rewards that don't vary either, and no episode that ends."""
    run = built(small(**flags))
    run.iteration.collect()
    run.iteration.state.rollout["reward"].zero_()
    with FirstBad() as watch:
        run.iteration.learn()
    assert watch.found == ""
