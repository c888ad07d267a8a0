"""A run's rows in a TensorBoard event file, under the same names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppo_fast import names
from ppo_fast.run.rows import Row
from ppo_fast.run.twins import Twin

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def summary_writer() -> type[SummaryWriter]:
    """The class that writes event files.

    Raises:
        ValueError: `--tensorboard: ...`, its package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise ValueError('--tensorboard: needs tensorboard: pip install "ppo_fast[tensorboard]"') from problem
    return SummaryWriter


class BoardTwin(Twin):
    """Writes rows to an event file in `folder`. It hides the rows that an earlier process wrote there."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._writer = summary_writer()(str(folder), purge_step=0)

    def log(self, row: Row) -> None:
        """One record for the whole row, where SummaryWriter.add_scalar takes one for each number."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [
            Summary.Value(tag=name, simple_value=x)
            for name, x in row.items()
            if isinstance(x, (int, float)) and name != names.GLOBAL_STEP
        ]
        file_writer = self._writer.file_writer
        assert file_writer is not None, "nothing is logged after the end"
        file_writer.add_summary(Summary(value=values), row[names.GLOBAL_STEP])

    def close(self, exit_code: int) -> None:
        self._writer.close()
