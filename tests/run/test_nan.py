"""NaN and infinity: caught in their iteration, named, never in a weight, kept in a crash file that shows them again."""

import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from victims import INCIDENTAL, REPOSITORY, difference, newest, only_run, whole_rows

from ppo_fast import replay, train as program
from ppo_fast.algorithm.adam import Learner
from ppo_fast.algorithm.statistics import Metrics
from ppo_fast.engine.iteration import Iteration
from ppo_fast.run import checkpoint
from ppo_fast.train import Agent, Args, train

T, N, MINIBATCHES, EPOCHS = 8, 4, 2, 2


def small(root: Path, **flags: Any) -> Args:
    values: dict[str, Any] = {"num_envs": N, "num_steps": T, "hidden_sizes": (8,), "num_minibatches": MINIBATCHES}
    values |= {"update_epochs": EPOCHS, "total_timesteps": T * N * 8, "eval_episodes": 0, "compile": "off"}
    values |= {"quiet": True, "run_root": str(root), "norm_obs": True, "norm_reward": True, "save_interval": 3}
    return Args(**{**values, **flags})


GIVEN = ("obs", "final_obs", "reward")  # by environments
KINDS = (*GIVEN, "value", "gradient")


class Fault(NamedTuple):
    """What is broken, and where: in iteration `at` (from 0), in the `which`-th call where there are several."""

    kind: str
    value: float
    at: int
    t: int
    n: int
    which: int


class Injection:
    """Breaks something in a run, `times` times, and notes the state before every iteration and minibatch."""

    def __init__(self, fault: Fault, patch: pytest.MonkeyPatch, times: int = 1) -> None:
        self.fault, self.left = fault, times
        self.iteration, self.calls = -1, 0
        self.before: list[dict[str, Tensor]] = []  # the state that each iteration started from
        self.thetas: list[Tensor] = []  # and each minibatch of the last iteration
        make, value, descend = program.make_iteration, Agent.value, program.descend

        def spoiled_descend(args: Args, learner: Learner, gradient: Tensor, losses: Tensor) -> Tensor:
            return descend(args, learner, self.gradient(learner.theta, gradient), losses)

        patch.setattr(program, "make_iteration", lambda *args: self.watch(make(*args)))
        patch.setattr(Agent, "value", lambda agent, obs: self.value(value(agent, obs)))
        patch.setattr(program, "descend", spoiled_descend)

    def watch(self, iteration: Iteration) -> Iteration:
        self.state, collect, learn = iteration.state, iteration.collect, iteration.learn

        def watched_collect() -> None:
            self.before.append({name: x.clone() for name, x in iteration.state.all().items()})
            collect()
            if self.is_due(*GIVEN):
                iteration.state.rollout[self.fault.kind][self.fault.t, self.fault.n] = self.fault.value

        def watched_learn() -> Metrics:
            self.iteration, self.calls, self.thetas = self.iteration + 1, 0, []
            return learn()

        iteration.collect, iteration.learn = watched_collect, watched_learn
        return iteration

    def is_due(self, *kinds: str) -> bool:
        return bool(self.left) and self.fault.kind in kinds and len(self.before) - 1 == self.fault.at

    def value(self, value: Tensor) -> Tensor:
        if value.ndim == 2 and self.is_due("value"):
            value = value.clone()
            value[self.fault.t, self.fault.n].fill_(self.fault.value)
        return value

    def gradient(self, theta: Tensor, gradient: Tensor) -> Tensor:
        self.thetas.append(theta.clone())
        self.calls += 1
        if self.calls - 1 == self.fault.which and self.is_due("gradient"):
            gradient[self.fault.t].fill_(self.fault.value)
        return gradient


def draw(choose: random.Random, kind: str) -> Fault:
    value = choose.choice([math.nan, math.inf, -math.inf])
    return Fault(kind, value, choose.randrange(6), choose.randrange(T), choose.randrange(N), choose.randrange(4))


def assert_names_a_line(said: str) -> None:
    """The operation stands at a line of the package, which is quoted."""
    pattern = r"first bad tensor in the update: the result \(.*\) of \S+ at (\w+\.py):(\d+) in \S+: (.+)"
    found = re.fullmatch(pattern, said)
    assert found, said
    [path] = (REPOSITORY / "ppo_fast").rglob(found[1])
    assert path.read_text().splitlines()[int(found[2]) - 1].strip() == found[3]


LEARNED = ("theta", "moment1", "moment2", "step", "learning_rate", "agent.normalize_obs.moments.mean")


def break_a_run(root: Path, fault: Fault, patch: pytest.MonkeyPatch) -> None:
    injection = Injection(fault, patch)
    with pytest.raises(FloatingPointError) as caught:
        train(small(root))
    text, run = str(caught.value), only_run(root)
    # In that iteration, with the environment's name.
    assert len(injection.before) == fault.at + 1 and text.startswith(f"step {fault.at * T * N}: ")
    if fault.kind == "value":
        assert f"advantage of environment {fault.n} is " in text
    if fault.kind in GIVEN:
        assert f"{fault.kind} of environment {fault.n} is {fault.value} at rollout step {fault.t}" in text
    # No weight, no moment of Adam's and no statistic has taken it in: all is as it was before that minibatch.
    if fault.kind == "gradient":
        assert len(injection.thetas) >= fault.which + 1
        learned = injection.state.learned
        assert torch.equal(learned["theta"], injection.thetas[fault.which])
        assert int(learned["step"] - injection.before[-1]["step"]) == fault.which
        assert learned["moment1"].isfinite().all() and learned["moment2"].isfinite().all()
    else:
        kept = {name: injection.state.learned[name] for name in LEARNED}
        assert difference(kept, {name: injection.before[-1][name] for name in kept}) is None
    # The record ends before it.
    rows, torn = whole_rows(run)
    assert torn == 0 and [row["global_step"] for row in rows] == [T * N * (i + 1) for i in range(fault.at)]
    # The crash file shows it again.
    path = run / f"crash-{fault.at * T * N}.pt"
    assert f"python -m ppo_fast.replay {path}" in text
    injection.before = injection.before[: fault.at]
    said = replay.replay(checkpoint.load(path))
    assert said[0].startswith(f"written after {fault.at} iterations")
    made = fault.which if fault.kind == "gradient" else 0
    assert said[3] == f"update reproduced; {made} minibatches went well before it", said
    if fault.kind in GIVEN:
        assert said[2].endswith(f"{fault.kind} of environment {fault.n} is {fault.value} at rollout step {fault.t}")
        # The update itself made nothing bad of something good.
        assert said[4] == "first bad tensor in the update: none"
    else:
        # The injection is no file of the package: what is named is the line there that called it.
        assert_names_a_line(said[4])


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    break_a_run(tmp_path, draw(random.Random(len(kind)), kind), monkeypatch)


@pytest.mark.thorough
def test_one_bad_number_often(tmp_path: Path, reliability_count: int) -> None:
    choose, count = random.Random(9), max(52, reliability_count)
    for attempt in range(count):
        kind = KINDS[attempt % len(KINDS)]
        with pytest.MonkeyPatch.context() as patch:
            break_a_run(tmp_path / str(attempt), draw(choose, kind), patch)
    print(f"{count} injections: each caught in its iteration, named, no weight changed, replayed")


def test_a_loss_that_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is finite until the square of an error: replay names the operation in the program's own line."""
    make = program.make_iteration

    def with_a_huge_reward(*args: Any, **flags: Any) -> Any:
        iteration = make(*args, **flags)
        collect = iteration.collect

        def collect_too_much() -> None:
            collect()
            iteration.state.rollout["reward"].fill_(1e30)

        iteration.collect = collect_too_much
        return iteration

    monkeypatch.setattr(program, "make_iteration", with_a_huge_reward)
    with pytest.raises(FloatingPointError, match="losses or gradients are not finite"):
        train(small(tmp_path, norm_reward=False, clip_vloss=False))
    monkeypatch.undo()
    said = replay.replay(checkpoint.load(only_run(tmp_path) / "crash-0.pt"))
    assert said[2] == "first bad tensor in the rollout: none"
    assert "ppo.py:" in said[4] and "pow" in said[4], said[4]


def test_parameters_that_diverge_end_the_run(tmp_path: Path) -> None:
    """The rate itself is the fault: minibatches go well until one does not, and none of it is saved."""
    with pytest.raises(FloatingPointError, match="crash-"):
        train(small(tmp_path, learning_rate=1e38, anneal_lr=False, save_interval=1))
    crash = checkpoint.load(next(only_run(tmp_path).glob("crash-*.pt")))
    assert replay.replay(crash)[3].startswith("update reproduced")
    for path in (only_run(tmp_path) / "checkpoints").glob("*.pt"):
        assert all(x.isfinite().all() for x in checkpoint.load(path)["ranks"][0]["tensors"].values())


def test_an_environment_that_gives_nan(tmp_path: Path) -> None:
    """From a real environment to what a user types next."""
    flags: dict[str, Any] = {"env_id": "odd_envs:NanReward-v0", "num_envs": 2, "total_timesteps": 800}
    with pytest.raises(FloatingPointError) as caught:
        train(small(tmp_path, **flags))
    crash = only_run(tmp_path) / "crash-32.pt"
    where = f"python -m ppo_fast.replay {crash} shows more"
    assert str(caught.value) == f"step 32: reward of environment 0 is nan at rollout step 3; {where}"
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ppo_fast.replay", str(crash)]
    shown = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "first bad tensor in the rollout: reward of environment 0 is nan at rollout step 3" in shown.stdout
    assert "update reproduced; 0 minibatches went well before it" in shown.stdout


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "text", "checkpoint", "foreign program", "no tensors", "other network"]
)
def test_a_file_that_is_no_crash_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "crash.pt"
    payload = {"finding": "x", "program": "ppo_fast.train", "flags": {}, "stream": torch.zeros(3), "at": 0}
    payload["tensors"] = {"theta": torch.zeros(3), "step": torch.zeros(())}
    contents = {
        "checkpoint": {"program": "ppo_fast.train", "flags": {}},
        "foreign program": {**payload, "program": "os"},
        "other network": payload,
        "no tensors": {key: x for key, x in payload.items() if key != "tensors"},
    }
    if kind in contents:
        checkpoint.write(path, contents[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    monkeypatch.setattr(sys, "argv", ["replay", str(path)])
    with pytest.raises(SystemExit) as stop:
        replay.cli.run(replay.main, replay.Args, "test")
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.startswith("error: file: ") and err.count("\n") == 1, err


# ---------------------------------------------------------------- --on-nan rollback


@pytest.mark.parametrize("schedule", ["linear", "kl"])
def test_rollback_goes_on_from_the_last_checkpoint_at_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at, interval = 5, 3
    injection = Injection(Fault("reward", math.nan, at, 2, 1, 0), monkeypatch)
    result = train(small(tmp_path, on_nan="rollback", lr_schedule=schedule, desired_kl=1e9))
    assert result["global_step"] == 8 * T * N
    run = only_run(tmp_path)
    # Iterations 0 to 5, of which 5 breaks down; back to the checkpoint after 3 of them.
    starts = [int(state["step"]) // (MINIBATCHES * EPOCHS) for state in injection.before]
    assert starts == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    back = ("learning_rate", *(name for name in injection.before[3] if name.startswith(("rollout.", "advantage"))))
    before, after = (
        {k: x for k, x in state.items() if k not in back} for state in (injection.before[3], injection.before[6])
    )
    assert difference(before, after) is None
    rows, torn = whole_rows(run)
    assert torn == 0 and [row["global_step"] for row in rows] == [T * N * (i + 1) for i in range(8)]
    rates = [row["charts/learning_rate"] for row in rows]
    if schedule == "linear":
        assert rates == pytest.approx([2.5e-3 * (1 - i / 8) * (0.5 if i >= interval else 1) for i in range(8)])
    else:
        assert float(injection.before[6]["learning_rate"]) == float(injection.before[3]["learning_rate"]) / 2
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1 and "reward of environment 1 is nan at rollout step 2" in err
    assert (run / f"crash-{at * T * N}.pt").exists()
    assert newest(run)["progress"]["rollbacks"] == 1


@pytest.mark.parametrize("schedule", ["linear", "kl"])
def test_three_rollbacks_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault that is always there, after one that was not: to a checkpoint saved after a rollback it is half again."""
    make, rates = program.make_iteration, []

    def sick(*args: Any, **flags: Any) -> Any:
        iteration = make(*args, **flags)
        state, collect = iteration.state, iteration.collect
        tries = {4: 1, 6: 9}  # the fifth iteration fails once, the seventh always

        def collect_and_spoil() -> None:
            collect()
            done = int(state.learned["step"]) // (MINIBATCHES * EPOCHS)
            rates.append((done, float(state.learned["learning_rate"])))
            if tries.get(done, 0):
                tries[done] -= 1
                state.rollout["obs"][1, 2, 0] = math.inf

        iteration.collect = collect_and_spoil
        return iteration

    monkeypatch.setattr(program, "make_iteration", sick)
    constant = {"lr_schedule": schedule, "desired_kl": 1e9, "anneal_lr": False}
    with pytest.raises(FloatingPointError, match=r"step 192: obs of environment 2 is inf .*\(after 3 rollbacks\)"):
        train(small(tmp_path, on_nan="rollback", save_interval=2, **constant))
    if schedule == "linear":
        assert [rate for done, rate in rates if done == 6] == pytest.approx([2.5e-3 / 2, 2.5e-3 / 4, 2.5e-3 / 8])
    else:  # each rollback halves what the checkpoint holds once for each rollback since
        saved = rates[next(i for i, (done, _) in enumerate(rates) if done == 6)][1]
        assert [rate for done, rate in rates if done == 6] == pytest.approx([saved, saved / 2, saved / 4])
    assert capsys.readouterr().err.count("warning: ") == 3
    rows, torn = whole_rows(only_run(tmp_path))
    assert torn == 0 and [row["global_step"] for row in rows] == [T * N * (i + 1) for i in range(6)]


def test_rollback_before_the_first_interval_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Injection(Fault("value", math.nan, 1, 0, 0, 0), monkeypatch)
    result = train(small(tmp_path, on_nan="rollback", save_interval=100))
    assert result["global_step"] == 8 * T * N
    assert [row["global_step"] for row in whole_rows(only_run(tmp_path))[0]] == [T * N * (i + 1) for i in range(8)]


def test_rollback_right_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(tmp_path, max_runtime=1e-9, save_interval=100))
    with monkeypatch.context() as patch:
        Injection(Fault("obs", math.nan, 2, 0, 0, 0), patch)
        train(Args(resume=str(only_run(tmp_path)), on_nan="rollback"))
    rows, _ = whole_rows(only_run(tmp_path))
    assert [row["global_step"] for row in rows] == [T * N * (i + 1) for i in range(8)]


def test_on_nan_rollback_changes_nothing_where_nothing_breaks(tmp_path: Path) -> None:
    train(small(tmp_path / "stop"))
    train(small(tmp_path / "rollback", on_nan="rollback"))
    stop, rollback = only_run(tmp_path / "stop"), only_run(tmp_path / "rollback")
    kept = newest(stop)
    assert kept["flags"].pop("on_nan") == "stop"
    # The process-wide generators have gone on in between.
    assert difference(kept["ranks"], newest(rollback)["ranks"], (*INCIDENTAL, "rng")) is None


def test_a_full_disk_leaves_no_crash_file_but_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Injection(Fault("reward", math.nan, 2, 0, 3, 0), monkeypatch)
    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(
        FloatingPointError, match=r"reward of environment 3 is nan .* no crash file was written \(.*No space"
    ):
        train(small(tmp_path))
