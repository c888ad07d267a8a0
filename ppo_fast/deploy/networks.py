"""The networks of train.py and train_lstm.py in NumPy: a policy's actions without torch.

What they compute is written in `Agent` of these programs, in algorithm/mlp.py, lstm.py, heads.py and normalize.py; a
policy file's probe tells whether this is the same (see run/probe.py). Letters: M rows, S observation shape, D numbers
of an observation, H outputs of the policy network.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ppo_fast.run.probe import Memory

CLIP = 10.0  # normalised observations are cut off there
FORBIDDEN = -1e9  # the logit of an action that is not allowed

# Parts of a state_dict that a policy's actions don't depend on.
NOT_NEEDED = ("critic.", "normalize_obs.moments.", "normalize_reward.moments.")

State = dict[str, np.ndarray]


class MLP(NamedTuple):
    """Linear layers with tanh between them: (M, D) -> (M, H)."""

    weights: tuple[np.ndarray, ...]  # (D, H) each
    biases: tuple[np.ndarray, ...]  # (H,) each
    activate_last: bool = False
    rounds: bool = False  # what the products are given, and what they give, to bfloat16

    def __call__(self, x: np.ndarray) -> np.ndarray:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = to_bfloat16(to_bfloat16(x) @ weight) if self.rounds else x @ weight
            x = x + bias
            if self.activate_last or i < last:
                x = np.tanh(x)
        return x


class LSTM(NamedTuple):
    """One step: inputs (M, D) and hidden and cell, (M, units) each, to hidden and cell after it."""

    weight: np.ndarray  # (D, 4 · units): output, input and forget gate, candidate
    recurrent: np.ndarray  # (units, 4 · units)
    bias: np.ndarray  # (4 · units,)

    def __call__(self, x: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = len(self.recurrent)
        numbers = x @ self.weight + self.bias + hidden @ self.recurrent
        gates = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * numbers[:, : 3 * size])  # sigmoid
        candidate = np.tanh(numbers[:, 3 * size :])
        cell = gates[:, 2 * size :] * cell + gates[:, size : 2 * size] * candidate
        return gates[:, :size] * np.tanh(cell), cell


class Categorical(NamedTuple):
    """One action of so many, or several at a time."""

    sizes: tuple[int, ...]
    is_one: bool  # actions are (M,), not (M, K)

    @property
    def outputs(self) -> int:
        """H."""
        return sum(self.sizes)

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Uniform numbers in [0, 1)."""
        return rng.random((rows,) if self.is_one else (rows, len(self.sizes)), np.float32)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """The most likely actions."""
        if self.is_one:
            return outputs.argmax(-1)
        return np.stack([logits.argmax(-1) for logits in self._split(outputs)], -1)

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions drawn by the inverse of the distribution function."""
        if self.is_one:
            return _drawn(outputs, noise)
        parts = zip(self._split(outputs), noise.T, strict=True)
        return np.stack([_drawn(logits, numbers) for logits, numbers in parts], -1)

    def _split(self, outputs: np.ndarray) -> list[np.ndarray]:
        return np.split(outputs, np.cumsum(self.sizes[:-1]), -1)


class Gaussian(NamedTuple):
    """Means, and a standard deviation that no observation changes."""

    std: np.ndarray  # (A,)

    @property
    def outputs(self) -> int:
        """H."""
        return len(self.std)

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Standard normal numbers."""
        return rng.standard_normal((rows, len(self.std)), np.float32)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """The means."""
        return outputs

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions drawn."""
        return outputs + self.std * noise


class NumpyPlayer(NamedTuple):
    """A probe.Player: normaliser, layers, perhaps an LSTM, the policy's last layers, and its head."""

    shift: np.ndarray | None  # (D,) of the normaliser, if there is one
    scale: np.ndarray | None
    layers: MLP
    lstm: LSTM | None
    actor: MLP
    head: Categorical | Gaussian
    mask_size: int

    def begin(self, rows: int) -> Memory:
        """See probe.Player."""
        if self.lstm is None:
            return ()
        nothing = np.zeros((rows, len(self.lstm.recurrent)), np.float32)
        return nothing, nothing.copy()

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """See probe.Player."""
        return self.head.draw(rng, rows)

    def act(self, obs: np.ndarray, noise: np.ndarray | None, memory: Memory) -> tuple[np.ndarray, np.ndarray, Memory]:
        """See probe.Player."""
        rows = obs.reshape(len(obs), -1)
        x = rows[:, : -self.mask_size] if self.mask_size else rows
        if self.shift is not None:
            x = np.minimum(np.maximum((x - self.shift) * self.scale, -CLIP), CLIP)
        x = self.layers(x)
        if self.lstm is not None:
            memory = self.lstm(x, *memory)
            x = memory[0]
        outputs = self.actor(x)
        if self.mask_size:
            outputs = np.where(rows[:, -self.mask_size :] > 0, outputs, np.float32(FORBIDDEN))
        action = self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)
        return action, outputs, memory


def player_of(
    state: Mapping[str, np.ndarray], facts: Mapping[str, Any], action_space: spaces.Space, mask_size: int
) -> NumpyPlayer | None:
    """The networks of a state_dict; None where they are none of these.

    Args:
        state: a state_dict.
        facts: of the run: its "precision".
        action_space: as a program sees it (see ppo_fast.envs).
        mask_size: n where the last n columns of observations are an action mask, else 0.
    """
    left = {name: array for name, array in state.items() if not name.startswith(NOT_NEEDED)}
    rounds = facts.get("precision") == "bf16"
    remembers = any(name.startswith("lstm.") for name in left)
    try:
        shift, scale = left.pop("normalize_obs.shift", None), left.pop("normalize_obs.scale", None)
        layers = _mlp(left, "layers" if remembers else "backbone", rounds, activate_last=True)
        lstm = _lstm(left) if remembers else None
        actor, head = _mlp(left, "actor", rounds), _head(left, action_space)
    except (KeyError, ValueError):
        return None
    fits = bool(actor.biases) and len(actor.biases[-1]) == head.outputs and (shift is None) == (scale is None)
    if left or not fits:
        return None
    return NumpyPlayer(shift, scale, layers, lstm, actor, head, mask_size)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, to even in the middle, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _drawn(logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Actions (M,) from logits (M, n) and uniform numbers (M,)."""
    likely = np.exp(logits - logits.max(-1, keepdims=True))
    total = (likely / likely.sum(-1, keepdims=True)).cumsum(-1)
    return (total[:, :-1] <= noise[:, None] * total[:, -1:]).sum(-1)


def _mlp(left: State, name: str, rounds: bool, activate_last: bool = False) -> MLP:
    """Take the layers of this name out of `left`; none is a network without layers."""
    weights: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    while f"{name}.layers.{len(weights)}.weight" in left:
        biases.append(_float32(left, f"{name}.layers.{len(weights)}.bias"))
        weight = _float32(left, f"{name}.layers.{len(weights)}.weight")
        weights.append(_turned(to_bfloat16(weight) if rounds else weight))
    return MLP(tuple(weights), tuple(biases), activate_last, rounds)


def _lstm(left: State) -> LSTM:
    weight, recurrent = _float32(left, "lstm.input.weight"), _float32(left, "lstm.recurrent.weight")
    return LSTM(_turned(weight), _turned(recurrent), _float32(left, "lstm.input.bias"))


def _head(left: State, space: spaces.Space) -> Categorical | Gaussian:
    if isinstance(space, spaces.Discrete):
        return Categorical((int(space.n),), is_one=True)
    if isinstance(space, spaces.MultiDiscrete):
        return Categorical(tuple(space.nvec.tolist()), is_one=False)
    return Gaussian(np.exp(_float32(left, "head.log_std")))


def _turned(weight: np.ndarray) -> np.ndarray:
    """A weight (H, D) as (D, H), in the order in which it is read."""
    return np.ascontiguousarray(weight.T)


def _float32(left: State, name: str) -> np.ndarray:
    """Take an array out of `left`. KeyError or ValueError where it is not there, or of other numbers."""
    array = left.pop(name)
    if array.dtype != np.float32:
        raise ValueError(f"{name} is {array.dtype}")
    return array
