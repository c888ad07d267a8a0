"""Captured iterations without a card: `CudaGraph` on graphs that are emulated on a CPU.

Like CUDA's own, an emulated graph holds operations and the memory they work on, and nothing of Python: a replay repeats
the same kernels on the same tensors with the numbers that Python had at capture, whose kernels never ran. So what an
iteration hands from one replay to the next in a variable instead of a tensor, a learning rate that Python passes on, a
result that is read before a replay, comes out wrong here as it would on a card. Kernels, streams and NCCL are CUDA's
business: test_fast_path.py compares captured and eager runs where there is a card.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from iterations import CPU, VARIANTS, Built, built, once, small
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast import train
from ppo_fast.algorithm import normalize, ppo, scan
from ppo_fast.engine import process, profiling
from ppo_fast.engine.captured import CudaGraph
from ppo_fast.engine.iteration import COLLECT, LEARN, Iteration

CARD = torch.device("cuda")


def written(func: Any, words: tuple, named: dict) -> Iterator[Tensor]:
    """The tensors that an operation changes in place."""
    given = dict(zip((each.name for each in func._schema.arguments), words, strict=False)) | named
    for each in func._schema.arguments:
        if each.alias_info is not None and each.alias_info.is_write:
            yield from (x for x in pytree.tree_leaves(given.get(each.name)) if isinstance(x, Tensor))


class Graph(TorchDispatchMode):
    """torch.cuda.CUDAGraph, of CPU kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.generators: list[torch.Generator] = []
        self.replays = 0
        self.gone = False

    def reset(self) -> None:
        self.gone = True

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # no kernel
            return func(*args, **kwargs)
        if isinstance(generator := kwargs.get("generator"), torch.Generator):  # another object for the same generator
            known = any(torch.equal(generator.get_state(), own.get_state()) for own in self.generators)
            assert known, "an unknown generator in a capture"
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), "a look"
        self.undo += [(x, x.clone()) for x in written(func, args, kwargs)]
        result = func(*args, **kwargs)
        self.calls.append((func, *pytree.tree_map_only(Tensor, torch.detach, (args, kwargs, result))))
        return result

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """No kernel has run when a capture is over, and what it returned holds nothing yet."""
        self.undo: list[tuple[Tensor, Tensor]] = []
        streams = [generator.get_state() for generator in self.generators]
        with self:
            yield
        for x, old in reversed(self.undo):
            x.copy_(old)
        for generator, stream in zip(self.generators, streams, strict=True):
            generator.set_state(stream)
        old = {x.untyped_storage().data_ptr() for x, _ in self.undo}
        for _, words, named, result in self.calls:
            given = {x.untyped_storage().data_ptr() for x in tensors((words, named))}
            for x in tensors(result):  # memory of the graph's own
                memory = x.untyped_storage().data_ptr()
                if memory not in given and memory not in old and x.is_floating_point():
                    x.fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, words, named, result in self.calls:
            for kept, new in zip(tensors(result), tensors(func(*words, **named)), strict=True):
                if new.data_ptr() != kept.data_ptr():
                    kept.copy_(new)


def tensors(nest: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(nest) if isinstance(x, Tensor)]


class Stream:
    def wait_stream(self, other: "Stream") -> None: ...


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The branches of a GPU, on CPU tensors; returns the graphs that are made."""
    graphs = list[Graph]()

    def without_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            with patch.object(torch.compiler, "is_compiling", lambda: True):
                return function(*args, **named)

        return called

    def new() -> Graph:
        graphs.append(Graph())
        return graphs[-1]

    for user in (ppo, normalize):
        monkeypatch.setattr(user, "linear_scan", without_numpy(scan.linear_scan))
    monkeypatch.setattr(process, "fast_products_are_exact", lambda: False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph.capturing())
    return graphs


def captured(args: train.Args) -> Built:
    """A run whose halves are captured."""
    run = built(args)
    run.iteration.warm_up(True, args.seed)
    return run


def followed(run: Built, args: train.Args, count: int = 5) -> list[tuple[dict[str, float], Tensor]]:
    """Metrics and parameters of some iterations with an annealed learning rate, a checkpoint and a way back to it."""
    seen, saved = [], {}
    for i in range(count):
        if args.lr_schedule == "linear":
            run.learner.learning_rate.fill_(args.learning_rate * (1 - i / args.num_iterations))
        if i == 2:
            saved = run.iteration.saved()
        if i == 3 and run.iteration.restart is None:  # back by one: the third iteration again
            run.iteration.load(saved)
        seen.append((once(run.iteration), run.learner.theta.clone()))
    return seen


@pytest.mark.parametrize("name", [*VARIANTS, "bf16"])
def test_captured_is_eager_bit_for_bit(card: list[Graph], name: str) -> None:
    args = dataclasses.replace(small(**VARIANTS.get(name, {"precision": "bf16"})), compile="off")
    eager = followed(built(args), args)
    assert not card
    replayed = followed(captured(args), args)
    host = args.backend == "sync"
    assert [graph.replays for graph in card] == [5] * (1 if host else 2)
    if not host:  # the way back repeats an iteration exactly, but for the learning rate
        assert eager[2][0]["returns"] == eager[3][0]["returns"]
    for (metrics, theta), (wanted, wanted_theta) in zip(replayed, eager, strict=True):
        assert repr(metrics) == repr(wanted)  # NaN, too
        assert torch.equal(theta, wanted_theta)
    assert not torch.equal(replayed[0][1], replayed[-1][1])


def test_being_captured_leaves_no_trace(card: list[Graph]) -> None:
    """Warm-up runs and capture are undone: state and generators are those of the beginning."""
    args = dataclasses.replace(small(), compile="off")
    a = built(args).iteration.saved()
    b = captured(args).iteration.saved()
    assert a["tensors"].keys() == b["tensors"].keys() and len(card) == 2
    assert all(torch.equal(x, b["tensors"][name]) for name, x in a["tensors"].items())
    assert all(map(torch.equal, a["generators"], b["generators"]))


def test_halves_have_their_names_in_a_profile_of_replays(card: list[Graph]) -> None:
    iteration = captured(dataclasses.replace(small(), compile="off")).iteration
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        once(iteration)
    assert {COLLECT, LEARN} <= {event.name for event in profiler.events() or ()}
    assert {COLLECT, LEARN} <= set(profiling.PHASES)


def test_the_report_says_that_halves_are_captured(card: list[Graph]) -> None:
    run = captured(dataclasses.replace(small(), compile="off"))
    assert run.engine.report().words == "captured as 2 CUDA graphs"
    run.iteration.release()


def test_graphs_are_given_back(card: list[Graph]) -> None:
    """Before NCCL's group goes, which waits for graphs that hold its collectives."""
    run = built(dataclasses.replace(small(), compile="off"))
    run.iteration.release()
    run.iteration.warm_up(True, 1)
    once(run.iteration)
    assert len(card) == 2 and not any(graph.gone for graph in card)
    run.iteration.release()
    assert all(graph.gone for graph in card)


def test_a_session_gives_them_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    released: list[Iteration] = []
    monkeypatch.setattr(Iteration, "release", lambda self: released.append(self))
    args = small(eval_episodes=1, quiet=True, compile="off", total_timesteps=64, run_root=str(tmp_path))
    train.train(args)
    assert len(released) == 1


# That the emulation would notice.


def in_iteration(change: Callable[[], object]) -> Callable[..., Any]:
    """`train.learn` after something else."""
    learn = train.learn

    def changed(*args: Any) -> Any:
        change()
        return learn(*args)

    return changed


def test_a_number_kept_in_python_would_be_noticed(card: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clip = train.clip_gradient
    monkeypatch.setattr(train, "learn", in_iteration(lambda: calls.append(1)))
    monkeypatch.setattr(train, "clip_gradient", lambda x, norm: clip(x, norm / (1 + len(calls))))
    args = dataclasses.replace(small(), compile="off")
    eager = followed(built(args), args)
    calls.clear()
    assert not torch.equal(eager[-1][1], followed(captured(args), args)[-1][1])


def test_a_look_would_be_noticed(card: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    args = dataclasses.replace(small(), compile="off")
    run = built(args)
    monkeypatch.setattr(train, "learn", in_iteration(lambda: float(run.learner.step)))
    with pytest.raises(AssertionError, match="a look"):
        run.iteration.warm_up(True, args.seed)


def test_a_generator_nobody_registered_would_be_noticed(card: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.Generator(CPU).manual_seed(0)
    monkeypatch.setattr(train, "learn", in_iteration(lambda: torch.rand(3, generator=other)))
    with pytest.raises(AssertionError, match="an unknown generator"):
        captured(dataclasses.replace(small(), compile="off"))


def test_results_hold_nothing_before_the_first_replay(card: list[Graph]) -> None:
    x = torch.arange(3.0)
    graph = CudaGraph(lambda: x.mul_(2.0) + 1, [])
    assert x.tolist() == [0.0, 8.0, 16.0]  # three warm-up runs, and no more
    assert graph.result.isnan().all()
    assert graph().tolist() == [1.0, 17.0, 33.0]
    x.fill_(1.0)
    assert graph().tolist() == [3.0, 3.0, 3.0] and graph().tolist() == [5.0, 5.0, 5.0]
