"""ppo_fast.engine.recorded: when a function is recorded, compared and replayed, and what is found out about it.

That replays give its numbers, bit for bit, stands in test_backends.py.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import iterations
import numpy as np
import pytest
import torch
from recording import in_threads, numbers
from torch import Tensor

from ppo_fast import train
from ppo_fast.algorithm.adam import Learner, new_learner
from ppo_fast.engine.program import Program
from ppo_fast.engine.recorded import COMPARED, Recorded
from ppo_fast.envs.cartpole import TensorCartPole

pytestmark = pytest.mark.usefixtures("no_gradients")


class Counted:
    """A function, and how often Python ran it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


# ---------------------------------------------------------------- arguments and results


def test_it_runs_twice_and_replays_from_then_on() -> None:
    function = Counted(lambda x, y: (x @ y).tanh().sum(-1))
    recorded = Recorded(function)
    assert not recorded.used
    for call in range(6):
        x, y = numbers(call, 5, 3), numbers(10 + call, 3, 4)
        assert torch.equal(recorded(x, y), function.function(x, y))
        assert function.calls == min(call + 1, 2)
    assert recorded.used and not recorded.unfit


def test_a_tensor_given_twice_or_also_read_from_elsewhere() -> None:
    kept = numbers(0, 3)

    def mixed(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return x + 10 * pair[0] + 100 * pair[1] + 1000 * kept

    x, y = numbers(1, 3), numbers(2, 3)
    for first in ((x, (x, x)), (kept, (x, y))):
        recorded = Recorded(Counted(mixed))
        for args in (first, first, (x, (kept, y)), (y, (kept, kept))):
            assert torch.equal(recorded(*args), mixed(*args))
        assert recorded.function.calls == 2  # pyright: ignore[reportFunctionMemberAccess]


def test_results_keep_their_structure() -> None:
    def many(learner: Learner, flag: bool) -> tuple:
        return learner, [learner.theta * 2, None], learner.theta[1:], flag, "word"

    learner = new_learner(numbers(0, 4), 0.1)
    recorded = Recorded(many)
    for _ in range(4):
        got, wanted = recorded(learner, True), many(learner, True)
        assert type(got[0]) is Learner and got[1][1] is None and got[3:] == (True, "word")
        assert torch.equal(got[0].theta, learner.theta) and torch.equal(got[1][0], wanted[1][0])
        assert torch.equal(got[2], wanted[2])


def test_a_result_is_new_memory_each_time() -> None:
    recorded = Recorded(lambda x: x + 1)
    results = [recorded(torch.full((3,), float(i))) for i in range(5)]
    assert [x[0].item() for x in results] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_what_is_changed_in_place_is_changed_in_every_call() -> None:
    """In the first, which records, the second, which compares, and in replays."""
    recorded = Recorded(lambda x: x.add_(1.0))
    x = torch.zeros(2)
    for call in range(1, 6):
        assert recorded(x).tolist() == x.tolist() == [call] * 2


def test_shapes_and_numbers_have_recordings_of_their_own() -> None:
    function = Counted(lambda x, factor: x * factor)
    recorded = Recorded(function)
    for _, rows, factor in itertools.product(range(4), (3, 5), (2.0, -1.0)):
        x = numbers(rows, rows)
        assert torch.equal(recorded(x, factor), x * factor)
    assert function.calls == 2 * 4


def test_equal_numbers_of_other_types_and_other_keys_have_recordings_of_their_own() -> None:
    recorded = Recorded(lambda x, factor: x * factor)
    x = torch.ones(2, dtype=torch.int64)
    for _, factor in itertools.product(range(4), (1, 1.0, True)):
        assert recorded(x, factor).dtype == (x * factor).dtype
    recorded = Recorded(lambda given: given.get("a", torch.zeros(2)) + 1)
    for _, name in itertools.product(range(4), "ab"):
        assert recorded({name: torch.ones(2)}).tolist() == ([2, 2] if name == "a" else [1, 1])
    assert not recorded.unfit


# ---------------------------------------------------------------- what is found out


def test_a_function_with_a_memory_in_python_is_found_out() -> None:
    """Its replay would go on with what the variable was: the second call tells, and from then on the function runs."""
    steps = itertools.count()
    recorded = Recorded(lambda x: x + next(steps))
    assert [float(recorded(torch.zeros(()))) for _ in range(6)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert recorded.unfit == "gives other numbers when it is replayed: something that it reads has changed"


def test_a_number_that_changes_beside_tensors_is_found_out() -> None:
    steps = itertools.count()
    recorded = Recorded(lambda x: {"x": x + 1, "count": next(steps)})
    assert [recorded(torch.zeros(2))["count"] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_another_type_is_found_out() -> None:
    steps = itertools.count()
    recorded = Recorded(lambda x: x.double() if next(steps) else x + 0)
    assert [recorded(torch.zeros(2)).dtype for _ in range(4)] == [torch.float32, *[torch.float64] * 3]


def test_a_variable_that_changes_later_is_noticed_in_the_next_comparison() -> None:
    """Not at once: comparing in every call would cost more than replaying saves."""
    noticed = COMPARED[0]
    factor = [2.0]
    function = Counted(lambda x: x * factor[0])
    recorded = Recorded(function)
    for call in range(1, noticed + 3):
        if call == noticed - 10:
            factor[0] = 3.0
        found = float(recorded(torch.ones(())))
        assert found == (3.0 if call >= noticed else 2.0)
        assert bool(recorded.unfit) == (call >= noticed)
    assert function.calls == 2 + 3


def test_random_numbers_go_on() -> None:
    recorded = Recorded(lambda x: x + torch.rand(4))
    torch.manual_seed(3)
    seen = [recorded(torch.zeros(4)) for _ in range(5)]
    torch.manual_seed(3)
    assert all(torch.equal(x, torch.rand(4)) for x in seen)


def test_a_tensor_that_was_not_given_is_changed_once_a_call() -> None:
    kept, view, out = torch.zeros(3), torch.zeros(3), torch.zeros(3)

    def count(x: Tensor) -> Tensor:
        kept.add_(x)
        view[1:].add_(x[1:])
        torch.add(out, x, out=out)
        return kept + view

    recorded = Recorded(count)
    for call in range(1, 6):
        recorded(torch.ones(3))
        assert kept.tolist() == out.tolist() == [call] * 3 and view.tolist() == [0, call, call]
    assert recorded.unfit.startswith("changes a tensor that it was not given")


def test_numpy_in_between_is_found_out() -> None:
    recorded = Recorded(lambda x: torch.from_numpy(np.sin(x.numpy())) + 1)
    for call in range(5):
        assert torch.equal(recorded(numbers(call, 3)), torch.from_numpy(np.sin(numbers(call, 3).numpy())) + 1)
    assert recorded.unfit


def test_what_a_backend_refuses_runs_as_it_is() -> None:
    def refuse(program: Program) -> Any:
        raise NotImplementedError("is of somebody's own\nand more of it")

    function = Counted(torch.sin)
    recorded = Recorded(function, refuse)
    for call in range(4):
        assert torch.equal(recorded(numbers(call, 3)), numbers(call, 3).sin())
    assert function.calls == 4 and recorded.unfit == "is of somebody's own"


def test_a_replay_that_fails_is_not_used() -> None:
    """What it did before does not count."""

    def failing(program: Program) -> Any:
        def replay(x: Tensor) -> Any:
            x.fill_(0.0)
            raise RuntimeError("no such operation")

        return replay

    function = Counted(lambda x: x.add_(1.0))
    recorded, x = Recorded(function, failing), torch.zeros(2)
    for call in range(4):
        recorded(x)
        assert x.tolist() == [call + 1.0] * 2 and function.calls == call + 1
    assert recorded.unfit == "no such operation"


def test_an_exception_is_raised_again_and_again() -> None:
    recorded = Recorded(lambda x: x @ x)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            recorded(torch.zeros(2, 3))


def test_one_set_of_shapes_may_be_unfit_and_another_one_replayed() -> None:
    function = Counted(lambda x: x * float(x.sum()) if len(x) == 3 else x + 1)
    recorded = Recorded(function)
    for call in range(5):
        assert torch.equal(recorded(numbers(call, 3)), function.function(numbers(call, 3)))
        assert torch.equal(recorded(numbers(call, 2)), numbers(call, 2) + 1)
    assert function.calls == 5 + 2 and "depends on more than shapes" in recorded.unfit


def test_threads_at_once_with_what_can_not_be_replayed() -> None:
    """Only one of them is in the function at a time: parameters take part in one gradient."""
    inside: list[int] = []
    most: list[int] = []

    def function(x: Tensor) -> Tensor:
        inside.append(1)
        most.append(len(inside))
        found = x * float(x[0])
        inside.pop()
        return found

    recorded = Recorded(function)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for call in range(30):
            x = numbers(100 * seed + call, 8)
            if not torch.equal(recorded(x), x * float(x[0])):
                wrong.append(call)

    in_threads(work, 3)
    assert not wrong and max(most) == 1


# ---------------------------------------------------------------- in an iteration


class Drifting(TensorCartPole):
    """An environment that counts its steps in Python, against the contract."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.calls = 0

    def transition(self, state: Any, action: Tensor, noise: Tensor) -> Any:
        self.calls += 1
        state, obs, reward, *ends = super().transition(state, action, noise)
        return state, obs, reward * self.calls, *ends


def test_a_function_that_can_not_be_recorded_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = train.loss

    def looks(agent: Any, args: Any, minibatch: Any) -> Any:
        found, logged = loss(agent, args, minibatch)
        return found * (1.0 if float(found.detach()) > -1e9 else 2.0), logged

    monkeypatch.setattr(train, "loss", looks)
    run = iterations.built(iterations.small(), "recorded")
    for _ in range(3):
        iterations.once(run.iteration)
    words, (reason,) = run.engine.report()
    assert words == "recorded, 4 of 5 functions"
    assert reason.startswith("looks calls aten._local_scalar_dense")


@pytest.fixture
def drifting() -> Iterator[str]:
    name = "test/Drifting-v0"
    gymnasium.register(name, vector_entry_point=f"{__name__}:Drifting", max_episode_steps=500)
    yield name
    del gymnasium.registry[name]


def test_an_environment_that_counts_in_python_still_counts_and_is_named(drifting: str) -> None:
    run = iterations.built(iterations.small(env_id=drifting, num_envs=4, num_steps=16), "recorded")
    steps = itertools.count(1)
    next(steps)  # one was made to see how large a rollout is
    for _ in range(4):
        iterations.once(run.iteration)
        expected = [next(steps) for _ in range(16)]
        assert run.iteration.state.rollout["reward"][:, 0].tolist() == expected
    words, reasons = run.engine.report()
    assert words == "recorded, 4 of 5 functions"
    assert reasons == ["collect gives other numbers when it is replayed: something that it reads has changed"]
