"""Logged numbers: by name, and averaged over the updates that were made."""

import pytest
import torch

from ppo_fast.algorithm.statistics import Means, Statistics

NAMES = ("policy_loss", "approx_kl")


def of_one_update(*values: float) -> Statistics:
    return Statistics(NAMES, torch.tensor(values))


def test_a_number_by_its_name() -> None:
    statistics = of_one_update(1.0, 2.0)
    assert statistics["policy_loss"] == 1.0 and statistics["approx_kl"] == 2.0
    with pytest.raises(ValueError, match="tuple"):
        statistics["entropy"]


def test_means_are_those_of_the_updates_that_were_made() -> None:
    means = Means()
    updates = [(1.0, 2.0, 0.5, True), (5.0, 3.0, 1.5, True), (100.0, 100.0, 100.0, False)]
    for policy_loss, approx_kl, norm, was_made in updates:
        means.add(of_one_update(policy_loss, approx_kl), torch.tensor(float(was_made)), grad_norm=torch.tensor(norm))
    found = means.mean()
    assert {name: x.item() for name, x in found.items()} == {"policy_loss": 3.0, "approx_kl": 2.5, "grad_norm": 1.0}
    assert list(found) == ["policy_loss", "approx_kl", "grad_norm"]


def test_without_an_update_means_are_zero() -> None:
    means = Means()
    for _ in range(2):
        means.add(of_one_update(7.0, 8.0), torch.tensor(0.0))
    assert [x.item() for x in means.mean().values()] == [0.0, 0.0]
