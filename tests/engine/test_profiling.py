"""ppo_fast.engine.profiling: each moment is booked once, by phase and kind, on traces made here and on real ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from ppo_fast import train
from ppo_fast.engine import profiling
from ppo_fast.engine.profiling import COMPILED, IDLE, ITERATION, KERNELS, OTHER, PRODUCTS, PYTHON

CPU = torch.device("cpu")
COLLECT, LEARN, UPDATE = "environment and policy", "values and advantages", "update"


def event(cat: str, name: str, start: float, end: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    """A complete event of a trace, in milliseconds here and microseconds there."""
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "ts": 1e3 * start,
        "dur": 1e3 * (end - start),
        "tid": tid,
        "args": args,
    }


def label(name: str, start: float, end: float) -> dict[str, Any]:
    return event("user_annotation", name, start, end)


def found(events: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds an iteration by "phase" and "phase/kind"."""
    rows, _ = profiling.summarize(events)
    named, phase = {}, ""
    for row in rows:
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
        label(LEARN, 8, 10),
        event("cpu_op", "aten::add", 8, 9),
        label(UPDATE, 10, 19),
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
            LEARN: 2,
            f"{LEARN}/{KERNELS}": 1,
            f"{LEARN}/{PYTHON}": 1,
            UPDATE: 9,
            f"{UPDATE}/{PRODUCTS}": 2,
            f"{UPDATE}/{KERNELS}": 2,
            f"{UPDATE}/{COMPILED}": 2,
            f"{UPDATE}/{PYTHON}": 3,
            OTHER: 3,
            f"{OTHER}/{PYTHON}": 3,
            "the whole iteration": 20,
        }
    )


def test_nested_phases_and_unknown_labels() -> None:
    outer = "values, advantages, updates"
    events = [
        label(ITERATION, 0, 10),
        label(outer, 0, 10),
        label(LEARN, 1, 3),
        label("a name of somebody else", 3, 5),
        label(UPDATE, 5, 9),
    ]
    times = found(events)
    assert (times[LEARN], times[UPDATE], times[outer]) == (2, 4, 4)
    assert OTHER not in times or times[OTHER] == 0


def test_only_iterations_count_and_their_mean_is_told() -> None:
    events = [label(ITERATION, 0, 10), label(UPDATE, 0, 10), event("cpu_op", "aten::mm", 0, 4)]
    events += [label(UPDATE, 20, 29), event("cpu_op", "aten::mm", 21, 29)]  # a warm-up outside
    events += [label(ITERATION, 30, 50), label(UPDATE, 30, 50), event("cpu_op", "aten::mm", 30, 36)]
    events += [event("cpu_op", "aten::mm", 32, 33, tid=2)]  # a worker's time is within its caller's
    times = found(events)
    assert (times["the whole iteration"], times[f"{UPDATE}/{PRODUCTS}"]) == (15, 5)


def gpu_trace() -> list[dict[str, Any]]:
    """A rollout replayed as a graph, an update of two kernels on streams that overlap, a copy to the host."""
    return [
        label(ITERATION, 0, 20),
        label(COLLECT, 0, 1),
        event("cuda_runtime", "cudaGraphLaunch", 0.5, 0.6, correlation=7),
        label(UPDATE, 1, 3),
        event("cuda_runtime", "cudaLaunchKernel", 1.5, 1.6, tid=2, correlation=8),  # by the backward thread
        event("cuda_driver", "cuLaunchKernel", 2.5, 2.6, correlation=9),
        event("cuda_runtime", "cudaMemcpyAsync", 4, 4.1, correlation=10),
        event("cuda_runtime", "cudaStreamSynchronize", 4.1, 16),
        event("cuda_runtime", "cudaLaunchKernel", 30, 31, correlation=11),
        event("cuda_runtime", "cudaDeviceSynchronize", 32, 40),
        event("kernel", "sm90_xmma_gemm_f32f32_tn_n", 2, 4, tid=70, correlation=7),
        event("kernel", "triton_poi_fused_tanh_0", 4, 7, tid=70, correlation=7),
        event("kernel", "void cutlass::Kernel2<cutlass_80_simt>", 8, 10, tid=70, correlation=8),
        event("kernel", "triton_per_fused_mul_sum_2", 9, 12, tid=71, correlation=9),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 15, 15.5, tid=70, correlation=10),
        event("kernel", "warm-up", 33, 34, tid=70, correlation=11),
        event("gpu_user_annotation", UPDATE, 8, 12, tid=70),
    ]


def test_device_time_belongs_to_the_phase_that_launched_it() -> None:
    assert found(gpu_trace()) == pytest.approx(
        {
            COLLECT: 5,
            f"{COLLECT}/{PRODUCTS}": 2,
            f"{COLLECT}/{KERNELS}": 3,
            UPDATE: 5,
            f"{UPDATE}/{PRODUCTS}": 2,
            f"{UPDATE}/{KERNELS}": 3,
            OTHER: 0.5,
            f"{OTHER}/{profiling.COPIES}": 0.5,
            IDLE: 20 - 5 - 4 - 0.5,
            "the whole iteration": 20,
        }
    )


def test_host_syncs_are_waits_on_a_gpu_and_looks_on_a_cpu() -> None:
    events = gpu_trace()
    look = event("cpu_op", "aten::_local_scalar_dense", 3, 3.1)
    assert profiling.summarize([*events, look])[1] == 1  # of a CPU tensor: no wait
    assert profiling.summarize([*events, event("cuda_runtime", "cudaEventSynchronize", 17, 18)])[1] == 2
    host = [label(ITERATION, 0, 10), label(ITERATION, 10, 20), look]
    assert profiling.summarize(host)[1] == 0.5
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
        with record_function(UPDATE):
            x = torch.tanh(x)
        return x.sum().item()

    seen = profiling.profile(iteration, tmp_path / "run", CPU, iterations=2)
    assert len(calls) == 3
    assert seen.host_syncs == 1
    rows = {row.name: row for row in seen.rows}
    phases = [row.milliseconds for row in seen.rows if not row.name.startswith("  ")]
    kinds = [row.share for row in seen.rows if row.name.startswith("  ")]
    assert sum(phases[:-1]) == pytest.approx(phases[-1]) and sum(kinds) == pytest.approx(1.0)
    assert rows[COLLECT].share > 0 and rows[UPDATE].share > 0 and rows["the whole iteration"].share == 1.0
    with gzip.open(seen.trace, "rt") as file:
        assert any(event["name"] == ITERATION for event in json.load(file)["traceEvents"])
    said = "\n".join(seen.lines)
    assert (
        COLLECT in said and str(tmp_path / "run" / "profile.json.gz") in said and "looks at a tensor's value 1 " in said
    )


def test_the_program_names_its_phases(tmp_path: Path) -> None:
    args = train.Args(num_envs=8, num_steps=8, compile="off")
    iteration = train.make_iteration(args, *train.setup(args, CPU), fast=False)
    seen = profiling.profile(lambda: iteration().tolist(), tmp_path, CPU, iterations=1)
    shares = {row.name: row.share for row in seen.rows if not row.name.startswith("  ")}
    assert shares.get(OTHER, 0.0) < 0.2  # all but the reading of the metrics happens in a phase
    assert shares[COLLECT] > 0.02
