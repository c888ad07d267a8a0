"""ppo_fast.engine.engine: in which mode, precision and on how many threads functions run, and what is said of it."""

import sys
from collections.abc import Callable
from typing import Any

import iterations
import pytest
import torch
from iterations import CPU, built, once, small
from torch import Tensor

from ppo_fast import train
from ppo_fast.engine import backends, process
from ppo_fast.engine.engine import EAGER_ROWS, Engine
from ppo_fast.engine.plan import Mode
from ppo_fast.engine.ranks import Ranks


class Two(Ranks):
    """One of two processes, whose numbers are the same."""

    def __init__(self) -> None:
        super().__init__(CPU, world_size=2)

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)


def looking(monkeypatch: pytest.MonkeyPatch, look: Callable[[], Any]) -> list[Any]:
    """What `look` returned in each loss."""
    seen: list[Any] = []
    loss = train.loss

    def changed(*args: Any) -> Any:
        seen.append(look())
        return loss(*args)

    monkeypatch.setattr(train, "loss", changed)
    return seen


# ---------------------------------------------------------------- how functions run


@pytest.mark.parametrize("setting", ["highest", "high"])
@pytest.mark.parametrize("mode", ["eager", "recorded"])
@pytest.mark.parametrize(("exact", "fast_is_exact"), [(True, True), (False, True), (False, False)])
def test_products_are_exact_where_that_is_wanted_and_fast_where_it_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, exact: bool, fast_is_exact: bool, setting: str
) -> None:
    """Seen from inside the loss, whatever the process allows. The reference of --verify is exact."""
    seen = looking(monkeypatch, torch.get_float32_matmul_precision)
    monkeypatch.setattr(process, "fast_products_are_exact", lambda: fast_is_exact)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        once(built(small(), mode, exact=exact).iteration)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
    expected = "highest" if exact else "medium" if fast_is_exact else setting
    assert seen and set(seen) == {expected}


@pytest.mark.parametrize(("mode", "rows", "threads"), [("eager", 1, 1), ("eager", 2, 3), ("recorded", 2, 1)])
def test_operations_on_few_rows_and_those_of_recordings_run_on_one_thread(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, rows: int, threads: int
) -> None:
    """A second one would mostly wait; a crew shares out whole functions instead."""
    seen = looking(monkeypatch, torch.get_num_threads)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sizes = {"num_envs": 8, "num_steps": rows * EAGER_ROWS // 8, "num_minibatches": 1, "update_epochs": 1}
        once(built(small(**sizes), mode).iteration)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {threads}


def test_what_waits_for_other_processes_is_called_as_it_is() -> None:
    """No collective may be part of a recording, or of a graph; all the rest is prepared."""
    args = small(norm_reward=True, norm_obs=True)
    run = built(args, "recorded", Two())
    for _ in range(3):
        once(run.iteration)
    assert run.engine.report() == ("recorded, 4 of 4 functions", [])
    assert run.engine.reduce is not None and built(args, "recorded").engine.reduce is None


def test_equal_seeds_draw_equal_numbers_and_not_those_of_the_environments() -> None:
    engine = Engine(small(), Ranks(CPU), "eager")
    first, same, other = (torch.rand(4, generator=engine.generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert not torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(1)))


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize("name", ["normalised", "host"])
def test_everything_is_replayed_by_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In the quicker of both ways, where this Python has it. All variants stand in test_backends.py."""
    if sys.version_info < (3, 14):
        monkeypatch.delattr(backends, "flat")
    run = built(small(**iterations.VARIANTS[name]), "recorded")
    assert run.engine.report() == ("recorded, 0 functions", [])
    for _ in range(3):
        once(run.iteration)
    assert run.engine.report() == run.iteration.execution() == ("recorded, 5 of 5 functions", [])


def test_an_eager_iteration_says_so() -> None:
    assert built(small()).iteration.execution() == ("eager", [])


def test_two_functions_of_one_name_are_told_apart() -> None:
    engine = Engine(small(), Ranks(CPU), "recorded")

    def function(x: Tensor) -> Tensor:
        return x * float(x.sum())

    prepared = [engine.function(function), engine.function(function), engine.function(torch.sin)]
    for each in prepared:
        for _ in range(3):
            each(torch.ones(2))
    words, reasons = engine.report()
    assert words == "recorded, 1 of 3 functions"
    assert len(reasons) == 2 and all(reason.startswith("function calls aten.") for reason in reasons)
