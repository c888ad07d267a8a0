"""ppo_fast.engine.verify: equal paths agree, rounding is forgiven, and a planted fault is not."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from iterations import CPU, built
from torch import Tensor

from ppo_fast import train
from ppo_fast.algorithm import adam, ppo
from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine import verify
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.iteration import Iteration, TrainState
from ppo_fast.engine.ranks import Ranks

SMALL = train.Args(num_envs=16, num_steps=16, update_epochs=2, num_minibatches=2, compile="off")
EPSILON = 2.0**-23


def path(args: train.Args = SMALL) -> Iteration:
    """The eager path of the program."""
    return built(args).iteration


class Changed:
    """A path with another `collect` or `learn`."""

    def __init__(self, whole: Iteration, collect: Callable | None = None, learn: Callable | None = None) -> None:
        self.state, self.generators, self.whole = whole.state, whole.generators, whole
        self.restart = whole.restart
        self._collect, self._learn = collect, learn

    def collect(self) -> None:
        self.whole.collect()
        if self._collect:
            self._collect(self.state)

    def learn(self) -> Metrics:
        return self.whole.learn() if self._learn is None else self._learn(self.whole)


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while: the other path runs in the same process and must not see it."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def with_patch(owner: Any, name: str, value: Any) -> Callable[[Any], Metrics]:
    """A `learn` during which `owner.name` is `value`."""

    def learn(whole: Any) -> Metrics:
        with patched(owner, name, value):
            return whole.learn()

    return learn


def verdict(fast: Any, eager: Any, updates: int = 3, **rest: Any) -> tuple[bool, list[str]]:
    said: list[str] = []
    return verify.compare(fast, eager, updates, said.append, **rest), said


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_a_path_agrees_with_itself(env_id: str) -> None:
    args = replace(SMALL, env_id=env_id)
    holds, said = verdict(path(args), path(args))
    assert holds and said[-1] == "the two paths agree"
    (equal,) = [line for line in said if line.startswith("  equal: ")]
    assert all(name in equal for name in ("parameters", "reward", "losses/value_loss", "next env0"))


@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_parameters_is_forgiven(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def nudge(state: TrainState) -> None:
        theta = state.learned["theta"]
        theta.mul_(1 + EPSILON * (2.0 * torch.randint(0, 2, theta.shape, generator=draw) - 1))

    def learn(whole: Any) -> Metrics:
        nudge(whole.state)
        return whole.learn()

    args = replace(SMALL, seed=seed)
    fast = path(args)
    collects, whole = [], Changed(fast, learn=learn)

    def collect() -> None:
        nudge(fast.state)
        collects.append(fast.collect())

    whole.collect = collect
    holds, said = verdict(whole, path(args), updates=5)
    assert holds, said
    assert len(collects) == 5 and not any("parameters" in line for line in said if line.startswith("  equal"))


@pytest.mark.parametrize(
    "flags",
    [
        {"gae_lambda": 0.949},
        {"gamma": 0.9899},
        {"norm_adv": False},
        {"adv_std_min": 5.0},
        {"vf_coef": 0.501, "shared_backbone": True},
        {"ent_coef": 0.02},  # at the start the policy is uniform, and the gradient of its entropy tiny
        {"max_grad_norm": 0.501},
        {"update_epochs": 1},
        {"num_minibatches": 1},
    ],
    ids=str,
)
def test_a_wrong_coefficient_is_caught(flags: dict[str, Any]) -> None:
    right = replace(SMALL, shared_backbone=flags.get("shared_backbone", False))
    holds, said = verdict(path(replace(right, **flags)), path(right))
    assert not holds and said[-1].startswith("error: the fast path diverges in ")


def biased_normalization(advantage: Tensor, valid: Tensor | None, least_std: float) -> Tensor:
    """Divides by N where the right one divides by N - 1, in each minibatch (..., M)."""
    deviation = advantage.std(-1, unbiased=False, keepdim=True)
    return (advantage - advantage.mean(-1, keepdim=True)) / (deviation + 1e-8)


def small_adam(learner: Any, gradient: Tensor) -> None:
    """Adam with another eps than PPO's."""
    ADAM(learner, gradient, eps=1e-8)


def blind_gae(reward: Tensor, value: Tensor, next_value: Tensor, ended: Tensor, cut: Tensor, *how: float) -> Any:
    """GAE that takes no notice of terminated episodes."""
    return GAE(reward, value, next_value, torch.zeros_like(ended), cut | ended, *how)


ADAM, GAE = adam.adam_, ppo.gae
# Where each name is looked up, and what takes its place.
FAULTS: dict[str, tuple[Any, Callable]] = {
    "normalize_advantage": (ppo, biased_normalization),
    "adam_": (train, small_adam),
    "gae": (ppo, blind_gae),
    "clip_gradient": (train, lambda gradient, _norm: (gradient, gradient.norm())),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_mathematics_in_learning_is_caught(name: str) -> None:
    args = replace(SMALL, num_steps=64)  # so that episodes end
    holds, said = verdict(Changed(path(args), learn=with_patch(FAULTS[name][0], name, FAULTS[name][1])), path(args))
    assert not holds, said


def scale_reward(state: TrainState) -> None:
    state.rollout["reward"].mul_(1.0001)


def shift_value_of_one_row(state: TrainState) -> None:
    state.rollout["final_obs"][3, 2] += 1e-4


def flip_actions(state: TrainState) -> None:
    state.rollout["action"][:, ::2] ^= 1


def fold_truncation(state: TrainState) -> None:
    state.rollout["terminated"] |= state.rollout["truncated"]


def lose_the_state(state: TrainState) -> None:
    state.environments["env0"][:, 0] += 1e-3


def one_nan(state: TrainState) -> None:
    state.rollout["log_prob"][5, 5] = math.nan


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (scale_reward, "reward"),
        (shift_value_of_one_row, "final_obs"),
        (flip_actions, "flips"),
        (lose_the_state, "next env0"),
        (one_nan, "log_prob"),
    ],
)
def test_a_fault_in_collecting_is_caught_and_named(fault: Callable, where: str) -> None:
    holds, said = verdict(Changed(path(), collect=fault), path())
    assert not holds
    assert where in said[-1] and any(where in line and "DIVERGED" in line for line in said)


def test_truncation_folded_into_termination_is_caught() -> None:
    args = replace(SMALL, env_id="MountainCar-v0", num_steps=100)  # all environments are truncated in update 2
    holds, said = verdict(Changed(path(args), collect=fold_truncation), path(args))
    assert not holds and "flips" in said[-1]


def test_a_stale_copy_of_the_parameters_is_caught() -> None:
    envs, agent, learner = train.setup(SMALL, CPU)
    weight = agent.get_parameter("actor.layers.0.weight")
    weight.data = weight.data.clone()
    stale = train.make_iteration(SMALL, envs, agent, learner, Engine(SMALL, Ranks(CPU), "eager"))
    holds, said = verdict(stale, path(), updates=2)
    assert not holds and "log_prob" in said[-1]


@pytest.mark.parametrize("where", ["fast", "both"])
def test_nan_in_parameters_is_divergence_wherever_it_is(where: str) -> None:
    def broken(whole: Any) -> Metrics:
        metrics = whole.learn()
        whole.state.learned["theta"][0] = math.nan
        return metrics

    eager = Changed(path(), learn=broken) if where == "both" else path()
    holds, said = verdict(Changed(path(), learn=broken), eager, updates=1)
    assert not holds and "parameters" in said[-1]


def test_nan_of_one_path_alone_is_divergence_of_a_metric() -> None:
    def told(value: float) -> Callable[[Any], Metrics]:
        def learn(whole: Any) -> Metrics:
            metrics = whole.learn()
            metrics.means["losses/explained_variance"].fill_(value)
            return metrics

        return learn

    # Where the returns don't vary both are NaN, which is no fault.
    nan = Changed(path(), learn=told(math.nan))
    assert verdict(nan, Changed(path(), learn=told(math.nan)), updates=1)[0]
    holds, said = verdict(nan, Changed(path(), learn=told(0.0)), updates=1)
    assert not holds and "losses/explained_variance" in said[-1]


def test_advantages_are_compared_where_a_path_has_them() -> None:
    def with_advantages(error: float) -> Any:
        def learn(whole: Any) -> Metrics:
            metrics = whole.learn()
            advantage = whole.state.rollout["advantage"]
            advantage.add_(error * (1 + advantage.abs()))
            return metrics

        return Changed(path(), learn=learn)

    assert verdict(with_advantages(1e-6), with_advantages(0.0))[0]
    holds, said = verdict(with_advantages(1e-4), with_advantages(0.0))
    assert not holds and said[-1].endswith("in advantage")


def test_one_unlucky_update_is_forgiven_a_habit_is_not() -> None:
    """A row on the edge of the clip moves some parameters visibly, once in a while."""

    def path_that_jumps(in_updates: tuple[int, ...]) -> Any:
        calls = [0]

        def learn(whole: Any) -> Metrics:
            metrics = whole.learn()
            if calls[0] in in_updates:
                whole.state.learned["theta"][:50] += 2e-4
            calls[0] += 1
            return metrics

        return Changed(path(), learn=learn)

    assert verdict(path_that_jumps((1,)), path(), updates=3)[0]
    assert not verdict(path_that_jumps((0, 1)), path(), updates=3)[0]


def rolled_out() -> TrainState:
    """What a first rollout leaves; the same every time."""
    eager = path()
    eager.collect()
    return eager.state


def test_chaos_of_the_environment_is_no_fault_but_a_jump_is() -> None:
    """A deviation may grow from step to step; it may not come from nowhere."""
    state, grown = rolled_out(), rolled_out()
    growth = 1e-7 * 3.0 ** torch.arange(16.0)  # up to 1.4 in the last step
    grown.rollout["obs"] += growth[:, None, None]
    grown.rollout["reward"] += growth[:, None]
    grown.environments["obs"] += 3 * growth[-1]
    deviations, flips, likely, rows = verify.collected(grown, state, 2.0**-24)
    assert max(deviations.values()) < verify.STEP * 2.0**-24
    assert (flips, rows) == (0, 256) and likely > 1
    grown.rollout["reward"][2] += 1e-4
    assert verify.collected(grown, state, 2.0**-24)[0]["reward"] > verify.STEP * 2.0**-24


def test_rows_after_a_flip_are_left_out_in_that_environment_alone() -> None:
    state, parted = rolled_out(), rolled_out()
    parted.rollout["action"][4, 7] ^= 1
    parted.rollout["log_prob"][4:, 7] += 1.0
    parted.rollout["obs"][5:, 7] += 1.0
    parted.environments["env0"][7] += 1.0
    parted.environments["obs"][7] += 1.0
    deviations, flips, _, rows = verify.collected(parted, state, 2.0**-24)
    assert max(deviations.values()) == 0.0
    assert (flips, rows) == (1, 256 - 11)
    parted.rollout["log_prob"][4:, 8] += 1.0
    assert verify.collected(parted, state, 2.0**-24)[0]["log_prob"] > 0.1


def test_flips_are_counted_against_what_is_likely() -> None:
    def flips(count: int) -> Callable[[TrainState], None]:
        def fault(state: TrainState) -> None:
            state.rollout["action"][-1, :count] ^= 1

        return fault

    assert verdict(Changed(path(), collect=flips(3)), path(), updates=1)[0]
    assert not verdict(Changed(path(), collect=flips(4)), path(), updates=1)[0]
    assert not verdict(Changed(path(), collect=flips(2)), path(), updates=2)[0]  # they add up


def test_host_environments_go_in_step_until_an_action_flips() -> None:
    args = replace(SMALL, backend="sync", num_envs=4)
    holds, said = verdict(path(args), path(args))
    assert holds and not any("went apart" in line for line in said)
    collected = []

    def flip(state: TrainState) -> None:
        collected.append(1)
        state.rollout["action"][-1, 0] ^= 1

    holds, said = verdict(Changed(path(args), collect=flip), path(args))
    assert holds and "went apart" in said[-1]
    assert len(collected) == 1  # not compared, so not run, from then on


def test_a_coarser_precision_is_judged_by_its_own_rounding() -> None:
    def coarse(whole: Any) -> Metrics:
        whole.state.learned["theta"].copy_(whole.state.learned["theta"].bfloat16().float())
        return whole.learn()

    assert not verdict(Changed(path(), learn=coarse), path())[0]
    holds, said = verdict(Changed(path(), learn=coarse), path(), rounding=2.0**-9)
    assert holds, said


def test_both_paths_end_where_the_eager_one_stands() -> None:
    fast, eager, alone = Changed(path(), collect=flip_actions), path(), path()
    for _ in range(2):
        alone.collect()
        alone.learn()
    verdict(fast, eager, updates=2)
    for name, x in alone.state.saved().items():
        assert torch.equal(x, eager.state.saved()[name]) and torch.equal(x, fast.state.saved()[name]), name
    for a, b, c in zip(alone.generators, eager.generators, fast.generators, strict=True):
        assert torch.equal(a.get_state(), b.get_state()) and torch.equal(a.get_state(), c.get_state())
