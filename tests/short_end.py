"""Runs end without what takes longer than all the rest of a run as short as a test's, and has tests of its own."""

from collections.abc import Callable
from typing import Any

from ppo_fast.engine import speed
from ppo_fast.pictures import panels


def leave_out(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """No run of this process measures its speed or draws curves.png from now on.

    Args:
        set_attribute: `setattr`, or that of a monkeypatch, which can undo it.
    """
    set_attribute(speed, "of_run", lambda *_: {})
    set_attribute(speed, "lines", lambda *_: [])
    set_attribute(panels, "plot_curves", lambda *_: True)
