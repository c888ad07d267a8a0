"""Heartbeats between two processes: one that is frozen is noticed, one that is slow is not taken for dead."""

import signal
import time

from victims import SIGKILL, Pair, start_scripts, wait_until

from ppo_fast.engine import heart

HEAD = """
import sys, time
import torch
from ppo_fast.engine import heart
from ppo_fast.engine.ranks import init
heart.BEAT = 0.5
"""


def test_a_frozen_rank_ends_the_other(pair: Pair) -> None:
    """No connection closes here: only the missing heartbeat tells."""
    script = """
ranks = init(torch.device("cpu"), dead_after=1.5)
ranks.average_(torch.ones(10))
print("ready", flush=True)
while True:
    ranks.average_(torch.ones(10))
    time.sleep(0.001 * ranks.rank)
"""
    both = start_scripts(pair, HEAD + script)
    try:
        for rank in both:
            wait_until(lambda rank=rank: rank.out.exists() and rank.out.read_text() == "ready\n")
        time.sleep(1)
        both[1].send(signal.SIGSTOP)
        began = time.monotonic()
        assert both[0].wait() == heart.LOST_RANK_STATUS
        assert time.monotonic() - began < 10
        assert "ppo_fast: rank 1 gave no sign of life for 1.5 s; rank 0 leaves." in both[0].errors()
    finally:
        for rank in both:
            rank.send(SIGKILL)
            rank.wait()


def test_a_slow_rank_is_not_taken_for_dead(pair: Pair) -> None:
    """One rank computes for longer than `dead_after` while the other waits, in the loop and at the end."""
    script = """
with init(torch.device("cpu"), dead_after=1.5) as ranks:
    for worker in (1, 0):
        end = time.monotonic() + 2.5
        while ranks.rank == worker and time.monotonic() < end:
            sum(range(1000))
        if worker == 1:
            ranks.barrier()
"""
    for rank in start_scripts(pair, HEAD + script):
        assert rank.wait() == 0, rank.errors()
