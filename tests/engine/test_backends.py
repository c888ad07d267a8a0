"""ppo_fast.engine.backends: TorchScript's interpreter and Python each give the eager function's numbers, bit for bit.

Letters: N envs, M rows.
"""

import gc
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import iterations
import pytest
import torch
import torch.nn.functional as F
from recording import in_threads, numbers
from torch import Tensor, nn

from ppo_fast import train
from ppo_fast.algorithm import mlp
from ppo_fast.engine import backends
from ppo_fast.engine.backends import Backend, flat, interpreted, quickest, script_of, source_of
from ppo_fast.engine.flat import flatten_parameters
from ppo_fast.engine.program import Program, Tape, program
from ppo_fast.engine.recorded import Recorded

pytestmark = pytest.mark.usefixtures("no_gradients")

BOTH = [
    pytest.param(interpreted, marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchScript goes to 3.13")),
    flat,
]
both = pytest.mark.parametrize("backend", BOTH)


def assert_same(found: Any, wanted: Any) -> None:
    """Equal structures of equal tensors: every bit, NaN too, and every type."""
    assert type(found) is type(wanted) or isinstance(wanted, torch.return_types.max)  # which is a tuple then
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        found, wanted = list(found.values()), list(wanted.values())
    if isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and found.stride() == wanted.stride()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    elif isinstance(wanted, tuple | list):
        assert len(found) == len(wanted)
        for x, y in zip(found, wanted, strict=True):
            assert_same(x, y)
    else:
        assert found == wanted


def program_of(function: Callable[..., Any], *args: Any) -> Program:
    with Tape() as tape:
        result = function(*args)
    return program(tape, args, result)


# ---------------------------------------------------------------- single functions


class Pair(NamedTuple):
    first: Any
    second: Any


def gradient_of(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the mean square of the module's outputs, by the parameters that want one."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        return list(torch.autograd.grad(module(x).square().mean(), wanted))


def norm(bias: bool = True) -> nn.Module:
    """Its backward pass leaves out the gradient of a bias that wants none: None stands among its results."""
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 1))
    module[2].bias.requires_grad_(bias)
    return module


NORM, NORM_WITHOUT_BIAS = norm(), norm(bias=False)


def in_place(x: Tensor, y: Tensor) -> None:
    x.mul_(1.5).add_(y)
    y[1:3] = x[:2]
    x.t()[0].zero_()
    y.clamp_(min=-0.5)


def in_place_and_back(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.add_(y), x


def lists(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    first, *rest = x.unbind()
    (only,) = y[:1].unbind()
    a, b = y.split([1, y.shape[0] - 1])
    c, d = x.chunk(2, -1)
    return torch.stack([first, *rest]), only, torch.cat([a, b, x]), c * d


def indices(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    order = torch.argsort(y[:, 0])
    changed = x.clone()
    changed[:, order[:2]] = 0.0
    return x[order], x[:, order % 3], x[order, order], changed


def constants(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    base = (torch.ones_like(x) + torch.arange(6)) * 2.0
    return base, x + base, torch.zeros(3, dtype=torch.int64), torch.full((2,), math.nan), torch.eye(2).bool()


def views(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    whole = x.view(x.shape).detach()
    return whole, x.t(), x[1:, ::2], x.reshape(-1).view(2, -1), y.expand(2, *y.shape), whole + x.flip(0)


def types(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    whole = (x * 4).int() // 3
    return x.double() + 1, x > y, (x > 0).float().mean(), x.to(torch.bfloat16) * 2, whole, x.sum(dtype=torch.float64)


def numbers_that_are_none(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    masked = x.masked_fill(y > 0, -math.inf)
    return masked, x * math.nan, x / math.inf, masked.softmax(-1), torch.full_like(x, math.inf).clamp(max=1e30)


def arguments(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    powers = x.pow(2), x.pow(0.5), torch.pow(2, x)
    limits = torch.clamp(x, -1, None), torch.clamp(x, max=0.5), x.round(decimals=2), x.max(-1)
    return (
        *powers,
        *limits,
        x.var(0, correction=0),
        torch.where(x > 0, 1.0, y),
        x.lerp(y, 0.1),
        F.pad(x, (0, 2), value=1),
    )


def nothing_new(x: Tensor, y: Tensor) -> dict[str, Any]:
    return {"x": x, "rest": [None, y, {"word": "a word", "number": 2}], "pair": Pair(y, 1.5)}


def mathematics(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    product = F.gelu(x @ y.t()) + F.silu(x).sum(-1, keepdim=True)
    return product, torch.logsumexp(x, -1), F.elu(y).sigmoid(), F.log_softmax(y, -1), torch.linalg.vector_norm(x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "in place": in_place,
    "in place, and given back": in_place_and_back,
    "lists": lists,
    "indices": indices,
    "constants": constants,
    "views": views,
    "types": types,
    "NaN and infinity": numbers_that_are_none,
    "arguments of all kinds": arguments,
    "arguments given back": nothing_new,
    "one argument given back": lambda x, y: y,
    "one argument": lambda x, y: x + 1,
    "nothing": lambda x, y: None,
    "nothing but a constant": lambda x, y: torch.ones(3),
    "mathematics": mathematics,
    "complex numbers": lambda x, y: (x * 2j).abs(),
    "LayerNorm": lambda x, y: F.layer_norm(x, (6,)) + torch.native_layer_norm(y, [6], None, None, 1e-5)[2],
    "LayerNorm's backward pass": lambda x, y: gradient_of(NORM, x),
    "LayerNorm's backward pass, None in it": lambda x, y: gradient_of(NORM_WITHOUT_BIAS, x),
    "convolution": lambda x, y: F.max_pool1d(F.conv1d(x[:, None], y[:4, None, :3], padding=1), 2),
}


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_is_the_function_bit_for_bit(name: str, backend: Backend) -> None:
    """What it returns and what it changes in place."""
    function = FUNCTIONS[name]
    recorded = Recorded(function, backend)
    for call in range(5):
        own = numbers(call, 6, 6), numbers(10 + call, 6, 6)
        others = own[0].clone(), own[1].clone()
        wanted = function(*own)
        assert_same(recorded(*others), wanted)
        assert_same(others, own)
        assert not recorded.unfit


@both
def test_dictionaries_go_in_and_come_out(backend: Backend) -> None:
    def function(given: dict[str, Tensor], more: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        given["a"].add_(more[0]["b"])
        return {"sum": given["a"] + given["c"], "c": given["c"]}

    recorded = Recorded(function, backend)
    for call in range(5):
        own = {"a": numbers(call, 3), "c": numbers(call + 10, 3)}
        others = {name: x.clone() for name, x in own.items()}
        more = [{"b": numbers(call + 20, 3)}]
        assert_same(recorded(others, more), function(own, more))
        assert_same(others, own)
    assert not recorded.unfit


@both
def test_what_is_computed_from_a_parameter_alone_follows_the_parameter(backend: Backend) -> None:
    """An interpreter that takes parameters for constants would fold exp(log_std) into one."""
    scale = nn.Parameter(torch.zeros(3), requires_grad=False)
    recorded = Recorded(lambda x: x * scale.exp(), backend)
    for call in range(5):
        scale.fill_(float(call))
        assert torch.equal(recorded(torch.ones(2, 3)), torch.full((2, 3), float(call)).exp())
    assert not recorded.unfit


@both
def test_the_backward_pass_follows_parameters_that_change_in_place(backend: Backend) -> None:
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    theta = flatten_parameters(module)
    parameters = list(module.parameters())

    def gradient(x: Tensor) -> Tensor:
        try:
            for parameter in parameters:
                parameter.requires_grad_()
            return torch.cat([x.flatten() for x in gradient_of(module, x)])
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    recorded = Recorded(gradient, backend)
    for call in range(6):
        x = numbers(call, 16, 3)
        assert torch.equal(recorded(x), gradient(x))
        theta.add_(numbers(call, len(theta)), alpha=0.1)
    assert not recorded.unfit
    assert not any(parameter.requires_grad for parameter in parameters)


@both
def test_arguments_that_share_memory_are_changed_in_order(backend: Backend) -> None:
    def swap(whole: Tensor, half: Tensor) -> Tensor:
        before = half.clone()
        whole.add_(1.0)
        half.mul_(2.0)
        return before + half

    memory = numbers(0, 6)
    replay = backend(program_of(swap, memory, memory[3:]))
    for call in range(3):
        own, others = numbers(call, 6), numbers(call, 6)
        wanted = swap(own, own[3:])
        assert torch.equal(replay(others, others[3:])[0], wanted) and torch.equal(others, own)


@both
def test_an_operation_of_ones_own(backend: Backend) -> None:
    library = torch.library.Library("ppo_fast_test", "DEF")
    library.define("twice.of(Tensor x, float[] factors, str how) -> Tensor")
    library.impl("twice.of", lambda x, factors, how: x * 2 * factors[0], "CPU")
    recorded = Recorded(lambda x: torch.ops.ppo_fast_test.twice.of(x, [0.5], "as you like") + 1, backend)
    for call in range(4):
        assert torch.equal(recorded(numbers(call, 3)), numbers(call, 3) + 1)
    assert not recorded.unfit


def test_a_list_of_tensors_that_is_written_into() -> None:
    """TorchScript would leave the operation out, as nothing is made of its result."""

    def function(x: Tensor, y: Tensor) -> None:
        torch.ops.aten._foreach_add_([x, y], [y, x])

    recorded = Recorded(function)
    for call in range(4):
        own, others = [numbers(call, 3), numbers(call + 9, 3)], [numbers(call, 3), numbers(call + 9, 3)]
        function(*own)
        recorded(*others)
        assert_same(others, own)
    assert not recorded.unfit


def test_what_torchscript_refuses_runs_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: Program) -> Any:
        raise NotImplementedError("no words for that")

    monkeypatch.setattr(backends, "interpreted", refuse)
    recorded = Recorded(torch.sin)
    for call in range(4):
        assert torch.equal(recorded(numbers(call, 3)), numbers(call, 3).sin())
    assert not recorded.unfit


def test_python_3_14_has_no_torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Program] = []
    monkeypatch.setattr(backends, "interpreted", asked.append)
    monkeypatch.setattr(backends.sys, "version_info", (3, 14, 0))
    replay = quickest(program_of(torch.sin, torch.ones(2)))
    assert torch.equal(replay(numbers(0, 2))[0], numbers(0, 2).sin()) and not asked


def test_a_program_can_be_read() -> None:
    """As text it is what was done, and can be run by hand."""
    recorded = program_of(lambda x, y: (x @ y).tanh() * 2.0, torch.ones(2, 3), torch.ones(3, 2))
    text, names = source_of(recorded)
    assert [word for word in ("mm", "tanh", "mul") if word in text] == ["mm", "tanh", "mul"]
    exec(text, names)
    assert torch.equal(names["replay"](torch.ones(2, 3), torch.ones(3, 2))[0], torch.full((2, 2), 3.0).tanh() * 2)
    script, given = script_of(recorded)
    assert "torch.ops.aten.tanh" in script and [float(x) for x in given] == [2.0]


# ---------------------------------------------------------------- whole iterations


# What does not stand in iterations.VARIANTS, being of no interest elsewhere.
MORE: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "three actions": {"env_id": "Acrobot-v1"},
    "two threads": {"num_envs": 128, "num_steps": 16, "num_minibatches": 2, "update_epochs": 2},
    "reset rows": {"env_id": "odd_envs:NextStep-v0"},
    "two dials": {"env_id": "odd_envs:TwoDials-v0", "backend": "sync"},
}
VARIANTS = iterations.VARIANTS | MORE


def refuse(program: Program) -> Any:
    """A backend with which the functions run as they are, in the same parts."""
    raise NotImplementedError("is not wanted")


def ran(args: train.Args, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> tuple[iterations.Built, Any]:
    monkeypatch.setattr(backends, "quickest", backend)
    built = iterations.built(args, "recorded")
    return built, iterations.run(built, 4, args)


@both
@pytest.mark.parametrize("name", VARIANTS)
def test_iterations_are_the_eager_ones_bit_for_bit(
    name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every function is really replayed in them."""
    args = iterations.small(**VARIANTS[name])
    args.total_timesteps = args.batch_size * 40
    eager, wanted = ran(args, refuse, monkeypatch)
    replayed, found = ran(args, backend, monkeypatch)
    assert torch.equal(found.theta, wanted.theta)
    assert str(found.metrics) == str(wanted.metrics)  # NaN is equal there
    state = replayed.iteration.state.all()
    for key, x in eager.iteration.state.all().items():
        torch.testing.assert_close(state[key], x, rtol=0, atol=0, equal_nan=True, msg=key)
    assert replayed.engine.report() == ("recorded, 5 of 5 functions", [])
    assert eager.engine.report().words == "recorded, 0 of 5 functions"


class Norm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, outputs))


class Rows(nn.Module):
    """A network that works on one batch of rows, (..., D) -> (..., outputs)."""

    def __init__(self, outputs: int, features: int) -> None:
        super().__init__()
        self.last = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(self.features(x.reshape(-1, x.shape[-1])))
        return found.view(*x.shape[:-1], found.shape[-1])

    def features(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class Convolution(Rows):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(outputs, 4 * (inputs - 1))
        self.convolution = nn.Conv2d(1, 4, (1, 2))

    def features(self, rows: Tensor) -> Tensor:
        return self.convolution(rows[:, None, None]).relu().flatten(1)


class Memory(Rows):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(outputs, 8)
        self.memory = nn.LSTM(inputs, 8, batch_first=True)

    def features(self, rows: Tensor) -> Tensor:
        return self.memory(rows[:, None])[0][:, 0]


class Attention(Rows):
    """Each number of the observation attends to the others; torch says of attention that it is random."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(outputs, inputs * 8)
        self.embedding = nn.Linear(1, 24)

    def features(self, rows: Tensor) -> Tensor:
        query, key, value = self.embedding(rows[:, None, :, None]).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


@both
@pytest.mark.parametrize("network", [Norm, Convolution, Memory, Attention])
def test_networks_of_ones_own_are_replayed_too(
    network: Callable[[int, int], nn.Module], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Agent(train.Agent):
        def __init__(self, envs: Any, args: train.Args, generator: torch.Generator | None = None) -> None:
            super().__init__(envs, args, generator)
            torch.manual_seed(args.seed)
            (size,) = envs.single_observation_space.shape
            self.actor = network(size, self.head.outputs)  # pyright: ignore[reportAttributeAccessIssue]
            self.critic = network(size, 1)  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(train, "Agent", Agent)
    args = iterations.small(num_envs=4, num_steps=8)
    wanted = iterations.run(iterations.built(args), 4, args)
    replayed, found = ran(args, backend, monkeypatch)
    assert torch.equal(found.theta, wanted.theta) and not torch.equal(found.theta[0], found.theta[-1])
    assert replayed.engine.report() == ("recorded, 5 of 5 functions", [])


# ---------------------------------------------------------------- threads and memory


@both
def test_threads_at_once(backend: Backend) -> None:
    """Each has its own rows; recording, comparing and replaying meet in all combinations."""
    module = mlp.MLP([4, 8, 1], 1.0, torch.Generator().manual_seed(0))
    wrong: list[int] = []
    recorded = Recorded(lambda x: gradient_of(module, x), backend)

    def work(seed: int) -> None:
        with torch.no_grad():
            for call in range(30):
                x = numbers(100 * seed + call, 8, 4)
                found = recorded(x)
                with recorded.lock:
                    wanted = gradient_of(module, x)
                if not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
                    wrong.append(call)

    in_threads(work, 3)
    assert not wrong and not recorded.unfit


def resident() -> float:
    """Memory of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.slow
@both
def test_a_training_gives_its_memory_back(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lost 7.8 MB where the interpreter kept its graphs for ever."""
    monkeypatch.setattr(backends, "quickest", backend)
    before = 0.0
    for count in range(10):
        if count == 3:
            before = resident()
        iterations.run(iterations.built(iterations.small(), "recorded"), 3, iterations.small())
        gc.collect()
    assert resident() - before < 12.0  # 54 of them would be lost
