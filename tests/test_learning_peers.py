"""benchmarks.learning_peers: lines of the page, curves in stretches, and a difference that is there or not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning_peers
from benchmarks.learning_peers import Args, by_iterations, difference, stretches_of, table

pytest.importorskip("scipy")


def test_curves_are_cut_by_the_step_at_which_an_episode_ended() -> None:
    curve = [(10, 1.0), (49, 3.0), (50, 10.0), (100, 20.0), (130, 30.0)]  # the last one ends behind the last step
    assert stretches_of(curve, 100, 2).tolist() == [2.0, 20.0]
    assert stretches_of([(10, 1.0), (90, 5.0)], 100, 4).tolist() == [1.0, 1.0, 1.0, 5.0]
    assert np.isnan(stretches_of([(90, 5.0)], 100, 2)[0])


def test_episodes_are_put_together_by_iterations() -> None:
    assert by_iterations([(3, 1.0), (100, 3.0), (101, 5.0), (350, 7.0)], 100) == [(100, 2.0), (200, 5.0), (400, 7.0)]
    whole = [(100, 2.0), (200, 5.0)]  # as ours are
    assert by_iterations(whole, 100) == whole


def test_a_difference_is_told_from_chance() -> None:
    random = np.random.default_rng(0)
    alike = [difference(random.normal(0, 1, 5), random.normal(0, 3, 5)) for _ in range(400)]
    held = np.mean([low <= 0 <= high for _, low, high in alike])
    assert 0.92 < held < 0.98
    middle, low, high = difference(random.normal(10, 1, 5), random.normal(0, 1, 5))
    assert 0 < low < middle < high
    assert difference(np.full(3, 500.0), np.full(3, 500.0)) == (0, 0, 0)


def test_a_table_counts_the_stretches_that_are_alike() -> None:
    args = Args(total_timesteps=10_240, stretches=2)  # five iterations of the line for Stable-Baselines3
    curves = {"ours": [[(2048, 1.0 + i), (10_240, 50.0 + i)] for i in range(3)]}
    curves["theirs"] = [[(17, 1.5 + i), (10_000, 5.0 + i)] for i in range(3)]
    lines = table(args, curves)
    assert len(lines) == 5 and lines[-1] == "the interval holds 0 in 1 of 2 stretches"


@pytest.mark.slow
def test_both_sides_are_run_once_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3")
    args = Args(total_timesteps=2048, seeds=(1, 2), stretches=2, out=tmp_path)
    learning_peers.main(args)
    said = capsys.readouterr().out
    written = (tmp_path / "learning-sb3-CartPole-v1.json").read_text()
    learning_peers.main(args)
    assert capsys.readouterr().out == said and "of 2 stretches" in said
    assert (tmp_path / "learning-sb3-CartPole-v1.json").read_text() == written


@pytest.mark.slow
def test_a_script_of_cleanrl_is_read_by_its_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that writes what CleanRL's do, where they do, and learns nothing."""
    pytest.importorskip("tensorboard")
    script = tmp_path / "ppo.py"
    script.write_text(
        "import sys\n"
        "from torch.utils.tensorboard import SummaryWriter\n"
        "assert sys.argv[1:] == '--env-id CartPole-v1 --total-timesteps 2048 --seed 3 --no-cuda'.split()\n"
        "writer = SummaryWriter('runs/CartPole-v1__ppo__3__1')\n"
        "for step in range(0, 2048, 20):\n"
        "    writer.add_scalar('charts/episodic_return', 20.0, step)\n"
        "writer.close()\n"
    )
    args = Args(peer="cleanrl", script=script, total_timesteps=2048, seeds=(3,), out=tmp_path)
    curve = learning_peers.curve_of_cleanrl(args, 3)
    assert len(curve) == 103 and curve[1] == (20, 20.0)
    assert len(learning_peers.our_curve(args, 3)) == 4  # of 4 x 128 steps
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        learning_peers.curve_of_cleanrl(args, 3)


def test_a_script_is_for_cleanrl_alone() -> None:
    for args in (Args(peer="cleanrl"), Args(script=Path(sys.executable))):
        with pytest.raises(ValueError, match=r"^--script: "):
            learning_peers.main(args)
