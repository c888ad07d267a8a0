"""ppo_fast.engine.plan: whether a run is compiled, recorded, captured or left as it is, and why, in words."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from ppo_fast.engine import plan
from ppo_fast.engine.plan import captures, compiler_on_path, decide, records, uncompiled_seconds
from ppo_fast.train import Args

CPU = torch.device("cpu")
CARD = torch.device("cuda")
PARAMETERS = 10_000

SHORT = r"about \d+ s; compiling would take longer than it saves"
SHORTEST = r"about \d+ s; recording or compiling would take longer than it saves"
NO_COMPILER = r"warning: torch.compile needs a compiler such as (gcc|g\+\+); none is found"
LONG = "a run this long saves more time than compiling takes"


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The compilers that are on the path: what a test puts in there."""
    there: set[str] = set()
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(plan.shutil, "which", lambda name: name if name in there else None)
    return there


@pytest.mark.parametrize(
    ("device", "compiling", "steps", "compiler", "mode", "reason"),
    [
        (CPU, "auto", 500_000, "g++", "recorded", SHORT),
        (CPU, "auto", 8192, "g++", "eager", SHORTEST),
        (CPU, "auto", 10**9, "g++", "compiled", LONG),
        (
            CPU,
            "auto",
            10**9,
            "gcc",
            "recorded",
            r"warning: torch.compile needs a compiler such as g\+\+; none is found",
        ),
        (CPU, "on", 8192, "clang++", "compiled", "--compile on"),
        (CPU, "on", 8192, None, "eager", NO_COMPILER),
        (CPU, "off", 10**9, "g++", "eager", "--compile off"),
        (CARD, "auto", 500_000, "gcc", "eager", SHORT),
        (CARD, "auto", 10**9, "gcc", "compiled", LONG),
        (CARD, "auto", 10**9, None, "eager", NO_COMPILER),
        (CARD, "on", 500_000, "clang", "compiled", "--compile on"),
        (CARD, "off", 10**9, "gcc", "eager", "--compile off"),
    ],
)
def test_how_a_run_goes_and_why(
    compilers: set[str], device: torch.device, compiling: Any, steps: int, compiler: str | None, mode: str, reason: str
) -> None:
    if compiler is not None:
        compilers.add(compiler)
    decided = decide(Args(compile=compiling, total_timesteps=steps), device, PARAMETERS)
    assert decided.mode == mode and re.fullmatch(reason, decided.reason), decided
    if reason == NO_COMPILER:
        assert ("g++" if device == CPU else "gcc") in decided.reason


def test_equal_flags_make_equal_plans(compilers: set[str]) -> None:
    """No clock has a say in it: equal seeds give equal runs."""
    compilers.add("g++")
    assert len({decide(Args(), CPU, PARAMETERS) for _ in range(5)}) == 1


def test_what_is_recorded() -> None:
    """On a CPU, with --compile auto, what takes longer than recording."""
    long = Args(num_envs=32, num_steps=8, total_timesteps=32 * 8 * (plan.FEW_ITERATIONS + 1))
    assert records(long, CPU)
    few = 32 * 8 * plan.FEW_ITERATIONS
    for other in (replace(long, compile="off"), replace(long, compile="on"), replace(long, total_timesteps=few)):
        assert not records(other, CPU)
    assert not records(long, CARD)


@pytest.mark.parametrize("compiling", ["auto", "on", "off"])
def test_on_a_card_everything_is_captured_but_what_is_not_to_be_compiled(compiling: Any) -> None:
    args = Args(compile=compiling)
    assert captures(args, CARD) == (compiling != "off") and not captures(args, CPU)


@pytest.mark.parametrize(("device", "variable", "own"), [(CPU, "CXX", "g++"), (CARD, "CC", "gcc")])
def test_the_compiler_may_be_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, compilers: set[str], device: torch.device, variable: str, own: str
) -> None:
    assert not compiler_on_path(device)
    compilers.add("/opt/mine")
    assert not compiler_on_path(device)
    monkeypatch.setenv(variable, "/opt/mine")
    assert compiler_on_path(device)
    monkeypatch.setenv(variable, "/opt/gone")
    assert not compiler_on_path(device)
    compilers.add(own)
    assert compiler_on_path(device)


def test_a_longer_or_larger_run_takes_longer() -> None:
    args = Args()
    seconds = uncompiled_seconds(args, PARAMETERS)
    assert 1.0 < seconds < 100.0  # CartPole's default run
    assert uncompiled_seconds(args, 2 * PARAMETERS) > seconds
    for more in (
        replace(args, total_timesteps=2 * args.total_timesteps),
        replace(args, update_epochs=2 * args.update_epochs),
        replace(args, num_minibatches=2 * args.num_minibatches),
    ):
        assert uncompiled_seconds(more, PARAMETERS) > seconds
