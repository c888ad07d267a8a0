"""One training iteration as the engine runs it, and everything that it changes.

    iteration.collect()            # T steps of N environments
    metrics = iteration.learn()    # values, advantages, updates

What an iteration changes lies in tensors that stay where they are, so it can be saved, put back, compared with another
one (--verify), captured in CUDA graphs, and replayed from a crash file.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppo_fast.algorithm.adam import Learner
from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine.captured import CudaGraph
from ppo_fast.engine.tree import tensors

# The halves, as the profiler shows them.
COLLECT = "environment and policy"
LEARN = "values, advantages, updates"

# Iterations after which it is known how the functions run: the first records, the second compares.
EXECUTION_KNOWN = 3

Tensors = dict[str, Tensor]


@dataclass
class TrainState:
    """Every tensor that an iteration changes in place, by name, told apart by whose it is."""

    learned: Tensors  # parameters, Adam, normalisers: the same in every process; saved
    environments: Tensors  # where this process's environments stand; saved
    carried: Tensors  # what is remembered of episodes that go on, and dropped when they can't; saved
    rollout: Tensors = field(default_factory=dict)  # made anew in every iteration; never saved

    def saved(self) -> Tensors:
        """What the next iteration depends on."""
        return self.learned | self.environments | self.carried

    def all(self) -> Tensors:
        """Everything, the rollout's under rollout.<name>."""
        return self.saved() | {f"rollout.{name}": x for name, x in self.rollout.items()}


def train_state(agent: nn.Module, learner: Learner, carry: Any, **carried: Tensor) -> TrainState:
    """The state of a program.

    Args:
        agent: its buffers are learned, and saved with a policy; those registered with persistent=False are carried.
        carry: the named tuple that `collect` moves on: where the environments stand.
        carried: what else is remembered of episodes that go on, each (N, ...).
    """
    in_policy = agent.state_dict().keys()
    learned = dict(learner._asdict())
    for name, buffer in agent.named_buffers():
        (learned if name in in_policy else carried)[f"agent.{name}"] = buffer
    environments = {}
    for name, part in carry._asdict().items():
        if isinstance(part, Tensor):
            environments[name] = part
        else:
            environments |= {f"{name}{index}": x for index, x in enumerate(tensors(part))}
    return TrainState(learned, environments, carried)


class Execution(NamedTuple):
    """How the functions of an iteration run."""

    words: str  # such as "recorded, 5 of 5 functions"
    as_they_are: list[str]  # of each function that could not be recorded its name and why: "loss changes a tensor ..."


class Iteration:
    """Two halves, which a program wrote and the engine runs.

    Attributes:
        state: what they change in place.
        generators: the random generators that they draw from; the first one draws actions and minibatches.
        restart: `restart(seed)` begins new episodes in environments whose state is not in `state`, with None in new
            processes, and drops what is carried of those that were running; None for tensor environments.
        before, stream: `state.learned` and `state.carried`, and the first generator, as `learn` found them: what an
            update that broke down is replayed from.
        seconds: of the host in each half of the last iteration; a GPU may still be at work then, and is not waited for.
        graphs: the CUDA graphs that the halves are.
        execution: tells how the halves run, which is known after EXECUTION_KNOWN iterations.
    """

    def __init__(
        self,
        collect: Callable[[], None],
        learn: Callable[[], Metrics],
        state: TrainState,
        generators: list[torch.Generator],
        restart: Callable[[int | None], None] | None = None,
        execution: Callable[[], Execution] = lambda: Execution("eager", []),
    ) -> None:
        self.state = state
        self.generators = generators
        self.restart = None if restart is None else self._dropping(restart)
        self.seconds = {"collect": 0.0, "learn": 0.0}
        self.graphs: list[CudaGraph] = []
        self.execution = execution
        self.before = {name: x.clone() for name, x in self._learned_from().items()}
        self.stream = generators[0].get_state()
        self._collect = labelled(collect, COLLECT)
        self._learn = labelled(learn, LEARN)

    def collect(self) -> None:
        """T steps of N environments."""
        began = time.perf_counter()
        self._collect()
        self.seconds["collect"] = time.perf_counter() - began

    def learn(self) -> Metrics:
        """Values, advantages and updates from what `collect` left; what is logged of them, on the device."""
        began = time.perf_counter()
        for name, x in self._learned_from().items():
            self.before[name].copy_(x)
        self.stream = self.generators[0].get_state()
        metrics = self._learn()
        self.seconds["learn"] = time.perf_counter() - began
        return metrics

    def saved(self) -> dict[str, Any]:
        """Copies of all that the next iteration depends on: "tensors" by name and "generators"."""
        tensors = {name: x.clone() for name, x in self.state.saved().items()}
        return {"tensors": tensors, "generators": [generator.get_state() for generator in self.generators]}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` returned, or from a part of its tensors, in place: captured graphs stay valid.

        Raises:
            ValueError: it belongs to other networks or environments.
        """
        mine = self.state.saved()
        for name, x in saved["tensors"].items():
            if name not in mine or x.shape != mine[name].shape:
                raise ValueError(f"its {name} does not fit this configuration")
        if len(saved["generators"]) != len(self.generators):
            raise ValueError(f"it has {len(saved['generators'])} random generators, not {len(self.generators)}")
        generators = list(zip(self.generators, saved["generators"], strict=True))
        for generator, stream in generators:
            if stream.shape != generator.get_state().shape:
                raise ValueError("the run was on another kind of device, whose random numbers can't go on here")
        for name, x in saved["tensors"].items():
            mine[name].copy_(x)
        for generator, stream in generators:
            generator.set_state(stream)

    def release(self) -> None:
        """Give captured graphs back: NCCL waits for those with its collectives before it lets a process go."""
        for graph in self.graphs:
            graph.graph.reset()
        self.graphs.clear()

    def warm_up(self, capture: bool, seed: int) -> None:
        """Run both halves, for what they call to be compiled, and capture them if that is wanted.

        What they changed is put back, and host environments begin anew from `seed`.
        """
        saved = self.saved()
        if not capture:
            self.collect()
            self.learn()
        elif self.restart is None:
            self._collect = self._captured(self._collect, COLLECT)
            self._learn = self._captured(self._learn, LEARN)
        else:  # the host steps in between, so this half can't be captured as a whole
            self.collect()
            self._learn = self._captured(self._learn, LEARN)
        self.load(saved)
        if self.restart is not None:
            self.restart(seed)

    def _captured(self, half: Callable[[], Any], name: str) -> Callable[[], Any]:
        graph = CudaGraph(half, self.generators)
        self.graphs.append(graph)
        return labelled(graph, name)  # a replay does not say the name that was said when it was captured

    def _learned_from(self) -> Tensors:
        return self.state.learned | self.state.carried

    def _dropping(self, restart: Callable[[int | None], None]) -> Callable[[int | None], None]:
        def restarted(seed: int | None) -> None:
            restart(seed)
            for x in self.state.carried.values():
                x.zero_()

        return restarted


def labelled(function: Callable[[], Any], name: str) -> Callable[[], Any]:
    """The function with gradients off, under a name that the profiler shows."""

    @torch.no_grad()
    def call() -> Any:
        with torch.profiler.record_function(name):
            return function()

    return call
