"""docs/coming-from.md: its lines are the defaults that CleanRL and Stable-Baselines3 publish, flag by flag.

That each line runs is test_docs' business.
"""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ppo_fast.run import cli
from ppo_fast.run.settle import settle
from ppo_fast.train import Args

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text()

# What all three have, by the names of ppo_fast's flags.
ALIKE = {
    **{"gamma": 0.99, "gae_lambda": 0.95, "norm_adv": True, "clip_coef": 0.2, "max_grad_norm": 0.5, "target_kl": None},
    "adv_std_min": 0.0,
    **{"hidden_sizes": (64, 64), "log_std_init": 0.0, "shared_backbone": False, "seed": 1},
}
# Args of CleanRL's ppo.py.
PPO = {
    **{"env_id": "CartPole-v1", "total_timesteps": 500_000, "learning_rate": 2.5e-4, "num_envs": 4, "num_steps": 128},
    **{"anneal_lr": True, "lr_schedule": "linear", "num_minibatches": 4, "update_epochs": 4, "clip_vloss": True},
    **{"ent_coef": 0.01, "vf_coef": 0.5, "norm_obs": False, "norm_reward": False},
}
# Of its ppo_continuous_action.py, with its wrappers.
CONTINUOUS = {
    **PPO,
    **{"env_id": "HalfCheetah-v5", "total_timesteps": 1_000_000, "learning_rate": 3e-4, "num_envs": 1},
    **{"num_steps": 2048, "num_minibatches": 32, "update_epochs": 10, "ent_coef": 0.0},
    **{"norm_obs": True, "norm_reward": True, "action_bounds": "clip"},
}
# The arguments of stable_baselines3.PPO, by its own names.
SB3 = {
    **{"learning_rate": 3e-4, "n_steps": 2048, "batch_size": 64, "n_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95},
    **{"clip_range": 0.2, "clip_range_vf": None, "normalize_advantage": True, "ent_coef": 0.0, "vf_coef": 0.5},
    **{"max_grad_norm": 0.5, "target_kl": None, "use_sde": False},
}
OF_SB3 = {
    **{"env_id": "CartPole-v1", "total_timesteps": 500_000, "num_envs": 1, "action_bounds": "clip"},
    **{"learning_rate": SB3["learning_rate"], "lr_schedule": "constant", "num_steps": SB3["n_steps"]},
    **{"num_minibatches": SB3["n_steps"] // SB3["batch_size"], "update_epochs": SB3["n_epochs"]},
    **{"clip_vloss": False, "ent_coef": SB3["ent_coef"], "vf_coef": 2 * SB3["vf_coef"]},
    **{"norm_obs": False, "norm_reward": False},
}
LINES = {"ppo.py": PPO, "ppo_continuous_action.py": CONTINUOUS, "Stable-Baselines3's PPO": OF_SB3}


def line_of(peer: str) -> list[str]:
    """The words behind the program's name of the command that ends with this comment."""
    text = PAGE.replace("\\\n", " ")
    [line] = re.findall(rf"^python -m ppo_fast\.train (.*)  # {re.escape(peer)}$", text, re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize("peer", LINES)
def test_a_line_is_the_peers_defaults(peer: str) -> None:
    args, _ = settle(cli.parse(Args, line_of(peer), ""))
    args.check()
    wanted: dict[str, Any] = {**ALIKE, **LINES[peer]}
    assert {name: getattr(args, name) for name in wanted} == wanted


@pytest.mark.parametrize("peer", LINES)
def test_every_flag_of_the_algorithm_is_compared(peer: str) -> None:
    """A flag that is new must be said to be alike, or named in the lines."""
    own = {field.name for field in dataclasses.fields(Args)} - {
        field.name for field in dataclasses.fields(cli.RunFlags)
    }
    assert own - {*ALIKE, *LINES[peer]} <= {"anneal_lr", "desired_kl"}  # no schedule of theirs asks for the second


def test_the_defaults_of_stable_baselines3_are_these() -> None:
    ppo = pytest.importorskip("stable_baselines3").PPO
    parameters = inspect.signature(ppo.__init__).parameters
    assert {name: parameters[name].default for name in SB3} == SB3


def test_the_table_of_cleanrls_defaults_is_true() -> None:
    rows = re.findall(r"^\| `--([\w-]+)` \| ([\d.e-]+) \| ([\d.e-]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for flag, theirs, ours in rows:
        name = flag.replace("-", "_")
        assert float(theirs) == PPO[name] and float(ours) == getattr(Args(), name)
