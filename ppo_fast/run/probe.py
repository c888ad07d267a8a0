"""What a policy answered when it was saved, kept in its file: whoever plays it elsewhere can find out whether it is the
same one. No torch is imported here.

    probe = record(player, observations(shape, mask_size, seen, steps), seed=0)    # where it is saved
    facts["probe"] = probe.to_json()
    Probe.from_json(facts["probe"]).is_answered_by(other_player)                   # where it is played

Letters: T steps, M rows, S observation shape, H outputs of the policy network.
"""

import base64
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

# Largest difference, over the largest output, that is rounding: float32 products summed in another order.
TOLERANCE = 1e-4
TOLERANCE_BF16 = 2e-2  # of products whose results are rounded to 8 bits
SMALLEST_SCALE = 1e-3
FORBIDDEN = -1e8  # outputs below it are of actions that a mask forbids

ROWS = 16  # of a probe
NUMBERS = 65_536  # of its observations, about
STEPS = 3  # of a policy that remembers
SAMPLE = 1000  # rows that mean and deviation of what was seen are taken from

Memory = tuple[np.ndarray, ...]  # (M, ...) each; () where nothing is remembered


class Player(Protocol):
    """A policy in NumPy's arrays, whatever computes it."""

    def begin(self, rows: int) -> Memory:
        """What is remembered before an episode."""
        ...

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Noise for `act`: (M, ...) float32."""
        ...

    def act(
        self, obs: np.ndarray, noise: np.ndarray | None, memory: Memory
    ) -> tuple[np.ndarray, np.ndarray | None, Memory]:
        """Actions (M, ...), drawn with noise or, without it, the most likely ones; the outputs (M, H) that they come
        from; and what is remembered from now on.

        Args:
            obs: (M, *S) float32, encoded, an action mask at their end.
        """
        ...


@dataclass(frozen=True)
class Probe:
    """Observations and what a policy answered."""

    obs: np.ndarray  # (T, M, *S) float32
    noise: np.ndarray  # (M, ...) float32
    outputs: np.ndarray  # (T, M, H) float32, at each step with what was remembered before it
    actions: np.ndarray  # (T, M, ...) float32 or int64, the most likely ones
    sampled: np.ndarray  # (M, ...) at the first step, with the noise

    def is_answered_by(self, player: Player, tolerance: float = TOLERANCE) -> bool:
        """Whether a player answers the same, but for rounding."""
        try:
            found = _answers(player, self.obs, self.noise)
        except Exception:  # its shapes don't fit, or whatever a program of somebody's own raises
            return False
        pairs = ((found.outputs, self.outputs), (found.actions, self.actions), (found.sampled, self.sampled))
        return all(_are_close(a, b, tolerance) for a, b in pairs)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, facts: Any) -> "Probe | None":
        """The inverse of `to_json`; None for anything else."""
        try:
            return cls(**{field.name: _from_json(facts[field.name]) for field in fields(cls)})
        except (ValueError, TypeError, KeyError, IndexError):
            return None


def record(player: Player, obs: np.ndarray, seed: int = 0) -> Probe | None:
    """What a player answers to obs (T, M, *S); None where it can't be asked, as an agent of somebody's own."""
    try:
        return _answers(player, obs, player.draw(np.random.default_rng(seed), obs.shape[1]))
    except Exception:  # any, since it is code of anybody's
        return None


def observations(shape: tuple[int, ...], mask_size: int, seen: np.ndarray | None, steps: int = 1) -> np.ndarray:
    """What a probe asks: rows that were seen, random ones about them, and standard normal ones, (T, M, *S) float32.

    Args:
        shape: S.
        mask_size: n where the last n columns are an action mask, else 0. Random rows have a random one.
        seen: (R, *S) of the training; None for none.
        steps: T.
    """
    width = int(np.prod(shape))
    rows = max(2, min(ROWS, NUMBERS // max(1, width)) // steps) * steps
    rng = np.random.default_rng(0)
    found = rng.standard_normal((rows, width), np.float32)
    seen = np.zeros((0, width), np.float32) if seen is None else seen.reshape(-1, width)
    seen = seen[np.isfinite(seen).all(1)]
    if len(seen):
        sample = seen[np.linspace(0, len(seen) - 1, min(SAMPLE, len(seen))).astype(int)]
        found[1::3] = sample.mean(0) + 3 * sample.std(0) * found[1::3]
    if mask_size:
        found[:, -mask_size:] = rng.random((rows, mask_size)) < 0.7
    if len(seen):
        own = found[::3]
        own[...] = seen[np.linspace(0, len(seen) - 1, len(own)).astype(int)]
    return found.reshape(steps, rows // steps, *shape)


def _answers(player: Player, obs: np.ndarray, noise: np.ndarray) -> Probe:
    memory = player.begin(obs.shape[1])
    sampled = player.act(obs[0], noise, memory)[0]
    outputs: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    for step in obs:
        action, output, memory = player.act(step, None, memory)
        if output is None:
            raise ValueError("it doesn't say what its actions come from")
        outputs.append(np.asarray(output, np.float32))
        actions.append(action)
    return Probe(obs, noise, np.stack(outputs), np.stack(actions), sampled)


def _are_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    """Whether numbers are equal, or near each other by the scale of those that are wanted."""
    if found.shape != wanted.shape or found.dtype.kind != wanted.dtype.kind:
        return False
    if wanted.dtype.kind != "f":
        return np.array_equal(found, wanted)
    allowed = wanted > FORBIDDEN
    if not np.array_equal(allowed, found > FORBIDDEN) or not np.isfinite(found).all():
        return False
    scale = max(float(np.abs(wanted[allowed]).max(initial=0)), SMALLEST_SCALE)
    return float(np.abs(found[allowed] - wanted[allowed]).max(initial=0)) <= tolerance * scale


def _to_json(array: np.ndarray) -> dict[str, Any]:
    dtype = "<f4" if array.dtype.kind == "f" else "<i8"
    data = base64.b64encode(array.astype(dtype).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": dtype, "base64": data}


def _from_json(facts: Any) -> np.ndarray:
    if facts["dtype"] not in ("<f4", "<i8"):
        raise ValueError(f"numbers of the type {facts['dtype']!r}")
    data = base64.b64decode(facts["base64"], validate=True)
    return np.frombuffer(data, facts["dtype"]).reshape(facts["shape"])
