"""Where an iteration's time goes: a few iterations under torch's profiler, a trace to open, and a table in plain words.

The phases are the two halves of an iteration, which the engine names with `torch.profiler.record_function`. Inside a
phase the time is told apart by what ran: matrix products, other kernels, and the rest, which is Python, launches and
waiting. On a GPU the phases are those of the device's own time, since the host runs ahead of it.

Compiled code on a CPU shows its products only if it was compiled with TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE=1;
without that it stands as one figure, "compiled code".
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppo_fast.engine.iteration import COLLECT, LEARN

PHASES = (COLLECT, LEARN)
OTHER = "other"
ITERATION = "one iteration of ppo_fast"

PRODUCTS = "matrix products"
KERNELS = "other kernels"
COMPILED = "compiled code, products and kernels"
COPIES = "memory copies"
PYTHON = "Python and launches"
IDLE = "device idle"
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

# Categories of the events in a trace that count here; the profiler has a few more.
LABEL = "user_annotation"  # a stretch that record_function names
OPERATION = "cpu_op"
CALLS = ("cuda_runtime", "cuda_driver")  # the host calls the GPU
KERNEL = "kernel"
DEVICE = (KERNEL, "gpu_memcpy", "gpu_memset")  # the GPU is at work


class Event(NamedTuple):
    """A stretch of time in a trace: start and end in microseconds."""

    category: str
    name: str
    start: float
    end: float
    thread: int | str  # of the host, or stream of a GPU
    launch: int | None  # the number that a kernel shares with the call that launched it

    @property
    def duration(self) -> float:
        return self.end - self.start


class Use(NamedTuple):
    """What a stretch of time is spent on."""

    phase: str
    kind: str


class Row(NamedTuple):
    """A line of the table; a name that starts with two spaces is part of the phase above it."""

    name: str
    milliseconds: float  # of an iteration
    share: float  # of the iteration


class Summary(NamedTuple):
    """A trace in figures."""

    rows: list[Row]
    host_syncs: float  # times an iteration that the host waits for the GPU; on a CPU that it looks at a tensor's value


class Profile(NamedTuple):
    """What the profiler saw."""

    rows: list[Row]
    host_syncs: float  # see Summary
    lines: list[str]
    trace: Path


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
        summary = summarize(events_of(json.load(file)))
    text = lines(summary.rows, summary.host_syncs, on_gpu, iterations, trace)
    return Profile(summary.rows, summary.host_syncs, text, trace)


def events_of(trace: dict[str, Any]) -> list[Event]:
    """The stretches of time in a chrome trace; it also holds points in time and names of threads."""
    events = []
    for entry in trace["traceEvents"]:
        if entry.get("ph") == "X":  # "complete": with a start and a duration
            category, name, start = entry.get("cat", ""), entry["name"], entry["ts"]
            launch = entry.get("args", {}).get("correlation")
            events.append(Event(category, name, start, start + entry["dur"], entry["tid"], launch))
    return events


def summarize(events: Sequence[Event]) -> Summary:
    """The table and the host syncs of an iteration.

    Where the trace has work of a GPU, the rows are the device's time, and `device idle` what is left; else the host's.
    """
    iterations = [event for event in events if event.category == LABEL and event.name == ITERATION]
    assert iterations, "nothing was profiled"
    total = sum(iteration.duration for iteration in iterations)
    inside = [event for event in events if _innermost(iterations, event.start)]
    thread = iterations[0].thread  # the others work for this one, within its calls
    host = [event for event in inside if event.category in (LABEL, OPERATION) and event.thread == thread]

    launches = {event.launch: event.start for event in inside if event.category in CALLS}
    device = [event for event in events if event.category in DEVICE and event.launch in launches]
    if device:
        phases = [event for event in host if event.name in PHASES]
        spent = _device_time(device, launches, phases)
        spent[Use(IDLE, "")] = max(0.0, total - _covered(device))
        waits = [event for event in inside if event.name in WAITS]
    else:
        spent = _host_time(host)
        waits = [event for event in inside if event.name == LOOK]
    return Summary(_rows(spent, total, len(iterations)), len(waits) / len(iterations))


def lines(rows: Sequence[Row], host_syncs: float, on_gpu: bool, iterations: int, trace: Path) -> list[str]:
    """The table as text."""
    text = [f"where the time of an iteration goes ({iterations} under the profiler, which slows small operations)"]
    text += [f"  {row.name:<42}{row.milliseconds:9.2f} ms {100 * row.share:5.1f} %" for row in rows]
    what = "waits for the device" if on_gpu else "looks at a tensor's value"
    return [*text, f"  the host {what} {host_syncs:.3g} times an iteration", f"  trace: {trace} (for ui.perfetto.dev)"]


@dataclass
class _Stretch:
    """An event on the host, told from the events within it."""

    end: float
    use: Use
    own: float  # its duration without those of the events within, in microseconds


def _host_time(events: Sequence[Event]) -> dict[Use, float]:
    """Microseconds on the host's own thread: each moment belongs to the innermost event."""
    spent: dict[Use, float] = defaultdict(float)
    for stretch in _stretches(events):
        spent[stretch.use] += stretch.own
    return spent


def _stretches(events: Sequence[Event]) -> list[_Stretch]:
    """The events of one thread. One that outlasts the event around it is taken to end with it."""
    found: list[_Stretch] = []
    around: list[_Stretch] = []  # those that the present event lies within, the innermost last
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while around and around[-1].end <= event.start:
            around.pop()
        end = event.end
        use = Use(OTHER, PYTHON)
        if around:
            parent = around[-1]
            end = min(end, parent.end)
            use = parent.use
            parent.own -= end - event.start
        stretch = _Stretch(end, _use(event, use), end - event.start)
        found.append(stretch)
        around.append(stretch)
    return found


def _use(event: Event, around: Use) -> Use:
    """What the own time of an event on the host is spent on, given that of the event around it."""
    if event.category == LABEL:
        phase = event.name if event.name in PHASES else around.phase
        return Use(phase, PYTHON)
    if WRAPPERS.search(event.name):
        return Use(around.phase, PYTHON)
    if around.kind == PRODUCTS or PRODUCT.search(event.name):  # what a product calls is part of it
        return Use(around.phase, PRODUCTS)
    if event.name.startswith(COMPILED_CALL):
        return Use(around.phase, COMPILED)
    return Use(around.phase, KERNELS)


def _device_time(
    events: Sequence[Event], launches: dict[int | None, float], phases: Sequence[Event]
) -> dict[Use, float]:
    """Microseconds on the device: a kernel belongs to the phase that launched it."""
    spent: dict[Use, float] = defaultdict(float)
    for event in events:
        phase = _innermost(phases, launches[event.launch])
        if event.category != KERNEL:
            kind = COPIES
        elif PRODUCT.search(event.name):
            kind = PRODUCTS
        else:
            kind = KERNELS
        spent[Use(phase.name if phase else OTHER, kind)] += event.duration
    return spent


def _innermost(events: Iterable[Event], moment: float) -> Event | None:
    """The event around a moment that starts last; None where there is none."""
    around = [event for event in events if event.start <= moment <= event.end]
    return max(around, key=lambda event: event.start, default=None)


def _covered(events: Iterable[Event]) -> float:
    """Microseconds in which at least one of the events goes on: streams that run side by side count once."""
    covered = 0.0
    until = float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        covered += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return covered


def _rows(spent: dict[Use, float], total: float, iterations: int) -> list[Row]:
    """The table: phases in order with their kinds below them, what is in no phase, idle time, the whole."""

    def row(name: str, microseconds: float) -> Row:
        return Row(name, microseconds / iterations / 1e3, microseconds / total)

    rows = []
    for phase in (*PHASES, OTHER, IDLE):
        kinds = {use.kind: x for use, x in spent.items() if use.phase == phase}
        if kinds:
            rows.append(row(phase, sum(kinds.values())))
            rows += [row(f"  {kind}", kinds[kind]) for kind in KINDS if kind in kinds]
    return [*rows, row("the whole iteration", total)]
