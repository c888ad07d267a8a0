"""One run after the other in a process: what a run took is given back."""

import gc
import os
from pathlib import Path

import pytest

from ppo_fast.train import Args, train

HELD = Path("/proc/self/statm")  # by this process, in pages; the second number
RUNS = 3


def resident() -> float:
    """MB that this process holds."""
    return int(HELD.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not HELD.exists(), reason="the system does not say what a process holds")
def test_one_run_after_the_other_takes_no_more_memory(tmp_path: Path) -> None:
    """Recordings of 7.8 MB a run once stayed, and a few objects in lists that only grow."""

    def run(name: str) -> tuple[float, int]:
        args = Args(num_envs=4, num_steps=8, total_timesteps=32 * 25, num_minibatches=2, update_epochs=1, quiet=True)
        args.hidden_sizes, args.eval_episodes, args.run_root = (8,), 0, str(tmp_path / name)
        train(args)
        gc.collect()
        return resident(), len(gc.get_objects())

    run("imports, caches of torch")
    run("buffers of the allocator")
    megabytes, objects = run("before")
    for i in range(RUNS):
        after = run(f"run {i}")
    assert after[0] - megabytes < 2 * RUNS
    assert after[1] - objects < 3 * RUNS
