"""The lifecycle of a run: each process's share of it, and when films are made. Stops, faults and resumes have files of
their own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_fast import train
from ppo_fast.engine import recorded
from ppo_fast.engine.ranks import Ranks
from ppo_fast.run.session import Session, quarters
from ppo_fast.run.settle import Beginning
from ppo_fast.train import Args


def test_the_environments_are_divided_and_no_two_processes_have_a_seed() -> None:
    args = Args(num_envs=6, seed=5)
    shares = []
    for rank in range(3):
        ranks = Ranks(torch.device("cpu"), rank, world_size=3)
        shares.append(Session(args, ranks, Beginning(), None).share(args))
    assert [share.num_envs for share in shares] == [2, 2, 2]
    assert shares[0].seed == 5 and len({share.seed for share in shares}) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_envs": 5}, "--num-envs: 5 environments can't be divided among 2 processes"),
        ({"num_envs": 2, "num_steps": 4, "num_minibatches": 5}, "--num-minibatches: each of 2 processes has 4 rows"),
    ],
)
def test_what_cannot_be_divided(flags: dict[str, int], said: str) -> None:
    args = Args(**flags)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        Session(args, Ranks(torch.device("cpu"), world_size=2), Beginning(), None).share(args)


@pytest.mark.parametrize("count", [*range(1, 30), 1000, 1001])
def test_films_are_made_once_a_quarter_is_complete(count: int) -> None:
    """With the iteration that completes it, and not at the end, which has a film of its own."""
    crossed = {i for i in range(1, count) if 4 * i // count > 4 * (i - 1) // count}
    assert quarters(count) == crossed


def test_a_replay_that_is_given_up_late_is_said_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line about execution comes after three iterations; what happens after that is a warning, once."""
    monkeypatch.setattr(recorded, "COMPARED", (60,))
    loss, calls = train.loss, []

    def drifting(agent: Any, args: Any, minibatch: Any) -> Any:
        calls.append(1)
        value, logged = loss(agent, args, minibatch)
        return value * (1.0 if len(calls) <= 2 else 2.0), logged  # recorded and compared once: both as at the start

    monkeypatch.setattr(train, "loss", drifting)
    args = Args(num_envs=4, num_steps=16, total_timesteps=64 * 30, cuda=False, eval_episodes=1, run_root=str(tmp_path))
    result = train.train(args)
    said = capsys.readouterr().out.splitlines()
    assert any("recorded, 5 of 5 functions" in line for line in said)
    late = [line for line in said if "runs as it is" in line]
    assert len(late) == 1 and "drifting gives other numbers" in late[0]
    assert result["execution"] == "recorded, 4 of 5 functions"


@pytest.mark.parametrize(("own_network", "warnings"), [(False, 0), (True, 1)])
def test_a_precision_that_no_part_of_the_agent_heeds_is_said(
    own_network: bool,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class OwnNetworks(train.Agent):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.actor, self.critic = torch.nn.Linear(4, self.head.outputs), torch.nn.Linear(4, 1)
            self.actor.dtype = torch.float32  # pyright: ignore[reportArgumentType] - what another library's layer may say of itself

    if own_network:
        monkeypatch.setattr(train, "Agent", OwnNetworks)
    args = Args(num_envs=4, num_steps=8, total_timesteps=32, precision="bf16", eval_episodes=0, run_root=str(tmp_path))
    train.train(args)
    assert capsys.readouterr().out.count("warning: --precision bf16: changes nothing") == warnings
