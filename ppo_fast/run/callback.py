"""`train(args, on_iteration=f)`: a function of the caller's that sees every iteration, logs and stops.

def watch(now: Moment) -> None:
    now.log({"my/return_per_step": now.metrics["charts/episodic_return"] / now.global_step})
    if now.metrics["losses/entropy"] < 0.1:
        now.stop()

train(Args(), on_iteration=watch)
"""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from ppo_fast import names
from ppo_fast.run import randomness
from ppo_fast.run.payload import Progress
from ppo_fast.stops import is_of_code

OWN = ("charts/", "losses/", "time/", "health/", "eval/")  # what a run's own columns begin with
STOPPED = "on_iteration"  # what result.json says of a run that the function stopped


class Moment:
    """An iteration that is over, as `on_iteration` sees it.

    Attributes:
        iteration: how many are complete, this one included.
        global_step: environment steps so far, all environments of all processes together.
        metrics: what metrics.jsonl gets of this iteration, by name, as plain numbers. "charts/episodic_return" is there
            where an episode ended, "eval/..." where --eval-every has evaluated.
    """

    def __init__(self, progress: Progress, row: Mapping[str, float | int], agent: nn.Module) -> None:
        self.iteration = progress.iteration
        self.global_step = progress.global_step
        self.metrics: Mapping[str, float | int] = MappingProxyType(dict(row))
        self._agent = agent
        self._logged: dict[str, Any] = {}
        self._stops = False

    @cached_property
    def agent(self) -> Any:
        """A copy of the agent as it is now: whatever is done to it, the training's own stays as it is."""
        return copy.deepcopy(self._agent).eval()

    def log(self, numbers: Mapping[str, float]) -> None:
        """Add numbers to this iteration's row in metrics.jsonl, W&B and TensorBoard. NaN becomes null.

        Raises:
            ValueError: a name is one of the run's own, or a value is no number.
        """
        for name, value in numbers.items():
            if not isinstance(name, str) or name == names.GLOBAL_STEP or name.startswith(OWN):
                raise ValueError(f"log: {name!r} is a name of the run's own columns; call it my/{name}")
            try:
                self._logged[name] = float(value)
            except (TypeError, ValueError, RuntimeError) as problem:
                raise ValueError(f"log: {name} is a {type(value).__name__}, no number") from problem

    def stop(self) -> None:
        """End the run after this iteration. It is saved like any stopped one, and `--resume` goes on with it."""
        self._stops = True


OnIteration = Callable[[Moment], object]


class Callback:
    """Calls the caller's function, on random generators that are apart from the training's.

    Args:
        function: of the caller; None where there is none.

    Attributes:
        stops: whether it wants the run to end.
        problem: what it raised, for which the run ends, too.
    """

    def __init__(self, function: OnIteration | None) -> None:
        self.function = function
        self.stops = False
        self.problem: BaseException | None = None
        self._stream = randomness.Apart()

    def call(self, progress: Progress, row: Mapping[str, float | int], agent: nn.Module) -> dict[str, float]:
        """What the function logs of this iteration."""
        if self.function is None or self.problem is not None:
            return {}
        now = Moment(progress, row, agent)
        try:
            with self._stream:
                self.function(now)
        except BaseException as problem:
            if not is_of_code(problem):
                raise
            self.problem = problem
        self.stops = self.stops or now._stops or self.problem is not None
        return now._logged

    def reason(self) -> str:
        """Why the run stops, in words."""
        return STOPPED if self.problem is None else f"{STOPPED} raised {names.kind_and_line(self.problem)}"
