"""How fast a run was, and how far from what the device could do: measured, counted, and said in a few lines.

SPS are environment steps of all environments per second. The ceiling is measured too, by a matrix product and a memory
copy of this run's own shape on its own device: a figure of a data sheet is reached by no small network.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ppo_fast.engine import plan, process
from ppo_fast.engine.captured import CudaGraph
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.iteration import Iteration
from ppo_fast.engine.program import Tape
from ppo_fast.engine.ranks import Ranks
from ppo_fast.engine.tree import map_tensors, tensors
from ppo_fast.envs import Environments, State, Step

# Products in a row before the clock is looked at, so that neither launches nor the clock count.
BURST = 8
LEAST_BURSTS = 3  # one alone may have waited for a processor that another process holds
# Rows above this make a product no faster, only the measurement longer; fewer would lie in a GPU's cache.
MANY_ROWS = {"cpu": 65_536, "cuda": 2**20}
# Rows of a rollout with which the operations of the networks are counted.
FEW_ROWS = 4


class Flags(plan.Flags, Protocol):
    """What is asked of a program's flags here."""

    num_envs: int

    @property
    def precision(self) -> str: ...


class Ceiling(NamedTuple):
    """What a device reaches at best on shapes of this size."""

    flops_per_second: float
    bytes_per_second: float  # read and written


# Counted.


def flops_per_step(agent: Any, obs: Tensor, action: Tensor, epochs: int) -> float:
    """Floating point operations of products per environment step of a whole training iteration, counted exactly.

    A step passes
    - forward through the policy once, in the rollout, and through the value function once, for the advantage;
    - forward and backward through everything once an epoch.

    Not counted: elementwise work, biases, the optimiser, the one extra value at a rollout's end and those of truncated
    episodes' last observations.

    Args:
        agent: a program's, with `act(obs, None)`, `value(obs)` and `agent(obs, action)`. One with an `initial_memory`
            is given that, too, and sequences of one step instead of rows.
        obs, action: some rows, (M, ...).
        epochs: K.
    """
    memory: tuple[Tensor, ...] = ()
    if hasattr(agent, "initial_memory"):
        memory = agent.initial_memory(len(obs))
    with _taking_gradients(agent), _in_known_operations():
        rollout = _flops(lambda: agent.act(obs, None, *memory))
        advantage = _flops(lambda: agent.value(obs, *memory))
        update = _flops(lambda: _forward_and_backward(agent, obs, action, memory))
    return (rollout + advantage + epochs * update) / len(obs)


def _forward_and_backward(agent: nn.Module, obs: Tensor, action: Tensor, memory: tuple[Tensor, ...]) -> None:
    if memory:  # sequences of one step, of which none begins an episode
        first = torch.zeros(len(obs), 1, dtype=torch.bool, device=obs.device)
        found = agent(obs[:, None], action[:, None], first, *memory)
    else:
        found = agent(obs, action)
    outputs = [x.sum() for x in tensors(found) if x.requires_grad]
    torch.autograd.grad(outputs, list(agent.parameters()), allow_unused=True)


def _flops(function: Callable[[], Any]) -> int:
    """The floating point operations of a function's products and convolutions, by torch's own formulas."""
    # FlopCounterMode does the same, but its first use imports the compiler, which takes a second.
    from torch.utils.flop_counter import flop_registry

    tape = Tape()
    with tape:
        function()
    total = 0
    for call in tape.calls:
        if call.func.namespace == "ppo_fast":
            from ppo_fast.algorithm import lstm  # which a program without a memory does not import

            formula = lstm.flops
        else:
            formula = flop_registry.get(call.func.overloadpacket)
        if formula is not None:
            total += formula(*call.args, **call.kwargs, out_val=call.result)
    return total


@contextlib.contextmanager
def _taking_gradients(module: nn.Module) -> Iterator[None]:
    """With gradients on, for all parameters; the engine has them so during an update only."""
    parameters = list(module.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)


@contextlib.contextmanager
def _in_known_operations() -> Iterator[None]:
    """Layers run as the products that they are made of. As one call of a library their operations are not known."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)  # recurrent layers
    before = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):  # attention
            yield
    finally:
        for library, wanted in zip(libraries, before, strict=True):
            library.enabled = wanted


# Measured.


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
    rows = min(rows, MANY_ROWS[device.type])
    draw = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, width, generator=draw, device=device).to(dtype)
    weight = torch.randn(width, width, generator=draw, device=device).to(dtype)
    out = torch.empty_like(x)
    setting_before = torch.get_float32_matmul_precision()
    threads_before = torch.get_num_threads()
    settings = [setting_before]
    numbers_of_threads = [threads_before]
    if device.type == "cpu":
        numbers_of_threads = sorted({1, threads_before})
        if dtype == torch.float32:
            settings = ["highest", "medium"]
    share = seconds / (2 * len(settings) * len(numbers_of_threads))

    copies: list[float] = []  # seconds
    products: list[float] = []
    results: list[Tensor] = []
    try:
        for setting, threads in itertools.product(settings, numbers_of_threads):
            torch.set_float32_matmul_precision(setting)
            torch.set_num_threads(threads)
            copies.append(_best(lambda: out.copy_(x), device, share))
            products.append(_best(lambda: torch.mm(x, weight, out=out), device, share))
            results.append(out.clone())
    finally:
        torch.set_float32_matmul_precision(setting_before)
        torch.set_num_threads(threads_before)
    exact = [took for took, result in zip(products, results, strict=True) if _close(result, results[0])]
    return Ceiling(
        flops_per_second=2.0 * rows * width * width / min(exact),
        bytes_per_second=2.0 * x.numel() * x.element_size() / min(copies),
    )


def widest(flags: object, agent: nn.Module) -> int:
    """Units of the widest hidden layer; where the flags name none, as of a linear policy, the longest side of a weight.

    Networks of one's own may have flags of other names.
    """
    hidden = tuple(getattr(flags, "hidden_sizes", ()))
    sides = [max(weight.shape) for weight in agent.parameters() if weight.ndim > 1]
    return max(hidden or sides, default=1)


def measure(function: Callable[[], Any], steps: int, device: torch.device, seconds: float = 0.15) -> float:
    """SPS of a function that makes `steps` environment steps a call: called at least once, and for `seconds`."""
    calls = 0
    start = _now(device)
    while True:
        function()
        calls += 1
        elapsed = _now(device) - start  # a GPU is waited for: it would fall ever further behind
        if elapsed >= seconds:
            return calls * steps / elapsed


class Carry(NamedTuple):
    """Where tensor environments stand; see Rollouts."""

    state: State


class Given(NamedTuple):
    """What tensor environments are stepped with."""

    action: Tensor  # (T, N, ...)
    noise: Tensor  # (T, N, ...)


def step_alone(agent: object, envs: Environments, carry: Carry, given: Given) -> tuple[Carry, Step]:
    """As a program's `collect`, but with actions that are there already; the agent has nothing to do."""
    state = carry.state
    steps = []
    for action, noise in zip(given.action.unbind(), given.noise.unbind(), strict=True):
        state, step = envs.advance(state, action, noise)
        steps.append(step)
    columns = [None if column[0] is None else torch.stack(column) for column in zip(*steps, strict=True)]
    return Carry(state), Step._make(columns)


def environment_alone(flags: Flags, envs: Any, agent: nn.Module, actions: Tensor) -> float | None:
    """SPS of the environments stepped as in the run's rollouts, but without an agent.

    Tensor environments step copies of their state, recorded or captured as the run did it. None where they would first
    have to be compiled for it, which takes many seconds. Host environments are moved on.

    Args:
        actions: (T, N, ...) of a rollout, given to the environments again.
    """
    if not envs.pure:
        rows = itertools.cycle(actions.unbind())
        return measure(lambda: envs.step(next(rows)), flags.num_envs, envs.device)
    mode = plan.decide(flags, envs.device, sum(parameter.numel() for parameter in agent.parameters())).mode
    if mode == "compiled":
        return None
    engine = Engine(flags, Ranks(envs.device), mode)
    carry = map_tensors(torch.clone, Carry(envs.state))
    rollouts = engine.rollouts(step_alone, agent, envs, carry, len(actions))

    def step() -> None:
        rollouts.collect(Given(actions, envs.draw_noise(len(actions))))

    run: Callable[[], Any] = step
    if mode == "recorded":
        run = process.with_threads(step, 1)
        run()  # records
        run()  # compares what was recorded
    elif engine.captures:
        run = CudaGraph(step, [envs.generator])
    return measure(run, flags.batch_size, envs.device)


# Told.


def report(
    *,
    env_only_sps: float | None,
    inference_sps: float,
    training_sps: float,
    compile_seconds: float,
    first_update_seconds: float,
    flops: float | None,
    limit: Ceiling,
) -> dict[str, float]:
    """What result.json holds under "speed".

    Args:
        env_only_sps: of the environment stepped by itself; None leaves it out.
        inference_sps: of rollouts: environment and policy.
        training_sps: of the whole training loop, logging included.
        compile_seconds, first_update_seconds: spent on compiling; from the start of the program to its first update.
        flops: of `flops_per_step`; None leaves out what depends on it.
        limit: of `ceiling`.
    """
    # A part is at least as fast as a whole that was seen to run: they were measured one after the other, and another
    # process may have had the machine meanwhile.
    inference_sps = max(inference_sps, training_sps)
    if env_only_sps is not None:
        env_only_sps = max(env_only_sps, inference_sps)
    figures = {
        "env_only_sps": env_only_sps,
        "inference_sps": inference_sps,
        "training_sps": training_sps,
        "compile_seconds": compile_seconds,
        "first_update_seconds": first_update_seconds,
        "ceiling_flops": limit.flops_per_second,
        "ceiling_bytes": limit.bytes_per_second,
    }
    if flops is not None:
        figures["flops_per_step"] = flops
        figures["achieved_flops"] = training_sps * flops
        figures["fraction_of_ceiling"] = training_sps * flops / limit.flops_per_second
    return {name: x for name, x in figures.items() if x is not None}


def of_run(
    flags: Flags,
    envs: Any,
    agent: nn.Module,
    iteration: Iteration,
    result: Mapping[str, float],
    seconds: Mapping[str, float],
) -> dict[str, float]:
    """The report of a training run that has ended: half a second, or one rollout; the environments are moved on.

    Args:
        flags: a program's.
        envs: as `make` returns them.
        iteration: `collect()` fills a rollout of B steps; `state.rollout` holds its "obs" and "action", (T, N, ...).
        result: "sps" and "first_iteration_seconds".
        seconds: "startup" and "compile".
    """
    rollout = iteration.state.rollout
    actions = rollout["action"].clone()
    rows = flags.batch_size // flags.num_minibatches
    dtype = torch.bfloat16 if flags.precision == "bf16" else torch.float32
    flops = None
    # Somebody's own agent may take other arguments: no reason for a run to fail after it has trained.
    with contextlib.suppress(Exception):
        few_obs, few_actions = rollout["obs"][0, :FEW_ROWS], actions[0, :FEW_ROWS]
        flops = process.with_threads(flops_per_step, 1)(agent, few_obs, few_actions, flags.update_epochs)
    return report(
        env_only_sps=environment_alone(flags, envs, agent, actions),
        inference_sps=measure(iteration.collect, flags.batch_size, envs.device),
        training_sps=result["sps"],
        compile_seconds=seconds["compile"],
        first_update_seconds=seconds["startup"] + seconds["compile"] + result["first_iteration_seconds"],
        flops=flops,
        limit=ceiling(envs.device, rows, widest(flags, agent), dtype=dtype),
    )


def lines(report: Mapping[str, float]) -> list[str]:
    """The report for a reader, in four lines."""
    reached = f"with policy {report['inference_sps']:,.0f}, training {report['training_sps']:,.0f}"
    if "env_only_sps" in report:
        steps = f"steps/s: environment alone {report['env_only_sps']:,.0f}, {reached}"
    else:
        steps = f"steps/s: {reached} (environment alone: would have to be compiled first)"
    work = "work: not counted; agent.act(obs, None), agent.value(obs) or agent(obs, action) did not run"
    share = "-"
    if "flops_per_step" in report:
        kilo = report["flops_per_step"] / 1e3
        work = f"work: {kilo:,.0f} kFLOP a step, {_giga(report['achieved_flops'])}FLOP/s achieved"
        share = f"{100 * report['fraction_of_ceiling']:.0f}"
    compiling, first = report["compile_seconds"], report["first_update_seconds"]
    return [
        steps,
        f"compiling took {compiling:.1f} s; first update {first:.1f} s after the start",
        work,
        f"{share} % of the {_giga(report['ceiling_flops'])}FLOP/s that a product of this shape "
        f"reaches here (a copy: {_giga(report['ceiling_bytes'])}B/s)",
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

    def calls() -> None:
        for _ in range(BURST):
            function()

    # Small kernels launched one by one would show the host's speed, not the device's.
    burst = CudaGraph(calls, []) if device.type == "cuda" else calls
    burst()
    best = float("inf")
    done = 0
    end = time.perf_counter() + seconds
    while True:
        start = _now(device)
        burst()
        now = _now(device)
        best = min(best, (now - start) / BURST)
        done += 1
        if now >= end and done >= LEAST_BURSTS:
            return best
