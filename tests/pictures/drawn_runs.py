"""Run folders with something to draw, for the tests of panels and of the report."""

from pathlib import Path

from run_folders import config, make_row, write_run

from ppo_fast import names
from ppo_fast.pictures.configurations import group_runs
from ppo_fast.pictures.records import RunRecord, find_runs, read_run


def write_three_runs(root: Path) -> None:
    """Two seeds of one configuration, "train", and one run of another, "slow", with all columns."""
    for name, flags in (
        ("first", config(seed=1)),
        ("second", config(seed=2)),
        ("slow", config(exp_name="slow", gamma=0.5)),
    ):
        rows = [make_row(64 * i, **{names.EPISODIC_RETURN: i * flags["seed"], names.ELAPSED: i / 8}) for i in range(30)]
        result = {names.MEAN_RETURN: 20.0 + flags["seed"], names.SAMPLED_MEAN_RETURN: 15.5, "sps": 1e5}
        write_run(root, name, rows, flags, result)


def groups_of(root: Path) -> dict[str, list[RunRecord]]:
    """All runs below `root` by their configurations."""
    return group_runs([read_run(folder) for folder in find_runs([str(root)], root)])
