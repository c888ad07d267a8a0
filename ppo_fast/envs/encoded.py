"""EncodedVectorEnv: what the vector environments of this package that run on the host have in common.

They encode observations themselves, each straight to its place, so that HostVectorEnv has only to send them. Letters:
N envs, S observation shape, A action shape of the environment itself.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.spaces import ObservationEncoder

# obs (N, *S), reward (N,), terminated (N,), truncated (N,) and an info with a dense `final_obs` (N, *S).
HostStep = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]


class EncodedVectorEnv(VectorEnv):
    """N environments with SAME_STEP autoreset, encoded observations and a dense `final_obs`, in NumPy.

    The arrays that reset and step return are buffers, overwritten by the next call. `final_obs` is written only where
    an episode ended. Seeds are one for each environment.

    Args:
        num_envs: N.
        encoder: of the observations.
        action_space: of one environment, as it takes its actions.
        metadata: of one environment.
        render_mode: of all.
    """

    def __init__(
        self,
        num_envs: int,
        encoder: ObservationEncoder,
        action_space: spaces.Space,
        metadata: dict[str, Any],
        render_mode: str | None,
    ) -> None:
        self.num_envs = num_envs
        self.metadata = {**metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = render_mode
        self.encoder = encoder
        self.mask_size = encoder.mask_size
        self.columns = encoder.columns
        self.single_observation_space = encoder.space
        self.single_action_space = action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
