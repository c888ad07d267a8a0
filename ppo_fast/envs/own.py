"""OwnSpaces: what an environment itself observes and takes, and all that lies between that and a program.

    own = envs.own_spaces
    own.encoder().write_one(obs, row, mask)    # an observation of the environment to the row that a policy is given
    row[own.kept()]                            # of which some columns may be hidden
    own.decoder()(actions)                     # a policy's actions (N, ...) to the environment's

No environment is needed for any of it, and no torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.actions import ActionBounds
from ppo_fast.envs.masks import MASK, NO_MASKS, Masks
from ppo_fast.envs.spaces import ActionDecoder, ObservationEncoder, moved, remaining_columns


class OwnSpaces(NamedTuple):
    """The spaces of one environment as its code has them."""

    observation: spaces.Space
    action: spaces.Space
    masks: Masks = NO_MASKS
    """What is added to observations, or taken out of them to stand at their end."""
    mask_size: int = 0
    """n where the last n columns of a program's observations are a mask: such as `masks` says, or the environment's
    own observations have them there."""
    action_bounds: ActionBounds = "clip"
    hidden: tuple[int, ...] = ()
    """Columns of the encoded observations that are left out."""

    def encoder(self) -> ObservationEncoder:
        """From the environment's observations to rows, with the hidden columns. ValueError for an unsupported space."""
        return ObservationEncoder(self.observation, masks=self.masks)

    def decoder(self) -> ActionDecoder:
        """From a policy's actions to the environment's, any number of them. ValueError for an unsupported space."""
        return ActionDecoder(self.action, None, action_bounds=self.action_bounds)

    def kept(self) -> list[int] | None:
        """The columns of a row that a policy is given; None for all."""
        if not self.hidden:
            return None
        return remaining_columns(self.encoder().space, self.hidden, self.mask_size)

    def presented(self) -> Presented:
        """What a program sees of the environment."""
        encoder = self.encoder()
        box, columns, kept = encoder.space, dict(encoder.columns), self.kept()
        assert isinstance(box, spaces.Box)
        if self.mask_size and MASK not in columns:
            width = box.shape[-1]
            columns[MASK] = slice(width - self.mask_size, width)
        if kept is not None:
            box = spaces.Box(box.low[kept], box.high[kept], dtype=np.float32)
            columns = {name: moved(part, kept) for name, part in columns.items()}
        return Presented(box, self.decoder().space, self.mask_size, columns)


class Presented(NamedTuple):
    """How an environment looks to a program (see ppo_fast.envs)."""

    single_observation_space: spaces.Box
    single_action_space: spaces.Space
    mask_size: int
    columns: dict[str, slice]
