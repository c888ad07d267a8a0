"""Action heads against torch.distributions in float64, and against counting."""

import math
from collections.abc import Sequence

import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from ppo_fast.algorithm import heads

INF = float("inf")
LARGEST_NOISE = 1 - 2**-24  # the largest float32 below 1

SPACES = [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (3,))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(x: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of a scalar; zeros for what it does not depend on."""
    return torch.autograd.grad(x, list(inputs), retain_graph=True, allow_unused=True, materialize_grads=True)


def agree(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], inputs: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """Log-probability and entropy, each with its gradients in the inputs: float32 against float64."""
    weight = torch.randn(len(ours[0]), generator=generator(1))
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-6)
        found_gradients = gradients((found * weight).sum(), inputs)
        wanted_gradients = gradients((wanted * weight).sum(), exact)
        for x, y in zip(found_gradients, wanted_gradients, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=5e-6)


def chi_square(actions: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic of how often each action was drawn."""
    counts = actions.bincount(minlength=len(probabilities))
    expected = len(actions) * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


# Categorical.


def test_sampling_frequencies() -> None:
    """200,000 draws; the 99.9 % quantile of chi-square with 4 degrees of freedom is 18.47."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -2.5])
    head = heads.CategoricalHead(5)
    noise = head.draw_noise((200_000,), generator())
    action = head.sample(logits.expand(200_000, 5), noise)
    assert action.dtype == torch.int64 and action.shape == (200_000,)
    assert chi_square(action, logits.double().softmax(-1)) < 18.47
    assert chi_square(action, torch.full((5,), 0.2).double()) > 1000


def test_the_ends_of_the_noise() -> None:
    """0 draws the first action that can happen, the largest number below 1 the last; never one that is not there."""
    for n in (1, 2, 3, 100):
        head = heads.CategoricalHead(n)
        for logits in (torch.zeros(n), torch.linspace(-3, 3, n), torch.randn(n, generator=generator())):
            action = head.sample(logits.expand(2, -1), torch.tensor([0.0, LARGEST_NOISE]))
            assert action.tolist() == [0, n - 1]


def test_categorical_against_torchs_distribution() -> None:
    head = heads.CategoricalHead(6)
    logits = torch.randn(200, 6, generator=generator(), requires_grad=True)
    action = torch.randint(6, (200,), generator=generator())
    exact = logits.detach().double().requires_grad_()
    reference = Categorical(logits=exact)
    agree(head.log_prob_entropy(logits, action), (reference.log_prob(action), reference.entropy()), [logits], [exact])
    assert torch.equal(head.mode(logits), reference.mode)
    assert head.max_entropy == pytest.approx(head.log_prob_entropy(torch.zeros(1, 6), action[:1])[1].item())


def test_extreme_logits() -> None:
    head = heads.CategoricalHead(3)
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    for action, wanted in ((0, 0.0), (1, -1e4), (2, -2e4)):
        log_prob, entropy = head.log_prob_entropy(logits, torch.tensor([action]))
        assert log_prob.item() == wanted and entropy.item() == 0.0
        assert gradients(log_prob.sum() + entropy.sum(), [logits])[0].isfinite().all()
    assert head.sample(logits.expand(3, 3), torch.tensor([0.0, 0.5, LARGEST_NOISE])).tolist() == [0, 0, 0]


# What the environment forbids.


def test_infinitely_improbable_actions_are_never_drawn() -> None:
    head = heads.CategoricalHead(4)
    noise = torch.cat([torch.tensor([0.0, LARGEST_NOISE]), torch.rand(10_000, generator=generator())])
    logits = torch.tensor([-INF, 0.5, -INF, 1.0]).expand(len(noise), 4)
    assert set(head.sample(logits, noise).tolist()) == {1, 3}
    only = torch.tensor([-INF, -INF, 0.0, -INF]).expand(len(noise), 4)
    assert set(head.sample(only, noise).tolist()) == {2}
    assert head.mode(logits)[0].item() == 3


def test_a_forbidden_action_has_no_probability_and_is_never_drawn() -> None:
    head = heads.CategoricalHead(5)
    draw = generator()
    logits = torch.randn(20_000, 5, generator=draw) * 3
    allowed = (torch.rand(20_000, 5, generator=draw) < 0.5).float()
    allowed[:, 2] = 1.0
    masked = heads.masked(logits, allowed)
    noise = torch.rand(20_000, generator=draw)
    least, largest = torch.zeros(20_000), torch.full((20_000,), LARGEST_NOISE)
    drawn = [head.sample(masked, x) for x in (noise, least, largest)]
    for action in (*drawn, head.mode(masked)):
        assert allowed.gather(1, action[:, None]).min() == 1
    action = head.sample(masked, noise)
    log_prob, entropy = head.log_prob_entropy(masked, action)
    exact = torch.where(allowed > 0, logits.double(), -math.inf).log_softmax(-1)
    torch.testing.assert_close(log_prob.double(), exact.gather(1, action[:, None])[:, 0], rtol=1e-5, atol=1e-6)
    expected = -torch.where(allowed > 0, exact.exp() * exact, 0.0).sum(-1)
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=1e-6)


def test_forbidden_logits_have_finite_numbers_and_no_gradient() -> None:
    head = heads.CategoricalHead(4)
    probabilities = torch.tensor([0.5, 1.0]).double().softmax(-1)
    for forbidden in (heads.FORBIDDEN, torch.finfo(torch.float32).min):
        logits = torch.tensor([[forbidden, 0.5, forbidden, 1.0]], requires_grad=True)
        log_prob, entropy = head.log_prob_entropy(logits, torch.tensor([3]))
        assert log_prob.item() == pytest.approx(probabilities[1].log().item(), abs=1e-6)
        assert entropy.item() == pytest.approx(-(probabilities * probabilities.log()).sum().item(), abs=1e-6)
        gradient = gradients((log_prob + entropy).sum(), [logits])[0]
        assert gradient.isfinite().all() and not gradient[0, [0, 2]].any()
    # Whatever the network says of a forbidden action, it is not told to say something else.
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    masked = heads.masked(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    log_prob, entropy = heads.CategoricalHead(3).log_prob_entropy(masked, torch.tensor([2]))
    gradient = gradients((log_prob + entropy).sum(), [logits])[0][0]
    assert gradient[1] == 0 and gradient[0] != 0


# Several discrete actions.


def test_multi_discrete_is_the_joint_of_its_parts() -> None:
    head = heads.make_head(spaces.MultiDiscrete([2, 3, 4]))
    assert head.outputs == 9 and head.action_shape == (3,) and head.action_dtype == torch.int64
    logits = torch.randn(100, 9, generator=generator(), requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    parts = [Categorical(logits=part) for part in exact.split([2, 3, 4], -1)]
    action = head.sample(logits, head.draw_noise((100,), generator()))
    assert action.shape == (100, 3) and (action < torch.tensor([2, 3, 4])).all()
    log_prob = torch.stack([part.log_prob(action[:, i]) for i, part in enumerate(parts)]).sum(0)
    entropy = torch.stack([part.entropy() for part in parts]).sum(0)
    agree(head.log_prob_entropy(logits, action), (log_prob, entropy), [logits], [exact])
    assert torch.equal(head.mode(logits), torch.stack([part.mode for part in parts], -1))
    assert head.max_entropy == pytest.approx(math.log(24))


def test_multi_discrete_sampling_frequencies() -> None:
    """The 6 joint outcomes of two independent parts; the 99.9 % quantile of chi-square with 5 degrees is 20.52."""
    head = heads.MultiCategoricalHead([2, 3])
    logits = torch.tensor([0.4, -0.4, 1.0, 0.0, -1.0])
    action = head.sample(logits.expand(200_000, 5), head.draw_noise((200_000,), generator()))
    joint = torch.outer(logits[:2].double().softmax(-1), logits[2:].double().softmax(-1)).flatten()
    assert chi_square(action[:, 0] * 3 + action[:, 1], joint) < 20.52


# The Gaussian.


def test_gaussian_against_torchs_distribution() -> None:
    head = heads.GaussianHead(3)
    head.log_std.data = torch.tensor([-1.0, 0.0, 0.7])
    mean = torch.randn(200, 3, generator=generator(), requires_grad=True)
    action = torch.randn(200, 3, generator=generator(1))
    exact = [x.detach().double().requires_grad_() for x in (mean, head.log_std)]
    reference = Independent(Normal(exact[0], exact[1].exp()), 1)
    wanted = reference.log_prob(action.double()), reference.entropy()
    agree(head.log_prob_entropy(mean, action), wanted, [mean, head.log_std], exact)
    assert torch.equal(head.mode(mean), mean)
    assert head.outputs == 3 and head.action_shape == (3,) and head.action_dtype == torch.float32


def test_gaussian_samples_have_the_mean_and_the_deviation() -> None:
    head = heads.GaussianHead(2)
    head.log_std.data = torch.tensor([-1.0, 0.5])
    mean = torch.tensor([3.0, -2.0])
    action = head.sample(mean.expand(200_000, 2), head.draw_noise((200_000,), generator())).detach()
    torch.testing.assert_close(action.mean(0), mean, rtol=0, atol=0.015)
    torch.testing.assert_close(action.std(0), head.log_std.exp(), rtol=0.01, atol=0)
    # Two numbers of a row are independent.
    assert torch.corrcoef(action.T)[0, 1].abs() < 0.01


def test_an_extreme_gaussian_stays_finite() -> None:
    head = heads.GaussianHead(1)
    head.log_std.data = torch.tensor([-20.0])
    mean = torch.zeros(1, 1, requires_grad=True)
    action = head.sample(mean, torch.ones(1, 1)).detach()
    log_prob, entropy = head.log_prob_entropy(mean, action)
    assert log_prob.item() == pytest.approx(-0.5 + 20 - 0.5 * math.log(2 * math.pi), abs=1e-4)
    assert entropy.item() == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi) - 20, abs=1e-5)


def test_a_gaussian_starts_at_the_deviation_asked_for() -> None:
    head = heads.make_head(spaces.Box(-1, 1, (3,)), log_std=-1.5)
    assert isinstance(head, heads.GaussianHead) and head.log_std.tolist() == [-1.5] * 3


# Of every kind.


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.MultiBinary(3), spaces.Box(-1, 1, (2, 2))], ids=str)
def test_other_action_spaces_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"--env-id: action space .* is not supported"):
        heads.make_head(space)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_noise_is_drawn_from_the_generator_alone(space: spaces.Space) -> None:
    """For T steps of N environments at once, equal for equal seeds, and the actions fit the space."""
    head = heads.make_head(space)
    state = torch.get_rng_state()
    first = head.draw_noise((7, 5), generator(1))
    assert torch.equal(first, head.draw_noise((7, 5), generator(1)))
    assert not torch.equal(first, head.draw_noise((7, 5), generator(2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape[:2] == (7, 5)
    action = head.sample(torch.zeros(7, 5, head.outputs), first)
    assert action.shape == (7, 5, *head.action_shape) and action.dtype == head.action_dtype


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_log_prob_alone_is_the_one_beside_the_entropy(space: spaces.Space) -> None:
    head = heads.make_head(space)
    outputs = torch.randn(6, 5, head.outputs, generator=generator())
    action = head.sample(outputs, head.draw_noise((6, 5), generator()))
    assert torch.equal(head.log_prob(outputs, action), head.log_prob_entropy(outputs, action)[0])
