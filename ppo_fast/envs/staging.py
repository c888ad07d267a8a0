"""Staging: from NumPy arrays on the host to tensors on a device, without waiting for the copies."""

from collections.abc import Sequence

import numpy as np
import torch

TORCH_TYPES = {np.float32: torch.float32, bool: torch.bool}


class Staging:
    """Gives out host memory to fill, and sends it to `device`.

    On CUDA that memory is pinned, and a copy from it goes on while the host does something else. On the CPU nothing is
    copied: what was staged is what is sent.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = device.type == "cuda"

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Host memory to fill and send. Pinned blocks come from torch's caching allocator, which gives none out anew
        before the copies from it are done."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._pinned)

    def send(self, staged: torch.Tensor) -> torch.Tensor:
        """What was staged here, on the device; on the CPU that is the same memory."""
        return staged.to(self.device, non_blocking=True)

    def send_array(self, array: np.ndarray, dtype: type) -> torch.Tensor:
        """A copy of an array on the device, as `bool` or `np.float32`."""
        if not self._pinned:
            return self.send(torch.from_numpy(np.array(array, dtype)))
        staged = self.empty(array.shape, TORCH_TYPES[dtype])
        staged.numpy()[...] = array
        return self.send(staged)
