"""Whether a rollout's actions are clipped so often that hardly anything can be learned from them."""

import torch
from gymnasium import spaces
from torch import Tensor

TOO_OFTEN = 0.9  # part of the actions in one dimension; half are in a policy's first rollout if it is as wide as ±0.67


def words(action: Tensor, space: spaces.Space | None, action_bounds: str) -> str | None:
    """Which dimension of continuous actions is clipped almost always, and what to do; None where none is.

    Args:
        action: (T, N, A), as the policy drew them.
        space: what the environments take, `single_action_space`.
        action_bounds: the flag of the run.
    """
    if not isinstance(space, spaces.Box):
        return None
    low = torch.as_tensor(space.low, device=action.device)
    high = torch.as_tensor(space.high, device=action.device)
    beyond = ((action < low) | (action > high)).flatten(0, -2).float().mean(0)  # (A,)
    share, worst = beyond.max(0)
    if not share > TOO_OFTEN:
        return None
    index = int(worst)
    bounds = f"[{space.low[index]:g}, {space.high[index]:g}]"
    if action_bounds == "clip":
        remedy = "--action-bounds rescale maps the policy's range to bounds that are finite"
    else:
        remedy = "let the environment take actions about 0, or lower --log-std-init"
    return (
        f"{float(share):.0%} of the first rollout's actions were beyond {bounds} (action {index}) and clipped, so that "
        f"little can be learned; {remedy}"
    )
