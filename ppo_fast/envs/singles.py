"""Single environments side by side: a loop that steps some of them, and the vector that runs it in this process.

The loop encodes each observation where it goes, so a vector has nothing left to batch. Letters: N envs, S observation
shape, A action shape of the environment itself.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from ppo_fast.envs.closing import close_all
from ppo_fast.envs.encoded import EncodedVectorEnv, HostStep
from ppo_fast.envs.faults import blame
from ppo_fast.envs.masks import MASK, mask_in_info, mask_in_observation
from ppo_fast.envs.seeds import seed_spaces
from ppo_fast.envs.spaces import ObservationEncoder, presented_actions

MakeEnv = Callable[[], gymnasium.Env]
# Shape and type of each array, by its name.
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


class Kind(NamedTuple):
    """What all environments of a vector have in common, found out with one that is closed again."""

    encoder: ObservationEncoder
    action_space: spaces.Space
    metadata: dict[str, Any]
    render_mode: str | None


def find_kind(make_env: MakeEnv, env_id: str = "") -> Kind:
    """Make one environment, look, close it: a space that is not supported or a missing package is told before N of
    them exist.

    Raises:
        ValueError: naming --env-id, for an unsupported space.
        EnvironmentFault: it ended the program, or tried to.
    """
    try:
        with quiet_models():
            env = make_env()
    except Exception:
        raise
    except BaseException as problem:
        blame(0, problem)
    try:
        presented_actions(env.action_space, env_id)
        encoder = ObservationEncoder(env.observation_space, env_id)
        mask_size = mask_in_observation(env.observation_space, env.action_space)
        if not mask_size and isinstance(env.action_space, spaces.Discrete):
            # Only a reset tells whether info has a mask.
            mask_size = mask_in_info(env.reset(seed=0)[1], env.action_space)
        if mask_size:
            encoder = ObservationEncoder(env.observation_space, env_id, mask_size)
        return Kind(encoder, env.action_space, dict(env.metadata), env.render_mode)
    except Exception:
        raise
    except BaseException as problem:
        blame(0, problem)
    finally:
        close_all([env])


class Rows(NamedTuple):
    """What N environments returned last. `final_obs` is written only where an episode ended."""

    obs: np.ndarray  # (N, *S) f32
    final_obs: np.ndarray  # (N, *S) f32
    reward: np.ndarray  # (N,) f32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool

    @staticmethod
    def layout(kind: Kind, num_envs: int) -> Layout:
        """Shape and type of each array."""
        obs = ((num_envs, *kind.encoder.space.shape), np.dtype(np.float32))
        number = ((num_envs,), np.dtype(np.float32))
        flag = ((num_envs,), np.dtype(bool))
        return {"obs": obs, "final_obs": obs, "reward": number, "terminated": flag, "truncated": flag}


class Block:
    """The environments `first`, `first` + 1, ... of a vector, stepped in turn, each writing its own row.

    Args:
        makers: one for each environment.
        first: the index of the first of them.
        kind: of all of them.
        rows: of the whole vector.
        at: (1,) int64, where the index of the environment at work is kept, for whoever watches.
    """

    def __init__(self, makers: Sequence[MakeEnv], first: int, kind: Kind, rows: Rows, at: np.ndarray) -> None:
        self._encoder = kind.encoder
        self._rows = rows
        self._at = at
        self._at[0] = first
        self._indices = range(first, first + len(makers))
        self._envs: list[gymnasium.Env] = []
        try:
            for index, maker in zip(self._indices, makers, strict=True):
                with self._blaming(index), quiet_models():
                    self._envs.append(maker())
        except BaseException:
            self.close()  # those that are there: a simulator may allow only so many
            raise

    def reset(self, seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        """Start new episodes: in all environments, or where mask (N,) holds; seeds is one for each of the vector."""
        for index, env in zip(self._indices, self._envs, strict=True):
            if mask is None or mask[index]:
                with self._blaming(index):
                    seed_spaces(env, seeds[index])
                    obs, info = env.reset(seed=seeds[index], options=options)
                    self._encoder.write_one(obs, self._rows.obs[index], info.get(MASK))

    def step(self, actions: np.ndarray) -> None:
        """Step all with actions (envs of this block, *A), with SAME_STEP autoreset."""
        rows, encoder, at = self._rows, self._encoder, self._at  # local names: this loop is the time of a step
        index = self._indices.start
        seen: list[Any] = []
        masks: list[Any] = []
        try:
            for index, env, action in zip(self._indices, self._envs, actions, strict=True):
                at[0] = index
                obs, reward, terminated, truncated, info = env.step(action)
                if terminated or truncated:
                    encoder.write_one(obs, rows.final_obs[index], info.get(MASK))
                    obs, info = env.reset()
                if encoder.plain:
                    rows.obs[index] = obs
                else:  # encoding is cheaper for all at once, and each keeps its own last observation until then
                    seen.append(obs)
                    masks.append(info.get(MASK))
                rows.reward[index] = reward
                rows.terminated[index] = terminated
                rows.truncated[index] = truncated
        except BaseException as problem:
            blame(index, problem)
        if seen:
            encoder.write_list(seen, rows.obs[self._indices.start : self._indices.stop], masks)

    def render(self) -> list[Any]:
        """A frame of each."""
        return [env.render() for env in self._envs]

    def close(self) -> None:
        """Close all of them, also when one can't be: it raises, or hangs."""
        close_all(self._envs)

    @contextlib.contextmanager
    def _blaming(self, index: int) -> Iterator[None]:
        """Turn an exception into the fault of one environment."""
        self._at[0] = index
        try:
            yield
        except BaseException as problem:
            blame(index, problem)


class SingleVectorEnv(EncodedVectorEnv):
    """N single environments in this process (see EncodedVectorEnv).

    Args:
        makers: make the N environments, one each.
        kind: from `find_kind`.

    Raises:
        EnvironmentFault: from every method, when an environment raises.
    """

    def __init__(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        super().__init__(len(makers), kind.encoder, kind.action_space, kind.metadata, kind.render_mode)
        self._start(makers, kind)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there; one seed for each
        environment, or a number for the first that the others count on from."""
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int):
            seeds = list(range(seed, seed + self.num_envs))
        else:
            seeds = seed
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        self._reset(seeds, mask, options or None)
        return self._rows.obs, {}

    def step(self, actions: np.ndarray) -> HostStep:
        """Step all with actions (N, *A)."""
        self._block.step(actions)
        return self._stepped()

    def render(self) -> tuple[Any, ...]:
        """A frame of each environment."""
        return tuple(self._block.render())

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        self._block.close()

    def _start(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        """Make the environments."""
        layout = Rows.layout(kind, self.num_envs)
        self._rows = Rows(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()})
        self._block = Block(makers, 0, kind, self._rows, np.zeros(1, np.int64))

    def _reset(self, seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        self._block.reset(seeds, mask, options)

    def _stepped(self) -> HostStep:
        """The rows of the last step."""
        rows = self._rows
        return rows.obs, rows.reward, rows.terminated, rows.truncated, {"final_obs": rows.final_obs}


@contextlib.contextmanager
def quiet_models() -> Iterator[None]:
    """Drop what MuJoCo says while it compiles a model: Gymnasium's own models use an attribute that it deprecates, and
    it would print that and write MUJOCO_LOG.TXT for each of N environments. Warnings of the simulation stay."""
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is None or not hasattr(mujoco, "set_mju_user_warning"):
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
