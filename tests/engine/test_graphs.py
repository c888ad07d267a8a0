"""ppo_fast.engine.graphs.Recorded: a replay gives the eager function's numbers, bit for bit, and knows when it can't.

How compiled functions compare with eager ones stands in test_fast_path.py. Letters: N envs, M rows.
"""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ppo_fast.engine.graphs import Recorded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast import train
from ppo_fast.algorithm import networks, ppo
from ppo_fast.engine import capture, graphs
from ppo_fast.envs.cartpole import TensorCartPole
from ppo_fast.train import Args

CPU = torch.device("cpu")
LONG = 32 * 8 * 40  # environment steps: more iterations than recording takes


class Counted:
    """A function, and how often Python ran it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def gradient_of(module: nn.Module, theta: Tensor) -> Callable[[Tensor], Tensor]:
    """x (M, D) to the gradient of the mean square of the module's outputs, flat."""

    def loss(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        value = networks.call(module, parameters, x).square().mean()
        return value, value.detach()[None]

    def gradient(x: Tensor) -> Tensor:
        found, _, _ = ppo.value_and_gradients(loss, networks.parameters_of(module, theta), x)
        return networks.flatten(found)

    return gradient


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As in an iteration's phases."""
    with torch.no_grad():
        yield


# ---------------------------------------------------------------- one function


def test_it_runs_twice_and_replays_from_then_on() -> None:
    function = Counted(lambda x, y: (x @ y).tanh().sum(-1))
    recorded = Recorded(function)
    for call in range(6):
        x, y = numbers(call, 5, 3), numbers(10 + call, 3, 4)
        assert torch.equal(recorded(x, y), function.function(x, y))
        assert function.calls == min(call + 1, 2)


def test_the_backward_pass_is_replayed_too() -> None:
    """Parameters that change in place between calls, read from a module, not given as arguments."""
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    theta = networks.flatten_parameters(module)
    gradient = gradient_of(module, theta)
    recorded, seen = Recorded(Counted(gradient)), []
    for call in range(6):
        x = numbers(call, 16, 3)
        seen.append(recorded(x))
        assert torch.equal(seen[-1], gradient(x))
        theta.add_(numbers(call, len(theta)), alpha=0.1)
    assert recorded.function.calls == 2
    assert len({float(x.norm()) for x in seen}) == 6
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_what_is_computed_from_a_parameter_alone_follows_the_parameter() -> None:
    """An interpreter that takes parameters for constants would fold exp(log_std) into one."""
    head = networks.GaussianHead(3)
    networks.flatten_parameters(head)
    recorded = Recorded(lambda mean: head.sample(mean, torch.ones_like(mean)))
    for call in range(5):
        head.log_std.fill_(float(call))
        assert torch.equal(recorded(torch.zeros(2, 3)), torch.full((2, 3), float(call)).exp())


def test_arguments_are_changed_in_place() -> None:
    def move(state: tuple[Tensor, Tensor], rows: list[Tensor]) -> None:
        state[0].mul_(1.5).add_(rows[0])
        rows[1][2:4] = state[0][:2]
        state[1].logical_not_()

    pairs = []
    for function in (move, Recorded(move)):
        state, rows = (numbers(0, 4), torch.tensor([True, False])), [numbers(1, 4), numbers(2, 6)]
        for _ in range(7):
            assert function(state, rows) is None
        pairs.append((*state, *rows))
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_arguments_that_share_memory_are_changed_in_order() -> None:
    def swap(whole: Tensor, half: Tensor) -> Tensor:
        before = half.clone()
        whole.add_(1.0)
        half.mul_(2.0)
        return before + half

    memories, results = [], []
    for function in (swap, Recorded(swap)):
        memory = numbers(0, 6)
        results.append(torch.stack([function(memory, memory[3:]) for _ in range(6)]))
        memories.append(memory)
    assert torch.equal(*results) and torch.equal(*memories)


def test_a_tensor_given_twice_or_also_read_from_elsewhere() -> None:
    kept = numbers(0, 3)

    def mixed(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return x + 10 * pair[0] + 100 * pair[1] + 1000 * kept

    x, y = numbers(1, 3), numbers(2, 3)
    for first in ((x, (x, x)), (kept, (x, y))):
        recorded = Recorded(Counted(mixed))
        for args in (first, first, (x, (kept, y)), (y, (kept, kept))):
            assert torch.equal(recorded(*args), mixed(*args))
        assert recorded.function.calls == 2


def test_parameters_are_those_given() -> None:
    """Not those that the module had when it was recorded."""
    args = Args(num_envs=4, num_steps=4)
    _, agent, learner = train.setup(args, CPU)
    x = numbers(0, 16)
    rows = train.Batch(numbers(1, 16, 4), torch.zeros(16).long(), x - 1, x, x + 1, x + 2, None)
    recorded = Recorded(Counted(train.gradient))
    for factor in (1.0, 1.0, 0.5, 2.0):
        theta = learner.theta if factor == 1.0 else learner.theta * factor
        wanted = train.gradient(agent, args, theta.clone(), rows, 1.0)
        torch.testing.assert_close(recorded(agent, args, theta, rows, 1.0), wanted)
    assert recorded.function.calls == 2


def test_results_keep_their_structure() -> None:
    def many(batch: ppo.Learner, flag: bool) -> tuple:
        return batch, [batch.theta * 2, None], batch.theta[1:], flag, "word"

    learner = ppo.new_learner(numbers(0, 4), 0.1)
    recorded = Recorded(many)
    for _ in range(4):
        got, wanted = recorded(learner, True), many(learner, True)
        assert type(got[0]) is ppo.Learner and got[0].theta is not None and got[1][1] is None and got[3:] == wanted[3:]
        assert torch.equal(got[0].theta, learner.theta) and torch.equal(got[1][0], wanted[1][0])
        assert torch.equal(got[2], wanted[2])


def test_a_result_is_new_memory_each_time() -> None:
    recorded = Recorded(lambda x: x + 1)
    results = [recorded(torch.full((3,), float(i))) for i in range(5)]
    assert [x[0].item() for x in results] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_shapes_and_numbers_have_recordings_of_their_own() -> None:
    function = Counted(lambda x, factor: x * factor)
    recorded = Recorded(function)
    for _, rows, factor in itertools.product(range(4), (3, 5), (2.0, -1.0)):
        x = numbers(rows, rows)
        assert torch.equal(recorded(x, factor), x * factor)
    assert function.calls == 2 * 4


def replayed(function: Callable[..., Any], *args: Any) -> list[str]:
    """The operations of a function's replay, by name, in order."""
    tape, names = graphs.Tape(), list[str]()

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            names.append(str(func).removeprefix("aten."))
            return func(*args, **(kwargs or {}))

    with tape:
        result = function(*args)
    replay = tape.replay(args, result)
    assert replay is not None
    for _ in range(3):  # the interpreter looks at its graph first
        replay(*args)
    with Listening():
        replay(*args)
    return names


def test_constants_are_made_once_and_views_of_the_whole_are_no_operations() -> None:
    def function(x: Tensor) -> Tensor:
        base = (torch.ones_like(x) + torch.arange(3)) * 2.0
        return torch.where(x[0:2].detach().view(2, 3) > 0, base, 0.5)

    x = numbers(0, 2, 3)
    assert replayed(function, x) == ["gt.Tensor", "where.self"]
    recorded = Recorded(function)
    for call in range(4):
        assert torch.equal(recorded(numbers(call, 2, 3)), function(numbers(call, 2, 3)))


def test_a_view_of_a_part_is_one() -> None:
    assert replayed(lambda x: x[1:] * x.t()[:, 1:].t(), numbers(0, 3, 3)).count("mul.Tensor") == 1
    for cut in (slice(0, 2), slice(1, 3), slice(None, None, 2)):
        recorded = Recorded(lambda x, cut=cut: (x[cut] + 1, x.t()))
        for call in range(4):
            x = numbers(call, 3, 3)
            assert torch.equal(recorded(x)[0], x[cut] + 1) and torch.equal(recorded(x)[1], x.t())


def test_what_is_filled_and_changed_is_no_constant() -> None:
    """Memory of a recording that a replay wrote to would keep what it holds for the next one."""

    def counted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, total = torch.zeros(4), torch.zeros(4)
        total[1:3].add_(x)  # through a view
        return kept, total, torch.ones(2)

    recorded = Recorded(Counted(counted))
    for call in range(5):
        x = numbers(call, 2)
        kept, total, ones = recorded(x)
        assert torch.equal(total[1:3], x) and not kept.any() and torch.equal(ones, torch.ones(2))
        kept.fill_(7.0)  # the caller may do as he likes with what he was given
        ones.fill_(7.0)
    assert recorded.function.calls == 2


def test_a_replay_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter looks at some graphs only when it runs them."""

    def replay(self: graphs.Tape, args: tuple, result: Any) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            args[0].fill_(0.0)
            raise RuntimeError("no such operation")

        return fail

    monkeypatch.setattr(graphs.Tape, "replay", replay)
    function = Counted(lambda x: x.add_(1.0))
    recorded, x = Recorded(function), torch.zeros(2)
    for call in range(4):
        recorded(x)
        assert x.tolist() == [call + 1.0] * 2 and function.calls == call + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("number", [2, -3, 0.1, 1e300, True, 2**40, float("nan")])
@pytest.mark.parametrize("name", ["add", "sub", "rsub", "mul", "true_divide", "eq", "ge", "lt"])
def test_numbers_have_the_type_that_torch_gives_them(dtype: torch.dtype, number: float, name: str) -> None:
    """Recorded as tensors or not: values and types of the result are those of the function."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(torch, name)(x, number), getattr(torch, name)(x[0, 0], number)

    x = (numbers(0, 5, 3) * 4).to(dtype)
    try:
        wanted = function(x)
    except RuntimeError:  # bool has no difference, and a byte no 2**40
        return
    recorded = Recorded(Counted(function))
    for _ in range(4):
        for got, one in zip(recorded(x), wanted, strict=True):
            assert got.dtype == one.dtype
            torch.testing.assert_close(got, one, rtol=0, atol=0, equal_nan=True)
    assert number is True or recorded.function.calls == 2  # the interpreter does not take every bool


def test_numbers_beside_a_factor() -> None:
    """x + factor · number and number - factor · x, and in place."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        changed = x.clone().add_(0.3, alpha=2).sub_(1.5, alpha=0.1).mul_(1.1).div_(3)
        return torch.add(x, 0.7, alpha=3), torch.sub(x, 2, alpha=0.5), torch.rsub(x, 0.7, alpha=3), 1 - x, changed

    assert "rsub.Scalar" not in replayed(function, numbers(0, 4))
    recorded = Recorded(Counted(function))
    for call in range(4):
        x = numbers(call, 4)
        assert all(map(torch.equal, recorded(x), function(x)))
    assert recorded.function.calls == 2


# ---------------------------------------------------------------- what can't be replayed


def test_a_function_with_a_memory_in_python_is_found_out() -> None:
    """Its replay would go on with what the variable was: the second call tells, and from then on the function runs."""
    steps = itertools.count()
    function = Counted(lambda x: x + next(steps))
    recorded = Recorded(function)
    assert [float(recorded(torch.zeros(()))) for _ in range(6)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x * (2.0 if x.sum() > 0 else -1.0), id="a look at a number"),
        pytest.param(lambda x: x[x > 0].sum(), id="a shape that depends on numbers"),
        pytest.param(lambda x: x * float(x.max()), id="item"),
    ],
)
def test_numbers_looked_at(function: Callable[[Tensor], Tensor]) -> None:
    recorded = Recorded(Counted(function))
    for call in range(8):
        x = numbers(call, 6)
        assert torch.equal(recorded(x), function(x))
    assert recorded.function.calls == 8


def test_random_numbers_go_on() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.rand(4)

    recorded = Recorded(Counted(noisy))
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


def test_what_the_interpreter_refuses_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise NotImplementedError("an operation of somebody's own")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    recorded = Recorded(Counted(torch.sin))
    for call in range(4):
        assert torch.equal(recorded(numbers(call, 3)), numbers(call, 3).sin())
    assert recorded.function.calls == 4


def test_numpy_in_between_is_found_out() -> None:
    recorded = Recorded(lambda x: torch.from_numpy(np.sin(x.numpy())) + 1)
    for call in range(5):
        assert torch.equal(recorded(numbers(call, 3)), torch.from_numpy(np.sin(numbers(call, 3).numpy())) + 1)


def test_an_exception_is_raised_again_and_again() -> None:
    recorded = Recorded(lambda x: x @ x)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            recorded(torch.zeros(2, 3))


# ---------------------------------------------------------------- threads


def test_two_threads_at_once() -> None:
    """Each has its own rows; recording, comparing and replaying meet in all combinations."""
    module = nn.Linear(4, 4)
    theta = networks.flatten_parameters(module)
    gradient = gradient_of(module, theta)
    for unfit in (False, True):
        function = (lambda x: gradient(x) * float(x[0, 0])) if unfit else gradient
        recorded, wrong = Recorded(function), []

        def work(seed: int, recorded: Recorded, function: Callable, wrong: list) -> None:
            with torch.no_grad():
                for call in range(30):
                    x = numbers(100 * seed + call, 8, 4)
                    found = recorded(x)
                    with recorded.lock:
                        wrong += [] if torch.equal(found, function(x)) else [call]

        threads = [threading.Thread(target=work, args=(seed, recorded, function, wrong)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


# ---------------------------------------------------------------- whole iterations


VARIANTS = {
    "plain": {},
    "normalised, unclipped": {"norm_obs": True, "norm_reward": True, "clip_vloss": False},
    "shared, uneven minibatches": {"shared_backbone": True, "num_minibatches": 3, "norm_adv": False},
    "early stop, adaptive rate": {"target_kl": 0.003, "lr_schedule": "kl", "learning_rate": 2e-2},
    "bf16": {"precision": "bf16"},
    "Gaussian": {"env_id": "Pendulum-v1", "gamma": 0.9},
    "three actions": {"env_id": "Acrobot-v1"},
    "host": {"backend": "sync", "num_envs": 4},
    "two threads": {"num_envs": 128},
}


def built(flags: dict[str, Any]) -> tuple[ppo.Learner, capture.Phases]:
    sizes: dict[str, Any] = {"num_envs": 32, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "cuda": False}
    sizes |= {"total_timesteps": 100 * LONG}
    args = Args(**(sizes | flags))
    envs, agent, learner = train.setup(args, CPU)
    return learner, train.make_iteration(args, envs, agent, learner, fast=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_iterations_are_the_eager_ones_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions in the same parts, called as they are, are what the replays are held against."""
    made: list[Recorded] = []

    class Watched(Recorded):
        def __init__(self, function: Callable) -> None:
            super().__init__(Counted(function))
            made.append(self)

    monkeypatch.setattr(graphs, "Recorded", Watched)
    _, replayed = built(VARIANTS[name])
    monkeypatch.setattr(graphs, "Recorded", Serial)
    _, eager = built(VARIANTS[name])
    for iteration in range(5):
        assert torch.equal(replayed().nan_to_num(), eager().nan_to_num()), iteration
        for key, x in eager.state.items():
            assert torch.equal(replayed.state[key], x), (iteration, key)
    calls = [recorded.function.calls for recorded in made if recorded.function.calls]
    assert len(calls) >= 4 and max(calls) <= 4, calls  # twice a set of shapes


def test_going_on_from_a_checkpoint_is_bit_for_bit() -> None:
    """The run that goes on records anew: its first calls are the function's own, the whole run's are replays."""
    flags = {"norm_obs": True, "norm_reward": True, "num_envs": 64, "num_steps": 16}
    _, whole = built(flags)
    for _ in range(6):
        whole()
    _, first = built(flags)
    for _ in range(3):
        first()
    _, second = built(flags)
    second.load(first.saved())
    for _ in range(3):
        second()
    for key, x in whole.state.items():
        assert torch.equal(second.state[key], x), key


class Serial(Recorded):
    """The function as it is, in one thread at a time."""

    def __call__(self, *args: Any) -> Any:
        return self._alone(*args)


class Drifting(TensorCartPole):
    """An environment that counts its steps in Python, against the contract."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.calls = 0

    def transition(self, state: Any, action: Tensor, noise: Tensor) -> Any:
        self.calls += 1
        state, obs, reward, terminated, truncated = super().transition(state, action, noise)
        return state, obs, reward * self.calls, terminated, truncated


def test_an_environment_that_counts_in_python_still_counts() -> None:
    gymnasium.register("test/Drifting-v0", vector_entry_point=f"{__name__}:Drifting", max_episode_steps=500)
    try:
        args = Args(env_id="test/Drifting-v0", num_envs=4, num_steps=16, total_timesteps=4 * 16 * 100, cuda=False)
        envs, agent, learner = train.setup(args, CPU)
        iteration = train.make_iteration(args, envs, agent, learner, fast=False)
        for i in range(4):
            iteration()
            expected = torch.arange(16 * i + 1, 16 * (i + 1) + 1.0)
            assert torch.equal(iteration.state["rollout.reward"][:, 0], expected)
    finally:
        del gymnasium.registry["test/Drifting-v0"]


# ---------------------------------------------------------------- when


def test_when_it_pays() -> None:
    long = Args(num_envs=32, num_steps=8, total_timesteps=LONG)
    assert capture.records(long, CPU)
    few = 32 * 8 * capture.FEW_ITERATIONS
    for other in (replace(long, compile="off"), replace(long, compile="on"), replace(long, total_timesteps=few)):
        assert not capture.records(other, CPU)
    assert not capture.records(long, torch.device("cuda"))


@pytest.mark.parametrize(("flags", "kind"), [({}, graphs.Recorded), ({"compile": "off"}, None)])
def test_what_an_iteration_is_made_of(flags: dict, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(graphs.Recorded, "__init__", lambda self, function: made.append(type(self)))
    built(flags)
    assert set(made) == ({kind} if kind else set())


def test_the_console_says_so() -> None:
    words = capture.decide(Args(), CPU, 10_000)[1], capture.decide(Args(total_timesteps=8192), CPU, 10_000)[1]
    assert words[0].startswith("recorded (about ") and words[1].startswith("eager (about ")


def test_recording_imports_no_compiler() -> None:
    """torch._dynamo takes seconds to import, more than a short run saves."""
    program = """
import sys, torch
from ppo_fast.engine.graphs import Recorded
recorded = Recorded(lambda x: x + 1)
for _ in range(4):
    recorded(torch.zeros(3))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
