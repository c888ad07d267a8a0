"""Several processes, one policy: ranks from torchrun, gradients averaged, a dead rank noticed.

    torchrun --nproc-per-node 2 -m ppo_fast.train

    with init(device) as ranks:
        ranks.broadcast_(theta)          # all start from rank 0's parameters
        ranks.average_(gradient)         # one call for the flat gradient vector
        if ranks.any_(stop.requested):   # every rank leaves at the same iteration
            ...

Without torchrun the same calls do nothing and cost nothing. Every rank must make the same calls in the same order.

How a dead rank ends the others within 30 s: on CPU (gloo) its connections close, and the collective that waits for it
raises `LostRank` at once. That misses a frozen process, a machine without power, and NCCL, whose kernels may wait for
ever; so each rank also beats once a second in torchrun's key-value store, from a thread, and one that stayed silent for
`dead_after` seconds ends the process of everyone who watches. A slow rank (compiling, evaluating, saving) goes on
beating, which a mere timeout on collectives could not tell from a dead one.
"""

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch

from ppo_fast.engine.heart import Heart, connect, variable
from ppo_fast.names import first_line

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for ranks that are alive."""
START_TIMEOUT = timedelta(minutes=5)
"""How long the first rank waits for the last to start."""


class LostRank(RuntimeError):
    """A collective failed: another rank is gone or made different calls."""


class Ranks:
    """One process alone: every method leaves its argument as it is. Also the interface of the group, `RankGroup`."""

    def __init__(self, device: torch.device, rank: int = 0, local_rank: int = 0, world_size: int = 1) -> None:
        self.device = device
        """Where this rank computes: cuda:<local_rank>, or the CPU."""
        self.rank = rank
        """0 to world_size - 1, over all nodes."""
        self.local_rank = local_rank
        """0 to the number of processes on this node - 1."""
        self.world_size = world_size
        """How many processes train together."""

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.shutdown()

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to people."""
        return self.rank == 0

    def average_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by its mean over the ranks, bit for bit the same on all. No host sync on CUDA."""
        return tensor

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by its sum over the ranks, bit for bit the same on all. No host sync on CUDA."""
        return tensor

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by rank 0's."""
        return tensor

    def any_(self, flag: bool) -> bool:
        """True on every rank if `flag` is on one. Goes over the CPU, so it doesn't wait for CUDA work."""
        return flag

    def gather(self, saved: Any) -> list[Any]:
        """On rank 0 what every rank handed in, in order: tensors and plain types. Nothing on the others."""
        return [saved]

    def barrier(self) -> None:
        """Wait until every rank is here. Goes over the CPU."""

    def shutdown(self) -> None:
        """Leave the group after all ranks came here; calling it again does nothing."""


class RankGroup(Ranks):
    """The ranks of a torchrun job; see `init`. Collectives raise LostRank when another rank is gone."""

    def __init__(self, device: torch.device, rank: int, local_rank: int, world_size: int, dead_after: float) -> None:
        import torch.distributed as dist

        super().__init__(device, rank, local_rank, world_size)
        self._dist = dist
        backend = "nccl" if device.type == "cuda" else "gloo"
        # Without torchrun's store (launched by hand), rank 0 is the one that serves it.
        serve = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = connect(world_size, START_TIMEOUT, serve)
        dist.init_process_group(backend, store=store, timeout=TIMEOUT, rank=rank, world_size=world_size)
        self._heart = Heart(rank, world_size, dead_after)
        # Flags and barriers go over the CPU even when gradients don't: they must not cost a CUDA sync. On the CPU there
        # is one group for everything, None.
        self._control: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if device.type == "cuda" else None
        self._guard(dist.barrier, group=self._control)
        self._heart.start()
        atexit.register(self._abandon)

    def average_(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.sum_(tensor).div_(self.world_size)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self._guard(self._dist.all_reduce, tensor)
        return tensor

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        self._guard(self._dist.broadcast, tensor, src=0)
        return tensor

    def any_(self, flag: bool) -> bool:
        raised = torch.tensor([float(flag)])
        self._guard(self._dist.all_reduce, raised, group=self._control)
        return bool(raised.item())

    def gather(self, saved: Any) -> list[Any]:
        found: list[Any] = [None] * self.world_size
        self._guard(self._dist.gather_object, saved, found if self.is_main else None, dst=0, group=self._control)
        return found if self.is_main else []

    def barrier(self) -> None:
        self._guard(self._dist.barrier, group=self._control)

    def shutdown(self) -> None:
        if self._dist.is_initialized():
            self.barrier()
            atexit.unregister(self._abandon)
            self._heart.stop()
            self._dist.destroy_process_group()

    def _abandon(self) -> None:
        """Leave without the others, who notice: the connections close, the heart stops."""
        atexit.unregister(self._abandon)
        self._heart.stop()
        # A gloo thread that drops the last tensor of a failed collective while the interpreter goes down would abort
        # the process. NCCL is left alone: taking its group down can wait for the dead.
        if self._dist.is_initialized():
            self._dist.destroy_process_group(self._control)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the others must not wait for this rank, however long it goes on living.
        if kind is None:
            self.shutdown()
        else:
            self._abandon()

    def _guard(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, **kwargs)
        except RuntimeError as error:
            reason = first_line(error)
            raise LostRank(f"rank {self.rank} of {self.world_size}: another rank is gone ({reason})") from error


def init(device: torch.device, dead_after: float = 15.0) -> Ranks:
    """Join the other processes that torchrun started; a `Ranks` that does nothing where there are none.

    The CPU uses gloo; CUDA uses NCCL, one device for each process: `cuda:LOCAL_RANK`, which becomes the current one.

    Args:
        device: the kind of device to compute on; its index is replaced by LOCAL_RANK when there are several ranks.
        dead_after: seconds without a sign of life after which a rank counts as dead.

    Raises:
        ValueError: a variable of torchrun is missing or no number, or a node has fewer CUDA devices than processes.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks(device)
    rank, local_rank, world_size = (variable(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(f"WORLD_SIZE is {world_size} but {name} is not set: start several processes with torchrun")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ValueError(f"--nproc-per-node: LOCAL_RANK is {local_rank}, but this node has {count} CUDA devices")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return RankGroup(device, rank, local_rank, world_size, dead_after)
