"""What the rows of a run say so far, and numbers in words."""

import math

import pytest
from screens import ROW

from ppo_fast.run.figures import Figures, duration, show


def timed(elapsed: float, collect: float, learn: float) -> dict[str, float]:
    return {"global_step": 1, "time/elapsed": elapsed, "time/collect": collect, "time/learn": learn}


def after(*rows: dict, total_steps: int = 500_000) -> Figures:
    figures = Figures(total_steps)
    for row in rows:
        figures.add(row)
    return figures


def test_plain_line_has_names_and_values() -> None:
    assert dict(pair.split("=") for pair in after(ROW).plain_line().split()) == {
        "step": "250000",
        "percent": "50.0",
        "sps": "231042",
        "left": "0:01",
        "return": "212.34",
        "length": "212.0",
        "approx_kl": "0.0081",
    }


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e12, 1e30])
def test_plain_line_fits_100_columns(size: float) -> None:
    """Of a run that is as long as any, and of returns of any size."""
    row = {"global_step": int(10 * size), "charts/SPS": size / 7, "charts/episodic_return": -size / 3}
    line = after({**ROW, **row, "charts/episodic_length": size}, total_steps=int(100 * size)).plain_line()
    assert len(line) <= 100 and line.startswith(f"step={int(10 * size)} percent=10.0 ")
    assert size > 1e6 or "approx_kl=" in line


def test_figures_that_are_missing_or_nan_show_as_a_dash() -> None:
    row = {"global_step": 10, "charts/SPS": None, "charts/episodic_return": math.nan}
    assert (
        "step=10 percent=1.0 sps=- left=-:-- return=- length=- approx_kl=-" in after(row, total_steps=1000).plain_line()
    )
    assert "step=0 percent=0.0" in after().plain_line()
    assert after(row, total_steps=5).percent == 100.0  # a resumed run whose --total-timesteps was lowered


def test_the_shares_are_of_the_time_since_training_began() -> None:
    figures = after()
    assert figures.shares() == {}
    figures.add(timed(10.0, 1.0, 8.0))
    assert figures.shares() == {"collect": 10, "learn": 80, "other": 10}
    figures.add(timed(20.0, 7.0, 1.0))  # a slow rollout, and a checkpoint
    assert figures.shares() == {"collect": 40, "learn": 45, "other": 15}


def test_rows_that_do_not_say_what_the_phases_took_count_as_no_time() -> None:
    """A run of an older version that is gone on with."""
    figures = after({"global_step": 1, "time/elapsed": 90.0})
    assert figures.shares() == {}
    figures.add(timed(100.0, 6.0, 3.0))
    assert figures.shares() == {"collect": 60, "learn": 30, "other": 10}


def test_shares_that_round_make_a_hundred() -> None:
    for collect in range(201):
        shares = after(timed(1.0, collect / 200, 1 - collect / 200)).shares()
        assert sum(shares.values()) == 100 and min(shares.values()) >= 0


def test_return_is_a_mean_over_ten_rows_in_which_episodes_ended() -> None:
    figures = after()
    for step in range(30):
        ended = {"charts/episodic_return": float(step), "charts/episodic_length": 2.0 * step}
        nothing_ended = ({}, {"charts/episodic_return": None}, {"charts/episodic_return": math.nan})[step // 2 % 3]
        figures.add({"global_step": step, **(ended if step % 2 else nothing_ended)})
    assert (figures.recent_return, figures.recent_length) == (20.0, 40.0)  # of 11, 13, ... 29


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00"), (4.4, "0:04"), (59.7, "1:00"), (750, "12:30"), (11100, "3:05:00"), (math.nan, "-:--"), (-3, "0:00")],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_show() -> None:
    assert [show(value, ".1f") for value in (1.25, 3, None, math.nan)] == ["1.2", "3.0", "-", "-"]
