"""The mathematics of PPO against plain loops, hand-computed tables, and NumPy in float64."""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_envs import Scripted
from torch import Tensor

from ppo_fast.algorithm import ppo
from ppo_fast.envs.host import HostVectorEnv

INF = float("inf")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=generator(seed))


def array(x: Tensor) -> np.ndarray:
    """A float64 NumPy copy."""
    return x.detach().numpy().astype(np.float64)


# Advantages.


@pytest.fixture(params=["eager on a CPU", "compiled or on a GPU"])
def both_sums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over time is NumPy's on a CPU and torch's elsewhere: a test runs with each."""
    if request.param != "eager on a CPU":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


class Steps(NamedTuple):
    """What `gae` is given of a rollout, each (T, N)."""

    reward: Tensor
    value: Tensor
    next_value: Tensor
    terminated: Tensor
    truncated: Tensor


def gae_loop(steps: Steps, gamma: float, lam: float) -> np.ndarray:
    """The definition, one environment and one step at a time, in Python's float64."""
    reward, value, next_value, terminated, truncated = (x.tolist() for x in steps)
    advantage = np.zeros(steps.reward.shape)
    for n in range(steps.reward.shape[1]):
        following = 0.0
        for t in reversed(range(steps.reward.shape[0])):
            successor = 0.0 if terminated[t][n] else next_value[t][n]
            delta = reward[t][n] + gamma * successor - value[t][n]
            if terminated[t][n] or truncated[t][n]:
                following = 0.0
            following = delta + gamma * lam * following
            advantage[t, n] = following
    return advantage


@pytest.mark.usefixtures("both_sums")
def test_gae_against_a_float64_loop_on_10000_cases() -> None:
    """Every column is a case of its own; ends of both kinds are rare, usual, everywhere, or at the same step."""
    rng = random.Random(0)
    draw = generator()
    cases = 0
    both_at_once = 0
    while cases < 10_000:
        size = rng.randint(1, 24), rng.randint(1, 120)
        gamma = rng.choice([0.0, 1.0, 0.99, rng.random()])
        lam = rng.choice([0.0, 1.0, 0.99, rng.random()])
        numbers = [torch.randn(*size, generator=draw) for _ in range(3)]
        how_often = rng.choice([0.0, 0.1, 0.5, 1.0])
        ends = [torch.rand(*size, generator=draw) < how_often for _ in range(2)]
        steps = Steps(*numbers, *ends)
        advantage, returns = ppo.gae(*steps, gamma, lam)
        wanted = gae_loop(steps, gamma, lam)
        assert advantage.shape == returns.shape == size
        assert np.abs(advantage.numpy() - wanted).max() <= 1e-5
        assert np.abs(returns.numpy() - wanted - steps.value.numpy()).max() <= 1e-5
        cases += size[1]
        both_at_once += int((steps.terminated & steps.truncated).sum())
    assert both_at_once > 1000


@pytest.mark.usefixtures("both_sums")
def test_gae_by_hand() -> None:
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
    terminated = torch.zeros(4, 4, dtype=torch.bool)
    terminated[1, [0, 2]] = True
    truncated = torch.zeros(4, 4, dtype=torch.bool)
    truncated[1, [1, 2]] = True
    advantage, returns = ppo.gae(reward, value, next_value, terminated, truncated, 0.5, 0.5)
    columns = [[0.5, -2, 4.5, 6], [1.25, 1, 4.5, 6], [0.5, -2, 4.5, 6], [0.90625, -0.375, 4.5, 6]]
    assert advantage.T.tolist() == columns
    assert torch.equal(returns, advantage + value)


@pytest.mark.usefixtures("both_sums")
def test_a_diverged_value_behind_a_terminal_state_is_not_touched() -> None:
    one, yes, no = torch.ones(1, 1), torch.ones(1, 1).bool(), torch.zeros(1, 1).bool()
    assert ppo.gae(one, one, one * torch.nan, yes, no, 0.99, 0.95)[0].item() == 0.0


@pytest.mark.usefixtures("both_sums")
def test_gae_leaves_its_inputs_alone() -> None:
    numbers = [torch.randn(6, 4, generator=generator(seed)) for seed in range(3)]
    ends = [torch.rand(6, 4, generator=generator(seed)) < 0.3 for seed in range(2)]
    steps = Steps(*numbers, *ends)
    before = [x.clone() for x in steps]
    wanted = ppo.gae(*steps, 0.99, 0.95)
    assert all(torch.equal(x, y) for x, y in zip(steps, before, strict=True))
    transposed = Steps._make(x.T.contiguous().T for x in steps)  # not contiguous
    found = ppo.gae(*transposed, 0.99, 0.95)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


class RandomScript(Scripted):
    """Episodes of random length, 1 to 7, and a random end: terminated, truncated or both."""

    def step(self, action):
        rng = random.Random(1000 * self.index + self.episode)
        length, kind = rng.randint(1, 7), rng.randrange(3)
        self.steps += 1
        ended = self.steps >= length
        return self._obs(), rng.uniform(-1, 1) * self.steps, ended and kind != 1, ended and kind != 0, {}


def scripted_value(obs: Tensor) -> Tensor:
    """A value function of the observation (N, 3) alone, of whole numbers: equal wherever it is computed."""
    return (obs[..., 0] * 7 + obs[..., 1] * 5 + obs[..., 2] * 3) % 11 - 5


def scripted_advantages(mode: AutoresetMode, envs: int, steps: int) -> list[Tensor]:
    """Of each environment the advantages of its valid rows, up to the end of its last whole episode."""
    makers: list[Any] = [lambda i=i: RandomScript(i) for i in range(envs)]
    env = HostVectorEnv(SyncVectorEnv(makers, autoreset_mode=mode, copy=False), "cpu", "sync", "Scripted")
    obs = env.reset(seed=0)[0]
    rows = []
    valid_rows = []
    for _ in range(steps):
        next_obs, reward, terminated, truncated, info = env.step(torch.zeros(envs).long())
        rows.append(Steps(reward, scripted_value(obs), scripted_value(info["final_obs"]), terminated, truncated))
        valid_rows.append(info["valid"])
        obs = next_obs
    whole = Steps._make(torch.stack(column) for column in zip(*rows, strict=True))
    valid = torch.stack(valid_rows)
    advantage = ppo.gae(*whole, 0.99, 0.95)[0]
    done = whole.terminated | whole.truncated
    found = []
    for n in range(envs):
        last = int(done[:, n].nonzero().max()) + 1
        found.append(advantage[:last, n][valid[:last, n]])
    return found


@pytest.mark.usefixtures("both_sums")
def test_every_autoreset_mode_gives_the_same_advantages() -> None:
    """On 1000 random episode patterns. A NEXT_STEP rollout holds fewer transitions: the others are cut to its length.

    Only whole episodes are compared: an advantage in a running one depends on where the rollout was cut.
    """
    next_step = scripted_advantages(AutoresetMode.NEXT_STEP, 1000, 24)
    assert sum(map(len, next_step)) > 12_000
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        for short, long in zip(next_step, scripted_advantages(mode, 1000, 24), strict=True):
            assert len(short) <= len(long)
            assert torch.equal(short, long[: len(short)])


# Values of successors.


def where_to_look(next_value: Tensor, on_gpu: bool) -> Tensor:
    """next_value, on a CPU or as if it were on a GPU, whose host must not look."""

    class Pretended(Tensor):
        is_cuda = True  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    return next_value.as_subclass(Pretended) if on_gpu else next_value


@pytest.mark.parametrize("on_gpu", [False, True])
def test_only_where_an_episode_was_cut_off_the_successor_is_its_last_observation(on_gpu: bool) -> None:
    final_obs = torch.randn(6, 5, 2, 3, generator=generator())
    next_value = torch.randn(6, 5, generator=generator(1))
    rows_seen = []

    def value(obs: Tensor) -> Tensor:
        rows_seen.append(obs.shape[:-2].numel())
        return obs.sum((-1, -2))

    for how_often in (0.0, 0.3, 1.0):
        cut = torch.rand(6, 5, generator=generator(2)) < how_often
        before = next_value.clone()
        found = ppo.successor_values(value, [final_obs], cut, where_to_look(next_value, on_gpu))
        assert torch.equal(next_value, before)
        for t in range(6):
            for n in range(5):
                wanted = final_obs[t, n].sum() if cut[t, n] else next_value[t, n]
                assert found[t, n] == pytest.approx(float(wanted), abs=1e-6)
        # Where the host may look, only those rows cost a forward pass.
        assert rows_seen.pop() == (30 if on_gpu else int(cut.sum()))


# What is not finite.


def test_all_finite_sees_one_bad_number_in_any_tensor() -> None:
    good = [torch.ones(3, 2), torch.tensor(-1e38).expand(1000), torch.zeros(())]
    assert ppo.all_finite(*good) and ppo.all_finite(*good).shape == ()
    for bad in (math.nan, INF, -INF):
        for place in range(3):
            spoilt = [x.clone() for x in good]
            spoilt[place].view(-1)[-1] = bad
            assert not ppo.all_finite(*spoilt)
    # Not even where the infinities would cancel out.
    assert not ppo.all_finite(torch.tensor([INF, -INF]))


def test_all_finite_of_several_processes() -> None:
    """Each adds up how many are not: what one finds, all do."""
    sent = []

    def keep(x: Tensor) -> Tensor:
        sent.append(x.clone())
        return x

    ppo.all_finite(torch.ones(2), reduce=keep)
    ppo.all_finite(torch.tensor([math.nan]), reduce=keep)
    assert ppo.all_finite(torch.ones(2), reduce=lambda _: sent[0] + sent[0])
    assert not ppo.all_finite(torch.ones(2), reduce=lambda _: sent[0] + sent[1])
    assert not ppo.all_finite(torch.tensor([math.nan]), reduce=lambda _: sent[1] + sent[0])


# Losses: each against formulas in NumPy float64.

Mask = np.ndarray | None


def numpy_mean(x: np.ndarray, valid: Mask) -> Any:
    return x.mean() if valid is None else x[valid].mean()


def numpy_policy_loss(ratio: np.ndarray, advantage: np.ndarray, eps: float, valid: Mask) -> Any:
    return -numpy_mean(np.minimum(ratio * advantage, np.clip(ratio, 1 - eps, 1 + eps) * advantage), valid)


def numpy_value_loss(
    value: np.ndarray, old_value: np.ndarray, returns: np.ndarray, eps: float | None, valid: Mask
) -> Any:
    error = (value - returns) ** 2
    if eps is not None:
        error = np.maximum(error, (old_value + np.clip(value - old_value, -eps, eps) - returns) ** 2)
    return numpy_mean(error, valid) / 2


def numpy_normalize(advantage: np.ndarray, valid: Mask, least_std: float = 0.0) -> np.ndarray:
    chosen = advantage if valid is None else advantage[valid]
    return (advantage - chosen.mean()) / (max(chosen.std(ddof=1), least_std) + 1e-8)


NUMPY_KL: dict[str, Callable[[np.ndarray, Mask], Any]] = {
    "k1": lambda x, valid: numpy_mean(-x, valid),
    "k2": lambda x, valid: numpy_mean(x**2, valid) / 2,
    "k3": lambda x, valid: numpy_mean(np.exp(x) - 1 - x, valid),
}


def numpy_gradient(function: Callable[[np.ndarray], Any], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of one array, in float64."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[i] += step
        behind[i] -= step
        gradient[i] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


def compare(ours: Callable[[Tensor], Tensor], theirs: Callable[[np.ndarray], Any], x: Tensor) -> None:
    """Value and gradient in x (M,) of two scalar functions: float32 torch and float64 NumPy."""
    x = x.clone().requires_grad_()
    result = ours(x)
    (gradient,) = torch.autograd.grad(result, x)
    assert result.shape == ()
    np.testing.assert_allclose(result.item(), theirs(array(x)), rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(gradient.numpy(), numpy_gradient(theirs, array(x)), rtol=1e-5, atol=2e-7)


def masks(size: int) -> list[tuple[Tensor | None, Mask]]:
    """No mask, and one that leaves out a third of the rows: as a tensor and as an array."""
    valid = torch.arange(size) % 3 != 1
    return [(None, None), (valid, valid.numpy())]


# Rewards of the clipped surrogate for eps = 0.2 (a minimum, so with A < 0 the larger product in size):
#   A = +1: min(r, clip(r)):     0.7 -> min(0.7, 0.8) = 0.7;  0.9;  1.0;  1.1;  1.3 -> min(1.3, 1.2) = 1.2
#   A = -1: min(-r, -clip(r)):   0.7 -> min(-0.7, -0.8) = -0.8;  -0.9;  -1.0;  -1.1;  1.3 -> min(-1.3, -1.2) = -1.3
# The gradient of the reward in r is A, and 0 where the clipped product is the smaller one: (0.7, -1) and (1.3, +1).
RATIOS = (0.7, 0.9, 1.0, 1.1, 1.3)
SURROGATE = {1.0: (0.7, 0.9, 1.0, 1.1, 1.2), -1.0: (-0.8, -0.9, -1.0, -1.1, -1.3)}
SLOPE = {1.0: (1.0, 1.0, 1.0, 1.0, 0.0), -1.0: (0.0, -1.0, -1.0, -1.0, -1.0)}


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_policy_loss_by_hand(advantage: float) -> None:
    for number, surrogate, wanted in zip(RATIOS, SURROGATE[advantage], SLOPE[advantage], strict=True):
        ratio = torch.tensor([number], requires_grad=True)
        loss = ppo.policy_loss(ratio, torch.tensor([advantage]), 0.2)
        (slope,) = torch.autograd.grad(loss, ratio)
        assert loss.item() == pytest.approx(-surrogate, abs=1e-7)
        assert slope.item() == -wanted


@pytest.mark.parametrize(("valid", "mask"), masks(40), ids=["all", "masked"])
def test_policy_loss_and_its_gradient(valid: Tensor | None, mask: Mask) -> None:
    advantage = some(40, seed=1)
    compare(
        lambda x: ppo.policy_loss(x.exp(), advantage, 0.2, valid),
        lambda x: numpy_policy_loss(np.exp(x), array(advantage), 0.2, mask),
        0.4 * some(40),
    )


@pytest.mark.parametrize(("valid", "mask"), masks(40), ids=["all", "masked"])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_and_its_gradient(clip: float | None, valid: Tensor | None, mask: Mask) -> None:
    old_value, returns = some(40, seed=1), some(40, seed=2)
    compare(
        lambda x: ppo.value_loss(x, old_value, returns, clip, valid),
        lambda x: numpy_value_loss(x, array(old_value), array(returns), clip, mask),
        old_value + 0.3 * some(40),
    )


def test_clipped_value_loss_by_hand() -> None:
    """V_old 0, eps 0.2, R 1. V = 0.5 is clipped to 0.2: max(0.25, 0.64)/2 = 0.32, flat. V = -0.5 is clipped to -0.2:
    max(2.25, 1.44)/2 = 1.125, slope V - R = -1.5. V = 0.1 is inside: 0.81/2 = 0.405, slope -0.9."""
    zero, one = torch.zeros(1), torch.ones(1)
    for value, wanted, slope in ((0.5, 0.32, 0.0), (-0.5, 1.125, -1.5), (0.1, 0.405, -0.9)):
        x = torch.tensor([value], requires_grad=True)
        loss = ppo.value_loss(x, zero, one, 0.2)
        assert loss.item() == pytest.approx(wanted, abs=1e-7)
        assert torch.autograd.grad(loss, x)[0].item() == pytest.approx(slope, abs=1e-7)


def test_at_the_old_policy_both_losses_have_their_unclipped_gradient() -> None:
    """There both branches are equal, where every first minibatch is; a tie must not halve or double the gradient."""
    advantage, value, returns = some(10), some(10, seed=1), some(10, seed=2)
    ratio = torch.ones(10, requires_grad=True)
    (gradient,) = torch.autograd.grad(ppo.policy_loss(ratio, advantage, 0.2), ratio)
    torch.testing.assert_close(gradient, -advantage / 10)
    value.requires_grad_()
    (gradient,) = torch.autograd.grad(ppo.value_loss(value, value.detach(), returns, 0.2), value)
    torch.testing.assert_close(gradient, (value - returns).detach() / 10)


@pytest.mark.parametrize(("valid", "mask"), masks(40), ids=["all", "masked"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_and_their_gradients(estimator: str, valid: Tensor | None, mask: Mask) -> None:
    theirs = NUMPY_KL[estimator]
    compare(lambda x: ppo.approx_kl(x, estimator, valid), lambda x: theirs(x, mask), 0.5 * some(40))


def test_kl_estimators_estimate_the_kl() -> None:
    """Of two Gaussians, 0 and 0.1 apart with unit variance: KL = 0.1²/2 = 0.005, from a million draws of the old."""
    action = some(1_000_000)
    log_ratio = -0.5 * (action - 0.1) ** 2 + 0.5 * action**2
    for estimator, tolerance in (("k1", 4e-4), ("k2", 5e-5), ("k3", 5e-5)):
        assert ppo.approx_kl(log_ratio, estimator).item() == pytest.approx(0.005, abs=tolerance)


def test_k3_is_never_negative_and_keeps_its_digits() -> None:
    """(r - 1) - log r of 1e-4 is 5e-9: computed from the ratio in float32 it would be lost in rounding."""
    small = torch.full((7,), 1e-4)
    assert ppo.approx_kl(small).item() == pytest.approx(5e-9, rel=0.02)
    assert all(ppo.approx_kl(x[None]).item() >= 0 for x in some(500) * 1e-3)
    with pytest.raises(AssertionError, match="k4"):
        ppo.approx_kl(small, "k4")


def test_clip_fraction() -> None:
    ratio = torch.tensor([0.7, 0.85, 1.0, 1.15, 1.3])
    assert ppo.clip_fraction(ratio, 0.2).item() == pytest.approx(2 / 5)
    valid = torch.tensor([False, True, True, True, True])
    assert ppo.clip_fraction(ratio, 0.2, valid).item() == pytest.approx(1 / 4)
    ratio = 1 + 0.3 * some(1000)
    wanted = (np.abs(ratio.numpy() - 1) > 0.2).mean()
    assert ppo.clip_fraction(ratio, 0.2).item() == pytest.approx(wanted, abs=1e-7)


# Normalised advantages.


@pytest.mark.parametrize("least_std", [0.0, 0.5, 20.0])  # the deviation of the rows is about 3
@pytest.mark.parametrize(("valid", "mask"), masks(41), ids=["all", "masked"])
def test_normalisation(valid: Tensor | None, mask: Mask, least_std: float) -> None:
    advantage = 3 * some(41) + 5
    weight = some(41, seed=1)
    keep = np.ones(41, bool) if mask is None else mask
    normal = ppo.normalize_advantage(advantage, valid, least_std=least_std)[keep]
    np.testing.assert_allclose(normal, numpy_normalize(array(advantage), mask, least_std)[keep], rtol=1e-5, atol=1e-6)
    compare(
        lambda x: (ppo.normalize_advantage(x, valid, least_std=least_std) * weight)[keep].sum(),
        lambda x: (numpy_normalize(x, mask, least_std) * array(weight))[keep].sum(),
        advantage,
    )


def test_equal_advantages_give_zeros() -> None:
    """A rounded mean would leave a remainder, and dividing it by its own size would turn it into ±1."""
    for size in (1, 2, 7, 130, 1000):
        for row in (0.0, 0.1, -1e-3, 1234.5678, -3e7):
            advantage = torch.full((size,), row)
            assert not ppo.normalize_advantage(advantage).any()
            for first in range(min(size, 3)):
                valid = torch.arange(size) >= first
                mixed = torch.where(valid, advantage, 99.0)
                assert not ppo.normalize_advantage(mixed, valid)[valid].any()
            assert not ppo.normalize_advantage(advantage, torch.zeros(size).bool()).isnan().any()
            # Of two processes: their sums leave a rounding error where there is no variance.
            sums = ppo.advantage_sums(advantage) + ppo.advantage_sums(advantage)
            assert not ppo.normalize_advantage(advantage, None, sums).any()


# Minibatches that follow one another: even, uneven, of one row, all in one, and of both two rows and one.
EPOCHS = [(64, 4), (130, 4), (7, 7), (41, 1), (11, 8)]
NOBODY = "a minibatch without a valid row"
MASKINGS = ["all", "masked", NOBODY]


class Epoch(NamedTuple):
    advantage: Tensor  # (B,), its minibatches have unlike means and deviations
    valid: Tensor | None  # (B,)
    sizes: list[int]  # of the minibatches

    @property
    def kept(self) -> Any:
        """Index of the valid rows."""
        return slice(None) if self.valid is None else self.valid


def epoch(rows: int, count: int, masking: str) -> Epoch:
    scale = 1 + torch.arange(float(rows)) / rows
    advantage = 3 * scale * some(rows) + 20 * scale
    sizes = ppo.even_sizes(rows, count)
    valid = None if masking == "all" else torch.arange(rows) % 3 != 1
    if valid is not None and masking == NOBODY:
        valid[: sizes[0]] = False
    return Epoch(advantage, valid, sizes)


def one_by_one(whole: Epoch, least_std: float = 0.0) -> Tensor:
    """Each minibatch normalised by itself."""
    found = []
    start = 0
    for size in whole.sizes:
        rows = slice(start, start + size)
        mask = None if whole.valid is None else whole.valid[rows]
        found.append(ppo.normalize_advantage(whole.advantage[rows], mask, least_std=least_std))
        start += size
    return torch.cat(found)


@pytest.mark.parametrize("masking", MASKINGS)
def test_normalising_an_epoch_is_normalising_each_minibatch(masking: str) -> None:
    for rows, count in EPOCHS:
        whole = epoch(rows, count, masking)
        normal = ppo.normalize_minibatches(whole.advantage, count, whole.valid)
        torch.testing.assert_close(normal[whole.kept], one_by_one(whole)[whole.kept], rtol=1e-5, atol=1e-5)
        assert normal.shape == whole.advantage.shape and normal.isfinite().all()
        if count > 1 and (whole.valid is None or whole.valid.any()):  # and not of the whole
            together = ppo.normalize_advantage(whole.advantage, whole.valid)
            assert (normal - together)[whole.kept].abs().max() > 0.1
        constant = torch.full_like(whole.advantage, 1234.5678)
        assert not ppo.normalize_minibatches(constant, count, whole.valid)[whole.kept].any()


def interleaved(halves: list[Tensor], sizes: list[int]) -> Tensor:
    """Minibatch after minibatch, each with both halves' rows."""
    pairs = zip(halves[0].split(sizes), halves[1].split(sizes), strict=True)
    return torch.cat([part for pair in pairs for part in pair])


@pytest.mark.parametrize("least_std", [0.0, 9.0])  # which some minibatches of an epoch are above
@pytest.mark.parametrize("masking", MASKINGS)
def test_normalising_over_two_processes_is_normalising_their_rows_together(masking: str, least_std: float) -> None:
    """Each has half of every minibatch. One message an epoch: the sums of all minibatches, (count, 3)."""
    for rows, count in EPOCHS:
        both = epoch(2 * rows, count, masking)
        halves = list(both.advantage.split(rows))
        masks: list[Any] = [None, None] if both.valid is None else list(both.valid.split(rows))
        sent: list[Tensor] = []

        def keep(sums: Tensor, sent: list[Tensor] = sent) -> Tensor:
            sent.append(sums.clone())
            return sums

        def summed(sums: Tensor, sent: list[Tensor] = sent) -> Tensor:
            return sums.copy_(sent[0] + sent[1])

        for half, mask in zip(halves, masks, strict=True):
            ppo.normalize_minibatches(half, count, mask, keep, least_std)
        assert [x.shape for x in sent] == [(count, 3)] * 2
        normal = [
            ppo.normalize_minibatches(half, count, mask, summed, least_std)
            for half, mask in zip(halves, masks, strict=True)
        ]
        assert all(x.isfinite().all() and x.dtype == torch.float32 for x in normal)
        own = ppo.even_sizes(rows, count)
        valid = None if both.valid is None else interleaved(masks, own)
        whole = Epoch(interleaved(halves, own), valid, [2 * size for size in own])
        found = interleaved(normal, own)
        expected = one_by_one(whole, least_std)
        torch.testing.assert_close(found[whole.kept], expected[whole.kept], rtol=1e-5, atol=1e-5)


def test_sums_of_minibatches() -> None:
    """Count, sum and sum of squares over the last dimension; junk in rows that are not valid, infinite too, is none."""
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, INF, 6.0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert ppo.advantage_sums(x, valid).tolist() == [[3, 6, 14], [1, 4, 16]]
    assert ppo.advantage_sums(x[0]).tolist() == [3, 6, 14] and ppo.advantage_sums(x[:1]).dtype == torch.float64


def test_advantages_spread_over_processes_unevenly_are_normalised_as_one_minibatch() -> None:
    """And as well where their mean is a hundred times their deviation."""
    advantage = some(64, seed=3) * 7 + 1000
    valid = torch.arange(64) % 5 != 0
    parts = (slice(0, 30), slice(30, 64))
    sums = torch.stack([ppo.advantage_sums(advantage[part], valid[part]) for part in parts]).sum(0)
    together = ppo.normalize_advantage(advantage, valid)
    for part in parts:
        found = ppo.normalize_advantage(advantage[part], valid[part], sums)
        torch.testing.assert_close(found, together[part], rtol=1e-4, atol=1e-5)


# Batches cut into minibatches.


class Columns(NamedTuple):
    x: Tensor
    valid: Tensor | None


def test_sizes_are_even_and_keep_every_row() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        rows = rng.randint(1, 5000)
        parts = rng.randint(1, min(rows, 64))
        sizes = ppo.even_sizes(rows, parts)
        assert sum(sizes) == rows and len(sizes) == parts and min(sizes) >= 1
        assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] in (0, 1)
    assert ppo.even_sizes(130, 4) == [33, 33, 32, 32]


def test_split_gives_views_in_order() -> None:
    whole = Columns(torch.arange(12.0).view(6, 2), None)
    pieces = ppo.split(whole, (1, 3, 2))
    assert [len(piece.x) for piece in pieces] == [1, 3, 2] and all(piece.valid is None for piece in pieces)
    assert all(isinstance(piece, Columns) for piece in pieces)
    assert torch.equal(torch.cat([piece.x for piece in pieces]), whole.x)
    pieces[1].x.zero_()
    assert not whole.x[1:4].any() and whole.x[4:].all()
    masked = ppo.split(Columns(whole.x, torch.arange(6) < 2), [2, 4])
    assert [int(piece.valid.sum()) for piece in masked if piece.valid is not None] == [2, 0]


# Explained variance, and masks.


def test_explained_variance() -> None:
    returns = some(500)
    value = returns + 0.5 * some(500, seed=1)
    wanted = 1 - (array(returns) - array(value)).var() / array(returns).var()
    assert ppo.explained_variance(value, returns).item() == pytest.approx(wanted, abs=1e-6)
    assert ppo.explained_variance(returns, returns).item() == 1.0
    assert ppo.explained_variance(returns + 3, returns).item() == pytest.approx(1.0, abs=1e-6)
    assert ppo.explained_variance(torch.zeros(500), returns).item() == pytest.approx(0.0, abs=1e-6)
    assert ppo.explained_variance(-returns, returns).item() == pytest.approx(-3.0, abs=1e-5)


def test_explained_variance_of_equal_returns_is_nan() -> None:
    value = torch.randn(5, 9, generator=generator())
    valid = torch.arange(45).view(5, 9) % 4 != 0
    for row in (0.0, 0.1, 7.3, -1234.5678):
        returns = torch.full((5, 9), row)
        assert ppo.explained_variance(value, returns).isnan()
        assert ppo.explained_variance(value, torch.where(valid, returns, 3.0), valid).isnan()


MASKED: list[Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = [
    lambda a, b, c, valid: ppo.policy_loss(1 + 0.2 * a, b, 0.2, valid),
    lambda a, b, c, valid: ppo.value_loss(a, b, c, 0.2, valid),
    lambda a, b, c, valid: ppo.value_loss(a, b, c, None, valid),
    lambda a, b, c, valid: ppo.approx_kl(1e-3 * a, "k1", valid),
    lambda a, b, c, valid: ppo.approx_kl(1e-3 * a, "k2", valid),
    lambda a, b, c, valid: ppo.clip_fraction(a, 0.2, valid),
    lambda a, b, c, valid: ppo.explained_variance(a, b, valid),
    lambda a, b, c, valid: ppo.masked_mean(a, valid),
]


def test_masked_rows_have_no_influence() -> None:
    """Every mean with a mask is that of the chosen rows alone, whatever finite junk the other rows hold."""
    valid = torch.rand(64, generator=generator()) < 0.6
    columns = [some(64, seed) for seed in range(3)]
    a, b, c = (torch.where(valid, column, 1e6 * column) for column in columns)
    chosen_a, chosen_b, chosen_c = (column[valid] for column in columns)
    for function in MASKED:
        found = function(a, b, c, valid)
        torch.testing.assert_close(found, function(chosen_a, chosen_b, chosen_c, None), rtol=1e-6, atol=1e-6)
    normal = ppo.normalize_advantage(a, valid)[valid]
    torch.testing.assert_close(normal, ppo.normalize_advantage(chosen_a), rtol=1e-5, atol=1e-6)
    assert ppo.masked_mean(a, torch.zeros(64).bool()).item() == 0.0
