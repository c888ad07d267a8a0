"""The flags that a run really has, and what is said of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_fast.run.settle import as_typed, settle
from ppo_fast.train import Args


def test_flags_as_they_would_be_typed() -> None:
    values = {"num_envs": 16, "norm_obs": True, "clip_vloss": False, "hidden_sizes": (64, 32), "env_id": "A-v0"}
    assert as_typed(values) == "--num-envs 16 --norm-obs --no-clip-vloss --hidden-sizes 64 32 --env-id A-v0"


def typed(*names: str, **flags) -> Args:
    """Flags as `cli.parse` leaves them: it notes which of them were named."""
    args = Args(**flags)
    args.flags_given = frozenset(names)  # type: ignore[misc]
    return args


@pytest.mark.fitted
def test_a_preset_fills_in_what_was_not_named() -> None:
    args, beginning = settle(typed("update_epochs", update_epochs=7))
    assert (args.norm_obs, args.clip_vloss, args.update_epochs) == (True, False, 7)
    assert beginning.origin is None
    assert beginning.notes == ("preset        --norm-obs --norm-reward --no-clip-vloss",)


@pytest.mark.parametrize("args", [typed(preset=False), typed(env_id="Ant-v5"), Args()])
def test_no_preset_where_none_is_wanted_or_there_is_none(args: Args) -> None:
    """In a call from Python flags are what they are."""
    settled, beginning = settle(args)
    assert settled == replace(args, exp_name="train") and beginning.notes == ()


def test_flags_are_in_pythons_own_types() -> None:
    given: Any = {"num_envs": np.int64(8), "hidden_sizes": [8, 8], "run_root": Path("runs"), "gamma": np.float32(0.5)}
    args, _ = settle(Args(**given))
    assert args == Args(num_envs=8, hidden_sizes=(8, 8), run_root="runs", gamma=0.5, exp_name="train")
    assert [type(x) for x in (args.num_envs, args.run_root, args.gamma)] == [int, str, float]


@dataclass
class Changed(Args):
    """A program of one's own."""

    out: Path = Path("out")
    size: int | str = "auto"


def test_a_flag_that_no_checkpoint_can_hold_is_named_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match=r"^--out: a PosixPath can't be kept in a checkpoint; a flag is a bool, int, "):
        settle(Changed())
    assert settle(Changed(out="out"))[0].size == "auto"  # type: ignore[arg-type]


def test_what_cannot_be_resumed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--resume: nowhere is neither a run folder"):
        settle(Args(resume="nowhere", run_root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"^--resume: no run with a valid checkpoint below "):
        settle(Args(resume="latest", run_root=str(tmp_path)))
    args, beginning = settle(Args(resume="auto", run_root=str(tmp_path)))
    assert beginning.origin is None and args.resume == "auto"
