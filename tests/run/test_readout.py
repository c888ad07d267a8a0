"""An iteration's metrics on the host: means averaged and sums added over processes, in one look."""

import pytest
import torch
from torch import Tensor

from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine.ranks import Ranks
from ppo_fast.run import readout
from ppo_fast.run.readout import Totals

CPU = torch.device("cpu")


def metrics(loss: float, steps: int = 64, sound: bool = True) -> Metrics:
    return Metrics(
        means={"losses/policy_loss": torch.tensor(loss), "charts/learning_rate": torch.tensor(0.5)},
        sums={
            "returns": torch.tensor(30.0, dtype=torch.float64),
            "lengths": torch.tensor(12.0, dtype=torch.float64),
            "episodes": torch.tensor(3),
            "steps": torch.tensor(steps),
            "broken": torch.tensor(not sound),
        },
    )


class Pair(Ranks):
    """Two processes, of which the other one sends these numbers."""

    def __init__(self, other: list[float]) -> None:
        super().__init__(CPU, world_size=2)
        self.other = other

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.add_(torch.tensor(self.other, dtype=tensor.dtype))


def test_one_process_alone() -> None:
    seen = readout.read(metrics(0.25, steps=2**40 + 1), Ranks(CPU), stop=True, late=False)
    assert seen.means == {"losses/policy_loss": 0.25, "charts/learning_rate": 0.5}
    assert seen.totals == Totals(returns=30.0, lengths=12.0, episodes=3.0, steps=2.0**40 + 1, broken=0.0)
    assert (seen.stop, seen.late) == (True, False)


@pytest.mark.parametrize("stop", [False, True])
def test_two_processes(stop: bool) -> None:
    """The other one's loss is 0.75; what one process wants, both learn."""
    other = [0.75 / 2, 0.5 / 2, 10.0, 4.0, 1.0, 64.0, 1.0, float(stop), 1.0]
    seen = readout.read(metrics(0.25), Pair(other), stop=False, late=False)
    assert seen.means == {"losses/policy_loss": 0.5, "charts/learning_rate": 0.5}
    assert seen.totals == Totals(returns=40.0, lengths=16.0, episodes=4.0, steps=128.0, broken=1.0)
    assert (seen.stop, seen.late) == (stop, True)


def test_the_device_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    to_list = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: looks.append(x) or to_list(x))
    for name in ("item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, lambda x: pytest.fail("another look"))
    readout.read(metrics(0.25), Ranks(CPU), stop=False, late=False)
    assert len(looks) == 1
