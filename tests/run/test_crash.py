"""What broke down is named, causes before effects; a crash file is read as it was written."""

import math
from typing import Any

import pytest
import torch

from ppo_fast.engine.ranks import Ranks
from ppo_fast.run import crash
from ppo_fast.run.crash import Crash

T, N = 4, 3


def tensors() -> dict[str, torch.Tensor]:
    return {
        "theta": torch.zeros(5),
        "step": torch.zeros(()),
        "active": torch.tensor(True),
        "rollout.advantage": torch.zeros(T, N),
        "rollout.reward": torch.zeros(T, N),
        "rollout.obs": torch.zeros(T, N, 2),
        "obs": torch.zeros(N, 2),
    }


def test_nothing_is_found_where_all_is_finite() -> None:
    assert crash.finding(tensors()) is None


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"rollout.obs": (2, 1, 0)}, "obs of environment 1 is nan at rollout step 2"),
        ({"rollout.advantage": (0, 2)}, "advantage of environment 2 is nan at rollout step 0"),
        ({"obs": (1, 1)}, "obs of environment 1 is nan after the rollout"),
        ({"theta": (3,)}, "theta[3] is nan"),
        ({"theta": (3,), "rollout.advantage": (1, 1), "rollout.reward": (3, 0)}, "reward of environment 0 is nan at"),
        ({"rollout.reward": (0, 0), "rollout.obs": (3, 2, 1)}, "obs of environment 2 is nan at rollout step 3"),
    ],
)
def test_the_first_bad_tensor_in_words(bad: dict[str, tuple[int, ...]], said: str) -> None:
    found = tensors()
    for name, index in bad.items():
        found[name][index] = math.nan
    text = crash.finding(found)
    assert text is not None and text.startswith(said)


def test_the_advantage_of_older_files_is_named_likewise() -> None:
    old = {"advantage": torch.zeros(T, N)}
    old["advantage"][1, 2] = math.inf
    assert crash.finding(old) == "advantage of environment 2 is inf at rollout step 1"


def made(**changes: Any) -> Crash:
    parts = {"program": "ppo_fast.train", "flags": {}, "tensors": tensors(), "stream": torch.zeros(2)}
    return Crash(**{**parts, "finding": "x", "at": 3, **changes})


def test_the_layout_of_the_file_stays() -> None:
    file = made().to_plain()
    assert set(file) == {"finding", "program", "flags", "tensors", "stream", "at"}
    assert Crash.from_plain(file) == made(tensors=file["tensors"], stream=file["stream"])


@pytest.mark.parametrize("name", ["finding", "program", "flags", "stream", "at"])
def test_what_is_missing_is_named(name: str) -> None:
    file = made().to_plain()
    file[name] = None
    with pytest.raises(ValueError, match=f"it has no {name}$"):
        Crash.from_plain(file)


def test_no_tensors_are_no_parameters_either() -> None:
    with pytest.raises(ValueError, match="it has no tensors and no parameters"):
        Crash.from_plain({**made().to_plain(), "tensors": None})


class Gathered(Ranks):
    """Three processes; this one is rank `rank`, and these report."""

    def __init__(self, rank: int, reports: list[dict[str, Any]]) -> None:
        super().__init__(torch.device("cpu"), rank, world_size=3)
        self.reports = reports

    def gather(self, saved: Any) -> list[Any]:
        return self.reports if self.is_main else []


def test_the_first_process_that_found_something_is_asked() -> None:
    reports = [{"found": rank > 0, "crash": made(finding=f"of rank {rank}").to_plain()} for rank in range(3)]
    found = crash.first_of(Gathered(0, reports), made(), is_found=False)
    assert found is not None and found[0] == 1 and found[1].finding == "of rank 1"
    assert crash.first_of(Gathered(1, reports), made(), is_found=True) is None
    nobody = [{**report, "found": False} for report in reports]
    found = crash.first_of(Gathered(0, nobody), made(), is_found=False)
    assert found is not None and found[0] == 0
