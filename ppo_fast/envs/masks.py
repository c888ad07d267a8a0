"""Action masks: which of n discrete actions an environment allows now, and where it says so.

It says so in the info of reset and step, or in a Dict observation, both under the key "action_mask". Letters: N envs,
n actions.
"""

from typing import Any

import numpy as np
from gymnasium import spaces

MASK = "action_mask"


def mask_in_info(info: dict[str, Any], action_space: spaces.Space, num_envs: int | None = None) -> int:
    """How many actions the mask in `info` speaks of: n of a Discrete action space, or 0 where there is no such mask.

    The mask is (n,) in the info of a single environment (`num_envs` None), and (N, n) in that of a vector.
    """
    mask = info.get(MASK)
    if mask is None or not isinstance(action_space, spaces.Discrete):
        return 0
    n = int(action_space.n)
    wanted = (n,) if num_envs is None else (num_envs, n)
    return n if np.shape(mask) == wanted else 0


def mask_in_observation(observation_space: spaces.Space, action_space: spaces.Space) -> int:
    """How many actions the mask in a Dict observation speaks of: n of a Discrete action space, or 0.

    It has to be (n,), and not all that there is to see.
    """
    if not isinstance(observation_space, spaces.Dict) or not isinstance(action_space, spaces.Discrete):
        return 0
    parts = observation_space.spaces
    n = int(action_space.n)
    is_mask = MASK in parts and parts[MASK].shape == (n,)
    return n if is_mask and len(parts) > 1 else 0


def allowed_actions(mask: np.ndarray) -> np.ndarray:
    """A mask (..., n) of any type as bool.

    A row that allows nothing, as some environments give at the end of an episode, allows everything: a policy over no
    action is NaN, and there nothing hangs on the action.
    """
    allowed = mask != 0
    some = allowed.any(-1, keepdims=True)
    return allowed if some.all() else allowed | ~some
