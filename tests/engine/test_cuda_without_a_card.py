"""What runs on a GPU, on fake tensors of a second device: they have shapes and a device, and no contents.

An operation that mixes devices raises, and so does every look of the host at a number; a phase that looks could not be
captured as a CUDA graph. The device is torch's "meta", since fake CUDA tensors need a torch with CUDA, and takes the
branches of a GPU. What the kernels compute is told by test_fast_path.py, on a CPU and where there is a card.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ppo_fast import train
from ppo_fast.algorithm import ppo
from ppo_fast.algorithm.adam import Learner, new_learner
from ppo_fast.engine import process
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.flat import flatten_parameters
from ppo_fast.engine.iteration import Iteration
from ppo_fast.engine.ranks import Ranks
from ppo_fast.envs import make
from ppo_fast.train import Args

CARD = torch.device("meta")

VARIANTS: dict[str, dict[str, Any]] = {
    "CartPole": {},
    "normalised": {"norm_obs": True, "norm_reward": True},
    "shared, uneven, no clipping": {"shared_backbone": True, "num_minibatches": 3, "clip_vloss": False},
    "early stop": {"target_kl": 0.02},
    "adaptive rate": {"lr_schedule": "kl", "norm_adv": False},
    "bf16": {"precision": "bf16"},
    "Pendulum": {"env_id": "Pendulum-v1"},
    "Acrobot": {"env_id": "Acrobot-v1"},
    "MountainCar": {"env_id": "MountainCar-v0"},
    "MountainCarContinuous": {"env_id": "MountainCarContinuous-v0", "norm_reward": True},
}


class CardGenerator(torch.Generator):
    """A CPU's generator that says it is the card's."""

    def __new__(cls, device: Any = "cpu") -> "CardGenerator":
        return super().__new__(cls)

    @property
    def device(self) -> torch.device:
        return CARD

    def get_state(self) -> torch.Tensor:
        return torch.zeros(1)  # a real one is no fake

    def set_state(self, new_state: torch.Tensor) -> "CardGenerator":
        return self


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "Generator", CardGenerator)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: self.device == CARD))
    monkeypatch.setattr(process, "fast_products_are_exact", lambda: False)  # for a CPU
    with FakeTensorMode(allow_non_fake_inputs=True):  # torch.tensor(list, device="meta") is no fake
        yield


def built(flags: dict[str, Any]) -> tuple[Learner, Iteration]:
    sizes: dict[str, Any] = {"num_envs": 8, "num_steps": 6, "num_minibatches": 2, "update_epochs": 2}
    args = Args(**(sizes | flags))
    envs = make(args.env_id, args.num_envs, CARD, "tensor")
    agent = train.Agent(envs, args)
    for parts in (dict(agent.named_parameters()), dict(agent.named_buffers())):
        for name, x in parts.items():  # fake parameters can't move with `to`
            owner, _, last = name.rpartition(".")
            moved = x.detach().to(CARD)
            setattr(agent.get_submodule(owner), last, torch.nn.Parameter(moved) if x.requires_grad else moved)
    learner = new_learner(flatten_parameters(agent), args.learning_rate)
    engine = Engine(args, Ranks(CARD), "eager")
    return learner, train.make_iteration(args, envs, agent, learner, engine)


def numbers(iteration: Iteration) -> list[torch.Tensor]:
    """What both halves of an iteration log."""
    iteration.collect()
    metrics = iteration.learn()
    return [*metrics.means.values(), *metrics.sums.values()]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_iteration_stays_on_the_card_and_nobody_looks(fakes: None, name: str) -> None:
    learner, iteration = built(VARIANTS[name])
    metrics = numbers(iteration)
    assert all(x.device == CARD and x.shape == () for x in metrics)
    for key, x in iteration.state.all().items():
        assert x.device == CARD, key
    assert all(x.device == CARD for x in learner)
    with pytest.raises(DataDependentOutputException):
        metrics[0].item()


def test_going_back_stays_on_the_card(fakes: None) -> None:
    _, iteration = built({"norm_obs": True, "norm_reward": True})
    numbers(iteration)
    saved = iteration.saved()
    assert {x.device for x in saved["tensors"].values()} == {CARD}
    iteration.load(saved)
    assert numbers(iteration)[0].device == CARD


def test_a_tensor_left_on_the_host_would_be_seen(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gae = ppo.gae

    def moved(reward: torch.Tensor, *rest: Any) -> Any:
        return gae(reward.cpu(), *rest)

    monkeypatch.setattr(ppo, "gae", moved)
    with pytest.raises(RuntimeError, match="device"):
        numbers(built({})[1])


def test_a_look_would_be_seen(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = train.clip_gradient

    def looking(gradient: torch.Tensor, max_norm: float) -> Any:
        return clip(gradient, max_norm if gradient.sum() > 0 else 2 * max_norm)

    monkeypatch.setattr(train, "clip_gradient", looking)
    with pytest.raises(DataDependentOutputException):
        numbers(built({})[1])


def test_an_environment_of_ones_own(fakes: None) -> None:
    """The example in the docs."""
    _, iteration = built({"env_id": "examples.point_mass:PointMass-v0"})
    assert numbers(iteration)[0].device == CARD
