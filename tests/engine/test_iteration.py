"""ppo_fast.engine.iteration: two halves, the state that they change, saved and loaded, and what they leave no trace in.

How halves are captured stands in test_cuda_graphs.py.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import iterations
import pytest
import torch
from iterations import built, once, small
from torch import Tensor

from ppo_fast import train
from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine import iteration
from ppo_fast.engine.iteration import Iteration, TrainState
from ppo_fast.engine.plan import Mode

NORMALISED = {"norm_obs": True, "norm_reward": True}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert torch.equal(found[name], x), name


# ---------------------------------------------------------------- halves


def test_the_seconds_are_those_of_each_half(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(iteration, "time", SimpleNamespace(perf_counter=lambda: now.seconds))

    def collect() -> None:
        now.seconds += 2.0

    def learn() -> Metrics:
        now.seconds += 3.0
        return Metrics({}, {})

    halves = Iteration(collect, learn, TrainState({}, {}, {}), [torch.Generator()])
    halves.collect()
    halves.learn()
    assert halves.seconds == {"collect": 2.0, "learn": 3.0}
    halves.collect()
    assert halves.seconds == {"collect": 2.0, "learn": 3.0}, "of the last one, not of all"


def test_halves_run_without_gradients() -> None:
    seen: list[bool] = []

    def learn() -> Metrics:
        seen.append(torch.is_grad_enabled())
        return Metrics({}, {})

    halves = Iteration(lambda: seen.append(torch.is_grad_enabled()), learn, TrainState({}, {}, {}), [torch.Generator()])
    with torch.enable_grad():
        halves.collect()
        halves.learn()
        assert seen == [False, False] and torch.is_grad_enabled()


@pytest.mark.parametrize("flags", [NORMALISED, {"backend": "sync"}], ids=["tensor", "host"])
def test_warming_up_leaves_no_trace(flags: dict[str, Any]) -> None:
    """Both halves have run then; what follows is what would have been without."""
    args = small(**flags)
    fresh, warm = built(args), built(args)
    warm.iteration.warm_up(capture=False, seed=args.seed)
    assert_equal(warm.iteration.state.saved(), fresh.iteration.state.saved())
    wanted, found = iterations.run(fresh, 3, args), iterations.run(warm, 3, args)
    assert torch.equal(found.theta, wanted.theta) and repr(found.metrics) == repr(wanted.metrics)


def test_an_update_is_repeated_from_what_it_began_with() -> None:
    """`before` and `stream`: what a crash file holds, besides the rollout."""
    run = built(small(**NORMALISED))
    for _ in range(3):
        once(run.iteration)
    learned = run.iteration.state.learned | run.iteration.state.carried
    after = {name: x.clone() for name, x in learned.items()}
    before = {name: x.clone() for name, x in run.iteration.before.items()}
    assert before.keys() == after.keys() and not torch.equal(before["theta"], after["theta"])
    for name, x in before.items():
        learned[name].copy_(x)
    run.iteration.generators[0].set_state(run.iteration.stream)
    run.iteration.learn()
    assert_equal(learned, after)
    assert_equal(run.iteration.before, before)


@pytest.mark.parametrize("gpu", [False, True])
def test_an_adaptive_rate_stays_after_the_epochs_were_stopped(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    """It is moved after the epoch that went too far, and no more: on a GPU, too, where the other updates still run."""
    kl: dict[str, Any] = {"lr_schedule": "kl", "desired_kl": 1e-5, "learning_rate": 0.009, "num_envs": 32}
    if gpu:
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    rates = []
    for flags in ({"target_kl": 1e-6}, {"update_epochs": 1}, {}):
        run = built(small(**kl, **flags))
        once(run.iteration)
        rates.append(float(run.learner.learning_rate))
    stopped, one_epoch, free = rates
    assert stopped == one_epoch == pytest.approx(0.009 / 1.5)
    assert free == pytest.approx(0.009 / 1.5**4)


# ---------------------------------------------------------------- state


class WithBuffers(train.Agent):
    """Whose names begin like those of an environment's state, and of what is carried from episode to episode."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("env_scale", torch.ones(2))
        self.register_buffer("carry_gate", torch.ones(3))
        self.register_buffer("running", torch.ones(4), persistent=False)


def test_persistent_says_whether_a_buffer_is_learned_not_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "Agent", WithBuffers)
    state = built(small(**NORMALISED)).iteration.state
    assert {"agent.env_scale", "agent.carry_gate", "agent.normalize_obs.shift", "theta", "step"} <= state.learned.keys()
    assert state.carried.keys() == {"agent.running", "agent.normalize_reward.carry", "carry_return", "carry_length"}
    assert state.environments.keys() == {"env0", "env1", "obs"}


def test_a_rollout_is_part_of_the_state_but_not_saved() -> None:
    run = built(small())
    assert not run.iteration.state.rollout
    once(run.iteration)
    state = run.iteration.state
    assert {"obs", "action", "reward", "advantage"} <= state.rollout.keys() and "valid" not in state.rollout
    assert not any("rollout" in name for name in run.iteration.saved()["tensors"])
    assert state.all().keys() == state.saved().keys() | {f"rollout.{name}" for name in state.rollout}


@pytest.mark.parametrize("mode", ["eager", "recorded"])
def test_going_on_from_what_was_saved_is_bit_for_bit(mode: Mode) -> None:
    """A recorded run that goes on records anew: its first calls are the function's own, the whole run's are replays."""
    args = small(**NORMALISED, num_steps=16)
    whole, first, second = (built(args, mode).iteration for _ in range(3))
    for _ in range(6):
        once(whole)
    for _ in range(3):
        once(first)
    saved = first.saved()
    once(first)  # which changes no copy
    second.load(saved)
    for _ in range(3):
        once(second)
    assert_equal(second.state.saved(), whole.state.saved())


def test_loading_is_in_place_and_may_be_of_a_part() -> None:
    """Captured graphs know no other memory."""
    here, there = built(small()).iteration, built(small(seed=2)).iteration
    once(there)
    saved = there.saved()
    memory = {name: x.data_ptr() for name, x in here.state.saved().items()}
    here.load({**saved, "tensors": {"theta": saved["tensors"]["theta"]}})
    assert torch.equal(here.state.learned["theta"], there.state.learned["theta"])
    assert not torch.equal(here.state.learned["moment1"], there.state.learned["moment1"])
    here.load(saved)
    assert_equal(here.state.saved(), there.state.saved())
    assert {name: x.data_ptr() for name, x in here.state.saved().items()} == memory


def strange_name(saved: dict[str, Any]) -> None:
    saved["tensors"]["agent.gone"] = torch.zeros(1)


def strange_shape(saved: dict[str, Any]) -> None:
    saved["tensors"]["obs"] = torch.zeros(3, 4)


def strange_stream(saved: dict[str, Any]) -> None:
    saved["generators"][0] = torch.zeros(16, dtype=torch.uint8)  # what a GPU's generator has


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (strange_name, "its agent.gone does not fit this configuration"),
        (strange_shape, "its obs does not fit this configuration"),
        (strange_stream, "the run was on another kind of device, whose random numbers can't go on here"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(change: Callable[[dict[str, Any]], None], line: str) -> None:
    run = built(small()).iteration
    once(run)
    saved = run.saved()
    once(run)
    now = run.saved()["tensors"]
    change(saved)
    with pytest.raises(ValueError) as refusal:
        run.load(saved)
    assert str(refusal.value) == line
    assert_equal(run.state.saved(), now)


def test_host_environments_begin_anew_and_nothing_is_carried() -> None:
    run = built(small(backend="sync", norm_reward=True, num_steps=16))
    assert built(small()).iteration.restart is None  # tensor environments go on from their state
    beginning = run.iteration.state.environments["obs"].clone()
    for _ in range(2):
        once(run.iteration)
    assert run.iteration.restart is not None
    assert all(x.any() for x in run.iteration.state.carried.values())
    run.iteration.restart(small().seed)
    assert torch.equal(run.iteration.state.environments["obs"], beginning)
    assert not any(x.any() for x in run.iteration.state.carried.values())
    once(run.iteration)
    run.iteration.restart(None)
    assert not torch.equal(run.iteration.state.environments["obs"], beginning)
