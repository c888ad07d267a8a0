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
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_fast.envs.host import EnvironmentFault
from ppo_fast.envs.spaces import ActionDecoder, ObservationEncoder, mask_length, own_mask_length

MakeEnv = Callable[[], gymnasium.Env]


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
    """
    with quiet_models():
        env = make_env()
    try:
        ActionDecoder(env.action_space, 1, env_id)
        ObservationEncoder(env.observation_space, env_id)
        n = own_mask_length(env.observation_space, env.action_space)
        if not n and isinstance(env.action_space, spaces.Discrete):  # only a reset tells whether info has a mask
            n = mask_length(env.reset(seed=0)[1], env.action_space)
        encoder = ObservationEncoder(env.observation_space, env_id, n)
        return Kind(encoder, env.action_space, dict(env.metadata), env.render_mode)
    finally:
        env.close()


class Rows(NamedTuple):
    """What N environments returned last. `final_obs` is written only where an episode ended."""

    obs: np.ndarray  # (N, *S) f32
    final_obs: np.ndarray  # (N, *S) f32
    reward: np.ndarray  # (N,) f32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool

    @staticmethod
    def layout(kind: Kind, num_envs: int) -> list[tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each array."""
        obs, number, flag = (num_envs, *(kind.encoder.space.shape)), np.dtype(np.float32), np.dtype(bool)
        rows = (num_envs,)
        return [(obs, number), (obs, number), (rows, number), (rows, flag), (rows, flag)]


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
        self._first, self._encoder, self._rows, self._at = first, kind.encoder, rows, at
        self._at[0] = first
        self._indices = range(first, first + len(makers))
        self._envs: list[gymnasium.Env] = []
        for index, maker in enumerate(makers, first):
            with self._blaming(index), quiet_models():
                self._envs.append(maker())

    def reset(self, seeds: Sequence[int | None], mask: np.ndarray | None, options: dict[str, Any] | None) -> None:
        """Start new episodes: in all environments, or where mask (N,) holds; seeds is one for each of the vector."""
        for index, env in enumerate(self._envs, self._first):
            if mask is None or mask[index]:
                with self._blaming(index):
                    obs, info = env.reset(seed=seeds[index], options=options)
                    self._encoder.write_one(obs, self._rows.obs[index], info.get("action_mask"))

    def step(self, actions: np.ndarray) -> None:
        """Step all with actions (envs of this block, *A), with SAME_STEP autoreset."""
        rows, encoder, at = self._rows, self._encoder, self._at
        index, seen, masks = self._first, [], []
        try:
            for index, env, action in zip(self._indices, self._envs, actions, strict=True):
                at[0] = index
                obs, reward, terminated, truncated, info = env.step(action)
                if terminated or truncated:
                    encoder.write_one(obs, rows.final_obs[index], info.get("action_mask"))
                    obs, info = env.reset()
                if encoder.plain:
                    rows.obs[index] = obs
                else:  # encoding is cheaper for all at once, and each keeps its own last observation until then
                    seen.append(obs)
                    masks.append(info.get("action_mask"))
                rows.reward[index], rows.terminated[index], rows.truncated[index] = reward, terminated, truncated
        except Exception as problem:
            raise EnvironmentFault(index, _raised(problem)) from problem
        if seen:
            encoder.write_list(seen, rows.obs[self._first : self._first + len(seen)], masks)

    def render(self) -> list[Any]:
        """A frame of each."""
        return [env.render() for env in self._envs]

    def close(self) -> None:
        """Close all of them, also when one can't be."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()

    @contextlib.contextmanager
    def _blaming(self, index: int) -> Iterator[None]:
        """Turn an exception into the fault of one environment."""
        self._at[0] = index
        try:
            yield
        except Exception as problem:
            raise EnvironmentFault(index, _raised(problem)) from problem


class SingleVectorEnv(VectorEnv):
    """N single environments in this process: SAME_STEP, encoded observations, a dense `final_obs`; the arrays that it
    returns are its own buffers, overwritten by the next call.

    Args:
        makers: make the N environments, one each.
        kind: from `find_kind`.

    Raises:
        EnvironmentFault: from every method, when an environment raises.
    """

    def __init__(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        num_envs = len(makers)
        self.metadata = {**kind.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs, self.render_mode = num_envs, kind.render_mode
        self.mask_size = kind.encoder.mask_size
        self.single_observation_space, self.single_action_space = kind.encoder.space, kind.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._start(makers, kind)

    def _start(self, makers: Sequence[MakeEnv], kind: Kind) -> None:
        """Make the environments."""
        self._rows = Rows(*(np.zeros(shape, dtype) for shape, dtype in Rows.layout(kind, self.num_envs)))
        self._block = Block(makers, 0, kind, self._rows, np.zeros(1, np.int64))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, where options["reset_mask"] (N,) bool is given only there; one seed for each
        environment, or a number for the first that the others count on from."""
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        self._run("reset", seed, mask, options or None)
        return self._rows.obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Step all with actions (N, *A)."""
        self._run_step(actions)
        return self._stepped()

    def _stepped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        rows = self._rows
        return rows.obs, rows.reward, rows.terminated, rows.truncated, {"final_obs": rows.final_obs}

    def render(self) -> tuple[Any, ...]:
        """A frame of each environment."""
        return tuple(self._run("render"))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        self._block.close()

    def _run(self, command: str, *arguments: Any) -> Any:
        return getattr(self._block, command)(*arguments)

    def _run_step(self, actions: np.ndarray) -> None:
        self._block.step(actions)


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


def _raised(problem: Exception) -> str:
    """An exception in one line."""
    text = str(problem).strip()
    return f"raised {type(problem).__name__}" + (f": {text.splitlines()[0]}" if text else "")
