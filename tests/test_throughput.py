"""benchmarks.throughput: what is measured at which size, what is derived and what is written. Nothing is timed."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import iteration, peers, throughput
from benchmarks.iteration import Point
from benchmarks.peer_ppo_fast import our_args
from ppo_fast import envs as environments, train
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.ranks import Ranks

CPU = torch.device("cpu")
ROOMY = 10**15
TINY = {"num_envs": 8, "num_steps": 4, "iterations": 1, "compile": False, "rounds": 2, "seconds": 0.001}


def report(**other: Any) -> dict[str, Any]:
    """What a measuring process prints."""
    return {
        "sps": 200_000.0,
        "rates": {"training": [100_000.0, 200_000.0, 300_000.0]},
        "milliseconds": {"collect": 10.0, "learn": 30.0},
        "rollout_bytes_per_step": 51.0,
        "peak_bytes_per_step": 2_048.0,
        "flops_per_step": 227_200.0,
        "flops_per_second": 45.44e9,
        "ceiling_flops": 300e9,
        "ceiling_bytes": 50e9,
        "fraction_of_ceiling": 0.15147,
        "compile_seconds": 31.4,
        "device": "cpu",
        "threads": 2,
        **other,
    }


def test_rollouts_shrink_until_a_batch_fits() -> None:
    args = throughput.Args()
    assert [throughput.steps_for(n, args, ROOMY) for n in args.num_envs] == [128, 128, 128, 128, 64, 16]
    memory = 4 * throughput.BYTES_PER_STEP * 64 * 100  # 100 rows for each of 64 environments
    assert throughput.steps_for(64, args, memory) == 64
    assert throughput.steps_for(64 * 101, args, memory) == 0


def test_points_say_what_differs_from_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    args = throughput.Args(num_envs=(64, 65_536, 2**21), against="eager", rounds=12, seconds=0.5)
    found = throughput.points(args, ROOMY)
    assert [(point.num_envs, point.num_steps) for point in found] == [(64, 128), (65_536, 16)]
    assert all(p.against_eager and p.compile and (p.rounds, p.seconds) == (12, 0.5) for p in found)
    assert (found[0].update_epochs, found[0].num_minibatches, found[0].hidden) == (4, 4, (64, 64))
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "65,536 environments: 16 steps instead of 128, so that a batch fits",
        "2,097,152 environments do not fit and are left out",
    ]


def test_a_point_survives_the_command_line() -> None:
    point = Point(**TINY, backend="sync", against_eager=True)
    assert Point.from_json(point.to_json()) == point


def test_free_memory_is_told() -> None:
    assert 2**20 < throughput.free_bytes(cuda=False) < 2**50


def test_ratio_is_taken_within_a_round() -> None:
    rates = {"training": [400.0, 200.0, 500.0], "eager": [100.0, 40.0, 100.0]}
    found = throughput.derived(Point(**TINY), report(rates=rates))
    assert found["ratio"] == {"median": 5.0, "min": 4.0, "max": 5.0, "rounds": [4.0, 5.0, 5.0]}
    assert found["spread"]["eager"] == {"median": 100.0, "min": 40.0, "max": 100.0}
    assert "bottleneck" not in found and "ratio" not in throughput.derived(Point(**TINY), report())


@pytest.mark.parametrize(
    ("bare", "wrapped", "collect", "learn", "bottleneck"),
    [
        (32.0, 33.0, 40.0, 8.0, "environment"),
        (2.0, 22.0, 30.0, 8.0, "conversion to tensors"),
        (2.0, 3.0, 30.0, 8.0, "policy"),
        (2.0, 3.0, 10.0, 28.0, "learning"),
    ],
)
def test_bottleneck_is_the_largest_part(
    bare: float, wrapped: float, collect: float, learn: float, bottleneck: str
) -> None:
    point = Point(**TINY, backend="sync")  # 32 steps an iteration: 1000 SPS take 32 ms
    rates = {
        "training": [32e3 / (collect + learn)] * 3,
        "environment": [32e3 / bare] * 3,
        "environment in tensors": [32e3 / wrapped] * 3,
    }
    made = report(rates=rates, milliseconds={"collect": collect, "learn": learn})
    found = throughput.derived(point, made)
    assert found["bottleneck"] == bottleneck
    assert sum(found["milliseconds_by_part"].values()) == pytest.approx(collect + learn)
    assert found["of_environment"]["median"] == pytest.approx(bare / (collect + learn))
    said = throughput.environment_lines(point, {**made, **found})
    assert bottleneck in said[1].rpartition("bottleneck: ")[2]


def test_contenders_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def timed(call: Any, count: int, device: Any) -> float:
        call()
        return 0.5 * count

    monkeypatch.setattr(iteration, "timed", timed)
    contenders = {"training": lambda: order.append("training"), "eager": lambda: order.append("eager")}
    point = Point(**{**TINY, "rounds": 3})
    rates = iteration.alternate(contenders, 32, {"training": 4, "eager": 2}, point, CPU)
    assert order == ["training", "eager", "eager", "training", "training", "eager"]
    assert rates == {"training": [64.0] * 3, "eager": [64.0] * 3}


def test_a_busy_process_runs_during_its_rounds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def children() -> int:
        listed = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in listed]
        return sum(state == "R" for state in states)

    before, seen = children(), {"training": set(), iteration.BUSY: set()}
    contenders = {name: lambda name=name: seen[name].add(children() - before) for name in seen}
    counts = dict.fromkeys(seen, 2)
    iteration.alternate(contenders, 32, counts, Point(**TINY, busy=True), CPU)
    assert seen == {"training": {0}, iteration.BUSY: {1}} and children() == before
    rates = {"training": [300.0, 200.0, 500.0], iteration.BUSY: [100.0, 100.0, 100.0]}
    assert throughput.derived(Point(**TINY), report(rates=rates))["lost_beside_busy"]["median"] == 3.0


def test_envpool_is_measured_alone_too() -> None:
    """The pool itself, with the program's environment around it; a step of either moves all environments on."""
    point = Point(**TINY, backend="envpool", env_id="Pendulum-v1")
    found = iteration.measure(point)
    assert set(found["rates"]) == {"training", "environment", "environment in tensors"}
    bare = iteration.bare_environment(point, 1)
    assert bare.step(np.zeros((8, 1), np.float32))[0].shape == (8, 3)


@pytest.mark.parametrize(("backend", "env_id"), [("envpool", "Pendulum-v1"), ("sync", "Pendulum-v1")])
def test_environments_alone_repeat_the_steps_of_training(
    monkeypatch: pytest.MonkeyPatch, backend: str, env_id: str
) -> None:
    """Bare and in tensors they end in the very state that training is in: same seeds, same actions, mapped to ±2."""
    point = Point(**TINY, backend=backend, env_id=env_id)
    args = dataclasses.replace(our_args(point, ""), env_id=env_id, backend=backend, compile="off", log_std_init=2.0)
    envs, agent, learner = train.setup(args, CPU)
    path = train.make_iteration(args, envs, agent, learner, Engine(args, Ranks(CPU), "eager"))
    iteration.whole(path, CPU)()  # it may have been anywhere before
    seen: dict[str, Any] = {}
    for name in ("bare_environment", "make"):
        module: Any = iteration if name == "bare_environment" else environments
        made = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, made=made, **kw: seen.setdefault(name, made(*a, **kw)))
    contenders = iteration.beside_its_environment(point, envs, path)
    assert list(contenders) == ["training", "environment", "environment in tensors"]
    for calls in (1, 3):
        for call in contenders.values():
            for _ in range(calls):
                call()
    still = torch.zeros(8, 1)
    there = envs.step(still)[0]
    assert path.state.rollout["action"].abs().max() > 2
    assert torch.equal(seen["make"].step(still)[0], there)
    np.testing.assert_allclose(seen["bare_environment"].step(still.numpy())[0], there.numpy(), atol=1e-6)


@pytest.mark.parametrize(("call_seconds", "calls"), [(0.001, 1000), (0.15, 7), (30.0, 1)])
def test_a_stretch_is_filled_with_calls(monkeypatch: pytest.MonkeyPatch, call_seconds: float, calls: int) -> None:
    monkeypatch.setattr(iteration, "timed", lambda call, count, device: count * call_seconds)
    assert iteration.calls_for(lambda: None, 1.0, CPU) == calls


def test_halves_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    halves: Any = SimpleNamespace(collect=lambda: 3.0, learn=lambda: 5.0)
    monkeypatch.setattr(iteration, "timed", lambda call, count, device: count * call())
    assert iteration.seconds_of_halves(halves, 4, CPU) == {"collect": 3.0, "learn": 5.0}


@pytest.fixture(scope="module")
def tensor_report() -> Iterator[dict[str, Any]]:
    yield iteration.measure(Point(**TINY, against_eager=True))


def test_a_measurement_is_complete(tensor_report: dict[str, Any]) -> None:
    found = tensor_report
    assert {name: len(rates) for name, rates in found["rates"].items()} == {"training": 2, "eager": 2}
    assert json.loads(json.dumps(found)) == found
    # obs and final_obs 16 bytes each, action 8, log_prob and reward 4 each, two flags.
    assert found["rollout_bytes_per_step"] == 16 + 16 + 8 + 4 + 4 + 2
    assert found["flops_per_step"] == 227_200
    assert found["flops_per_second"] == pytest.approx(found["sps"] * 227_200)
    assert found["fraction_of_ceiling"] == pytest.approx(found["flops_per_second"] / found["ceiling_flops"])
    assert found["peak_bytes_per_step"] * 32 > 2**20 and found["device"] == "cpu"
    assert all(x > 0 for x in found["milliseconds"].values())


def test_a_host_environment_is_measured_alone_too() -> None:
    point = Point(**TINY, backend="sync")
    found = iteration.measure(point)
    assert set(found["rates"]) == {"training", "environment", "environment in tensors"}
    derived = throughput.derived(point, found)
    assert derived["bottleneck"] in derived["milliseconds_by_part"]


def test_whole_benchmark_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def fake(row: peers.Contender, timeout: float) -> dict[str, Any]:
        asked.append((row.module, row.work.num_envs, row.work.num_steps))
        return report(rates={"training": [2e5, 4e5], "eager": [1e5, 1e5]})

    monkeypatch.setattr(peers, "run_contender", fake)
    monkeypatch.setattr(throughput, "free_bytes", lambda cuda: ROOMY)
    record = throughput.run(throughput.Args(num_envs=(64, 256), against="eager", out=tmp_path / "results"))
    assert asked == [("benchmarks.iteration", 64, 128), ("benchmarks.iteration", 256, 128)]
    (path,) = (tmp_path / "results").glob("throughput-cpu-*.json")
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(record))
    assert [row["ratio"]["median"] for row in written["results"]] == [3.0, 3.0]
    assert written["machine"]["cores"] >= 1 and len(written["results"][0]["load"]) == 3
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    for figure in ("200,000", "10.00", "30.00", "51", "2,048", "45.4", "15 %", "31.4", "3.00 (2.00 to 4.00)"):
        assert figure in said, figure


@pytest.mark.slow
def test_a_measuring_process_reports(tmp_path: Path) -> None:
    """From the command line to the files: one size, eager, as short as it gets."""
    command = [sys.executable, "-m", "benchmarks.throughput", "--num-envs", "8", "--num-steps", "4", "--compile", "off"]
    command += ["--rounds", "1", "--seconds", "0.001", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=150)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    (row,) = json.loads(path.read_text())["results"]
    assert row["point"]["num_envs"] == 8 and row["sps"] > 0


@pytest.mark.parametrize(
    ("flag", "args"),
    [
        ("--num-envs", throughput.Args(num_envs=(64, 0))),
        ("--num-envs", throughput.Args(num_envs=())),
        ("--rounds", throughput.Args(rounds=0)),
        ("--seconds", throughput.Args(seconds=0.0)),
        ("--max-batch", throughput.Args(max_batch=0)),
        ("--against", throughput.Args(against="eager", compile="off")),
        ("--against", throughput.Args(against="eager", backend="sync")),
    ],
)
def test_wrong_flags_are_named(flag: str, args: throughput.Args) -> None:
    with pytest.raises(ValueError, match=f"^{flag}: "):
        throughput.check(args)


def test_nothing_that_fits_is_a_wrong_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "free_bytes", lambda cuda: 1000)
    with pytest.raises(ValueError, match=r"^--num-envs: "):
        throughput.run(throughput.Args())


def test_reader_is_warned() -> None:
    busy = {"load": [2.0, 0.0, 0.0], "OMP_NUM_THREADS": "1"}
    assert len(throughput.warnings_for(throughput.Args(against="eager", rounds=9), busy)) == 3
    quiet = {"load": [0.1, 2.0, 2.0], "OMP_NUM_THREADS": None}
    assert throughput.warnings_for(throughput.Args(rounds=9), quiet) == []
    assert throughput.warnings_for(throughput.Args(against="eager"), quiet) == []
