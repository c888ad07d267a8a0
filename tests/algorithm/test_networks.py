# Tensors unbound into arguments and heads that are one of three: pyright can't count or tell them.
# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
"""Networks and heads against float64, torch.distributions and counting; both spellings of every layer."""

import math

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from ppo_fast.algorithm import networks
from ppo_fast.train import Agent, Args

INF = float("inf")
SPELLINGS = ("eager", "fused")

# torch.compile instantiates an autograd.Function for its own purposes, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=SPELLINGS)
def spelling(request, monkeypatch):
    """Runs a test with the kernels of eager mode and with the form meant for the compiler, here not compiled."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "fused")
    return request.param


# Initialisation.


@pytest.mark.parametrize("shape", [(64, 4), (64, 64), (2, 64), (1, 64), (17, 300)])
@pytest.mark.parametrize("gain", [math.sqrt(2), 0.01, 1.0])
def test_initial_weights_are_orthogonal(shape, gain):
    """W Wᵀ = gain² I, or Wᵀ W where there are more outputs than inputs."""
    outputs, inputs = shape
    layer = networks.layer_init(nn.Linear(inputs, outputs), gain, generator())
    weight = layer.weight.detach().double()
    square = weight @ weight.T if outputs <= inputs else weight.T @ weight
    torch.testing.assert_close(square, gain**2 * torch.eye(len(square)).double(), rtol=0, atol=1e-5)
    # The part that atol cannot see for a gain of 0.01.
    torch.testing.assert_close(square.diagonal(), torch.full((len(square),), gain**2).double(), rtol=1e-5, atol=0)
    assert not layer.bias.any()


def spaces_of(obs_size=4, action_space=None):
    """What Agent looks at in an environment."""

    class Spaces:
        single_observation_space = spaces.Box(-1, 1, (obs_size,))
        single_action_space = action_space or spaces.Discrete(2)
        mask_size = 0

    return Spaces()


def gain_of(layer):
    return torch.linalg.matrix_norm(layer.weight.detach(), 2).item()


def test_every_layer_of_the_agent_has_its_gain():
    """√2 in hidden layers, 0.01 in front of the policy, 1 in front of the value: the largest singular value."""
    for shared in (True, False):
        agent = Agent(spaces_of(), Args(shared_backbone=shared), generator())
        *hidden, policy = agent.actor.layers
        *more, value = agent.critic.layers
        hidden += [*more, *(agent.backbone.layers if agent.backbone is not None else ())]
        assert len(hidden) == (2 if shared else 4)
        assert [gain_of(layer) for layer in hidden] == pytest.approx([math.sqrt(2)] * len(hidden), abs=1e-5)
        assert gain_of(policy) == pytest.approx(0.01, abs=1e-7)
        assert gain_of(value) == pytest.approx(1.0, abs=1e-6)


def test_parameter_counts():
    """CartPole: (4·64 + 64) + (64·64 + 64) + (64·2 + 2) + (64 + 1) = 4,675 shared, 9,155 separate."""

    def count(**flags):
        return sum(p.numel() for p in Agent(spaces_of(), Args(**flags)).parameters())

    assert count(shared_backbone=True) == 320 + 4160 + 130 + 65 == 4675
    assert count() == 2 * (320 + 4160) + 130 + 65 == 9155
    box = Agent(spaces_of(3, spaces.Box(-1, 1, (2,))), Args(shared_backbone=True))
    assert sum(p.numel() for p in box.parameters()) == (3 * 64 + 64) + 4160 + 130 + 65 + 2


def test_the_seed_decides_the_weights():
    first, same, other = (networks.MLP([4, 8, 2], 1.0, generator(seed)) for seed in (1, 1, 2))
    pairs = [
        (torch.equal(a, b), torch.equal(a, c)) for a, b, c in zip(*map(parameters, (first, same, other)), strict=True)
    ]
    assert all(equal for equal, _ in pairs)
    assert not pairs[0][1]


def parameters(module):
    return list(module.parameters())


# Layers.


@pytest.mark.parametrize("outputs", [1, 2, 8, 9, 64])
@pytest.mark.parametrize("inputs", [1, 4, 8, 9, 64])
@pytest.mark.parametrize("leading", [(), (50,), (3, 5)])
def test_linear_against_float64(spelling, inputs, outputs, leading):
    draw = generator()
    x = torch.randn(*leading, inputs, generator=draw, requires_grad=True)
    weight = torch.randn(outputs, inputs, generator=draw, requires_grad=True)
    bias = torch.randn(outputs, generator=draw, requires_grad=True)
    cotangent = torch.randn(*leading, outputs, generator=draw)
    result = networks.linear(x, weight, bias)
    gradients = torch.autograd.grad((result * cotangent).sum(), (x, weight, bias))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    wanted = F.linear(*exact)
    assert result.shape == (*leading, outputs)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad((wanted * cotangent).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [4, 64])
def test_linear_with_inputs_rounded_to_bf16(spelling, size):
    """bf16 keeps 8 bits: the error of a sum of `size` products of numbers around 1 is some 2**-8 of its size. The
    result, the gradients and the bias stay float32. Thin products are not rounded in the compiler's spelling."""
    x, weight = (torch.randn(n, size, generator=generator(n)).requires_grad_() for n in (50, 64))
    bias = torch.full((64,), 1 + 2**-20, requires_grad=True)
    result = networks.linear(x, weight, bias, torch.bfloat16)
    gradients = torch.autograd.grad(result.sum(), (x, weight, bias))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    wanted = F.linear(*exact)
    assert all(tensor.dtype == torch.float32 for tensor in (result, *gradients))
    assert (result.double() - wanted).abs().max() < 2**-5 * math.sqrt(size)
    assert torch.equal(result, networks.linear(x, weight, bias)) == (spelling == "fused" and size == 4)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted.sum(), exact), strict=True):
        assert (ours.double() - theirs).abs().max() < 2**-6 * math.sqrt(64)
    zero = networks.linear(torch.zeros(1, size), weight, bias, torch.bfloat16)
    assert torch.equal(zero[0], bias)


def test_a_network_hands_its_dtype_to_every_layer(monkeypatch):
    seen = []
    monkeypatch.setattr(networks, "linear", lambda x, w, b, dtype=None: seen.append(dtype) or F.linear(x, w, b))
    networks.MLP([3, 8, 8, 2], 1.0, dtype=torch.bfloat16)(torch.ones(1, 3))
    networks.MLP([3, 8, 2], 1.0)(torch.ones(1, 3))
    assert seen == [torch.bfloat16] * 3 + [None] * 2


def test_thin_products_are_written_as_sums_only_when_compiling(spelling, monkeypatch):
    """So that the tests above do compare two spellings."""
    calls = []
    monkeypatch.setattr(networks.F, "linear", lambda *args: calls.append(args))
    for inputs, outputs in ((4, 64), (64, 2), (64, 64)):
        networks.linear(torch.ones(5, inputs), torch.ones(outputs, inputs), torch.ones(outputs))
    assert len(calls) == (1 if spelling == "fused" else 3)


def test_tanh_against_float64(spelling):
    """Dense where it bends, sparse to the ends of float32; both signs, zero, and the smallest numbers."""
    positive = torch.cat([torch.linspace(0, 12, 400_001), torch.logspace(-45, 38, 10_000), torch.tensor([3.4e38])])
    x = torch.cat([positive, -positive])
    y = networks.tanh(x)
    assert (y.double() - x.double().tanh()).abs().max() <= 4e-7
    assert (y.abs() <= 1).all()
    # Small numbers keep their digits too, where there are few: tanh(x) is x there.
    tiny = x[(x.abs() < 1e-3) & (x.abs() > 1e-35)]
    assert len(tiny) < networks.MANY <= len(x)
    torch.testing.assert_close(networks.tanh(tiny).double(), tiny.double().tanh(), rtol=1e-6, atol=0)
    assert torch.equal(networks.tanh(-tiny), -networks.tanh(tiny))
    for size in (1, networks.MANY):
        assert networks.tanh(torch.full((size,), INF)).unique().tolist() == [1.0]
        assert networks.tanh(torch.full((size,), -INF)).unique().tolist() == [-1.0]
        assert networks.tanh(torch.full((size,), torch.nan)).isnan().all()


@pytest.mark.parametrize("size", [5, 20_000])
def test_the_gradient_of_eager_tanh(size: int) -> None:
    """Of few numbers and of many; a number that is not finite makes its own gradient NaN or 0, and no other."""
    x = torch.linspace(-9, 9, size).requires_grad_()
    (gradient,) = torch.autograd.grad((networks.tanh(x) * torch.arange(size)).sum(), x)
    wanted = (1 - x.double().tanh() ** 2) * torch.arange(size)
    torch.testing.assert_close(gradient.double(), wanted.detach(), rtol=1e-5, atol=1e-6 * size)
    with torch.no_grad():
        assert torch.equal(networks.tanh(x), networks.tanh(x.detach()))
    assert not networks.tanh(x.detach()).requires_grad


def test_the_gradient_of_tanh(spelling):
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([1e30, -1e30, INF, -INF])]).requires_grad_()
    cotangent = torch.randn(len(x), generator=generator())
    (gradient,) = torch.autograd.grad(networks.tanh(x), x, cotangent)
    wanted = cotangent.double() * (1 - x.detach().double().tanh() ** 2)
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=4e-6)
    (gradient,) = torch.autograd.grad(networks.tanh(x * torch.nan).sum(), x)
    assert gradient.isnan().all()


def test_tanh_fused_differs_from_torchs_kernel(monkeypatch):
    """Else the tests above would compare a function with itself."""
    x = torch.linspace(-3, 3, 10_001)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not torch.equal(networks.tanh(x), torch.tanh(x))


def test_the_network_and_its_gradients_are_the_same_in_a_compiled_graph():
    network = networks.MLP([4, 64, 64, 2], 0.01, generator())
    exact = networks.MLP([4, 64, 64, 2], 0.01, generator()).double()
    x = torch.randn(100, 4, generator=generator())
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    wanted = exact(x.double())
    wanted.pow(2).sum().backward()
    for function in (network, compiled):
        result = function(x)
        network.zero_grad()
        result.pow(2).sum().backward()
        torch.testing.assert_close(result.double(), wanted, rtol=1e-4, atol=1e-7)
        for p, q in zip(network.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad.float(), rtol=1e-4, atol=1e-6)


def test_activation_after_the_last_layer():
    plain, active = (networks.MLP([4, 8, 3], 1.0, generator(), activate_last=last) for last in (False, True))
    x = torch.randn(5, 4, generator=generator())
    torch.testing.assert_close(active(x), torch.tanh(plain(x)))


# Categorical heads.


def chi_square(counts, probabilities):
    """Pearson's statistic of counts against probabilities."""
    expected = counts.sum() * probabilities
    return ((counts - expected) ** 2 / expected).sum()


def test_sampling_frequencies():
    """200,000 draws; the 99.9 % quantile of chi-square with 4 degrees of freedom is 18.47."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -2.5])
    head = networks.CategoricalHead(5)
    noise = head.draw_noise((200_000,), generator())
    action = head.sample(logits.expand(200_000, 5), noise)
    assert action.dtype == torch.int64 and action.shape == (200_000,)
    counts = action.bincount(minlength=5).numpy()
    probabilities = logits.double().softmax(-1).numpy()
    assert chi_square(counts, probabilities) < 18.47
    assert chi_square(counts, np.full(5, 0.2)) > 1000


@pytest.mark.parametrize("num_actions", [1, 2, 3, 100])
def test_the_ends_of_the_noise(num_actions):
    """0 draws the first action that can happen, the largest number below 1 the last; never one that is not there."""
    head = networks.CategoricalHead(num_actions)
    for logits in (torch.zeros(num_actions), torch.linspace(-3, 3, num_actions), torch.randn(num_actions)):
        action = head.sample(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
        assert action.tolist() == [0, num_actions - 1]


def test_masked_actions_are_never_drawn():
    head = networks.CategoricalHead(4)
    noise = torch.cat([torch.tensor([0.0, 1 - 2**-24]), torch.rand(10_000, generator=generator())])
    logits = torch.tensor([-INF, 0.5, -INF, 1.0]).expand(len(noise), 4)
    assert set(head.sample(logits, noise).tolist()) == {1, 3}
    only = torch.tensor([-INF, -INF, 0.0, -INF]).expand(len(noise), 4)
    assert set(head.sample(only, noise).tolist()) == {2}
    assert head.mode(logits)[0].item() == 3


@pytest.mark.parametrize("masked", [-1e9, torch.finfo(torch.float32).min])
def test_masked_logits_have_finite_numbers(masked):
    head = networks.CategoricalHead(4)
    logits = torch.tensor([[masked, 0.5, masked, 1.0]], requires_grad=True)
    log_prob, entropy = head.log_prob_entropy(logits, torch.tensor([3]))
    probabilities = torch.tensor([0.5, 1.0]).double().softmax(-1)
    assert log_prob.item() == pytest.approx(probabilities[1].log().item(), abs=1e-6)
    assert entropy.item() == pytest.approx(-(probabilities * probabilities.log()).sum().item(), abs=1e-6)
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), logits)
    assert gradient.isfinite().all() and not gradient[0, [0, 2]].any()


def test_extreme_logits():
    head = networks.CategoricalHead(3)
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    for action, wanted in ((0, 0.0), (1, -1e4), (2, -2e4)):
        log_prob, entropy = head.log_prob_entropy(logits, torch.tensor([action]))
        assert log_prob.item() == wanted and entropy.item() == 0.0
        assert torch.autograd.grad(log_prob.sum() + entropy.sum(), logits)[0].isfinite().all()
    assert head.sample(logits.expand(3, 3), torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [0, 0, 0]


def test_categorical_against_torchs_distribution():
    head = networks.CategoricalHead(6)
    logits = torch.randn(200, 6, generator=generator(), requires_grad=True)
    action = torch.randint(6, (200,), generator=generator())
    exact = logits.detach().double().requires_grad_()
    reference = Categorical(logits=exact)
    agree(head.log_prob_entropy(logits, action), (reference.log_prob(action), reference.entropy()), [logits], [exact])
    assert torch.equal(head.mode(logits), reference.mode)
    assert head.max_entropy == pytest.approx(head.log_prob_entropy(torch.zeros(1, 6), action[:1])[1].item())


def agree(ours, theirs, inputs, exact_inputs):
    """Log-probability and entropy, each with its gradients in the inputs, float32 against float64."""
    weight = torch.randn(len(ours[0]), generator=generator(1))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)
        pair = [
            torch.autograd.grad(
                (x * weight).sum(), tensors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for x, tensors in ((a, inputs), (b, exact_inputs))
        ]
        for x, y in zip(*pair, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=5e-6)


def test_multi_discrete_is_the_joint_of_its_parts():
    head = networks.make_head(spaces.MultiDiscrete([2, 3, 4]))
    assert head.outputs == 9 and head.action_shape == (3,) and head.action_dtype == torch.int64
    logits = torch.randn(100, 9, generator=generator(), requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    parts = [Categorical(logits=part) for part in exact.split([2, 3, 4], -1)]
    action = head.sample(logits, head.draw_noise((100,), generator()))
    assert action.shape == (100, 3) and (action < torch.tensor([2, 3, 4])).all()
    log_prob = sum(part.log_prob(a) for part, a in zip(parts, action.unbind(-1), strict=True))
    agree(head.log_prob_entropy(logits, action), (log_prob, sum(p.entropy() for p in parts)), [logits], [exact])
    assert torch.equal(head.mode(logits), torch.stack([part.mode for part in parts], -1))
    assert head.max_entropy == pytest.approx(math.log(24))


def test_multi_discrete_sampling_frequencies():
    """The 12 joint outcomes of two independent parts; the 99.9 % quantile of chi-square with 5 degrees is 20.52."""
    head = networks.MultiCategoricalHead([2, 3])
    logits = torch.tensor([0.4, -0.4, 1.0, 0.0, -1.0])
    action = head.sample(logits.expand(200_000, 5), head.draw_noise((200_000,), generator()))
    joint = torch.outer(logits[:2].double().softmax(-1), logits[2:].double().softmax(-1)).flatten()
    counts = (action[:, 0] * 3 + action[:, 1]).bincount(minlength=6)
    assert chi_square(counts.numpy(), joint.numpy()) < 20.52


# The Gaussian head.


def test_gaussian_against_torchs_distribution():
    head = networks.make_head(spaces.Box(-1, 1, (3,)))
    head.log_std.data = torch.tensor([-1.0, 0.0, 0.7])
    mean = torch.randn(200, 3, generator=generator(), requires_grad=True)
    action = torch.randn(200, 3, generator=generator(1))
    exact = [tensor.detach().double().requires_grad_() for tensor in (mean, head.log_std)]
    reference = Independent(Normal(exact[0], exact[1].exp()), 1)
    wanted = reference.log_prob(action.double()), reference.entropy()
    agree(head.log_prob_entropy(mean, action), wanted, [mean, head.log_std], exact)
    assert torch.equal(head.mode(mean), mean)
    assert head.outputs == 3 and head.action_shape == (3,) and head.action_dtype == torch.float32


def test_gaussian_samples_have_the_mean_and_the_deviation():
    head = networks.GaussianHead(2)
    head.log_std.data = torch.tensor([-1.0, 0.5])
    mean = torch.tensor([3.0, -2.0])
    action = head.sample(mean.expand(200_000, 2), head.draw_noise((200_000,), generator())).detach()
    torch.testing.assert_close(action.mean(0), mean, rtol=0, atol=0.015)
    torch.testing.assert_close(action.std(0), head.log_std.exp(), rtol=0.01, atol=0)
    # Two numbers of a row are independent.
    assert torch.corrcoef(action.T)[0, 1].abs() < 0.01


def test_an_extreme_gaussian_stays_finite():
    head = networks.GaussianHead(1)
    head.log_std.data = torch.tensor([-20.0])
    mean = torch.zeros(1, 1, requires_grad=True)
    action = head.sample(mean, torch.ones(1, 1)).detach()
    log_prob, entropy = head.log_prob_entropy(mean, action)
    wanted = -0.5 + 20 - 0.5 * math.log(2 * math.pi)
    assert log_prob.item() == pytest.approx(wanted, abs=1e-4)
    assert entropy.item() == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi) - 20, abs=1e-5)


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.MultiBinary(3), spaces.Box(-1, 1, (2, 2))], ids=str)
def test_other_action_spaces_are_refused(space):
    with pytest.raises(ValueError, match=r"--env-id: action space .* is not supported"):
        networks.make_head(space)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,))], ids=str)
def test_noise_is_drawn_from_the_generator_alone(space):
    """For T steps of N environments at once, equal for equal seeds, and the actions fit the space."""
    head = networks.make_head(space)
    state = torch.get_rng_state()
    first, same, other = (head.draw_noise((7, 5), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape[:2] == (7, 5)
    action = head.sample(torch.zeros(7, 5, head.outputs), first)
    assert action.shape == (7, 5, *head.action_shape) and action.dtype == head.action_dtype


# One flat vector.


def agent():
    return Agent(spaces_of(3, spaces.Box(-1, 1, (2,))), Args(), generator())


def shapes_of(module):
    return {name: p.shape for name, p in module.named_parameters()}


def test_parameters_become_views_of_one_vector():
    module, before = agent(), agent().state_dict()
    theta = networks.flatten_parameters(module)
    assert theta.dtype == torch.float32 and theta.ndim == 1
    after = module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    storage = theta.untyped_storage().data_ptr()
    for p in module.parameters():
        # A weight of few inputs stands there input by input.
        assert p.untyped_storage().data_ptr() == storage and (p.is_contiguous() or p.t().is_contiguous())
        assert (p.data_ptr() - theta.data_ptr()) % 64 == 0
    assert torch.equal(networks.flatten(dict(module.named_parameters())), theta)
    theta.mul_(2.0)
    assert all(torch.equal(p, 2 * before[name]) for name, p in module.named_parameters())
    module.load_state_dict(before)
    assert torch.equal(networks.flatten(before), theta)


def test_flatten_and_unflatten_are_inverse():
    shapes = {name: torch.Size(s) for name, s in {"a": (3, 5), "b": (16,), "c": (1,), "d": (), "e": (4, 2, 3)}.items()}
    tensors = {name: torch.randn(shape, generator=generator()) for name, shape in shapes.items()}
    flat = networks.flatten(tensors)
    assert len(flat) == 16 + 16 + 16 + 16 + 32
    views = networks.unflatten(flat, shapes)
    assert list(views) == list(tensors)
    assert all(views[name].shape == shapes[name] and torch.equal(views[name], tensors[name]) for name in tensors)
    assert torch.equal(networks.flatten(views), flat)
    assert int((flat != 0).sum()) == sum(x.numel() for x in tensors.values())
    views["b"].zero_()
    assert not networks.unflatten(flat, shapes)["b"].any()


def test_padding_stays_zero_under_updates():
    """Its gradient is 0, so neither Adam nor a gradient norm sees it."""
    from ppo_fast.algorithm import ppo

    module = agent()
    theta = networks.flatten_parameters(module)
    used = networks.flatten({name: torch.ones(shape) for name, shape in shapes_of(module).items()}).bool()
    learner, draw = ppo.new_learner(theta, 0.1), generator()
    assert 0 < int((~used).sum()) < 16 * len(shapes_of(module))
    for _ in range(20):
        gradients = {name: torch.randn(shape, generator=draw) for name, shape in shapes_of(module).items()}
        gradient, norm = ppo.clip_gradient(networks.flatten(gradients), 0.5)
        assert norm.item() == pytest.approx(math.sqrt(sum(float(g.pow(2).sum()) for g in gradients.values())), rel=1e-5)
        ppo.adam_(learner, gradient)
    assert all(not x[~used].any() for x in (theta, learner.moment1, learner.moment2))
    assert all(p.any() for p in module.parameters())


def test_the_agent_flattens_image_like_observations():
    envs = spaces_of()
    envs.single_observation_space = spaces.Box(-1, 1, (2, 3))
    module = Agent(envs, Args(), generator())
    obs = torch.randn(5, 7, 2, 3, generator=generator())
    flat = obs.flatten(2)
    torch.testing.assert_close(module.value(obs), module.critic(flat).squeeze(-1))
    assert module.value(obs).shape == (5, 7)


def test_the_agents_three_entrances_agree():
    """act, value and forward compute the same numbers, with a shared backbone and without."""
    for shared in (True, False):
        env = gymnasium.make_vec("ppo_fast/CartPole-v1", num_envs=6)
        module = Agent(env, Args(shared_backbone=shared), generator())
        for p in module.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator())
        obs = torch.randn(6, 4, generator=generator())
        action, outputs = module.act(obs, module.head.draw_noise((6,), generator()))
        log_prob = module.head.log_prob(outputs, action)
        again, entropy, value = module(obs, action)
        torch.testing.assert_close(log_prob, again)
        torch.testing.assert_close(value, module.value(obs))
        assert entropy.shape == value.shape == (6,)
        assert torch.equal(module.act(obs, None)[0], module.actor(module.features(obs)).argmax(-1))


def test_a_forbidden_action_has_no_probability_and_is_never_drawn() -> None:
    head, generator = networks.CategoricalHead(5), torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator) * 3
    allowed = (torch.rand(20_000, 5, generator=generator) < 0.5).float()
    allowed[:, 2] = 1.0
    masked = networks.masked(logits, allowed)
    noise = torch.rand(20_000, generator=generator)
    noise[:4] = torch.tensor([0.0, 0.0, 1 - 2**-24, 1 - 2**-24])
    for action in (head.sample(masked, noise), head.mode(masked)):
        assert allowed.gather(1, action[:, None]).min() == 1
    log_prob, entropy = head.log_prob_entropy(masked, head.sample(masked, noise))
    exact = torch.where(allowed > 0, logits.double(), -math.inf).log_softmax(-1)
    chosen = exact.gather(1, head.sample(masked, noise)[:, None])[:, 0]
    torch.testing.assert_close(log_prob.double(), chosen, rtol=1e-5, atol=1e-6)
    expected = -torch.where(allowed > 0, exact.exp() * exact, 0.0).sum(-1)
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_forbidden_action_gets_no_gradient() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    masked = networks.masked(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    log_prob, entropy = networks.CategoricalHead(3).log_prob_entropy(masked, torch.tensor([2]))
    (log_prob + entropy).sum().backward()
    assert logits.grad is not None and logits.grad[0, 1] == 0 and logits.grad[0, 0] != 0


def test_a_gaussian_starts_at_the_deviation_asked_for() -> None:
    head = networks.make_head(spaces.Box(-1, 1, (3,)), log_std=-1.5)
    assert isinstance(head, networks.GaussianHead) and head.log_std.tolist() == [-1.5] * 3


def test_parameters_are_the_modules_own_or_those_of_another_vector() -> None:
    module = networks.MLP([3, 5, 2], 1.0, generator())
    theta, x = networks.flatten_parameters(module), torch.randn(4, 3, generator=generator())
    own = networks.parameters_of(module, theta)
    assert list(own) == [name for name, _ in module.named_parameters()]
    assert all(own[name] is parameter for name, parameter in module.named_parameters())
    assert torch.equal(networks.call(module, own, x), module(x))
    other = networks.parameters_of(module, theta * 2)
    assert all(torch.equal(other[name], 2 * own[name]) for name in own)
    assert not torch.equal(networks.call(module, other, x), module(x))
    with torch.no_grad():
        theta.mul_(2)
    assert torch.equal(networks.call(module, other, x), module(x))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (3,))])
def test_log_prob_alone_is_the_one_beside_the_entropy(space: spaces.Space) -> None:
    head = networks.make_head(space)
    outputs = torch.randn(6, 5, head.outputs, generator=generator())
    action = head.sample(outputs, head.draw_noise((6, 5), generator()))
    assert torch.equal(head.log_prob(outputs, action), head.log_prob_entropy(outputs, action)[0])
