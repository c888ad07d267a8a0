"""The engine: how the functions of a program run on this device. The programs are written as if it were not there.

    engine = Engine(args, ranks, mode)
    rollouts = engine.rollouts(collect, agent, envs, carry, args.num_steps)
    descend = engine.function(descend, args)
    gradient = engine.gradient(loss, agent, args, learner.theta)
    iteration = engine.iteration(collect_half, learn_half, state, generators, restart, args.seed)

A function that is handed over takes and returns tensors, numbers, named tuples of them, and objects that stay as they
are. It may change the tensors among its arguments in place, and nothing else. Then it may run as it is ("eager"),
replayed from a recording ("recorded"), compiled ("compiled"), or as a part of a CUDA graph, with equal results up to
rounding. Letters: T steps, N envs, M minibatch, P parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine import plan, process
from ppo_fast.engine.captured import CudaGraph
from ppo_fast.engine.compiled import Compiled
from ppo_fast.engine.crew import FEW_ROWS, Crew
from ppo_fast.engine.gradients import Gradient, Loss, LossModule, part_gradient
from ppo_fast.engine.iteration import Execution, Iteration, TrainState
from ppo_fast.engine.ranks import Ranks
from ppo_fast.engine.recorded import Recorded
from ppo_fast.engine.rollouts import Collect, Rollouts
from ppo_fast.envs import Environments

# Rows of a minibatch up to which an eager update is run on one thread.
EAGER_ROWS = 1024
# Tells a program's random numbers from those of its environments, which have the same seed.
PROGRAM_STREAM = 0x50504F


class Flags(plan.Flags, Protocol):
    """What is asked of a program's flags here."""

    num_minibatches: int


class Engine:
    """Runs an algorithm's functions on this device and on these processes.

    Args:
        args: this process's flags.
        ranks: the processes that train together.
        mode: how functions run; see above.
        exact: fp32 products in full precision, whatever is faster: for the reference of --verify.

    Attributes:
        device: where tensors live.
        reduce: sums a tensor over the processes, in place, and returns it; None where there is one.
    """

    def __init__(self, args: Flags, ranks: Ranks, mode: plan.Mode, exact: bool = False) -> None:
        self.mode = mode
        self.device = ranks.device
        self.reduce = None if ranks.world_size == 1 else ranks.sum_
        self.captures = plan.captures(args, ranks.device)
        self._args = args
        self._ranks = ranks
        self._exact = exact
        self._crew = Crew(ranks.device, parallel=mode != "eager", started=mode != "compiled")
        self._parts = len(self._crew.sizes(args.batch_size // args.num_minibatches, FEW_ROWS))
        self._prepared: list[tuple[str, Compiled | Recorded]] = []
        self._rollouts: list[Rollouts] = []
        self._shown: dict[str, Tensor] = {}
        self._graphs: list[CudaGraph] = []

    def generator(self, seed: int) -> torch.Generator:
        """A random generator on the device for a program's own draws.

        Its stream is not the one that environments have which are seeded with the same number: an action would be drawn
        with the number that the environment's noise was made of.
        """
        number = int(np.random.SeedSequence([seed, PROGRAM_STREAM]).generate_state(1)[0])
        return torch.Generator(self.device).manual_seed(number)

    # What a program hands over.

    def function(self, function: Callable[..., Any], *constant: Any) -> Callable[..., Any]:
        """`function(*constant, ...)` prepared.

        One that is given `reduce` runs as it is where there are several processes: nothing that waits for another
        process can be part of a graph.
        """
        if self.reduce is not None and self.reduce in constant:
            return partial(function, *constant)
        return self._prepare(function, *constant)

    def in_parts(self, function: Callable[..., Tensor], *constant: Any) -> Callable[..., Tensor]:
        """`function(*constant, *rows)`, which takes each row by itself, prepared for many rows (R, ...)."""
        each = self._crew.side_by_side(self._prepare(function, *constant))

        def whole(*rows: Tensor) -> Tensor:
            columns = [x.tensor_split(self._parts) for x in rows]
            return torch.cat(each(list(zip(*columns, strict=True))))

        return whole

    def gradient(self, loss: Loss, agent: nn.Module, args: Any, theta: Tensor) -> Gradient:
        """Forward and backward of `loss(agent, args, minibatch)` prepared; see `Gradient`.

        Args:
            theta: (P,) the flat vector of the agent's parameters (engine.flat).
        """
        each = self._prepare(part_gradient, LossModule(loss, agent, args), name=loss.__name__)
        together = self._crew.side_by_side(each)
        return Gradient(together, theta, self._parts, self._ranks.world_size, self.reduce)

    def rollouts(self, collect: Collect, agent: nn.Module, envs: Environments, carry: Any, num_steps: int) -> Rollouts:
        """A program's `collect` prepared; see `Rollouts`."""
        rollouts = Rollouts(collect, agent, envs, carry, num_steps, self._crew, self._prepare)
        self._rollouts.append(rollouts)
        return rollouts

    def show(self, **tensors: Tensor) -> None:
        """Let --verify compare these tensors of an iteration, (T, N) each, and a crash file hold them."""
        self._shown |= tensors

    def iteration(
        self,
        collect: Callable[[], None],
        learn: Callable[[], Metrics],
        state: TrainState,
        generators: list[torch.Generator],
        restart: Callable[[int | None], None] | None,
        seed: int,
    ) -> Iteration:
        """Both halves of an iteration, compiled and captured where that is the mode; see `Iteration`."""

        def collected() -> None:
            collect()
            for rollouts in self._rollouts:
                state.rollout |= {k: x for k, x in rollouts.rollout._asdict().items() if x is not None}

        def learned() -> Metrics:
            metrics = learn()
            state.rollout |= self._shown
            return Metrics(_doubles(metrics.means), _doubles(metrics.sums))

        one_thread = self.mode != "eager" or self._args.batch_size <= EAGER_ROWS * self._args.num_minibatches
        first: Callable[[], None] = collected
        second: Callable[[], Metrics] = learned
        if one_thread:
            first = process.with_threads(first, 1)
            second = process.with_threads(second, 1)
        if self._exact:
            first = process.with_products(first, "highest")
            second = process.with_products(second, "highest")
        elif self.device.type == "cpu" and process.fast_products_are_exact():
            second = process.with_products(second, "medium")
        iteration = Iteration(first, second, state, generators, restart, self.report)
        capture = self.captures and not self._exact
        if self.mode == "compiled" or capture:
            iteration.warm_up(capture, seed)
            self._crew.started = True
        self._graphs = iteration.graphs
        return iteration

    # What really runs.

    def report(self) -> Execution:
        """How the functions really run, known after three iterations."""
        used = [(name, function) for name, function in self._prepared if function.used]
        recorded = [(name, function) for name, function in used if isinstance(function, Recorded)]
        reasons = [f"{name} {function.unfit}" for name, function in recorded if function.unfit]
        count = f"{len(recorded) - len(reasons)} of {len(recorded)}" if recorded else f"{len(used)}"
        words = self.mode if self.mode == "eager" else f"{self.mode}, {count} functions"
        if self._graphs:
            captured = f"captured as {len(self._graphs)} CUDA graphs"
            words = captured if self.mode == "eager" else f"{words}, {captured}"
        return Execution(words, reasons)

    def _prepare(self, function: Callable[..., Any], *constant: Any, name: str = "") -> Callable[..., Any]:
        whole = partial(function, *constant) if constant else function
        if self.mode == "eager":
            return whole
        prepared = Compiled(whole) if self.mode == "compiled" else Recorded(whole)
        self._prepared.append((name or function.__name__, prepared))
        return prepared


def _doubles(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in numbers.items()}
