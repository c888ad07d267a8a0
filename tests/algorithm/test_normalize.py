"""Running statistics against NumPy's on everything at once, and against gymnasium's rules for what is left out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_fast.algorithm import normalize


def some(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def discounted_by_loop(reward: np.ndarray, done: np.ndarray, carry: np.ndarray, gamma: float) -> np.ndarray:
    """Step by step in float64, one environment at a time."""
    result = np.zeros_like(reward, dtype=np.float64)
    for n in range(reward.shape[1]):
        so_far = carry[n]
        for t in range(reward.shape[0]):
            so_far = float(reward[t, n]) + gamma * so_far
            result[t, n] = so_far
            so_far = 0.0 if done[t, n] else so_far
    return result


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moments_of_many_batches_are_those_of_all_rows(shift: float) -> None:
    moments, rows = normalize.Moments(3), []
    for batch in range(20):
        rows.append(some(50 + batch, 3, seed=batch, scale=1 + batch, shift=shift))
        moments.merge_(rows[-1])
    every = torch.cat(rows).double().numpy()
    assert moments.count == len(every)
    np.testing.assert_allclose(moments.mean, every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, every.var(0), rtol=1e-9)


def test_a_hundred_million_samples_lose_nothing() -> None:
    # 1e8 rows are what 1e4 merges of this batch count, weighted through the count itself.
    moments, batch = normalize.Moments(), some(10_000, seed=1, scale=3.0, shift=100.0)
    moments.merge_(batch)
    mean, variance = moments.mean.clone(), moments.variance.clone()
    moments.count.mul_(10_000 - 1)
    moments.square.mul_(10_000 - 1)
    moments.merge_(batch)
    assert moments.count == 1e8
    assert abs(moments.mean - mean) < 1e-12 * mean
    assert abs(moments.variance - variance) < 1e-12 * variance
    far = some(10_000, seed=2, scale=3.0, shift=101.0)
    moments.merge_(far)
    exact = (mean * 1e8 + far.double().sum()) / (1e8 + 10_000)
    assert abs(moments.mean - exact) < 1e-12 * exact


def test_rows_that_are_not_valid_are_not_taken_in() -> None:
    moments, rows = normalize.Moments(2), some(100, 2)
    valid = torch.arange(100) % 3 != 0
    rows[~valid] = torch.nan
    moments.merge_(rows, valid)
    np.testing.assert_allclose(moments.mean, rows[valid].double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, rows[valid].double().numpy().var(0), rtol=1e-12)
    before = moments.mean.clone()
    moments.merge_(rows, torch.zeros(100, dtype=torch.bool))
    assert torch.equal(moments.mean, before) and moments.count == int(valid.sum())


def test_an_unsound_batch_changes_nothing() -> None:
    layer, x = normalize.Observations(2), some(4, 5, 2, seed=3)
    layer.update_(x)
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    layer.update_(x * torch.nan, sound=torch.tensor(False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())


def test_unsound_rewards_change_neither_statistics_nor_the_return_so_far() -> None:
    layer, done = normalize.Rewards(4, 0.9), torch.zeros(5, 4, dtype=torch.bool)
    layer.update_(some(5, 4, seed=3), done)
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    assert "carry" in before and before["carry"].all()
    for reward in (some(5, 4, seed=4), some(5, 4, seed=4) * torch.nan):
        layer.update_(reward, done, sound=torch.tensor(False))
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())


def test_observations_are_centred_scaled_and_cut_off() -> None:
    layer, x = normalize.Observations(2), some(40, 50, 2, seed=4, scale=5.0, shift=-3.0)
    assert torch.equal(layer(x.clamp(-9, 9)), x.clamp(-9, 9))  # nothing is known before the first update
    layer.update_(x)
    y = layer(x)
    assert y.mean().abs() < 1e-5 and abs(y.std() - 1) < 1e-3
    assert layer(torch.full((2,), 1e9)).tolist() == [10.0, 10.0]
    assert layer(torch.full((2,), -1e9)).tolist() == [-10.0, -10.0]


def test_statistics_travel_in_the_state_dict_and_evaluation_leaves_them_alone() -> None:
    layer, other, x = normalize.Observations(2), normalize.Observations(2), some(10, 4, 2, scale=7.0)
    layer.update_(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    other.eval()(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert "carry" not in normalize.Rewards(4, 0.9).state_dict()


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_discounted_returns_follow_the_loop_over_rollouts(
    gamma: float, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NumPy's sum over time, and with that for compilers and GPUs."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    generator, carry, oracle = torch.Generator().manual_seed(5), torch.zeros(6, dtype=torch.float64), np.zeros(6)
    for rollout in range(5):
        reward = some(11, 6, seed=rollout)
        done = torch.rand(11, 6, generator=generator) < 0.2
        result, carry = normalize.discounted(reward.double(), done, carry, gamma)
        expected = discounted_by_loop(reward.numpy(), done.numpy(), oracle, gamma)
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
        oracle = np.where(done[-1].numpy(), 0.0, expected[-1])
        np.testing.assert_allclose(carry, oracle, rtol=1e-12, atol=1e-12)


def test_the_return_starts_anew_after_a_truncation() -> None:
    # Gymnasium's wrapper gives 1, 2, 3, 3, 4, 5, 6, 6, ... here: it never starts anew under NEXT_STEP.
    done = torch.tensor([0, 0, 1, 0, 0, 1])[:, None].bool()
    result, _ = normalize.discounted(torch.ones(6, 1).double(), done, torch.zeros(1).double(), 1.0)
    assert result.flatten().tolist() == [1, 2, 3, 1, 2, 3]


def test_rewards_are_scaled_by_the_deviation_of_all_returns_so_far() -> None:
    layer, seen, carry = normalize.Rewards(4, 0.9), [], np.zeros(4)
    for rollout in range(3):
        reward, done = some(8, 4, seed=rollout, scale=20.0), torch.rand(8, 4, generator=torch.Generator()) < 0.1
        returns = discounted_by_loop(reward.numpy(), done.numpy(), carry, 0.9)
        carry = np.where(done[-1].numpy(), 0.0, returns[-1])
        seen.append(returns.ravel())
        scaled = layer.update_(reward, done)
        deviation = math.sqrt(np.concatenate(seen).var() + 1e-8)
        np.testing.assert_allclose(scaled, np.clip(reward.numpy() / deviation, -10, 10), rtol=1e-6)


def test_junk_rows_feed_neither_the_return_nor_its_moments() -> None:
    """The same episodes under NEXT_STEP, with a junk row after each end, and without one."""
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None]
    done = torch.tensor([0, 1, 0, 0, 1, 0])[:, None].bool()
    rows = [0, 1, 1, 2, 3, 4, 4, 5]  # the row after an end stands twice: the second time it is junk
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1])[:, None].bool()
    junk_reward = torch.where(valid, reward[rows], 1000.0)
    junk_done = done[rows] & valid
    plain, junk = normalize.Rewards(1, 0.9), normalize.Rewards(1, 0.9)
    scaled = plain.update_(reward, done)
    assert torch.allclose(junk.update_(junk_reward, junk_done, valid)[valid.flatten()], scaled)
    for name, tensor in plain.named_buffers():
        assert torch.allclose(dict(junk.named_buffers())[name], tensor), name


def test_statistics_shared_by_processes_are_those_of_all_rows() -> None:
    """`reduce` adds up the two halves, as two processes would."""
    x = some(10, 6, 2, seed=9, scale=4.0, shift=50.0)
    whole = normalize.Observations(2)
    whole.update_(x)

    halves, asked = [x[:, :3].flatten(0, 1).double(), x[:, 3:].flatten(0, 1).double()], []

    def reduce(mine: Tensor) -> Tensor:
        asked.append(mine)
        if len(asked) == 1:
            return torch.stack([torch.cat([torch.tensor([30.0]).double(), half.sum(0)]) for half in halves]).sum(0)
        mean = torch.cat(halves).mean(0)
        return torch.stack([((half - mean) ** 2).sum(0) for half in halves]).sum(0)

    part = normalize.Observations(2)
    part.update_(x[:, :3], reduce=reduce)
    for name, tensor in whole.named_buffers():
        torch.testing.assert_close(dict(part.named_buffers())[name], tensor, rtol=1e-12, atol=1e-12)
