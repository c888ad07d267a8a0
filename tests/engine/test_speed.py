"""ppo_fast.engine.speed: what is counted is counted exactly, what is measured is measured in its own units."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppo_fast import envs as environments, train
from ppo_fast.engine import engine, plan, speed
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.gradients import LossModule, part_gradient
from ppo_fast.engine.plan import Mode
from ppo_fast.engine.ranks import Ranks

pytestmark = pytest.mark.full_end  # what runs otherwise leave out is what is tested here

CPU = torch.device("cpu")


def counted_flops(args: train.Args, agent: train.Agent, theta: Tensor, obs: Tensor) -> float:
    """Operations per environment step of the products that the program makes, counted by torch."""
    rows = len(obs)
    noise = agent.head.draw_noise((rows,), torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        action, outputs = agent.act(obs, noise)
        log_prob = agent.head.log_prob(outputs, action)
        value = agent.value(obs)
        batch = train.Batch(obs, action, log_prob, torch.randn(rows), torch.randn(rows), value, None)
        for _ in range(args.update_epochs):
            part_gradient(LossModule(train.loss, agent, args), theta, batch, 1.0)
    return counter.get_total_flops() / rows


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("hidden", [(64, 64), (32,), (16, 24, 8)])
@pytest.mark.parametrize("epochs", [1, 4])
def test_flops_are_those_of_the_program(env_id: str, shared: bool, hidden: tuple[int, ...], epochs: int) -> None:
    args = train.Args(
        env_id=env_id, shared_backbone=shared, hidden_sizes=hidden, num_envs=8, num_steps=4, update_epochs=epochs
    )
    _, agent, learner = train.setup(args, CPU)
    obs = torch.randn(32, *agent.obs_shape)
    wanted = counted_flops(args, agent, learner.theta, obs)
    few = obs[:4]
    assert speed.flops_per_step(agent, few, agent.act(few, None)[0], epochs) == wanted


def test_flops_of_the_default_networks_by_hand() -> None:
    actor, critic = 4 * 64 + 64 * 64 + 64 * 2, 4 * 64 + 64 * 64 + 64 * 1
    by_hand = 2 * (actor + critic) + 4 * (6 * (actor + critic) - 2 * (4 * 64 + 4 * 64))
    agent = train.setup(train.Args(num_envs=8), CPU)[1]
    obs = torch.randn(4, 4)
    assert speed.flops_per_step(agent, obs, torch.zeros(4, dtype=torch.int64), 4) == by_hand == 227_200


class Odd(nn.Module):
    """An agent around any network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def value(self, obs: Tensor) -> Tensor:
        found = self.network(obs)
        return found[0] if isinstance(found, tuple) else found

    def act(self, obs: Tensor, noise: None) -> tuple[Tensor, Tensor]:
        return obs, self.value(obs)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return action, self.value(obs)


# Operations a row forward, and backward: once for each weight, and once for each input that depends on a weight.
CONVOLUTION = 2 * 7 * 7 * 8 * 3 * 3 * 3  # 15 x 15 pixels, 7 x 7 after it
LAYER = 2 * 8 * 7 * 7 * 10
GATES = 2 * 6 * (4 * 16) * (8 + 16)  # 6 steps a row
GATES_OF_INPUTS = 2 * 6 * (4 * 16) * 8
PROJECTIONS = 2 * 6 * 16 * 16 * 4  # of queries, keys, values and the output, at 6 places a row
ATTENTION = 2 * 2 * 6 * 6 * 16  # scores, and what they weigh
NETWORKS = {
    "convolutions": (
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)),
        (3, 15, 15),
        CONVOLUTION + LAYER,
        CONVOLUTION + 2 * LAYER,
    ),
    "memory": (nn.LSTM(8, 16, batch_first=True), (6, 8), GATES, None),
    "attention": (
        nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval(),
        (6, 16),
        PROJECTIONS + ATTENTION + 2 * 2 * 6 * 16 * 32,
        None,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_of_other_networks_by_hand(name: str) -> None:
    network, shape, forward, backward = NETWORKS[name]
    agent = Odd(network)
    for parameter in agent.parameters():
        parameter.requires_grad_(False)
    obs = torch.randn(4, *shape)
    assert speed.flops_per_step(agent, obs, obs, 0) == 2 * forward
    once = speed.flops_per_step(agent, obs, obs, 1) - 3 * forward
    if backward is not None:
        assert once == backward
    else:
        assert forward < once <= 2 * forward
    assert torch.backends.mkldnn.enabled  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(parameter.requires_grad for parameter in agent.parameters())
    assert all(parameter.grad is None for parameter in agent.parameters())


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


REPORT: dict[str, Any] = {
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


def test_no_part_is_slower_than_the_whole() -> None:
    """As it is measured where another process had the machine meanwhile."""
    for env_only, inference in ((1e5, 2e5), (4e5, 1e5), (3e5, 5e5)):
        measured: dict[str, Any] = REPORT | {"env_only_sps": env_only, "inference_sps": inference}
        found = speed.report(**measured)
        assert found["env_only_sps"] >= found["inference_sps"] >= found["training_sps"] == 250_000


def test_what_is_not_known_is_left_out() -> None:
    unknown: dict[str, Any] = REPORT | {"env_only_sps": None, "flops": None}
    found = speed.report(**unknown)
    assert json.loads(json.dumps(found)) == found
    assert not {"env_only_sps", "flops_per_step", "achieved_flops", "fraction_of_ceiling"} & found.keys()
    said = "\n".join(speed.lines(found))
    assert "would have to be compiled" in said and "not counted" in said and "100.0 GFLOP/s" in said
    assert len(speed.lines(found)) == 4 and max(map(len, speed.lines(found))) <= 108


def built(args: train.Args, mode: Mode) -> tuple[Any, train.Agent, Any]:
    """Environments, agent and an iteration of a run, which has made one rollout."""
    envs, agent, learner = train.setup(args, CPU)
    iteration = train.make_iteration(args, envs, agent, learner, Engine(args, Ranks(CPU), mode))
    iteration.collect()
    return envs, agent, iteration


SECONDS = {"startup": 2.0, "compile": 3.0}
RESULT = {"sps": 1000.0, "first_iteration_seconds": 0.5}


def test_report_of_a_run() -> None:
    args = train.Args(num_envs=8, num_steps=4, update_epochs=4, compile="off")
    envs, agent, iteration = built(args, "eager")
    start = time.perf_counter()
    found = speed.of_run(args, envs, agent, iteration, RESULT, SECONDS)
    assert time.perf_counter() - start < 20  # seconds would be a loop that does not end in time, not a slow machine
    assert found["first_update_seconds"] == 5.5 and found["compile_seconds"] == 3.0
    assert found["achieved_flops"] == 1000.0 * 227_200
    assert found["env_only_sps"] > 0 and all(x > 0 for x in found.values())


def test_an_agent_of_another_kind_has_a_report_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(train.Agent):
        def act(self, *_: Any) -> Any:
            raise TypeError

    args = train.Args(num_envs=8, num_steps=4, compile="off")
    envs, agent, iteration = built(args, "eager")
    agent.__class__ = Other
    monkeypatch.setattr(iteration, "collect", lambda: None)
    monkeypatch.setattr(speed, "measure", lambda *_: 1.0)
    found = speed.of_run(args, envs, agent, iteration, RESULT, SECONDS)
    assert "flops_per_step" not in found and found["training_sps"] == 1000.0


def begun(args: train.Args) -> tuple[Any, train.Agent, train.Carry]:
    """Environments that have been reset, an agent, and where the environments stand."""
    envs: Any
    envs, agent, _ = train.setup(args, CPU)
    obs, _ = envs.reset(seed=1)
    return envs, agent, train.Carry(envs.state, obs)


def test_an_environment_alone_takes_the_steps_of_the_program() -> None:
    envs, agent, carry = begun(train.Args(num_envs=8, num_steps=60))
    noise = train.Noise(agent.head.draw_noise((60, 8), torch.Generator().manual_seed(0)), envs.draw_noise(60))
    after, rollout = train.collect(agent, envs, carry, noise)
    assert rollout.terminated.any()
    state, steps = speed.step_alone(agent, envs, speed.Carry(carry.env), speed.Given(rollout.action, noise.env))
    assert all(torch.equal(x, y) for x, y in zip(state.state, after.env, strict=True))
    assert torch.equal(steps.reward, rollout.reward) and torch.equal(steps.final_obs, rollout.final_obs)


@pytest.mark.parametrize("mode", ["eager", "recorded"])
def test_an_environment_alone_runs_as_in_the_run(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """It is measured only once it is replayed, and leaves the run where it stands."""
    made: list[engine.Recorded] = []

    class Watched(engine.Recorded):
        def __init__(self, function: Any) -> None:
            super().__init__(function)
            made.append(self)

    args = train.Args(num_envs=8, num_steps=20, compile="off" if mode == "eager" else "auto")
    envs, agent, iteration = built(args, mode)
    before = iteration.saved()["tensors"]
    monkeypatch.setattr(engine, "Recorded", Watched)
    replays: list[int] = []

    def measure(function: Any, steps: int, device: torch.device) -> float:
        assert not any(each.unfit for each in made)
        replays.extend(len(each._ways) for each in made)
        function()
        return steps

    monkeypatch.setattr(speed, "measure", measure)
    assert speed.environment_alone(args, envs, agent, iteration.state.rollout["action"]) == 8 * 20
    assert replays == ([] if mode == "eager" else [2])  # chunks of 8 steps and of the 4 that are left
    after = iteration.saved()["tensors"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_environment_alone_is_captured_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[Any] = []

    def graph(function: Any, generators: list[torch.Generator]) -> Any:
        captured.append(generators)
        return function

    monkeypatch.setattr(plan, "captures", lambda *_: True)
    monkeypatch.setattr(plan, "records", lambda *_: False)
    monkeypatch.setattr(speed, "CudaGraph", graph)
    args = train.Args(num_envs=8, num_steps=4, total_timesteps=64)
    envs, agent, _ = begun(args)
    found = speed.environment_alone(args, envs, agent, torch.zeros(4, 8, dtype=torch.int64))
    assert found is not None and found > 0
    assert captured == [[envs.generator]]


def test_an_environment_is_not_compiled_to_be_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "compiler_on_path", lambda _: True)
    args = train.Args(num_envs=8, num_steps=4, compile="on")
    envs, agent, _ = begun(args)
    actions = torch.zeros(4, 8, dtype=torch.int64)
    assert speed.environment_alone(args, envs, agent, actions) is None
    host = environments.make("CartPole-v1", 8, CPU, "sync")
    host.reset(seed=1)
    found = speed.environment_alone(args, host, agent, actions)  # compiles nothing of its own
    assert found is not None and found > 0
    host.close()


def test_a_step_of_host_environments_is_counted_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    envs: Any = SimpleNamespace(step=steps.append, device=CPU, pure=False)
    measured: list[int] = []

    def measure(function: Any, count: int, device: torch.device) -> float:
        for _ in range(6):
            function()
        measured.append(count)
        return 1.0

    monkeypatch.setattr(speed, "measure", measure)
    args = train.Args(num_envs=8, num_steps=4)
    speed.environment_alone(args, envs, nn.Linear(1, 1), torch.arange(32).view(4, 8))
    assert measured == [8]
    assert [int(actions[0]) for actions in steps] == [0, 8, 16, 24, 0, 8]  # the rollout's, over and over


def test_the_ceiling_is_of_the_shape_of_a_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []

    def ceiling(*given: Any, dtype: torch.dtype) -> speed.Ceiling:
        limits.append((*given, dtype))
        return speed.Ceiling(1.0, 1.0)

    monkeypatch.setattr(speed, "measure", lambda *_: 1.0)
    monkeypatch.setattr(speed, "ceiling", ceiling)
    args = train.Args(num_envs=8, num_steps=4, hidden_sizes=(64, 32), precision="bf16", compile="off")
    envs, agent, iteration = built(args, "eager")
    speed.of_run(args, envs, agent, iteration, RESULT, SECONDS)
    assert limits == [(CPU, 8, 64, torch.bfloat16)]
