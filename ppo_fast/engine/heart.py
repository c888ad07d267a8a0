"""A dead process noticed: each beats once a second in the key-value store that all of them share, and listens.

Collectives alone do not notice a frozen process, a machine without power, or a GPU's kernel that waits for ever. A slow
process (compiling, evaluating, saving) goes on beating, which a mere timeout could not tell from a dead one.
"""

import contextlib
import os
import sys
import threading
from datetime import timedelta
from typing import Any

from ppo_fast.names import first_line

LOST_RANK_STATUS = 1
"""Exit status of a process whose heartbeat thread found another one dead."""
BEAT = 1.0
"""Seconds between two heartbeats."""


class Heart:
    """Beats for this rank and listens to the others, in a thread with a store connection of its own."""

    def __init__(self, rank: int, world_size: int, dead_after: float) -> None:
        self._rank = rank
        self._dead_after = dead_after
        self._keys = [f"beat/{other}" for other in range(world_size)]
        self._store = connect(world_size, timedelta(seconds=dead_after))
        self._store.set(self._keys[rank], "0")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Call once every rank is there, so that every key is."""
        self._thread.start()

    def stop(self) -> None:
        """Fall silent. Without a barrier before it, the others take this rank for dead."""
        self._closing.set()
        self._thread.join(2 * BEAT)

    def _run(self) -> None:
        try:
            silent = self._listen()
        except RuntimeError as error:
            # The store goes away with torchrun or with rank 0. In a clean end that happens a moment before our own.
            if not self._closing.wait(2 * BEAT):
                self._leave(f"the store of the ranks does not answer ({first_line(error)})")
            return
        if silent:
            self._leave(f"rank {', '.join(map(str, silent))} gave no sign of life for {self._dead_after:g} s")

    def _listen(self) -> list[int]:
        """Beat and listen until the end. Returns the silent ranks; empty after `stop`."""
        heard = [b""] * len(self._keys)
        missed = [0] * len(self._keys)
        beat = 0
        while not self._closing.wait(BEAT):
            beat += 1
            self._store.set(self._keys[self._rank], str(beat))
            now = self._store.multi_get(self._keys)
            # Rounds of our own are counted, not seconds: time in which we were frozen ourselves is held against nobody.
            missed = [0 if new != old else count + 1 for new, old, count in zip(now, heard, missed, strict=True)]
            heard = now
            silent = [rank for rank, count in enumerate(missed) if count * BEAT >= self._dead_after]
            if silent:
                return silent
        return []

    def _leave(self, reason: str) -> None:
        # The main thread may be inside a collective that never returns, so only the process as a whole can end.
        with contextlib.suppress(OSError, ValueError):  # nobody reads, or the stream is closed
            print(f"ppo_fast: {reason}; rank {self._rank} leaves.", file=sys.stderr, flush=True)
        os._exit(LOST_RANK_STATUS)


def connect(world_size: int, timeout: timedelta, serve: bool = False) -> Any:
    """A connection of its own to the ranks' key-value store at MASTER_ADDR:MASTER_PORT.

    Torchrun's store outlives a restart, and PyTorch's own set-up would find the dead processes' addresses in it: each
    attempt needs keys of its own.
    """
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], variable("MASTER_PORT")
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host, port, is_master=serve, timeout=timeout, wait_for_workers=False
    )
    return dist.PrefixStore(f"ppo_fast/{world_size}/{attempt}", store)  # pyright: ignore[reportPrivateImportUsage]


def variable(name: str) -> int:
    """A number that torchrun puts into the environment. ValueError where it is missing."""
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ValueError(f"{name} is {value!r}, not a number: start several processes with torchrun")
    return int(value)
