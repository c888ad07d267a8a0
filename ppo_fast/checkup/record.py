"""Record: what some thousand random steps gave. Letters: T steps, N envs, D numbers of an observation, E episodes."""

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.masks import MASK
from ppo_fast.envs.spaces import ObservationEncoder

MOST_COLUMNS = 512  # of an observation that are kept: of a picture, every so-many-th number


class Episode(NamedTuple):
    """One that has ended."""

    env: int
    first: int  # its first step in the record
    last: int
    terminated: bool
    truncated: bool

    @property
    def length(self) -> int:
        """Steps."""
        return self.last - self.first + 1


class Columns(NamedTuple):
    """Which numbers of an encoded observation are kept, and what is known of them."""

    kept: np.ndarray  # (D,) of the flat row
    names: list[str]  # of those
    is_number: np.ndarray  # (D,) bool: of a Box; others are one-hot, binary, a mask
    is_whole: np.ndarray  # (D,) bool: of a Box of whole numbers

    @classmethod
    def of(cls, space: spaces.Space, encoder: ObservationEncoder) -> "Columns":
        """From an environment's own space, and what encodes its observations."""
        width = int(np.prod(encoder.space.shape))
        is_number = np.zeros(width, bool)
        is_whole = np.zeros(width, bool)
        for name, box in boxes_of(space).items():
            if name == MASK and encoder.mask_size:
                continue
            columns = encoder.columns[name] if name else slice(0, width - encoder.mask_size)
            is_number[columns] = True
            is_whole[columns] = np.issubdtype(box.dtype, np.integer)
        kept = np.unique(np.linspace(0, width - 1, min(width, MOST_COLUMNS)).astype(np.int64))
        return cls(kept, [_name(encoder, int(column)) for column in kept], is_number[kept], is_whole[kept])


def boxes_of(space: spaces.Space, name: str = "") -> dict[str, spaces.Box]:
    """The Boxes in a space by their names, keys joined by dots; "" for one that stands alone."""
    if isinstance(space, spaces.Box):
        return {name: space}
    parts: dict[str, spaces.Space] = {}
    if isinstance(space, spaces.Dict):
        parts = {str(key): part for key, part in space.spaces.items()}
    elif isinstance(space, spaces.Tuple):
        parts = {str(place): part for place, part in enumerate(space.spaces)}
    found: dict[str, spaces.Box] = {}
    for key, part in parts.items():
        found |= boxes_of(part, f"{name}.{key}" if name else key)
    return found


def _name(encoder: ObservationEncoder, column: int) -> str:
    """A column as it is told: "obs[3]", "arm.pose[0]"."""
    columns = encoder.columns
    around = [name for name, part in columns.items() if part.start <= column < part.stop]
    if not around:
        return f"obs[{column}]"
    name = min(around, key=lambda name: columns[name].stop - columns[name].start)  # the innermost
    return f"{name}[{column - columns[name].start}]"


class Record:
    """What N environments gave, step by step.

    Args:
        columns: of the observations that are kept.
        num_envs: N.
    """

    def __init__(self, columns: Columns, num_envs: int = 1) -> None:
        self.columns = columns
        self.num_envs = num_envs
        self._starts: dict[tuple[int, int], np.ndarray] = {}  # first observations by first step and env
        self._obs: list[np.ndarray] = []
        self._reward: list[np.ndarray] = []
        self._terminated: list[np.ndarray] = []
        self._truncated: list[np.ndarray] = []
        self._valid: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._obs)

    def begin(self, env: int, obs: np.ndarray) -> None:
        """An episode begins in an environment with an observation (*S)."""
        self._starts[len(self), env] = self._kept(obs[None])[0]

    def add(
        self,
        obs: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray | None = None,
    ) -> None:
        """A step: the true successors (N, *S), rewards and ends (N,), and which rows are no reset rows."""
        self._obs.append(self._kept(obs))
        self._reward.append(np.array(reward, np.float64))
        self._terminated.append(np.array(terminated, bool))
        self._truncated.append(np.array(truncated, bool))
        self._valid.append(np.ones(self.num_envs, bool) if valid is None else np.array(valid, bool))

    def _kept(self, obs: np.ndarray) -> np.ndarray:
        return obs.reshape(len(obs), -1)[:, self.columns.kept].astype(np.float64)

    @property
    def obs(self) -> np.ndarray:
        """(T, N, D) the true successors."""
        return np.array(self._obs).reshape(len(self), self.num_envs, len(self.columns.kept))

    @property
    def reward(self) -> np.ndarray:
        """(T, N)."""
        return np.array(self._reward).reshape(len(self), self.num_envs)

    @property
    def terminated(self) -> np.ndarray:
        """(T, N)."""
        return np.array(self._terminated).reshape(len(self), self.num_envs)

    @property
    def truncated(self) -> np.ndarray:
        """(T, N)."""
        return np.array(self._truncated).reshape(len(self), self.num_envs)

    @property
    def valid(self) -> np.ndarray:
        """(T, N)."""
        return np.array(self._valid).reshape(len(self), self.num_envs)

    @property
    def starts(self) -> np.ndarray:
        """(E, D) first observations of episodes."""
        return np.array(list(self._starts.values())).reshape(-1, len(self.columns.kept))

    def start_at(self, step: int, env: int) -> np.ndarray | None:
        """The first observation (D,) of the episode that begins with this step; None where none does."""
        return self._starts.get((step, env))

    def episodes(self) -> list[Episode]:
        """Those that ended, in order of their ends."""
        found: list[Episode] = []
        first = np.zeros(self.num_envs, np.int64)
        steps = zip(self._terminated, self._truncated, self._valid, strict=True)
        for step, (terminated, truncated, valid) in enumerate(steps):
            first[~valid] = step + 1
            for env in np.flatnonzero(terminated | truncated):
                found.append(Episode(int(env), int(first[env]), step, bool(terminated[env]), bool(truncated[env])))
                first[env] = step + 1
        return found

    def running(self) -> np.ndarray:
        """(N,) steps of the episodes that have not ended."""
        lengths = np.zeros(self.num_envs, np.int64)
        for terminated, truncated, valid in zip(self._terminated, self._truncated, self._valid, strict=True):
            lengths += valid
            lengths[terminated | truncated | ~valid] = 0
        return lengths
