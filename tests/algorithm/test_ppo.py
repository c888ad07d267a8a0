# Tensors unbound into arguments and heads that are one of three: pyright can't count or tell them.
# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
"""The mathematics of PPO against plain loops, hand-computed tables, NumPy in float64 and torch's own optimiser."""

import math
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_envs import Scripted

from ppo_fast.algorithm import ppo
from ppo_fast.envs.host import HostVectorEnv

INF = float("inf")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def arrays(*tensors):
    """Float64 NumPy copies."""
    return [x.detach().numpy().astype(np.float64) for x in tensors]


# Advantages.


@pytest.fixture(params=["eager on a CPU", "compiled or on a GPU"])
def both_sums(request, monkeypatch):
    """The sum over time is NumPy's on a CPU and torch's elsewhere: a test runs with each."""
    if request.param != "eager on a CPU":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def gae_loop(reward, value, next_value, terminated, truncated, gamma, lam):
    """SPEC's definition, one environment and one step at a time, in Python's float64."""
    advantage = np.zeros(reward.shape)
    for n in range(reward.shape[1]):
        following = 0.0
        for t in reversed(range(reward.shape[0])):
            successor = 0.0 if terminated[t, n] else float(next_value[t, n])
            delta = float(reward[t, n]) + gamma * successor - float(value[t, n])
            if terminated[t, n] or truncated[t, n]:
                following = 0.0
            following = delta + gamma * lam * following
            advantage[t, n] = following
    return advantage


def test_gae_against_a_float64_loop_on_10000_cases(both_sums):
    """Every column is a case of its own; ends of both kinds are rare, usual, everywhere, or at the same step."""
    rng = random.Random(0)
    draw = generator()
    cases, largest, both = 0, 0.0, 0
    while cases < 10_000:
        steps, envs = rng.randint(1, 24), rng.randint(1, 120)
        gamma, lam = (rng.choice([0.0, 1.0, 0.99, rng.random()]) for _ in range(2))
        reward, value, next_value = torch.randn(3, steps, envs, generator=draw)
        ends = torch.rand(2, steps, envs, generator=draw) < torch.tensor([rng.choice([0.0, 0.1, 0.5, 1.0])])
        batch = (reward, value, next_value, *ends)
        advantage, returns = ppo.gae(*batch, gamma, lam)
        wanted = gae_loop(*(x.numpy() for x in batch), gamma, lam)
        assert advantage.shape == returns.shape == (steps, envs)
        largest = max(largest, np.abs(advantage.numpy() - wanted).max())
        largest = max(largest, np.abs(returns.numpy() - wanted - value.numpy()).max())
        cases, both = cases + envs, both + int((ends[0] & ends[1]).sum())
    assert largest <= 1e-5
    assert both > 1000


def test_gae_by_hand(both_sums):
    """gamma = 1/2, lambda = 1/2, carry = 1/4; every number is a binary fraction, so the comparison is exact.

    Env 0, terminated at step 1. next_value of step 1 (100) is ignored:
      A3 = 4 + 8/2 - 2 = 6;  A2 = 3 + 2/2 - 1 + 6/4 = 4.5;  A1 = 2 - 4 = -2 (cut);  A0 = 1 + 4/2 - 2 - 2/4 = 0.5
    Env 1, truncated at step 1, whose final observation is worth 6, while the new episode starts from 1:
      A3 = 6;  A2 = 4.5;  A1 = 2 + 6/2 - 4 = 1 (cut);  A0 = 1 + 4/2 - 2 + 1/4 = 1.25
    Env 2, both at once at step 1: as terminated.
    Env 3, no end: A1 = 2 + 1/2 - 4 + 4.5/4 = -0.375;  A0 = 1 + 4/2 - 2 - 0.375/4 = 0.90625
    """
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].expand(4, 4)
    value = torch.tensor([2.0, 4.0, 1.0, 2.0])[:, None].expand(4, 4)
    next_value = torch.tensor([4.0, 1.0, 2.0, 8.0])[:, None].repeat(1, 4)
    next_value[1] = torch.tensor([100.0, 6.0, 100.0, 1.0])
    terminated, truncated = torch.zeros(2, 4, 4, dtype=torch.bool)
    terminated[1, [0, 2]] = True
    truncated[1, [1, 2]] = True
    advantage, returns = ppo.gae(reward, value, next_value, terminated, truncated, 0.5, 0.5)
    columns = [[0.5, -2, 4.5, 6], [1.25, 1, 4.5, 6], [0.5, -2, 4.5, 6], [0.90625, -0.375, 4.5, 6]]
    assert advantage.T.tolist() == columns
    assert torch.equal(returns, advantage + value)


def test_a_diverged_value_behind_a_terminal_state_is_not_touched(both_sums):
    one, yes, no = torch.ones(1, 1), torch.ones(1, 1).bool(), torch.zeros(1, 1).bool()
    assert ppo.gae(one, one, one * torch.nan, yes, no, 0.99, 0.95)[0].item() == 0.0


def test_gae_leaves_its_inputs_alone(both_sums):
    batch = [*torch.randn(3, 6, 4, generator=generator()), *(torch.rand(2, 6, 4, generator=generator(1)) < 0.3)]
    before = [x.clone() for x in batch]
    transposed = [x.T.contiguous().T for x in batch]  # not contiguous
    wanted = ppo.gae(*batch, 0.99, 0.95)
    assert all(torch.equal(x, y) for x, y in zip(batch, before, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(ppo.gae(*transposed, 0.99, 0.95), wanted, strict=True))


class RandomScript(Scripted):
    """Episodes of random length, 1 to 7, and a random end: terminated, truncated or both."""

    def step(self, action):
        rng = random.Random(1000 * self.index + self.episode)
        length, kind = rng.randint(1, 7), rng.randrange(3)
        self.steps += 1
        ended = self.steps >= length
        return self._obs(), rng.uniform(-1, 1) * self.steps, ended and kind != 1, ended and kind != 0, {}


def scripted_value(obs):
    """A value function of the observation (N, 3) alone, of whole numbers: equal wherever it is computed."""
    return (obs[..., 0] * 7 + obs[..., 1] * 5 + obs[..., 2] * 3) % 11 - 5


def scripted_rollout(mode, envs, steps):
    """Advantages of each environment's valid rows, and how many of those lie in episodes that ended: both per env."""
    makers = [lambda i=i: RandomScript(i) for i in range(envs)]
    env: Any = HostVectorEnv(SyncVectorEnv(makers, autoreset_mode=mode, copy=False), "cpu", "sync", "Scripted")
    obs, rows = env.reset(seed=0)[0], []
    for _ in range(steps):
        next_obs, reward, terminated, truncated, info = env.step(torch.zeros(envs).long())
        values = scripted_value(obs), scripted_value(info["final_obs"])
        rows.append((reward, *values, terminated, truncated, info["valid"]))
        obs = next_obs
    *columns, valid = (torch.stack(column) for column in zip(*rows, strict=True))
    advantage = ppo.gae(*columns, 0.99, 0.95)[0]
    done = columns[-1] | columns[-2]
    found = []
    for n in range(envs):
        last = done[:, n].nonzero().max().item() + 1
        found.append(advantage[:last, n][valid[:last, n]])
    return found


def test_every_autoreset_mode_gives_the_same_advantages(both_sums):
    """On 1000 random episode patterns. A NEXT_STEP rollout holds fewer transitions: the others are cut to its length.

    Only whole episodes are compared: an advantage in a running one depends on where the rollout was cut.
    """
    modes = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    next_step, *others = (scripted_rollout(mode, 1000, 24) for mode in modes)
    assert sum(map(len, next_step)) > 12_000
    for other in others:
        for short, long in zip(next_step, other, strict=True):
            assert len(short) <= len(long)
            assert torch.equal(short, long[: len(short)])


# Losses: each against formulas in NumPy float64, written from SPEC.


def numpy_mean(x, valid):
    return x.mean() if valid is None else x[valid].mean()


def numpy_policy_loss(ratio, advantage, eps, valid=None):
    return -numpy_mean(np.minimum(ratio * advantage, np.clip(ratio, 1 - eps, 1 + eps) * advantage), valid)


def numpy_value_loss(value, old_value, returns, eps=None, valid=None):
    error = (value - returns) ** 2
    if eps is not None:
        error = np.maximum(error, (old_value + np.clip(value - old_value, -eps, eps) - returns) ** 2)
    return numpy_mean(error, valid) / 2


def numpy_normalize(advantage, valid=None):
    chosen = advantage if valid is None else advantage[valid]
    return (advantage - chosen.mean()) / (chosen.std(ddof=1) + 1e-8)


NUMPY_KL = {
    "k1": lambda x, valid=None: numpy_mean(-x, valid),
    "k2": lambda x, valid=None: numpy_mean(x**2, valid) / 2,
    "k3": lambda x, valid=None: numpy_mean(np.exp(x) - 1 - x, valid),
}


def numpy_gradient(function, x, step=1e-6):
    """Central differences of a scalar function of one array, in float64."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[i] += step
        behind[i] -= step
        gradient[i] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


def compare(ours, theirs, x):
    """Value and gradient in x (M,) of two scalar functions: float32 torch and float64 NumPy."""
    x = x.clone().requires_grad_()
    result = ours(x)
    (gradient,) = torch.autograd.grad(result, x)
    (exact,) = arrays(x)
    assert result.shape == ()
    np.testing.assert_allclose(result.item(), theirs(exact), rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(gradient.numpy(), numpy_gradient(theirs, exact), rtol=1e-5, atol=2e-7)


# Rewards of the clipped surrogate for eps = 0.2 (a minimum, so with A < 0 the larger product in size):
#   A = +1: min(r, clip(r)):     0.7 -> min(0.7, 0.8) = 0.7;  0.9;  1.0;  1.1;  1.3 -> min(1.3, 1.2) = 1.2
#   A = -1: min(-r, -clip(r)):   0.7 -> min(-0.7, -0.8) = -0.8;  -0.9;  -1.0;  -1.1;  1.3 -> min(-1.3, -1.2) = -1.3
# The gradient of the reward in r is A, and 0 where the clipped product is the smaller one: (0.7, -1) and (1.3, +1).
RATIOS = (0.7, 0.9, 1.0, 1.1, 1.3)
SURROGATE = {1.0: (0.7, 0.9, 1.0, 1.1, 1.2), -1.0: (-0.8, -0.9, -1.0, -1.1, -1.3)}
SLOPE = {1.0: (1.0, 1.0, 1.0, 1.0, 0.0), -1.0: (0.0, -1.0, -1.0, -1.0, -1.0)}


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("i", range(5))
def test_policy_loss_by_hand(i, advantage):
    ratio = torch.tensor([RATIOS[i]], requires_grad=True)
    loss = ppo.policy_loss(ratio, torch.tensor([advantage]), 0.2)
    (slope,) = torch.autograd.grad(loss, ratio)
    assert loss.item() == pytest.approx(-SURROGATE[advantage][i], abs=1e-7)
    assert slope.item() == -SLOPE[advantage][i]


def masks(size):
    """No mask, and one that leaves out a third of the rows."""
    return [None, torch.arange(size) % 3 != 1]


def some(count, size, seed=0):
    return torch.randn(count, size, generator=generator(seed))


@pytest.mark.parametrize("valid", masks(40), ids=["all", "masked"])
def test_policy_loss_and_its_gradient(valid):
    log_ratio, advantage = some(2, 40)
    exact = arrays(advantage)[0]
    mask = None if valid is None else valid.numpy()
    compare(
        lambda x: ppo.policy_loss(x.exp(), advantage, 0.2, valid),
        lambda x: numpy_policy_loss(np.exp(x), exact, 0.2, mask),
        0.4 * log_ratio,
    )


@pytest.mark.parametrize("valid", masks(40), ids=["all", "masked"])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_and_its_gradient(clip, valid):
    change, old_value, returns = some(3, 40)
    exact = arrays(old_value, returns)
    mask = None if valid is None else valid.numpy()
    compare(
        lambda x: ppo.value_loss(x, old_value, returns, clip, valid),
        lambda x: numpy_value_loss(x, *exact, clip, mask),
        old_value + 0.3 * change,
    )


def test_clipped_value_loss_by_hand():
    """V_old 0, eps 0.2, R 1. V = 0.5 is clipped to 0.2: max(0.25, 0.64)/2 = 0.32, flat. V = -0.5 is clipped to -0.2:
    max(2.25, 1.44)/2 = 1.125, slope V - R = -1.5. V = 0.1 is inside: 0.81/2 = 0.405, slope -0.9."""
    zero, one = torch.zeros(1), torch.ones(1)
    for value, wanted, slope in ((0.5, 0.32, 0.0), (-0.5, 1.125, -1.5), (0.1, 0.405, -0.9)):
        x = torch.tensor([value], requires_grad=True)
        loss = ppo.value_loss(x, zero, one, 0.2)
        assert loss.item() == pytest.approx(wanted, abs=1e-7)
        assert torch.autograd.grad(loss, x)[0].item() == pytest.approx(slope, abs=1e-7)


def test_at_the_old_policy_both_losses_have_their_unclipped_gradient():
    """There both branches are equal, where every first minibatch is; a tie must not halve or double the gradient."""
    advantage, value, returns = some(3, 10)
    ratio = torch.ones(10, requires_grad=True)
    (gradient,) = torch.autograd.grad(ppo.policy_loss(ratio, advantage, 0.2), ratio)
    torch.testing.assert_close(gradient, -advantage / 10)
    value.requires_grad_()
    (gradient,) = torch.autograd.grad(ppo.value_loss(value, value.detach(), returns, 0.2), value)
    torch.testing.assert_close(gradient, (value - returns).detach() / 10)


@pytest.mark.parametrize("valid", masks(40), ids=["all", "masked"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_and_their_gradients(estimator, valid):
    mask = None if valid is None else valid.numpy()
    theirs = NUMPY_KL[estimator]
    compare(lambda x: ppo.approx_kl(x, estimator, valid), lambda x: theirs(x, mask), 0.5 * some(1, 40)[0])


def test_kl_estimators_estimate_the_kl():
    """Of two Gaussians, 0 and 0.1 apart with unit variance: KL = 0.1²/2 = 0.005, from a million draws of the old."""
    action = torch.randn(1_000_000, generator=generator())
    log_ratio = -0.5 * (action - 0.1) ** 2 + 0.5 * action**2
    for estimator, tolerance in (("k1", 4e-4), ("k2", 5e-5), ("k3", 5e-5)):
        assert ppo.approx_kl(log_ratio, estimator).item() == pytest.approx(0.005, abs=tolerance)


def test_k3_is_never_negative_and_keeps_its_digits():
    """(r - 1) - log r of 1e-4 is 5e-9: computed from the ratio in float32 it would be lost in rounding."""
    small = torch.full((7,), 1e-4)
    assert ppo.approx_kl(small).item() == pytest.approx(5e-9, rel=0.02)
    assert all(ppo.approx_kl(x[None]).item() >= 0 for x in some(1, 500)[0] * 1e-3)
    with pytest.raises(AssertionError, match="k4"):
        ppo.approx_kl(small, "k4")


def test_clip_fraction():
    ratio = torch.tensor([0.7, 0.85, 1.0, 1.15, 1.3])
    assert ppo.clip_fraction(ratio, 0.2).item() == pytest.approx(2 / 5)
    valid = torch.tensor([False, True, True, True, True])
    assert ppo.clip_fraction(ratio, 0.2, valid).item() == pytest.approx(1 / 4)
    ratio = 1 + 0.3 * some(1, 1000)[0]
    wanted = (np.abs(ratio.numpy() - 1) > 0.2).mean()
    assert ppo.clip_fraction(ratio, 0.2).item() == pytest.approx(wanted, abs=1e-7)


# Normalisation.


@pytest.mark.parametrize("valid", masks(41), ids=["all", "masked"])
def test_normalisation(valid):
    advantage = 3 * some(1, 41)[0] + 5
    mask = None if valid is None else valid.numpy()
    weight = some(1, 41, seed=1)[0]
    exact = arrays(weight)[0]
    keep = np.ones(41, bool) if mask is None else mask
    normal = ppo.normalize_advantage(advantage, valid)[keep]
    np.testing.assert_allclose(normal, numpy_normalize(*arrays(advantage), mask)[keep], rtol=1e-5, atol=1e-6)
    compare(
        lambda x: (ppo.normalize_advantage(x, valid) * weight)[keep].sum(),
        lambda x: (numpy_normalize(x, mask) * exact)[keep].sum(),
        advantage,
    )


@pytest.mark.parametrize("size", [1, 2, 7, 130, 1000])
@pytest.mark.parametrize("row", [0.0, 0.1, -1e-3, 1234.5678, -3e7])
def test_equal_advantages_give_zeros(size, row):
    """A rounded mean would leave a remainder, and dividing it by its own size would turn it into ±1."""
    advantage = torch.full((size,), row)
    assert not ppo.normalize_advantage(advantage).any()
    for first in range(min(size, 3)):
        mixed, valid = advantage.clone(), torch.arange(size) >= first
        mixed[~valid] = 99.0
        assert not ppo.normalize_advantage(mixed, valid)[valid].any()
    assert not ppo.normalize_advantage(advantage, torch.zeros(size).bool()).isnan().any()


# Minibatches that follow one another: even, uneven, of one row, all in one, and of both two rows and one.
EPOCHS = [(64, 4), (130, 4), (7, 7), (41, 1), (11, 8)]
NOBODY = "a minibatch without a valid row"


def epoch(rows, count, masking):
    """Advantages (B,) whose minibatches have unlike means and deviations, a mask or None, the minibatches' sizes."""
    scale = 1 + torch.arange(float(rows)) / rows
    advantage = 3 * scale * some(1, rows)[0] + 20 * scale
    valid = None if masking == "all" else torch.arange(rows) % 3 != 1
    sizes = list(ppo.minibatch_sizes(rows, count))
    if valid is not None and masking == NOBODY:
        valid[: sizes[0]] = False
    return advantage, valid, sizes


def one_by_one(advantage, valid, sizes):
    """Each minibatch normalised by itself."""
    masks = [None] * len(sizes) if valid is None else valid.split(sizes)
    parts = zip(advantage.split(sizes), masks, strict=True)
    return torch.cat([ppo.normalize_advantage(x, mask) for x, mask in parts])


@pytest.mark.parametrize("masking", ["all", "masked", NOBODY])
@pytest.mark.parametrize(("rows", "count"), EPOCHS)
def test_normalising_an_epoch_is_normalising_each_minibatch(rows, count, masking):
    advantage, valid, sizes = epoch(rows, count, masking)
    normal = ppo.normalize_minibatches(advantage, count, valid)
    keep = slice(None) if valid is None else valid
    wanted = one_by_one(advantage, valid, sizes)
    torch.testing.assert_close(normal[keep], wanted[keep], rtol=1e-5, atol=1e-5)
    assert normal.shape == advantage.shape and normal.isfinite().all()
    if count > 1 and (valid is None or valid.any()):  # and not of the whole
        assert (normal - ppo.normalize_advantage(advantage, valid))[keep].abs().max() > 0.1
    constant = torch.full_like(advantage, 1234.5678)
    assert not ppo.normalize_minibatches(constant, count, valid)[keep].any()


@pytest.mark.parametrize("masking", ["all", "masked", NOBODY])
@pytest.mark.parametrize(("rows", "count"), EPOCHS)
def test_normalising_over_two_processes_is_normalising_their_rows_together(rows, count, masking):
    """Each has half of every minibatch. One message an epoch: the sums of all minibatches, (count, 3)."""
    advantage, valid, _ = epoch(2 * rows, count, masking)
    halves, masks = advantage.view(2, rows), [None] * 2 if valid is None else valid.view(2, rows)
    own = ppo.minibatch_sizes(rows, count)
    sent = []

    def found(reduce):
        return [ppo.normalize_minibatches(x, count, mask, reduce) for x, mask in zip(halves, masks, strict=True)]

    def keep(sums):
        sent.append(sums.clone())
        return sums

    found(keep)
    assert [x.shape for x in sent] == [(count, 3)] * 2
    normal = found(lambda sums: sums.copy_(sent[0] + sent[1]))

    def together(x):
        """(2, rows): minibatch after minibatch, each with both halves' rows."""
        return torch.cat([part for pair in zip(*(half.split(own) for half in x), strict=True) for part in pair])

    mask = None if valid is None else together(masks)
    kept = slice(None) if mask is None else mask
    wanted = one_by_one(together(halves), mask, [2 * size for size in own])
    torch.testing.assert_close(together(normal)[kept], wanted[kept], rtol=1e-5, atol=1e-5)
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in normal)


def test_sums_of_minibatches():
    """Count, sum and sum of squares over the last dimension; junk in rows that are not valid, infinite too, is none."""
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, INF, 6.0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert ppo.advantage_sums(x, valid).tolist() == [[3, 6, 14], [1, 4, 16]]
    assert ppo.advantage_sums(x[0]).tolist() == [3, 6, 14] and ppo.advantage_sums(x[:1]).dtype == torch.float64


# Minibatches cut into parts.


class Columns(NamedTuple):
    x: torch.Tensor
    valid: torch.Tensor | None


def test_split_gives_views_in_order():
    whole = Columns(torch.arange(12.0).view(6, 2), None)
    pieces = ppo.split(whole, (1, 3, 2))
    assert [len(piece.x) for piece in pieces] == [1, 3, 2] and all(piece.valid is None for piece in pieces)
    assert all(isinstance(piece, Columns) for piece in pieces)
    assert torch.equal(torch.cat([piece.x for piece in pieces]), whole.x)
    pieces[1].x.zero_()
    assert not whole.x[1:4].any() and whole.x[4:].all()
    masked = ppo.split(Columns(whole.x, torch.arange(6) < 2), [2, 4])
    assert [piece.valid.sum().item() for piece in masked] == [2, 0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [[64], [32, 32], [1, 40, 23]])
def test_a_mean_is_the_sum_of_shares_times_means(sizes, masked):
    """In one process, and in two of which the other has another number of valid rows."""
    x, other = some(2, 64)
    valid, theirs = (torch.arange(64) % 3 != 1, torch.arange(64) < 20) if masked else (None, None)

    def mean(parts, shares):
        return sum(share * ppo.masked_mean(*part) for share, part in zip(shares, parts, strict=True))

    parts = ppo.split(Columns(x, valid), sizes)
    torch.testing.assert_close(mean(parts, ppo.shares(parts)), ppo.masked_mean(x, valid), rtol=1e-5, atol=1e-7)

    def reduce(_):
        return (valid.sum() + theirs.sum()).double()  # without a mask both have as many rows, and nobody needs to ask

    two = (parts, ppo.split(Columns(other, theirs), sizes))
    found = sum(mean(part, ppo.shares(part, 2, reduce)) for part in two)
    both = torch.cat([x, other]), torch.cat([valid, theirs]) if masked else None
    torch.testing.assert_close(found, ppo.masked_mean(*both), rtol=1e-5, atol=1e-7)


def test_shares_are_numbers_or_tensors_and_never_nan():
    x = torch.zeros(8)
    assert ppo.shares(ppo.split(Columns(x, None), [5, 3])) == [5 / 8, 3 / 8]
    assert ppo.shares(ppo.split(Columns(x, None), [5, 3]), 2) == [5 / 16, 3 / 16]
    some_valid = ppo.shares(ppo.split(Columns(x, torch.arange(8) > 3), [5, 3]))
    assert [share.item() for share in some_valid] == [0.25, 0.75] and some_valid[0].dtype == torch.float32
    none_valid = ppo.shares(ppo.split(Columns(x, torch.zeros(8).bool()), [5, 3]))
    assert [share.item() for share in none_valid] == [0.0, 0.0]


# Explained variance, and masks.


def test_explained_variance():
    returns, noise = some(2, 500)
    value = returns + 0.5 * noise
    exact_returns, exact_value = arrays(returns, value)
    wanted = 1 - (exact_returns - exact_value).var() / exact_returns.var()
    assert ppo.explained_variance(value, returns).item() == pytest.approx(wanted, abs=1e-6)
    assert ppo.explained_variance(returns, returns).item() == 1.0
    assert ppo.explained_variance(returns + 3, returns).item() == pytest.approx(1.0, abs=1e-6)
    assert ppo.explained_variance(torch.zeros(500), returns).item() == pytest.approx(0.0, abs=1e-6)
    assert ppo.explained_variance(-returns, returns).item() == pytest.approx(-3.0, abs=1e-5)


@pytest.mark.parametrize("row", [0.0, 0.1, 7.3, -1234.5678])
def test_explained_variance_of_equal_returns_is_nan(row):
    returns, value = torch.full((5, 9), row), torch.randn(5, 9, generator=generator())
    assert ppo.explained_variance(value, returns).isnan()
    valid = torch.arange(45).view(5, 9) % 4 != 0
    assert ppo.explained_variance(value, torch.where(valid, returns, 3.0), valid).isnan()


def test_masked_rows_have_no_influence():
    """Every mean with a mask is that of the chosen rows alone, whatever finite junk the other rows hold."""
    valid = torch.rand(64, generator=generator()) < 0.6
    x, y, z = some(3, 64)
    junk = [torch.where(valid, column, 1e6 * column) for column in (x, y, z)]
    chosen = [column[valid] for column in (x, y, z)]
    functions = [
        lambda a, b, c, v=None: ppo.policy_loss(1 + 0.2 * a, b, 0.2, v),
        lambda a, b, c, v=None: ppo.value_loss(a, b, c, 0.2, v),
        lambda a, b, c, v=None: ppo.value_loss(a, b, c, None, v),
        lambda a, b, c, v=None: ppo.approx_kl(1e-3 * a, "k1", v),
        lambda a, b, c, v=None: ppo.approx_kl(1e-3 * a, "k2", v),
        lambda a, b, c, v=None: ppo.clip_fraction(a, 0.2, v),
        lambda a, b, c, v=None: ppo.explained_variance(a, b, v),
        lambda a, b, c, v=None: ppo.masked_mean(a, v),
    ]
    for function in functions:
        torch.testing.assert_close(function(*junk, valid), function(*chosen), rtol=1e-6, atol=1e-6)
    normal = ppo.normalize_advantage(junk[0], valid)[valid]
    torch.testing.assert_close(normal, ppo.normalize_advantage(chosen[0]), rtol=1e-5, atol=1e-6)
    assert ppo.masked_mean(x, torch.zeros(64).bool()).item() == 0.0


# Optimisation.


def test_adam_is_torchs_adam():
    """200 steps of weights of a network's size, a changing learning rate, gradients over six orders of magnitude."""
    theta = 0.3 * torch.randn(300, generator=generator())
    reference = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([reference], lr=1e-2, eps=1e-5)
    learner = ppo.new_learner(theta, 1e-2)
    draw = generator(1)
    for i in range(200):
        rate = 1e-2 * (1 - i / 200)
        gradient = torch.randn(300, generator=draw) * 10.0 ** (i % 7 - 5)
        reference.grad, optimizer.param_groups[0]["lr"] = gradient.clone(), rate
        optimizer.step()
        learner.learning_rate.fill_(rate)
        ppo.adam_(learner, gradient, only_if_active=i % 2 == 0)
        torch.testing.assert_close(theta, reference.detach(), rtol=0, atol=1e-6)
    state = optimizer.state[reference]
    torch.testing.assert_close(learner.moment1, state["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(learner.moment2, state["exp_avg_sq"], rtol=1e-5, atol=1e-7)
    assert learner.step.item() == 200 and learner.theta is theta


def test_an_inactive_learner_stays_bit_for_bit_as_it_is():
    learner = ppo.new_learner(some(1, 50)[0], 0.1)
    ppo.adam_(learner, some(1, 50, seed=1)[0], only_if_active=True)
    assert learner.step.item() == 1
    learner.active.fill_(False)
    before = [x.clone() for x in learner]
    for gradient in (some(1, 50, seed=2)[0], torch.full((50,), torch.nan), torch.full((50,), INF)):
        ppo.adam_(learner, gradient, only_if_active=True)
    assert all(torch.equal(x, y) for x, y in zip(before, learner, strict=True))
    ppo.adam_(learner, some(1, 50, seed=2)[0])  # not asked to look
    assert learner.step.item() == 2 and not torch.equal(before[0], learner.theta)


@pytest.mark.parametrize("size", [1e-8, 0.01, 0.4999, 0.5001, 1.0, 1e6])
def test_gradient_clipping_is_torchs(size):
    gradient = some(1, 200)[0]
    gradient *= size / gradient.norm()
    reference = torch.zeros(200, requires_grad=True)
    reference.grad = gradient.clone()
    wanted = torch.nn.utils.clip_grad_norm_([reference], 0.5)
    clipped, norm = ppo.clip_gradient(gradient, 0.5)
    torch.testing.assert_close(clipped, reference.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0)
    assert clipped.norm() <= 0.5 * (1 + 1e-6)
    assert not ppo.clip_gradient(torch.zeros(3), 0.5)[0].any()


def test_minibatches_keep_every_row():
    rng = random.Random(0)
    for _ in range(2000):
        batch = rng.randint(1, 5000)
        count = rng.randint(1, min(batch, 64))
        sizes = list(ppo.minibatch_sizes(batch, count))
        assert sum(sizes) == batch and len(sizes) == count
        assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] in (0, 1) and sizes[-1] >= 1
        parts = rng.randint(1, min(sizes[-1], 8))
        cut = list(ppo.minibatch_sizes(batch, count, parts))
        assert [sum(cut[i : i + parts]) for i in range(0, len(cut), parts)] == sizes
        assert all(max(cut[i : i + parts]) - min(cut[i : i + parts]) <= 1 for i in range(0, len(cut), parts))
    assert list(ppo.minibatch_sizes(130, 4)) == [33, 33, 32, 32]
    assert list(ppo.minibatch_sizes(130, 4, 2)) == [17, 16, 17, 16, 16, 16, 16, 16]


# Gradients by name: eagerly autograd, inside a compiled graph torch.func.


def toy_loss(parameters, x, scale):
    """A scalar loss of two parameters and two statistics."""
    y = torch.sin(x @ parameters["weight"].T + parameters["bias"])
    return scale * (y**2).mean(), torch.stack([y.mean(), y.detach().amax()])


def toy():
    draw = generator()
    parameters = {"weight": torch.randn(3, 4, generator=draw), "bias": torch.randn(3, generator=draw)}
    return parameters, torch.randn(20, 4, generator=draw)


def numbers(result):
    gradients, loss, statistics = result
    return [*gradients.values(), loss, statistics]


def test_gradients_are_the_same_eagerly_compiled_and_by_torch_func():
    parameters, x = toy()
    eager = ppo.value_and_gradients(toy_loss, parameters, x, 0.7)
    compiled = torch.compile(ppo.value_and_gradients, backend="aot_eager", fullgraph=True, dynamic=False)
    gradients, (loss, statistics) = torch.func.grad_and_value(toy_loss, has_aux=True)(parameters, x, 0.7)
    assert list(eager[0]) == ["weight", "bias"]
    for other in (compiled(toy_loss, parameters, x, 0.7), (gradients, loss, statistics)):
        assert list(other[0]) == list(eager[0])
        for a, b in zip(numbers(eager), numbers(other), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert not any(x.requires_grad for x in (*numbers(eager), *parameters.values()))


def test_gradients_against_finite_differences():
    parameters, x = toy()
    gradients, loss, _ = ppo.value_and_gradients(toy_loss, parameters, x, 0.7)
    weight, bias, rows = arrays(parameters["weight"], parameters["bias"], x)

    def exact(w, b):
        return 0.7 * (np.sin(rows @ w.T + b) ** 2).mean()

    assert loss.item() == pytest.approx(exact(weight, bias), abs=1e-6)
    wanted = numpy_gradient(lambda w: exact(w, bias), weight), numpy_gradient(lambda b: exact(weight, b), bias)
    for gradient, numeric in zip(gradients.values(), wanted, strict=True):
        np.testing.assert_allclose(gradient.numpy(), numeric, atol=1e-6)


def test_gradients_are_there_even_under_no_grad():
    parameters, x = toy()
    with torch.no_grad():
        gradients, loss, _ = ppo.value_and_gradients(toy_loss, parameters, x, 0.7)
    assert all(gradient.any() for gradient in gradients.values()) and not loss.requires_grad


def test_advantages_spread_over_processes_are_normalised_as_one_minibatch() -> None:
    advantage = some(1, 64, seed=3)[0] * 7 + 1000
    valid = torch.arange(64) % 5 != 0
    sums = sum(ppo.advantage_sums(advantage[part], valid[part]) for part in (slice(0, 30), slice(30, 64)))
    together = ppo.normalize_advantage(advantage, valid)
    for part in (slice(0, 30), slice(30, 64)):
        torch.testing.assert_close(
            ppo.normalize_advantage(advantage[part], valid[part], sums), together[part], rtol=1e-4, atol=1e-5
        )
    for rows in (torch.full((8,), 1e4 / 3), torch.tensor([3.0])):  # equal rows and a single one
        assert ppo.normalize_advantage(rows, None, ppo.advantage_sums(rows)).tolist() == [0.0] * len(rows)


@pytest.mark.parametrize(
    ("kl", "before", "after"),
    [
        (0.03, 3e-4, 2e-4),  # above twice 0.01
        (0.004, 3e-4, 4.5e-4),  # below half of it
        (0.01, 3e-4, 3e-4),
        (0.019, 3e-4, 3e-4),
        (1.0, 1.2e-5, 1e-5),  # no lower than 1e-5
        (0.0, 9e-3, 1e-2),  # no higher than 1e-2
        (math.nan, 3e-4, 3e-4),
        (0.01, 0.5, 0.5),  # a rate the user chose outside the bounds stays until it is moved
    ],
)
def test_the_learning_rate_follows_the_kl(kl: float, before: float, after: float) -> None:
    rate = torch.tensor(before)
    ppo.adapt_(rate, torch.tensor(kl), 0.01)
    assert rate.item() == pytest.approx(after, rel=1e-6)
