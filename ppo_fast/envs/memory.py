"""Environments that ask for memory, as tensor environments: MemoryChain, RepeatPrevious and RepeatFirst.

MemoryChain has the rules of bsuite's (Osband et al. 2020, arXiv 1908.03568), the other two those of POPGym's (Morad et
al. 2023, arXiv 2303.01859). A policy without memory does no better than chance in any of them. All end by termination.
Letters: N envs, k cards.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ppo_fast.envs.tensor import State, TensorVectorEnv, Transition

SUITS = 4
CARDS_OF_A_SUIT = 13


def _check_whole(name: str, value: Any, most: int | None = None) -> None:
    """ValueError unless it is a whole number from 1 to `most`."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < 1 or (most is not None and value > most):
        bounds = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name}: a whole number {bounds}, got {value!r}")


class TensorMemoryChain(TensorVectorEnv):
    """N chains: the bits that are shown at the start are asked for at the end (bsuite's MemoryChain, memory_len).

    An observation (N, 2 + num_bits) holds the time that is left, from 1 to 0, which bit is asked for, and the bits, -1
    or 1. The bits are shown in the first two observations, as in bsuite, else they are 0; which one is asked for is
    shown at the last decision, else it is 0. An episode has memory_length + 1 steps. The last action earns 1 if it
    is the bit (0 for -1, 1 for 1), else -1; all others are without effect and reward. The best return is 1, chance 0.

    Args:
        memory_length: steps from the start to the last decision, at least 1.
        num_bits: of which one is asked for, at least 1.
        max_episode_steps: truncates earlier than the end, where it is less.
    """

    spec_id = "MemoryChain-v0"
    state_names = ("context", "query", "elapsed")

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        memory_length: int = 20,
        num_bits: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_whole("memory_length", memory_length)
        _check_whole("num_bits", num_bits)
        low = np.array([0, 0] + [-1] * num_bits, dtype=np.float32)
        high = np.array([1, num_bits - 1] + [1] * num_bits, dtype=np.float32)
        limit = max_episode_steps or memory_length + 1
        super().__init__(num_envs, limit, spaces.Box(low, high), spaces.Discrete(2), device)
        self.memory_length = memory_length
        self.num_bits = num_bits
        self.reset_noise_size = num_bits + 1

    def initial_state(self, noise: torch.Tensor) -> State:
        """Fair bits -1 or 1 (N, num_bits), and the number of the one that will be asked for (N,)."""
        context = torch.where(noise[:, 1:] < 0.5, -1.0, 1.0)
        query = (noise[:, 0] * self.num_bits).long().clamp(max=self.num_bits - 1)
        return context, query, torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """(N, 2 + num_bits). The first one is seen twice: bsuite's time starts to run with the second step."""
        context, query, elapsed = state
        time = (elapsed - 1).clamp(min=0)
        left = 1 - time / self.memory_length
        asked = torch.where(time == self.memory_length - 1, query, 0)
        shown = torch.where((time == 0)[:, None], context, 0.0)
        return torch.cat((left[:, None], asked[:, None].to(left.dtype), shown), dim=-1)

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One step with actions (N,), of which the last one counts."""
        context, query, elapsed = state
        elapsed = elapsed + 1
        state = (context, query, elapsed)
        terminated = elapsed > self.memory_length
        bit = context.gather(1, query[:, None])[:, 0]
        reward = torch.where((action == 1) == (bit > 0), 1.0, -1.0) * terminated
        truncated = (elapsed >= self.max_episode_steps) & ~terminated
        return state, self.observation(state), reward, terminated, truncated


class _Cards(TensorVectorEnv):
    """What the two games of cards share: of each card, dealt one a step from shuffled decks, the suit is seen.

    Suits are drawn as they are dealt, each with the probability of its share of the cards that are left, which is how
    they come out of a shuffled deck. An episode ends with the last card.
    """

    reset_noise_size = 1
    step_noise_size = 1

    def __init__(
        self, num_envs: int, max_episode_steps: int | None, num_decks: int, device: torch.device | str
    ) -> None:
        _check_whole("num_decks", num_decks)
        self.num_cards = SUITS * CARDS_OF_A_SUIT * num_decks
        sees = spaces.Box(0.0, 1.0, (SUITS,), dtype=np.float32)
        super().__init__(num_envs, max_episode_steps or self.num_cards - 1, sees, spaces.Discrete(SUITS), device)
        self.suits = torch.arange(SUITS, device=device)

    def _one_hot(self, suit: torch.Tensor) -> torch.Tensor:
        """(N,) -> (N, 4) bool. (torch's own looks at the values, which a GPU would have to be waited for.)"""
        return suit[:, None] == self.suits

    def _new_decks(self, noise: torch.Tensor) -> torch.Tensor:
        """Cards left of each suit before the first deal, (N, 4) int32."""
        return torch.full((len(noise), SUITS), self.num_cards // SUITS, dtype=torch.int32, device=noise.device)

    def _deal(self, left: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Deal a card by noise (N, 1): the cards that are left then (N, 4), and its suit (N,)."""
        up_to = left.cumsum(1, dtype=torch.int32)  # the cards of a suit and of those before it
        place = (noise * up_to[:, -1:]).to(torch.int32)
        suit = (place >= up_to[:, :-1]).sum(1)
        return left - self._one_hot(suit).to(left.dtype), suit

    def _ends(self, elapsed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Terminated (N,), with the last card, and truncated (N,)."""
        terminated = elapsed >= self.num_cards - 1
        return terminated, (elapsed >= self.max_episode_steps) & ~terminated


class TensorRepeatPrevious(_Cards):
    """N games in which the action (N,) is to name the suit of the card seen k - 1 cards before the one that is seen
    now (POPGym's RepeatPrevious, which counts from 1).

    Observations are the suit, one-hot (N, 4). Once k cards have been dealt each action earns a share of 1 if it is
    right, else it costs as much; before, nothing. The best return is 1, chance is -0.5.

    Args:
        k: how far back, at least 1.
        num_decks: decks of 52 cards.
        max_episode_steps: truncates earlier than the last card, where it is less.
    """

    spec_id = "RepeatPrevious-v0"
    state_names = ("left", "seen", "elapsed")

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        k: int = 4,
        num_decks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(num_envs, max_episode_steps, num_decks, device)
        _check_whole("k", k, self.num_cards - 1)
        self.k = k

    def initial_state(self, noise: torch.Tensor) -> State:
        """Cards left of each suit (N, 4), and the suits of the last k cards (N, k), the newest last."""
        left, suit = self._deal(self._new_decks(noise), noise)
        seen = torch.zeros((len(noise), self.k - 1), dtype=suit.dtype, device=noise.device)
        return left, torch.cat((seen, suit[:, None]), dim=1), torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """The newest card's suit, one-hot (N, 4)."""
        return self._one_hot(state[1][:, -1]).float()

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One answer (N,) for each game, then the next card."""
        left, seen, elapsed = state
        elapsed = elapsed + 1  # as many cards were seen before this answer
        share = 1 / (self.num_cards - self.k)
        reward = torch.where(action == seen[:, 0], share, -share) * (elapsed >= self.k)
        left, suit = self._deal(left, noise)
        state = (left, torch.cat((seen[:, 1:], suit[:, None]), dim=1), elapsed)
        terminated, truncated = self._ends(elapsed)
        return state, self.observation(state), reward, terminated, truncated


class TensorRepeatFirst(_Cards):
    """N games in which each action (N,) is to name the suit of the first card (POPGym's RepeatFirst).

    Observations are the suit of the newest card, one-hot (N, 4). Each action earns a share of 1 if it is right, else
    it costs as much. The best return is 1, chance is -0.5.

    Args:
        num_decks: decks of 52 cards.
        max_episode_steps: truncates earlier than the last card, where it is less.
    """

    spec_id = "RepeatFirst-v0"
    state_names = ("left", "first", "newest", "elapsed")

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        num_decks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(num_envs, max_episode_steps, num_decks, device)

    def initial_state(self, noise: torch.Tensor) -> State:
        """Cards left of each suit (N, 4), and the suits of the first and the newest card, which are one (N,)."""
        left, suit = self._deal(self._new_decks(noise), noise)
        return left, suit, suit.clone(), torch.zeros_like(noise[:, 0], dtype=torch.int32)

    def observation(self, state: State) -> torch.Tensor:
        """The newest card's suit, one-hot (N, 4)."""
        return self._one_hot(state[2]).float()

    def transition(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        """One answer (N,) for each game, then the next card."""
        left, first, _, elapsed = state
        elapsed = elapsed + 1
        share = 1 / (self.num_cards - 1)
        reward = torch.where(action == first, share, -share)
        left, suit = self._deal(left, noise)
        state = (left, first, suit, elapsed)
        terminated, truncated = self._ends(elapsed)
        return state, self.observation(state), reward, terminated, truncated
