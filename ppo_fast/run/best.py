"""The best policy that `--eval-every` has found in a run so far, as its file says: best.safetensors.

The file says itself how good the policy was and after which step. After a kill that is true, whatever became of the
rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppo_fast import names
from ppo_fast.run import identity, policy_file


class Best(NamedTuple):
    """The best policy of a run so far."""

    mean_return: float
    global_step: int

    def to_result(self) -> dict[str, Any]:
        """What result.json says of it."""
        return {
            "best_policy": names.BEST_POLICY_FILE,
            "best_mean_return": self.mean_return,
            "best_step": self.global_step,
        }


def best_in(folder: Path, run_id: str | None) -> Best | None:
    """The best policy that the run of this id has left in its folder; None where there is none, or it can't be read."""
    try:
        facts = policy_file.read(folder / names.BEST_POLICY_FILE).facts
    except (OSError, ValueError):
        return None
    return _best_of(facts) if run_id is not None and identity.id_in(facts) == run_id else None


def _best_of(facts: Mapping[str, Any]) -> Best | None:
    mean_return, step = facts.get(names.MEAN_RETURN), facts.get(names.GLOBAL_STEP)
    if not names.is_number(mean_return) or not isinstance(step, int):
        return None
    return Best(float(mean_return), step)  # type: ignore[arg-type]
