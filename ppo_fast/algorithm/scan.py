"""Running sums along time, where each row takes in the one before it: what GAE and discounted returns are made of."""

import numpy as np
import torch
from torch import Tensor


def linear_scan(x: Tensor, factor: Tensor, reverse: bool = False) -> Tensor:
    """y_t = x_t + factor_t · y_{t-1} down the rows of (T, N), with y_0 = x_0; all environments at once.

    Args:
        x, factor: (T, N) float; the first row's factor is not used.
        reverse: from the last row up instead: y_t = x_t + factor_t · y_{t+1}.
    """
    order = range(len(x) - 2, -1, -1) if reverse else range(1, len(x))
    step = 1 if reverse else -1
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # NumPy's calls on rows this short cost a third of torch's, and a compiler would unroll T steps for 20 seconds.
        result = x.detach().clone()
        rows = result.numpy()
        factors = factor.detach().numpy()
        with np.errstate(all="ignore"):  # whoever calls looks for NaN and infinity
            for t in order:
                rows[t] += factors[t] * rows[t + step]
        return result
    rows = list(x.unbind())
    factors = factor.unbind()
    for t in order:
        rows[t] = torch.addcmul(rows[t], factors[t], rows[t + step])
    return torch.stack(rows)
