"""What a training run puts into a checkpoint, as types; `to_plain` and `from_plain` go to and from what the file holds.

The file holds a dictionary of tensors and plain types, in this layout since the first version:

    program    the module that trained, such as "ppo_fast.train"
    run_id     of the run; not there in files of earlier versions
    rows       the tally of the rows before (rows.Tally); likewise
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

from ppo_fast import names
from ppo_fast.run.rows import Tally

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
    run_id: str | None = None
    """Of the run; None in a file of an earlier version."""
    rows: Tally | None = None
    """Of the rows in metrics.jsonl before it; likewise."""

    def to_plain(self) -> dict[str, Any]:
        """What stands in the file."""
        progress = asdict(self.progress)
        progress["best"] = self.score.best
        progress["recent"] = [self.score.returns, self.score.episodes]
        progress["wandb_id"] = self.wandb_id
        plain = {
            "flags": self.flags,
            "progress": progress,
            "ranks": [rank.to_plain() for rank in self.ranks],
            "program": self.program,
            "format": self.format,
        }
        if self.run_id is not None:
            plain[names.RUN_ID] = self.run_id
        if self.rows is not None:
            plain["rows"] = self.rows.to_plain()
        return plain

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
            run_id=plain.get(names.RUN_ID),
            rows=Tally.from_plain(plain.get("rows")),
        )


def policy_in(plain: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint of any version says of its policy: its tensors by name, and the flags with the "program".

    Raises:
        KeyError: naming what is missing, or is something else.
    """
    if not isinstance(plain["flags"], dict):
        raise KeyError("flags")
    ranks = plain["ranks"]
    first = ranks[0] if isinstance(ranks, list) and ranks else None
    tensors = first.get("tensors") if isinstance(first, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise KeyError("tensors")
    return tensors, {**plain["flags"], "program": plain["program"]}
