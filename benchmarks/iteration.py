"""One measurement of `benchmarks.throughput`, in a process of its own: ppo_fast's iteration at one size.

It takes a `Point` as JSON on its command line and prints its report as one JSON line, last on stdout.
"""

import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_ppo_fast import our_args
from benchmarks.work import Work

if TYPE_CHECKING:  # torch is imported where something is measured
    import torch

    from ppo_fast.engine.iteration import Iteration

BUSY = "beside a busy process"
BUSY_SECONDS = 0.1  # until it is at work
LEAST_SECONDS = 0.2  # of a timed stretch: the clock and the scheduler shall not count


@dataclass(frozen=True)
class Point(Work):
    """The work of the comparison with the peers, and how it is to be run; `iterations` is not used."""

    env_id: str = "CartPole-v1"
    backend: str = "tensor"
    compile: bool = True
    against_eager: bool = False
    busy: bool = False
    """measure it beside a process that keeps one core busy, too"""
    rounds: int = 10
    seconds: float = 1.0
    """of each timed stretch"""


def measure(point: Point) -> dict[str, Any]:
    """Build the iteration as the program does and time it: SPS, the seconds of its halves, memory and the ceiling."""
    import torch

    from ppo_fast import train
    from ppo_fast.engine import caches, process, speed
    from ppo_fast.engine.engine import Engine
    from ppo_fast.engine.ranks import Ranks

    args = dataclasses.replace(
        our_args(point, ""), env_id=point.env_id, backend=point.backend, compile="on" if point.compile else "off"
    )
    device = process.prepare(args)
    for line in caches.for_compiled_code():
        print(line)
    envs, agent, learner = train.setup(args, device)
    start = time.perf_counter()
    engine = Engine(args, Ranks(device), "compiled" if point.compile else "eager")
    iteration = train.make_iteration(args, envs, agent, learner, engine)
    compile_seconds = time.perf_counter() - start
    training = whole(iteration, device)

    limit = speed.ceiling(device, args.batch_size // args.num_minibatches, max(args.hidden_sizes), 0.5)
    count = calls_for(training, point.seconds, device)
    first_step = {name: iteration.state.rollout[name][0][:8] for name in ("obs", "action")}
    flops = speed.flops_per_step(agent, first_step["obs"], first_step["action"], args.update_epochs)
    contenders: dict[str, Callable[[], Any]] = {"training": training}
    counts = {"training": count}
    if point.against_eager:
        uncompiled = dataclasses.replace(args, compile="off")
        engine = Engine(uncompiled, Ranks(device), "eager")
        slow = train.make_iteration(uncompiled, *train.setup(uncompiled, device), engine)
        contenders["eager"] = whole(slow, device)
    if point.busy:
        contenders[BUSY] = training
    elif point.backend != "tensor":
        contenders = beside_its_environment(point, envs, iteration)
        counts = dict.fromkeys(contenders, count)
    rates = alternate(contenders, args.batch_size, counts, point, device)
    halves = seconds_of_halves(iteration, count, device)
    kept = [x for name, x in iteration.state.rollout.items() if name in train.Rollout._fields]
    envs.close()
    sps = statistics.median(rates["training"])
    return {
        "sps": sps,
        "rates": rates,
        "milliseconds": {name: 1e3 * seconds for name, seconds in halves.items()},
        "rollout_bytes_per_step": sum(x.nbytes for x in kept) / args.batch_size,
        "peak_bytes_per_step": peak_bytes(device) / args.batch_size,
        "flops_per_step": flops,
        "flops_per_second": sps * flops,
        "ceiling_flops": limit.flops_per_second,
        "ceiling_bytes": limit.bytes_per_second,
        "fraction_of_ceiling": sps * flops / limit.flops_per_second,
        "compile_seconds": compile_seconds,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
    }


def whole(iteration: "Iteration", device: "torch.device") -> Callable[[], object]:
    """An iteration with the one look at its metrics that a training run makes."""
    from ppo_fast.engine.ranks import Ranks
    from ppo_fast.run import readout

    ranks = Ranks(device)

    def run() -> None:
        iteration.collect()
        readout.read(iteration.learn(), ranks, stop=False, late=False)

    return run


def beside_its_environment(point: Point, envs: Any, iteration: "Iteration") -> dict[str, Callable[[], Any]]:
    """An iteration of training, and exactly the steps that it took once more: by gymnasium's or envpool's own vector
    environment, and by ours around it. Each iteration has to be repeated once by each.

    Equal seeds and equal actions lead to equal states, as long as no episode ends. They have to be: a robot in contact
    with the ground costs twice as much as one in the air, an episode that ends has to be reset.
    """
    from ppo_fast import envs as environments
    from ppo_fast.envs.spaces import ActionDecoder
    from ppo_fast.train import Args

    bounds = Args.action_bounds  # as the program has it without a flag
    bare = bare_environment(point, envs.spread(point.seed))
    ours = environments.make(point.env_id, point.num_envs, envs.device, point.backend, action_bounds=bounds)
    ours.reset(seed=point.seed)
    assert iteration.restart is not None, "environments on the host"
    iteration.restart(point.seed)
    train_once = whole(iteration, envs.device)
    decode = ActionDecoder(envs.envs.single_action_space, point.batch_size, "", bounds)
    to_repeat: dict[str, deque] = {"bare": deque(), "ours": deque()}

    def training() -> None:
        train_once()
        actions = iteration.state.rollout["action"].clone()
        to_repeat["ours"].append(actions.unbind())
        to_repeat["bare"].append(np.split(decode(actions.flatten(0, 1)), point.num_steps))

    def alone() -> None:
        for row in to_repeat["bare"].popleft():
            bare.step(row)

    def in_tensors() -> None:
        for row in to_repeat["ours"].popleft():
            ours.step(row)

    return {"training": training, "environment": alone, "environment in tensors": in_tensors}


def bare_environment(point: Point, seeds: Any) -> Any:
    """The vector environment as its own package makes it, reset, with as many threads as there are cores."""
    if point.backend == "envpool":
        import warnings

        import envpool

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gymnasium, about rounded bounds
            threads = {"num_threads": min(point.num_envs, len(os.sched_getaffinity(0)))}
            pool = envpool.make_gymnasium(point.env_id, num_envs=point.num_envs, seed=seeds, **threads)
            _ = pool.observation_space  # made when it is first looked at
        pool.reset()
        return pool
    import gymnasium

    mode = {"entry_point": "vector_entry_point"}.get(point.backend, point.backend)
    envs = gymnasium.make_vec(point.env_id, point.num_envs, vectorization_mode=mode)
    envs.reset(seed=seeds)
    return envs


def alternate(
    contenders: dict[str, Callable[[], Any]], batch_size: int, counts: dict[str, int], point: Point, device: Any
) -> dict[str, list[float]]:
    """SPS of each contender in each of `rounds` rounds, all of them measured in every round, in alternating order,
    unless one of them repeats what another did before."""
    turns = "environment" not in contenders
    counts = {name: counts.get(name) or calls_for(call, point.seconds, device) for name, call in contenders.items()}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(point.rounds):
        for name in list(contenders)[:: -1 if turns and index % 2 else 1]:
            with busy_process() if name == BUSY else contextlib.nullcontext():
                seconds = timed(contenders[name], counts[name], device)
            rates[name].append(counts[name] * batch_size / seconds)
    return rates


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A second process that does nothing but compute, for as long as the block runs."""
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        time.sleep(BUSY_SECONDS)
        try:
            yield
        finally:
            process.kill()


def calls_for(call: Callable[[], Any], seconds: float, device: Any) -> int:
    """How often to call to fill `seconds`; it has been called a few times then and is warm."""
    call()
    count, spent = 1, timed(call, 1, device)
    while spent < min(LEAST_SECONDS, seconds):
        count *= 2
        spent = timed(call, count, device)
    return max(1, round(count * seconds / spent))


def timed(call: Callable[[], Any], count: int, device: Any) -> float:
    """Seconds of `count` calls, with what they left to the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return time.perf_counter() - start


def seconds_of_halves(iteration: "Iteration", count: int, device: Any) -> dict[str, float]:
    """Mean seconds of each half over `count` iterations, each waited for."""
    spent = {"collect": 0.0, "learn": 0.0}
    for _ in range(count):
        spent["collect"] += timed(iteration.collect, 1, device)
        spent["learn"] += timed(iteration.learn, 1, device)
    return {name: seconds / count for name, seconds in spent.items()}


def synchronize(device: Any) -> None:
    """Wait until the device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: Any) -> int:
    """The most memory in use so far: of the device's allocator, or of this process, the interpreter included."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    given = Point.from_json(sys.argv[1])
    assert isinstance(given, Point)
    print("\n" + json.dumps(measure(given)), flush=True)
