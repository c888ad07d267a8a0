"""All parameters of a module in one vector: the same numbers, in place, with padding that nothing touches."""

import math

import pytest
import torch
from torch import nn

from ppo_fast.algorithm.adam import adam_, clip_gradient, new_learner
from ppo_fast.engine.flat import SLOT, flatten, flatten_parameters, shapes_of, views


class Net(nn.Module):
    """Parameters of all the layouts that there are: wide, thin and narrow weights, vectors, a number, more dimensions.

    Its last layer shares the weight of its first one.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.wide = nn.Linear(20, 12)
        self.thin = nn.Linear(3, 20)
        self.narrow = nn.Linear(20, 2)
        self.number = nn.Parameter(torch.ones(()))
        self.image = nn.Conv2d(3, 4, 2)
        self.again = nn.Linear(20, 12, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.again.weight = self.wide.weight


def test_parameters_become_views_of_one_vector() -> None:
    module = Net()
    before = Net().state_dict()
    theta = flatten_parameters(module)
    assert theta.dtype == torch.float32 and theta.ndim == 1
    after = module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert module.again.weight is module.wide.weight
    storage = theta.untyped_storage().data_ptr()
    for p in module.parameters():
        # A weight of few inputs stands there input by input.
        assert p.untyped_storage().data_ptr() == storage and (p.is_contiguous() or p.t().is_contiguous())
        assert (p.data_ptr() - theta.data_ptr()) % 64 == 0
        assert not p.requires_grad
    assert torch.equal(flatten(module.parameters()), theta)


def test_whoever_changes_the_vector_changes_the_parameters_and_the_other_way_round() -> None:
    module = Net()
    before = Net().state_dict()
    theta = flatten_parameters(module)
    start = theta.clone()
    theta.mul_(2.0)
    assert all(torch.equal(p, 2 * before[name]) for name, p in module.named_parameters())
    module.load_state_dict(before)
    assert torch.equal(theta, start)


def test_flatten_and_views_are_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": (3, 5), "b": (16,), "c": (1,), "d": (), "e": (4, 2, 3), "f": (20, 3)}
    shapes = {name: torch.Size(size) for name, size in sizes.items()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    theta = flatten(tensors.values())
    assert len(theta) == 16 + 16 + 16 + 16 + 32 + 64 and SLOT == 16
    found = views(theta, shapes)
    assert list(found) == list(tensors)
    assert all(found[name].shape == shapes[name] and torch.equal(found[name], tensors[name]) for name in tensors)
    assert torch.equal(flatten(found.values()), theta)
    assert int((theta != 0).sum()) == sum(x.numel() for x in tensors.values())
    found["b"].zero_()
    assert not views(theta, shapes)["b"].any()


def test_the_order_of_the_numbers_stays_as_it_is() -> None:
    """Checkpoints hold this vector: slots in the parameters' order; a weight of few inputs stands there by input."""
    thin, wide = torch.arange(60.0).view(20, 3), torch.arange(240.0).view(12, 20)
    theta = flatten([torch.tensor(7.0), thin, wide])
    assert theta[0] == 7 and not theta[1:16].any()
    assert torch.equal(theta[16:76].view(3, 20).t(), thin) and not theta[76:80].any()
    assert torch.equal(theta[80:].view(12, 20), wide)


def test_padding_stays_zero_under_updates() -> None:
    """Its gradient is 0, so neither Adam nor a gradient norm sees it."""
    module = Net()
    theta = flatten_parameters(module)
    shapes = shapes_of(module)
    used = flatten(torch.ones(shape) for shape in shapes.values()).bool()
    assert 0 < int((~used).sum()) < SLOT * len(shapes)
    learner = new_learner(theta, 0.1)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradients = [torch.randn(shape, generator=draw) for shape in shapes.values()]
        gradient, norm = clip_gradient(flatten(gradients), 0.5)
        wanted = math.sqrt(sum(float(x.pow(2).sum()) for x in gradients))
        assert norm.item() == pytest.approx(wanted, rel=1e-5)
        adam_(learner, gradient)
    assert all(not x[~used].any() for x in (theta, learner.moment1, learner.moment2))
    assert all(p.any() for p in module.parameters())
