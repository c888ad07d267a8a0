"""ppo_fast.engine.recorded: a replay gives the eager function's numbers, bit for bit, and knows when it can't.

What is said of single functions holds in TorchScript's interpreter and as plain Python. How compiled functions compare
with eager ones stands in test_fast_path.py. Letters: N envs, M rows.
"""

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from iterations import CPU, VARIANTS, Built, built, once, small
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast import train
from ppo_fast.algorithm import heads
from ppo_fast.algorithm.adam import Learner, new_learner
from ppo_fast.engine import backends, engine, plan, program
from ppo_fast.engine.flat import flatten, flatten_parameters
from ppo_fast.engine.recorded import Recorded
from ppo_fast.envs.cartpole import TensorCartPole
from ppo_fast.train import Args

LONG = 32 * 8 * 40  # environment steps: more iterations than recording takes


@pytest.fixture(autouse=True, params=[backends.interpreted, backends.flat], ids=["interpreted", "flat"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The one that every recording of a test has."""
    monkeypatch.setattr(backends, "quickest", request.param)
    return request.param


class Counted:
    """A function, and how often Python ran it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def gradient_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """x (M, D) to the gradient of the mean square of the module's outputs, flat."""

    def gradient(x: Tensor) -> Tensor:
        parameters = list(module.parameters())
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(module(x).square().mean(), parameters)
        for parameter in parameters:
            parameter.requires_grad_(False)
        return flatten(found)

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
    theta = flatten_parameters(module)
    gradient = gradient_of(module)
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
    head = heads.GaussianHead(3)
    flatten_parameters(head)
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


def test_results_keep_their_structure() -> None:
    def many(batch: Learner, flag: bool) -> tuple:
        return batch, [batch.theta * 2, None], batch.theta[1:], flag, "word"

    learner = new_learner(numbers(0, 4), 0.1)
    recorded = Recorded(many)
    for _ in range(4):
        got, wanted = recorded(learner, True), many(learner, True)
        assert type(got[0]) is Learner and got[0].theta is not None and got[1][1] is None and got[3:] == wanted[3:]
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
    tape, names = program.Tape(), list[str]()

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            names.append(str(func).removeprefix("aten."))
            return func(*args, **(kwargs or {}))

    with tape:
        result = function(*args)
    recorded = program.program(tape, args, result)
    replay = backends.quickest(recorded)
    inputs = [*args, *recorded.outside]
    for _ in range(3):  # the interpreter looks at its graph first
        replay(*inputs)
    with Listening():
        replay(*inputs)
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


def test_a_replay_that_fails_is_not_used() -> None:
    def fails(recorded: program.Program) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            args[0].fill_(0.0)
            raise RuntimeError("no such operation")

        return fail

    function = Counted(lambda x: x.add_(1.0))
    recorded, x = Recorded(function, fails), torch.zeros(2)
    for call in range(4):
        recorded(x)
        assert x.tolist() == [call + 1.0] * 2 and function.calls == call + 1
    assert "no such operation" in recorded.unfit


TYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
NUMBERS = (2, -3, 0.1, 1e300, True, 2**40, float("nan"))


@pytest.mark.parametrize("name", ["add", "sub", "rsub", "mul", "true_divide", "eq", "ge", "lt"])
def test_numbers_have_the_type_that_torch_gives_them(name: str) -> None:
    """Recorded as tensors or not: values and types of the result are those of the function."""
    operation, tried = getattr(torch, name), 0
    for dtype, number in itertools.product(TYPES, NUMBERS):
        x = (numbers(0, 5, 3) * 4).to(dtype)

        def function(x: Tensor, number: Any = number) -> tuple[Tensor, Tensor]:
            return operation(x, number), operation(x[0, 0], number)

        try:
            wanted = function(x)
        except RuntimeError:  # bool has no difference, and a byte no 2**40
            continue
        recorded = Recorded(function)
        for got, one in ((recorded(x), wanted) for _ in range(3)):
            assert [y.dtype for y in got] == [y.dtype for y in one], (dtype, number)
            torch.testing.assert_close(got, one, rtol=0, atol=0, equal_nan=True)
        tried += 1
    assert tried > 25


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


def test_what_no_backend_takes_runs_as_it_is() -> None:
    def refuse(recorded: program.Program) -> Any:
        raise NotImplementedError("an operation of somebody's own")

    recorded = Recorded(Counted(torch.sin), refuse)
    for call in range(4):
        assert torch.equal(recorded(numbers(call, 3)), numbers(call, 3).sin())
    assert recorded.function.calls == 4 and "somebody's own" in recorded.unfit


def test_a_variable_that_changes_later_is_noticed_at_the_thousandth_call() -> None:
    factor = [1.0]
    recorded = Recorded(lambda x: x * factor[0])
    seen = []
    for call in range(1, 1031):
        factor[0] = 1.0 if call < 50 else 2.0
        seen.append(float(recorded(torch.ones(()))))
    assert seen[:49] == [1.0] * 49 and seen[999:] == [2.0] * 31
    assert "changed" in recorded.unfit


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
    flatten_parameters(module)
    gradient = gradient_of(module)
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


LARGER: dict[str, dict[str, Any]] = {**VARIANTS, "bf16": {"precision": "bf16"}, "two threads": {"num_envs": 128}}


def larger(name: str) -> Args:
    """Flags of a run with minibatches that two threads share in one variant."""
    sizes = {"num_envs": 32, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 100 * LONG}
    return small(**{**sizes, **LARGER[name]})


class Serial(Recorded):
    """The function as it is, in one thread at a time."""

    def __call__(self, *args: Any) -> Any:
        return self.alone(*args)


@pytest.mark.parametrize("name", LARGER)
def test_iterations_are_the_eager_ones_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions in the same parts, called as they are, are what the replays are held against."""
    args = larger(name)
    replayed = built(args, "recorded")
    with monkeypatch.context() as serial:
        serial.setattr(engine, "Recorded", Serial)
        eager = built(args, "recorded").iteration
    for iteration in range(5):
        assert repr(once(replayed.iteration)) == repr(once(eager)), iteration
        for key, x in eager.state.all().items():
            assert torch.equal(replayed.iteration.state.all()[key], x), (iteration, key)
    assert replayed.engine.report() == ("recorded, 5 of 5 functions", [])


def test_going_on_from_a_checkpoint_is_bit_for_bit() -> None:
    """The run that goes on records anew: its first calls are the function's own, the whole run's are replays."""
    args = replace(larger("normalised"), num_envs=64, num_steps=16)
    whole, first, second = (built(args, "recorded").iteration for _ in range(3))
    for _ in range(6):
        once(whole)
    for _ in range(3):
        once(first)
    second.load(first.saved())
    for _ in range(3):
        once(second)
    for key, x in whole.state.saved().items():
        assert torch.equal(second.state.saved()[key], x), key


class Normed(nn.Module):
    """ReLU and LayerNorm, torch's own."""

    def __init__(self, sizes: list[int], *rest: Any, **named: Any) -> None:
        super().__init__()
        inputs, hidden, outputs = sizes[0], sizes[1], sizes[-1]
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Convolved(nn.Module):
    """A convolution over the numbers of an observation."""

    def __init__(self, sizes: list[int], *rest: Any, **named: Any) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 2)
        self.out = nn.Linear(4 * (sizes[0] - 1), sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 1, x.shape[-1])
        return self.out(self.convolution(rows).relu().flatten(1)).unflatten(0, x.shape[:-1])


@pytest.mark.parametrize("network", [Normed, Convolved])
def test_other_networks_are_recorded_as_well(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.mlp, "MLP", network)
    args = larger("discrete")
    torch.manual_seed(0)
    replayed = built(args, "recorded")
    with monkeypatch.context() as serial:
        serial.setattr(engine, "Recorded", Serial)
        torch.manual_seed(0)
        eager = built(args, "recorded")
    for _ in range(4):
        assert repr(once(replayed.iteration)) == repr(once(eager.iteration))
    assert replayed.engine.report() == ("recorded, 5 of 5 functions", [])
    assert torch.equal(replayed.learner.theta, eager.learner.theta)


def test_a_function_that_cannot_be_recorded_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = train.loss

    def looks(agent: Any, args: Any, minibatch: Any) -> Any:
        found, logged = loss(agent, args, minibatch)
        return found * (1.0 if float(found.detach()) > -1e9 else 2.0), logged

    monkeypatch.setattr(train, "loss", looks)
    run = built(larger("discrete"), "recorded")
    for _ in range(4):
        once(run.iteration)
    words, reasons = run.engine.report()
    assert words == "recorded, 4 of 5 functions"
    assert len(reasons) == 1 and reasons[0].startswith("looks calls ")


def resident() -> float:
    """Memory of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def test_a_training_gives_its_memory_back() -> None:
    """Each lost 7.8 MB where the interpreter kept its graphs for ever."""

    def train_once() -> Built:
        run = built(larger("discrete"), "recorded")
        for _ in range(3):
            once(run.iteration)
        return run

    for _ in range(5):
        train_once()
    gc.collect()
    before = resident()
    for _ in range(12):
        train_once()
    gc.collect()
    assert resident() - before < 12.0  # 94 of them would be lost


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
        iteration = built(args, "recorded").iteration
        steps = 0
        for _ in range(4):
            once(iteration)
            reward = iteration.state.rollout["reward"][:, 0]
            steps = steps or int(reward[0]) - 1  # the engine tries one step to see what a rollout is made of
            assert torch.equal(reward, torch.arange(steps + 1, steps + 17.0))
            steps += 16
    finally:
        del gymnasium.registry["test/Drifting-v0"]


# ---------------------------------------------------------------- when


def test_when_it_pays() -> None:
    long = Args(num_envs=32, num_steps=8, total_timesteps=LONG)
    assert plan.records(long, CPU)
    few = 32 * 8 * plan.FEW_ITERATIONS
    for other in (replace(long, compile="off"), replace(long, compile="on"), replace(long, total_timesteps=few)):
        assert not plan.records(other, CPU)
    assert not plan.records(long, torch.device("cuda"))


def test_the_plan_says_so() -> None:
    modes = plan.decide(Args(), CPU, 10_000), plan.decide(Args(total_timesteps=8192), CPU, 10_000)
    assert [each.mode for each in modes] == ["recorded", "eager"]
    assert all(each.reason.startswith("about ") for each in modes)
