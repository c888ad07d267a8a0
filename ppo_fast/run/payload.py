"""What a training run puts into a checkpoint, as types; `to_plain` and `from_plain` go to and from what the file holds.

The file holds a dictionary of tensors and plain types, in this layout since the first version:

    program    the module that trained, such as "ppo_fast.train"
    format     FORMAT
    flags      the flags of the run, by field name
    progress   Progress and Score side by side, and "wandb_id"
    ranks      for each process its RankState: "tensors" by name, "generators", their states, and "rng", the
               process-wide ones
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

# Counts up when the same tensors mean something else: 2 since the weights of few inputs stand input by input in theta.
FORMAT = 2


@dataclass(frozen=True)
class Progress:
    """How far a process has come with its run."""

    iteration: int = 0
    """Iterations that are complete."""
    global_step: int = 0
    """Environment steps, all environments of all processes together."""
    elapsed: float = 0.0
    """Seconds of training, in the processes before this one too."""
    first_seconds: float = 0.0
    """Seconds of training until the first row of metrics was there."""
    rollbacks: int = 0
    """How often the run went back to a checkpoint."""
    rate_factor: float = 1.0
    """What the learning rate is multiplied by: halved at every rollback."""


@dataclass(frozen=True)
class Score:
    """Which of an agent's checkpoints is the best one: that before which episodes returned most, on average."""

    best: float = -math.inf
    """Mean return at the best checkpoint."""
    returns: float = 0.0
    """Sum of the returns of the episodes that have ended since the last checkpoint that was due."""
    episodes: float = 0.0
    """How many those were."""

    def after(self, returns: float, episodes: float) -> "Score":
        """The score once `episodes` more have ended, whose returns add up to `returns`."""
        return Score(self.best, self.returns + returns, self.episodes + episodes)

    def is_best(self) -> bool:
        """Whether a checkpoint that is due now would be the best so far."""
        return self.episodes > 0 and self.returns / self.episodes > self.best

    def judged(self) -> "Score":
        """The score behind a checkpoint that was due: counting begins anew."""
        return Score(self.returns / self.episodes if self.is_best() else self.best)


@dataclass(frozen=True)
class RankState:
    """What one process goes on from."""

    tensors: dict[str, Tensor]
    """All that its next iteration depends on, by name."""
    generators: list[Tensor]
    """The states of the random generators that an iteration draws from."""
    rng: dict[str, Any]
    """The states of the process-wide generators, as `randomness.rng_state` gives them."""

    def to_plain(self) -> dict[str, Any]:
        """What stands in the file, and what is sent from process to process."""
        return {"tensors": self.tensors, "generators": self.generators, "rng": self.rng}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "RankState":
        """KeyError, naming it, where something is missing."""
        return cls(plain["tensors"], plain["generators"], plain["rng"])


@dataclass(frozen=True)
class Checkpoint:
    """All that a run goes on from."""

    program: str
    flags: dict[str, Any]
    progress: Progress
    score: Score
    ranks: list[RankState]
    wandb_id: str | None = None
    """Of the run in Weights & Biases; None without one."""
    format: int = FORMAT

    def to_plain(self) -> dict[str, Any]:
        """What stands in the file."""
        progress = asdict(self.progress)
        progress["best"] = self.score.best
        progress["recent"] = [self.score.returns, self.score.episodes]
        progress["wandb_id"] = self.wandb_id
        return {
            "flags": self.flags,
            "progress": progress,
            "ranks": [rank.to_plain() for rank in self.ranks],
            "program": self.program,
            "format": self.format,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Checkpoint":
        """From a payload that `resume.reason_against` has nothing against."""
        progress = plain["progress"]
        returns, episodes = progress["recent"]
        return cls(
            program=plain["program"],
            flags=plain["flags"],
            progress=Progress(
                iteration=progress["iteration"],
                global_step=progress["global_step"],
                elapsed=progress["elapsed"],
                first_seconds=progress["first_seconds"],
                rollbacks=progress["rollbacks"],
                rate_factor=progress["rate_factor"],
            ),
            score=Score(progress["best"], returns, episodes),
            ranks=[RankState.from_plain(rank) for rank in plain["ranks"]],
            wandb_id=progress["wandb_id"],
            format=plain["format"],
        )


def policy_in(plain: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint of any version says of its policy: its tensors by name, and the flags with the "program".

    Raises:
        KeyError: naming what is missing.
    """
    facts = {**plain["flags"], "program": plain["program"]}
    return plain["ranks"][0]["tensors"], facts
