"""Where an iteration's time goes: a few iterations under torch's profiler, a trace to open, and a table in plain words.

The phases are what a program names with `torch.profiler.record_function`: PHASES below. Inside a phase the time is told
apart by what ran: matrix products, other kernels, and the rest, which is Python, launches and waiting. On a GPU the
phases are those of the device's own time, since the host runs ahead of it.

Compiled code on a CPU shows its products only if it was compiled with TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE=1;
without that it stands as one figure, "compiled code".
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

PHASES = ("environment and policy", "values and advantages", "update", "values, advantages, updates")
OTHER = "other"
ITERATION = "one iteration of ppo_fast"

PRODUCTS, KERNELS, COMPILED = "matrix products", "other kernels", "compiled code, products and kernels"
PYTHON, COPIES, IDLE = "Python and launches", "memory copies", "device idle"
# Kinds of time within a phase, in the order of the table.
KINDS = (PRODUCTS, KERNELS, COMPILED, COPIES, PYTHON)

# Operators and CUDA kernels (cuBLAS, CUTLASS, Triton's templates) that multiply matrices.
PRODUCT = re.compile(
    r"(?i)(^|[:_])(add)?(mm|bmm|baddbmm|mv)($|_out)|linear_pointwise|gemm|gemv|cutlass|xmma|nvjet|triton_tem"
)
WRAPPERS = re.compile(r"Torch-Compiled Region|TorchDynamo|AOTDispatcher|Pregraph|^AOTInductor")
COMPILED_CALL = "## Call CompiledFxGraph"
# Calls of the CUDA runtime in which the host waits for the device.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LOOK = "aten::_local_scalar_dense"  # what .item() is made of


class Row(NamedTuple):
    """A line of the table; a name that starts with two spaces is part of the phase above it."""

    name: str
    milliseconds: float  # of an iteration
    share: float  # of the iteration


class Profile(NamedTuple):
    """What the profiler saw. `host_syncs` is how often in an iteration the host waited for the device; on a CPU, where
    nothing is waited for, how often it looked at a tensor's value."""

    rows: list[Row]
    host_syncs: float
    lines: list[str]
    trace: Path


class Span(NamedTuple):
    """A named stretch of time, in microseconds."""

    start: float
    end: float
    name: str


def profile(iteration: Callable[[], Any], folder: Path, device: torch.device, iterations: int = 3) -> Profile:
    """Run `iteration` once to warm up and `iterations` times to be looked at; the trace is written into `folder`.

    Args:
        iteration: one whole iteration, the reading of its metrics included.
        folder: gets `profile.json.gz`, which https://ui.perfetto.dev and chrome://tracing open.
    """
    on_gpu = device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if on_gpu else [])]) as profiler:
        iteration()  # the first one pays for the profiler's own start
        for _ in range(iterations):
            with torch.profiler.record_function(ITERATION):
                iteration()
        if on_gpu:
            torch.cuda.synchronize(device)
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "profile.json.gz"
    profiler.export_chrome_trace(str(trace))
    with gzip.open(trace, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    rows, host_syncs = summarize(events)
    return Profile(rows, host_syncs, lines(rows, host_syncs, on_gpu, iterations, trace), trace)


def summarize(events: Sequence[dict[str, Any]]) -> tuple[list[Row], float]:
    """The table and the host syncs of an iteration, from the complete ("X") events of a chrome trace.

    Where the trace has work of a GPU, the rows are the device's time, and `device idle` what is left; else the host's.
    """
    whole = [event for event in events if event["name"] == ITERATION and event.get("cat") == "user_annotation"]
    assert whole, "nothing was profiled"
    spans = [Span(event["ts"], event["ts"] + event["dur"], ITERATION) for event in whole]
    inside = [event for event in events if _innermost(spans, event["ts"])]
    host = [e for e in inside if e.get("cat") in ("cpu_op", "user_annotation") and e["tid"] == whole[0]["tid"]]
    phases = [Span(e["ts"], e["ts"] + e["dur"], e["name"]) for e in host if e["name"] in PHASES]

    device = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    launches = {
        e["args"].get("correlation"): e["ts"] for e in inside if e.get("cat") in ("cuda_runtime", "cuda_driver")
    }
    device = [event for event in device if event["args"].get("correlation") in launches]
    spent = _device_time(device, launches, phases) if device else _host_time(host)
    if device:
        busy = sum(end - start for start, end in _union((e["ts"], e["ts"] + e["dur"]) for e in device))
        spent[IDLE, ""] = max(0.0, sum(span.end - span.start for span in spans) - busy)
    waits = [e for e in inside if (e["name"] in WAITS if device else e["name"] == LOOK)]
    return _rows(spent, sum(span.end - span.start for span in spans), len(spans)), len(waits) / len(spans)


def lines(rows: Sequence[Row], host_syncs: float, on_gpu: bool, iterations: int, trace: Path) -> list[str]:
    """The table as text."""
    text = [f"where the time of an iteration goes ({iterations} under the profiler, which slows small operations)"]
    text += [f"  {row.name:<42}{row.milliseconds:9.2f} ms {100 * row.share:5.1f} %" for row in rows]
    what = "waits for the device" if on_gpu else "looks at a tensor's value"
    return [*text, f"  the host {what} {host_syncs:.3g} times an iteration", f"  trace: {trace} (for ui.perfetto.dev)"]


def _host_time(events: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Microseconds by phase and kind on the host's own thread: each moment belongs to the innermost event."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    stack: list[tuple[float, str, str]] = []  # end, phase and kind of the events around
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        start, end = event["ts"], event["ts"] + event["dur"]
        while stack and stack[-1][0] <= start:
            stack.pop()
        until, phase, kind = stack[-1] if stack else (start, OTHER, PYTHON)
        spent[phase, kind] -= min(end, until) - start  # what was booked for the event around, and is this one's
        phase, kind = event["name"] if event["name"] in PHASES else phase, _kind(event, kind)
        spent[phase, kind] += end - start
        stack.append((end, phase, kind))
    return spent


def _kind(event: dict[str, Any], around: str) -> str:
    """The kind of an event on the host, given that of the event around it: what a product calls is part of it."""
    name = event["name"]
    if event["cat"] == "user_annotation" or WRAPPERS.search(name):
        return PYTHON
    if around == PRODUCTS or PRODUCT.search(name):
        return PRODUCTS
    return COMPILED if name.startswith(COMPILED_CALL) else KERNELS


def _device_time(
    events: Sequence[dict[str, Any]], launches: dict[int, float], phases: Sequence[Span]
) -> dict[tuple[str, str], float]:
    """Microseconds by phase and kind on the device: a kernel belongs to the phase that launched it."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        phase = _innermost(phases, launches[event["args"]["correlation"]])
        kind = COPIES if event["cat"] != "kernel" else PRODUCTS if PRODUCT.search(event["name"]) else KERNELS
        spent[phase.name if phase else OTHER, kind] += event["dur"]
    return spent


def _innermost(spans: Sequence[Span], moment: float) -> Span | None:
    """The span around a moment that starts last; None where there is none."""
    around = [span for span in spans if span.start <= moment <= span.end]
    return max(around, key=lambda span: span.start, default=None)


def _union(pieces: Any) -> list[tuple[float, float]]:
    """Intervals joined where they overlap: streams that run side by side count once."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(pieces):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _rows(spent: dict[tuple[str, str], float], total: float, iterations: int) -> list[Row]:
    """The table: phases in order with their kinds below them, what is in no phase, idle time, the whole."""

    def row(name: str, microseconds: float) -> Row:
        return Row(name, microseconds / iterations / 1e3, microseconds / total)

    rows = []
    for phase in (*PHASES, OTHER, IDLE):
        kinds = {kind: x for (where, kind), x in spent.items() if where == phase}
        if kinds:
            rows.append(row(phase, sum(kinds.values())))
            rows += [row(f"  {kind}", kinds[kind]) for kind in KINDS if kind in kinds]
    return [*rows, row("the whole iteration", total)]
