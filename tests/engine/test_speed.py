"""ppo_fast.engine.speed: what is counted is counted exactly, what is measured is measured in its own units."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ppo_fast import train
from ppo_fast.algorithm import networks, ppo
from ppo_fast.engine import speed

CPU = torch.device("cpu")
pytestmark = pytest.mark.full_end


def counted_flops(args: train.Args) -> float:
    """Operations per environment step of the products that the eager program makes, counted by torch."""
    agent = train.setup(args, CPU)[1]
    rows = args.batch_size
    obs = torch.randn(rows, *agent.obs_shape)
    noise = agent.head.draw_noise((rows,), torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        action, outputs = agent.act(obs, noise)
        log_prob = agent.head.log_prob(outputs, action)
        value = agent.value(obs)
        batch = train.Batch(obs, action, log_prob, torch.randn(rows), torch.randn(rows), value, None)
        shapes = {name: parameter.shape for name, parameter in agent.named_parameters()}
        theta = networks.flatten_parameters(agent)
        for _ in range(args.update_epochs):
            ppo.value_and_gradients(train.loss, networks.unflatten(theta, shapes), agent, args, batch)
    return counter.get_total_flops() / rows


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("hidden", [(64, 64), (32,), (16, 24, 8)])
def test_flops_are_those_of_the_program(env_id: str, shared: bool, hidden: tuple[int, ...]) -> None:
    args = train.Args(env_id=env_id, shared_backbone=shared, hidden_sizes=hidden, num_envs=8, num_steps=4)
    agent = train.setup(args, CPU)[1]
    shapes = {name: tuple(parameter.shape) for name, parameter in agent.named_parameters()}
    for epochs in (1, 4):
        args = replace(args, update_epochs=epochs)
        assert speed.flops_per_step(shapes, epochs) == counted_flops(args)


def test_flops_of_the_default_networks_by_hand() -> None:
    actor, critic = 4 * 64 + 64 * 64 + 64 * 2, 4 * 64 + 64 * 64 + 64 * 1
    shapes = {}
    for name, outputs in (("actor", 2), ("critic", 1)):
        for index, shape in enumerate(((64, 4), (64, 64), (outputs, 64))):
            shapes[f"{name}.layers.{index}.weight"] = shape
            shapes[f"{name}.layers.{index}.bias"] = shape[:1]
    by_hand = 2 * (actor + critic) + 4 * (6 * (actor + critic) - 2 * (4 * 64 + 4 * 64))
    assert speed.flops_per_step(shapes, 4) == by_hand == 227_200


class Clock:
    """A clock that only `tick` moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def test_measure_counts_steps_of_all_calls(clock: Clock) -> None:
    # 4 calls of 0.05 s, which 0.15 s end after the third.
    assert speed.measure(lambda: clock.tick(0.05), 100, CPU, seconds=0.15) == pytest.approx(100 / 0.05)


def test_measure_calls_a_slow_function_once(clock: Clock) -> None:
    calls = []

    def slow() -> None:
        calls.append(1)
        clock.tick(7.0)

    assert speed.measure(slow, 70, CPU) == pytest.approx(10.0)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceiling_is_in_its_units_and_leaves_the_setting(dtype: torch.dtype) -> None:
    before = torch.get_float32_matmul_precision()
    limit = speed.ceiling(CPU, 256, 64, 0.02, dtype)
    # Any machine between a slow emulator and the largest server.
    assert 1e6 < limit.flops_per_second < 1e15 and 1e6 < limit.bytes_per_second < 1e15
    assert torch.get_float32_matmul_precision() == before


def test_ceiling_by_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster product counts, as long as it is the same product, and the fastest copy, here on one thread; sizes
    and both directions of a copy count."""
    seconds, threads = {"highest": 2e-3, "medium": 1e-3}, [4]

    def best(function: Any, device: torch.device, budget: float) -> float:
        function()
        return seconds[torch.get_float32_matmul_precision()] * torch.get_num_threads()

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(speed, "_best", best)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", lambda x, w, out: out.copy_(x @ w))
        limit = speed.ceiling(CPU, 1000, 64)
        assert limit.flops_per_second == pytest.approx(2 * 1000 * 64 * 64 / 1e-3)
        assert limit.bytes_per_second == pytest.approx(2 * 1000 * 64 * 4 / 1e-3) and threads[-1] == 4
        most = speed.MANY_ROWS["cpu"]
        assert speed.ceiling(CPU, 10**7, 64).bytes_per_second == pytest.approx(2 * most * 64 * 4 / 1e-3)

        def rounded(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
            coarse = torch.get_float32_matmul_precision() == "medium"
            out.copy_((x.bfloat16() @ weight.bfloat16()).float() if coarse else x @ weight)

        patch.setattr(torch, "mm", rounded)
        assert speed.ceiling(CPU, 1000, 64).flops_per_second == pytest.approx(2 * 1000 * 64 * 64 / 2e-3)


def test_ceiling_leaves_the_setting_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(speed, "_best", fail)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError):
        speed.ceiling(CPU, 8, 8)
    assert torch.get_float32_matmul_precision() == before


def test_best_is_of_one_call_of_the_fastest_burst(clock: Clock) -> None:
    durations = iter([1.0] * speed.BURST + [0.3] * speed.BURST + [0.2] * speed.BURST + [0.4] * speed.BURST + [9.0])
    found = speed._best(lambda: clock.tick(next(durations)), CPU, seconds=speed.BURST * 0.8)
    assert found == pytest.approx(0.2)


def test_best_is_of_several_bursts_even_if_the_first_one_waits(clock: Clock) -> None:
    durations = iter([50.0] * speed.BURST * 2 + [0.1] * speed.BURST + [9.0])
    assert speed._best(lambda: clock.tick(next(durations, 0.1)), CPU, seconds=1.0) == pytest.approx(0.1)


REPORT = {
    "env_only_sps": 2e6,
    "inference_sps": 1e6,
    "training_sps": 250_000.0,
    "compile_seconds": 30.25,
    "first_update_seconds": 33.0,
    "flops": 200_000.0,
    "limit": speed.Ceiling(1e11, 2e10),
}


def test_report_and_its_lines() -> None:
    found = speed.report(**REPORT)
    assert found["achieved_flops"] == 5e10
    assert found["fraction_of_ceiling"] == 0.5
    assert json.loads(json.dumps(found)) == found
    said = "\n".join(speed.lines(found))
    for figure in ("2,000,000", "1,000,000", "250,000", "30.2 s", "33.0 s", "200 kFLOP", "50.0 GFLOP/s", "50 %"):
        assert figure in said, figure
    assert "100.0 GFLOP/s" in said and "20.0 GB/s" in said
    assert len(speed.lines(found)) == 4 and max(map(len, speed.lines(found))) <= 108


def test_report_of_a_run() -> None:
    args = train.Args(num_envs=8, num_steps=4, update_epochs=4, compile="off")
    envs, agent, learner = train.setup(args, CPU)
    iteration = train.make_iteration(args, envs, agent, learner, False)
    result = {"sps": 1000.0, "first_iteration_seconds": 0.5}
    start = time.perf_counter()
    found = speed.of_run(args, envs, agent, iteration, result, {"startup": 2.0, "compile": 3.0})
    assert time.perf_counter() - start < 20  # seconds would be a loop that does not end in time, not a slow machine
    assert found["first_update_seconds"] == 5.5 and found["compile_seconds"] == 3.0
    assert found["achieved_flops"] == 1000.0 * 227_200
    assert all(x > 0 for x in found.values())


def test_a_step_of_the_environment_is_counted_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    envs = SimpleNamespace(step=steps.append, device=CPU)
    flags = SimpleNamespace(
        num_envs=8, batch_size=32, num_minibatches=4, update_epochs=1, hidden_sizes=(64, 32), precision="bf16"
    )
    measured: list[int] = []

    def measure(function: Any, count: int, device: torch.device) -> float:
        for _ in range(6):
            function()
        measured.append(count)
        return 1.0

    limits: list[Any] = []

    def ceiling(*given: Any, dtype: torch.dtype) -> speed.Ceiling:
        limits.append((*given, dtype))
        return speed.Ceiling(1.0, 1.0)

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "ceiling", ceiling)
    iteration = SimpleNamespace(collect=lambda: None, state={"rollout.action": torch.arange(32).view(4, 8)})
    agent = SimpleNamespace(named_parameters=dict)
    seconds = {"startup": 1.0, "compile": 1.0}
    speed.of_run(flags, envs, agent, iteration, {"sps": 1.0, "first_iteration_seconds": 1.0}, seconds)
    assert measured == [8, 32]
    assert [int(actions[0]) for actions in steps] == [0, 8, 16, 24, 0, 8]  # the rollout's, over and over
    assert limits == [(CPU, 8, 64, torch.bfloat16)]
