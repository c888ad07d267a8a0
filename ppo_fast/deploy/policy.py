"""Policy: what a run has learned, as a function from an environment's observations to its actions.

    policy = ppo_fast.load("runs/x")
    action = policy(obs)

Nothing of training is imported here, and no torch: where a tensor is given, torch is there already. Letters: N
observations of a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.fitting import Misfit, host_array, is_tensor
from ppo_fast.envs.own import OwnSpaces
from ppo_fast.run.probe import Memory as Numbers, Player

if TYPE_CHECKING:
    import torch

FORGOTTEN = (
    "memory: this policy acts on what it remembers; give it memory=policy.memory(), made once before the loop, "
    "and call memory.forget() at the end of an episode"
)


class Memory:
    """What a policy remembers of one episode, or of N. `policy(obs, memory=memory)` moves it on.

    Of a policy without a memory it holds nothing, so that one loop serves both. Made by `Policy.memory`.

    Attributes:
        num_envs: N; None for one environment whose observations come without a batch.
        values: what is remembered now, arrays (N, ...).
    """

    def __init__(self, first: Numbers, num_envs: int | None) -> None:
        self.num_envs = num_envs
        self._first = first
        self.values = first

    def forget(self, done: object = True) -> None:
        """An episode begins, in all environments or only where `done` holds.

        Args:
            done: a truth value, or one for each of N environments, as an array, a list or a tensor.

        Raises:
            ValueError: there are more or fewer.
        """
        ended = host_array(done).astype(bool)
        if ended.shape not in ((), (self.num_envs or 1,)):
            raise ValueError(f"memory: done is for {ended.shape}, the memory for {self.num_envs or 1} environments")
        if ended.all():
            self.values = self._first
        elif ended.any():
            pairs = zip(self._first, self.values, strict=True)
            self.values = tuple(np.where(ended.reshape(-1, *[1] * (x.ndim - 1)), first, x) for first, x in pairs)

    def before(self, rows: int) -> Numbers:
        """What is remembered before so many observations. ValueError where it is that of another number."""
        if self.values and len(self.values[0]) != rows:
            own = self.num_envs or 1
            raise ValueError(f"memory: it is for {own} environments, and {rows} are observed; policy.memory({rows})")
        return self.values


class Policy:
    """What a run has learned; made by `ppo_fast.load`.

    Args:
        player: computes it.
        own: the environment's own spaces, and how they look to the player.
        flags: of the run, and the facts beside them in its policy file.
        path: the file that it was loaded from.
        seed: of sampled actions; None for another one each time.

    Attributes:
        observation_space, action_space: of the environment, one of it, as its own code has them.
        env_id: of the environment.
        flags: as given.
        path, player: as given; the player is a networks.NumpyPlayer, or an AgentPlayer where torch plays it.
        remembers: whether it acts on what it remembers, and has to be given a `memory`.
    """

    def __init__(self, player: Player, own: OwnSpaces, flags: Mapping[str, Any], path: Path, seed: int | None) -> None:
        self.observation_space: spaces.Space = own.observation
        self.action_space: spaces.Space = own.action
        self.env_id = str(flags.get("env_id", ""))
        self.flags = dict(flags)
        self.path = path
        self.remembers = bool(player.begin(1))
        self.player = player
        self._own = own
        self._encoder = own.encoder()
        self._decoder = own.decoder()
        self._kept = own.kept()
        self._row_shape = self._encoder.space.shape or ()
        self._rng = np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"Policy({self.env_id}, {self.path})"

    def __call__(self, obs: Any, *, sampled: bool = False, mask: Any = None, memory: Memory | None = None) -> Any:
        """The action for one observation, or the actions for a batch of them.

        Args:
            obs: one of `observation_space`, or N: arrays (N, ...), a dict or a tuple of them, or a list of N dicts or
                tuples. Arrays, lists, Python's numbers, or tensors.
            sampled: draw from the policy; else its most likely actions.
            mask: of the allowed actions, in a form of envs/masks.py, where the environment says it beside its
                observations: (n,) for one, (N, n) for a batch; None allows all.
            memory: of a policy that remembers, of as many environments as are observed.

        Returns:
            What `action_space` holds, in its type and shape, or N of these, (N, ...). A tensor, on the observation's
            device, where a tensor was observed.

        Raises:
            ValueError: what was observed is not in the space, masks or memory are missing, or of something else.
        """
        tensor = None if "torch" not in sys.modules or type(obs) is np.ndarray else _first_tensor(obs)
        try:
            rows, is_one = self._rows(obs, mask)
        except Misfit as problem:
            raise ValueError(f"{'' if problem.row is None else f'row {problem.row}: '}{problem}") from None
        if self._kept is not None:
            rows = rows[:, self._kept]
        if memory is None and self.remembers:
            raise ValueError(FORGOTTEN)
        before = () if memory is None else memory.before(len(rows))
        noise = self.player.draw(self._rng, len(rows)) if sampled else None
        actions, outputs, after = self.player.act(rows, noise, before)
        if outputs is not None and not np.isfinite(outputs).all():
            raise ValueError(f"the policy says NaN: {_infinite(rows)}")
        if memory is not None:
            memory.values = after
        decoded = self._decoder(actions)
        action = decoded[0] if is_one else decoded
        return action if tensor is None else _as_tensor(action, tensor)

    def memory(self, num_envs: int | None = None) -> Memory:
        """What is remembered before an episode: of one environment, or of N that are observed as a batch."""
        return Memory(self.player.begin(num_envs or 1), num_envs)

    def _rows(self, obs: Any, mask: Any) -> tuple[np.ndarray, bool]:
        """Observations as rows (N, *S) float32, and whether there was one without a batch. ValueError or Misfit."""
        encoder = self._encoder
        if mask is not None:
            self._check_mask()
        if isinstance(obs, list) and obs and isinstance(obs[0], (Mapping, tuple)):
            rows = np.empty((len(obs), *self._row_shape), np.float32)
            encoder.write_list(obs, rows, [None] * len(obs) if mask is None else mask)
            return rows, False
        count = encoder.rows_in(obs)
        rows = np.empty((1 if count is None else count, *self._row_shape), np.float32)
        if count is None:
            encoder.write_one(obs, rows[0], mask)
        else:
            encoder.write(obs, rows, mask)
        return rows, count is None

    def _check_mask(self) -> None:
        """ValueError where no mask is taken beside an observation."""
        masks = self._own.masks
        if masks.source == "observation":
            raise ValueError("mask: it stands in the observations of this environment already")
        if not masks.size and self._own.mask_size:
            raise ValueError("mask: it stands at the end of the observations of this environment already")
        if not masks.size:
            raise ValueError("mask: this policy was trained without action masks, and knows nothing of them")


def _first_tensor(obs: Any) -> torch.Tensor | None:
    """A tensor that an observation is or holds; None where there is none."""
    if is_tensor(obs):
        return obs
    parts = obs.values() if isinstance(obs, Mapping) else obs if isinstance(obs, (tuple, list)) else ()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


def _as_tensor(action: Any, like: torch.Tensor) -> torch.Tensor:
    """An action as a tensor on a device. Where there is a device there is torch."""
    return sys.modules["torch"].as_tensor(action, device=like.device)


def _infinite(rows: np.ndarray) -> str:
    """Why, in words."""
    wrong = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(1))
    if not len(wrong):
        return "numbers that are too large for float32 came up"
    which = "the observation" if len(rows) == 1 else f"observation {wrong[0]}"
    return f"{which} holds NaN or infinity"
