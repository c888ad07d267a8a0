"""How fast a run was, and how far from what the device could do: measured, counted, and said in a few lines.

SPS are environment steps of all environments per second. The ceiling is measured too, by a matrix product and a memory
copy of this run's own shape on its own device: a figure of a data sheet is reached by no small network.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Products in a row before the clock is looked at, so that neither launches nor the clock count.
BURST = 8
LEAST_BURSTS = 3  # one alone may have waited for a processor that another process holds
# Rows above this make a product no faster, only the measurement longer; fewer would lie in a GPU's cache.
MANY_ROWS = {"cpu": 65_536, "cuda": 2**20}


class Ceiling(NamedTuple):
    """What a device reaches at best on shapes of this size."""

    flops_per_second: float
    bytes_per_second: float  # read and written


def flops_per_step(shapes: Mapping[str, Sequence[int]], epochs: int) -> float:
    """Floating point operations of matrix products per environment step of a whole training iteration.

    A weight (H, D) costs 2·H·D operations a row in the forward pass (a product and a sum), as much again for its own
    gradient, and as much again for the gradient of its inputs, which the weights that read the observation don't need.
    A step passes
    - forward through the policy once, in the rollout, and through the value function once, for the advantage: every
      weight once, a shared backbone's twice;
    - forward and backward through everything once an epoch.

    With W all weights, S those of a shared backbone, I those that read the observation:
    2·(W + S) + epochs · (6·W - 2·I). Not counted: elementwise work, biases, the optimiser, the one extra value at a
    rollout's end and those of truncated episodes' last observations.

    Args:
        shapes: of the parameters by name, as `named_parameters()` has them; those with two dimensions are weights,
            `backbone.` begins the names of a shared backbone, and each network's weights stand in their order.
        epochs: K.
    """
    weights = {name: shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2}
    shared = {name: count for name, count in weights.items() if name.startswith("backbone.")}
    first: dict[str, int] = {}
    for name, count in (shared or weights).items():
        first.setdefault(name.split(".")[0], count)
    everything, inputs = sum(weights.values()), sum(first.values())
    return 2.0 * (everything + sum(shared.values())) + epochs * (6.0 * everything - 2.0 * inputs)


def ceiling(
    device: torch.device, rows: int, width: int, seconds: float = 0.1, dtype: torch.dtype = torch.float32
) -> Ceiling:
    """Measure products of rows x width with width x width, and copies of rows x width numbers, at their best.

    On a CPU both libraries that torch has for fp32 products are tried (the "medium" setting selects the second), as
    long as they give the same result, and one thread as well as all: beside a busy process one is faster. The settings
    are put back. On a GPU they run as the present setting says.

    Args:
        rows: of a minibatch; at most MANY_ROWS of the device are used.
        width: of the hidden layers.
        seconds: to spend on all of it.
        dtype: that the products are made in.
    """
    rows, draw = min(rows, MANY_ROWS[device.type]), torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, width, generator=draw, device=device).to(dtype)
    weight = torch.randn(width, width, generator=draw, device=device).to(dtype)
    out, before = torch.empty_like(x), torch.get_float32_matmul_precision()
    threads = torch.get_num_threads()
    settings = ("highest", "medium") if device.type == "cpu" and dtype == torch.float32 else (before,)
    tries = [(setting, n) for setting in settings for n in sorted({1, threads} if device.type == "cpu" else {threads})]
    results, times, copies = [], [], []
    try:
        for setting, n in tries:
            torch.set_float32_matmul_precision(setting)
            torch.set_num_threads(n)
            copies.append(_best(lambda: out.copy_(x), device, seconds / (2 * len(tries))))
            times.append(_best(lambda: torch.mm(x, weight, out=out), device, seconds / (2 * len(tries))))
            results.append(out.clone())
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_num_threads(threads)
    same = [t for t, result in zip(times, results, strict=True) if _close(result, results[0])]
    return Ceiling(2.0 * rows * width * width / min(same), 2.0 * x.numel() * x.element_size() / min(copies))


def measure(function: Callable[[], Any], steps: int, device: torch.device, seconds: float = 0.15) -> float:
    """SPS of a function that makes `steps` environment steps a call: called at least once, and for `seconds`."""
    calls, start = 0, _now(device)
    while True:
        function()
        calls += 1
        if (now := _now(device)) - start >= seconds:  # a GPU is waited for: it would fall ever further behind
            return calls * steps / (now - start)


def report(
    *,
    env_only_sps: float,
    inference_sps: float,
    training_sps: float,
    compile_seconds: float,
    first_update_seconds: float,
    flops: float,
    limit: Ceiling,
) -> dict[str, float]:
    """What result.json holds under "speed".

    Args:
        env_only_sps: of the environment stepped by itself.
        inference_sps: of rollouts: environment and policy.
        training_sps: of the whole training loop, logging included.
        compile_seconds, first_update_seconds: spent on compiling; from the start of the program to its first update.
        flops: of `flops_per_step`.
        limit: of `ceiling`.
    """
    achieved = training_sps * flops
    return {
        "env_only_sps": env_only_sps,
        "inference_sps": inference_sps,
        "training_sps": training_sps,
        "compile_seconds": compile_seconds,
        "first_update_seconds": first_update_seconds,
        "flops_per_step": flops,
        "achieved_flops": achieved,
        "ceiling_flops": limit.flops_per_second,
        "fraction_of_ceiling": achieved / limit.flops_per_second,
        "ceiling_bytes": limit.bytes_per_second,
    }


def of_run(
    flags: Any, envs: Any, agent: Any, iteration: Any, result: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """The report of a training run that has ended: half a second, or one rollout; the environments are moved on.

    The environments alone are stepped with the actions of the last rollout, and are not compiled.

    Args:
        flags: a program's.
        iteration: `collect()` fills a rollout of B steps, `state.rollout["action"]` holds its actions (T, N, ...).
        result: "sps" and "first_iteration_seconds".
        seconds: "startup" and "compile".
    """
    actions = itertools.cycle(iteration.state.rollout["action"].clone().unbind())
    shapes = {name: tuple(parameter.shape) for name, parameter in agent.named_parameters()}
    rows = flags.batch_size // flags.num_minibatches
    dtype = torch.bfloat16 if flags.precision == "bf16" else torch.float32
    return report(
        env_only_sps=measure(lambda: envs.step(next(actions)), flags.num_envs, envs.device),
        inference_sps=measure(iteration.collect, flags.batch_size, envs.device),
        training_sps=result["sps"],
        compile_seconds=seconds["compile"],
        first_update_seconds=seconds["startup"] + seconds["compile"] + result["first_iteration_seconds"],
        flops=flops_per_step(shapes, flags.update_epochs),
        limit=ceiling(envs.device, rows, max(flags.hidden_sizes), dtype=dtype),
    )


def lines(report: Mapping[str, float]) -> list[str]:
    """The report for a reader, in four lines."""
    r = report
    return [
        f"steps/s: environment alone (eager) {r['env_only_sps']:,.0f}, with policy {r['inference_sps']:,.0f}, "
        f"training {r['training_sps']:,.0f}",
        f"compiling took {r['compile_seconds']:.1f} s; first update {r['first_update_seconds']:.1f} s after the start",
        f"work: {r['flops_per_step'] / 1e3:,.0f} kFLOP a step, {_giga(r['achieved_flops'])}FLOP/s achieved",
        f"{100 * r['fraction_of_ceiling']:.0f} % of the {_giga(r['ceiling_flops'])}FLOP/s that a product of this shape "
        f"reaches here (a copy: {_giga(r['ceiling_bytes'])}B/s)",
    ]


def _giga(x: float) -> str:
    return f"{x / 1e12:,.1f} T" if x >= 1e12 else f"{x / 1e9:,.1f} G"


def _close(result: Tensor, reference: Tensor) -> bool:
    """Whether two fp32 products agree to rounding; bf16 units would not."""
    return bool((result - reference).norm() <= 1e-5 * reference.norm())


def _now(device: torch.device) -> float:
    """The clock, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _best(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Least seconds a call, over LEAST_BURSTS of BURST calls or more, for `seconds`; on a GPU they are captured."""
    burst: Callable[[], Any] = lambda: [function() for _ in range(BURST)]  # noqa: E731
    burst()
    if device.type == "cuda":
        burst = _captured(burst)
    best, end = float("inf"), time.perf_counter() + seconds
    for done in itertools.count(1):
        start = _now(device)
        burst()
        now = _now(device)
        best = min(best, (now - start) / BURST)
        if now >= end and done >= LEAST_BURSTS:
            break
    return best


def _captured(function: Callable[[], Any]) -> Callable[[], Any]:
    """A function as a CUDA graph: small kernels launched one by one would show the host's speed, not the device's."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
