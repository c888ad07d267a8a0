"""ppo_fast.engine.profiling: each moment is booked once, by phase and kind, on traces made here and on real ones."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from ppo_fast import train
from ppo_fast.engine import profiling
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.iteration import COLLECT, LEARN
from ppo_fast.engine.profiling import COMPILED, IDLE, ITERATION, KERNELS, OTHER, PRODUCTS, PYTHON, Event
from ppo_fast.engine.ranks import Ranks

CPU = torch.device("cpu")


def event(category: str, name: str, start: float, end: float, tid: int = 1, launch: int | None = None) -> Event:
    """An event of a trace, in milliseconds here and microseconds there."""
    return Event(category, name, 1e3 * start, 1e3 * end, tid, launch)


def label(name: str, start: float, end: float) -> Event:
    return event("user_annotation", name, start, end)


def found(events: list[Event]) -> dict[str, float]:
    """Milliseconds an iteration by "phase" and "phase/kind"."""
    named, phase = {}, ""
    for row in profiling.summarize(events).rows:
        phase = phase if row.name.startswith("  ") else row.name
        named[f"{phase}/{row.name.strip()}" if row.name.startswith("  ") else phase] = row.milliseconds
    return named


def test_host_time_belongs_to_the_innermost_event() -> None:
    events = [
        label(ITERATION, 0, 20),
        label(COLLECT, 1, 7),
        event("cpu_op", "aten::linear", 2, 5),  # in Python's time around it, a product inside
        event("cpu_op", "aten::addmm", 3, 4.5),
        event("cpu_op", "aten::copy_", 3.5, 4),  # part of the product
        label(LEARN, 8, 19),
        event("cpu_op", "aten::add", 8, 9),
        event("cpu_op", "Torch-Compiled Region: 0/0", 11, 18),
        event("cpu_op", "## Call CompiledFxGraph abc ##", 12, 18),
        event("cpu_op", "aoti_torch_cpu_mm_out", 13, 15),
        event("cpu_op", "graph_0_cpp_fused_add_mm_0", 15, 17),
    ]
    assert found(events) == pytest.approx(
        {
            COLLECT: 6,
            f"{COLLECT}/{PRODUCTS}": 1.5,
            f"{COLLECT}/{KERNELS}": 1.5,
            f"{COLLECT}/{PYTHON}": 3,
            LEARN: 11,
            f"{LEARN}/{PRODUCTS}": 2,
            f"{LEARN}/{KERNELS}": 3,
            f"{LEARN}/{COMPILED}": 2,
            f"{LEARN}/{PYTHON}": 4,
            OTHER: 3,
            f"{OTHER}/{PYTHON}": 3,
            "the whole iteration": 20,
        }
    )


def test_nested_phases_and_unknown_labels() -> None:
    events = [
        label(ITERATION, 0, 10),
        label(LEARN, 0, 10),
        label(COLLECT, 1, 3),
        label("a name of somebody else", 3, 5),
    ]
    times = found(events)
    assert (times[COLLECT], times[LEARN]) == (2, 8)
    assert OTHER not in times or times[OTHER] == 0


def test_a_moment_of_events_that_overlap_is_booked_once() -> None:
    """The profiler's clock may let an operation end a little after the one that called it."""
    events = [
        label(ITERATION, 0, 10),
        label(LEARN, 0, 9),
        event("cpu_op", "aten::linear", 1, 4),
        event("cpu_op", "aten::addmm", 2, 5),
    ]
    times = found(events)
    assert (times[f"{LEARN}/{KERNELS}"], times[f"{LEARN}/{PRODUCTS}"], times[f"{LEARN}/{PYTHON}"]) == (1, 2, 6)
    assert times[LEARN] + times[OTHER] == times["the whole iteration"]


def test_only_iterations_count_and_their_mean_is_told() -> None:
    events = [label(ITERATION, 0, 10), label(LEARN, 0, 10), event("cpu_op", "aten::mm", 0, 4)]
    events += [label(LEARN, 20, 29), event("cpu_op", "aten::mm", 21, 29)]  # a warm-up outside
    events += [label(ITERATION, 30, 50), label(LEARN, 30, 50), event("cpu_op", "aten::mm", 30, 36)]
    events += [event("cpu_op", "aten::mm", 32, 33, tid=2)]  # a worker's time is within its caller's
    times = found(events)
    assert (times["the whole iteration"], times[f"{LEARN}/{PRODUCTS}"]) == (15, 5)


def gpu_trace() -> list[Event]:
    """A rollout replayed as a graph, an update of two kernels on streams that overlap, a copy to the host."""
    return [
        label(ITERATION, 0, 20),
        label(COLLECT, 0, 1),
        event("cuda_runtime", "cudaGraphLaunch", 0.5, 0.6, launch=7),
        label(LEARN, 1, 3),
        event("cuda_runtime", "cudaLaunchKernel", 1.5, 1.6, tid=2, launch=8),  # by the backward thread
        event("cuda_driver", "cuLaunchKernel", 2.5, 2.6, launch=9),
        event("cuda_runtime", "cudaMemcpyAsync", 4, 4.1, launch=10),
        event("cuda_runtime", "cudaStreamSynchronize", 4.1, 16),
        event("cuda_runtime", "cudaLaunchKernel", 30, 31, launch=11),
        event("cuda_runtime", "cudaDeviceSynchronize", 32, 40),
        event("kernel", "sm90_xmma_gemm_f32f32_tn_n", 2, 4, tid=70, launch=7),
        event("kernel", "triton_poi_fused_tanh_0", 4, 7, tid=70, launch=7),
        event("kernel", "void cutlass::Kernel2<cutlass_80_simt>", 8, 10, tid=70, launch=8),
        event("kernel", "triton_per_fused_mul_sum_2", 9, 12, tid=71, launch=9),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 15, 15.5, tid=70, launch=10),
        event("kernel", "warm-up", 33, 34, tid=70, launch=11),
        event("gpu_user_annotation", LEARN, 8, 12, tid=70),
    ]


def test_a_trace_is_read() -> None:
    points = {"ph": "i", "name": "Iteration Start", "ts": 1.0, "tid": 1}
    operation = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 2.0, "dur": 3.0, "tid": 1, "args": {"Ev Idx": 4}}
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 4.0, "dur": 1.5, "tid": 7, "args": {"correlation": 9}}
    bare = {"ph": "X", "name": "PyTorch Profiler", "ts": 0.0, "dur": 9.0, "tid": "Spans"}
    assert profiling.events_of({"traceEvents": [points, operation, kernel, bare]}) == [
        Event("cpu_op", "aten::mm", 2.0, 5.0, 1, None),
        Event("kernel", "gemm", 4.0, 5.5, 7, 9),
        Event("", "PyTorch Profiler", 0.0, 9.0, "Spans", None),
    ]


def test_device_time_belongs_to_the_phase_that_launched_it() -> None:
    assert found(gpu_trace()) == pytest.approx(
        {
            COLLECT: 5,
            f"{COLLECT}/{PRODUCTS}": 2,
            f"{COLLECT}/{KERNELS}": 3,
            LEARN: 5,
            f"{LEARN}/{PRODUCTS}": 2,
            f"{LEARN}/{KERNELS}": 3,
            OTHER: 0.5,
            f"{OTHER}/{profiling.COPIES}": 0.5,
            IDLE: 20 - 5 - 4 - 0.5,
            "the whole iteration": 20,
        }
    )


def test_host_syncs_are_waits_on_a_gpu_and_looks_on_a_cpu() -> None:
    events = gpu_trace()
    look = event("cpu_op", "aten::_local_scalar_dense", 3, 3.1)
    assert profiling.summarize([*events, look]).host_syncs == 1  # of a CPU tensor: no wait
    assert profiling.summarize([*events, event("cuda_runtime", "cudaEventSynchronize", 17, 18)]).host_syncs == 2
    host = [label(ITERATION, 0, 10), label(ITERATION, 10, 20), look]
    assert profiling.summarize(host).host_syncs == 0.5
    assert "waits for the device 1 times" in "\n".join(profiling.lines([], 1, True, 3, Path("x")))


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("aten::mm", True),
        ("aten::addmm", True),
        ("aten::baddbmm", True),
        ("aoti_torch_cpu_addmm_out", True),
        ("aoti_torch_cpu_mm_out", True),
        ("mkldnn::_linear_pointwise", True),
        ("ampere_sgemm_64x32_sliced1x4_tn", True),
        ("nvjet_hsh_128x64_TNT", True),
        ("triton_tem_fused_addmm_3", True),
        ("aten::add", False),
        ("aten::comm", False),
        ("aten::dummy", False),
        ("graph_2_cpp_fused_addmm_tanh_0", False),
        ("triton_poi_fused_mm_add_0", False),
        ("AddmmBackward0", False),
        ("void at::native::reduce_kernel<512, 1>", False),
    ],
)
def test_products_are_told_by_their_names(name: str, product: bool) -> None:
    assert bool(profiling.PRODUCT.search(name)) is product


def test_a_real_profile_is_whole_and_leaves_a_trace(tmp_path: Path) -> None:
    calls = []

    def iteration() -> float:
        calls.append(1)
        x = torch.ones(64, 64)
        with record_function(COLLECT):
            x = x @ x
        with record_function(LEARN):
            x = torch.tanh(x)
        return x.sum().item()

    seen = profiling.profile(iteration, tmp_path / "run", CPU, iterations=2)
    assert len(calls) == 3
    assert seen.host_syncs == 1
    rows = {row.name: row for row in seen.rows}
    phases = [row.milliseconds for row in seen.rows if not row.name.startswith("  ")]
    kinds = [row.share for row in seen.rows if row.name.startswith("  ")]
    assert sum(phases[:-1]) == pytest.approx(phases[-1]) and sum(kinds) == pytest.approx(1.0)
    assert rows[COLLECT].share > 0 and rows[LEARN].share > 0 and rows["the whole iteration"].share == 1.0
    with gzip.open(seen.trace, "rt") as file:
        assert any(event["name"] == ITERATION for event in json.load(file)["traceEvents"])
    said = "\n".join(seen.lines)
    assert (
        COLLECT in said and str(tmp_path / "run" / "profile.json.gz") in said and "looks at a tensor's value 1 " in said
    )


def test_the_halves_of_an_iteration_are_the_phases(tmp_path: Path) -> None:
    args = train.Args(num_envs=8, num_steps=8, compile="off")
    iteration = train.make_iteration(args, *train.setup(args, CPU), Engine(args, Ranks(CPU), "eager"))

    def run() -> None:
        iteration.collect()
        iteration.learn()

    seen = profiling.profile(run, tmp_path, CPU, iterations=1)
    shares = {row.name: row.share for row in seen.rows if not row.name.startswith("  ")}
    assert shares.get(OTHER, 0.0) < 0.2
    assert shares[COLLECT] > 0.02 and shares[LEARN] > 0.02
