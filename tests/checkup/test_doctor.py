"""The doctor names what is wrong with each of many faulty environments, and raises no alarm at sound ones."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from ppo_fast.checkup import examination, findings
from ppo_fast.doctor import Args, doctor
from ppo_fast.run import cli

ROOT = Path(__file__).resolve().parents[2]

# The environment, the kind of finding that names its fault, how bad that is.
FAULTS = [
    ("OwnLimit", "time-limit", "error"),
    ("WrittenLimit", "time-limit", "warning"),
    ("HelpersLimit", "time-limit", "warning"),
    ("SpecLimit", "time-limit", "error"),
    ("NeverEnds", "no-end", "warning"),
    ("StaleReset", "stale-reset", "error"),
    ("LostReward", "last-reward", "warning"),
    ("ReusedBuffer", "reused-buffer", "warning"),
    ("ShowsItsState", "obs-is-state", "note"),
    ("ChangesAction", "changes-action", "warning"),
    ("SeedIgnored", "seed-ignored", "warning"),
    ("UnseededSpace", "seed-ignored", "warning"),
    ("GlobalRandom", "global-random", "warning"),
    ("SharedState", "shared-state", "error"),
    ("CountedInClass", "shared-state", "error"),
    ("ResetLeaks", "reset-leaks", "warning"),
    ("NanLater", "not-finite", "error"),
    ("OutOfBounds", "outside-space", "warning"),
    ("OutOfBounds", "type", "note"),
    ("InfiniteInFloat32", "not-finite", "error"),
    ("RewardArray", "reward-array", "warning"),
    ("RewardNone", "misfit", "error"),
    ("RewardWraps", "wraps", "warning"),
    ("HugeReward", "huge-reward", "error"),
    ("HugeObservation", "huge-obs", "warning"),
    ("ConstantObservation", "constant-obs", "warning"),
    ("Wraps", "wraps", "warning"),
    ("FractionsInInts", "type", "warning"),
    ("OutsideDiscrete", "misfit", "error"),
    ("OldReset", "misfit", "error"),
    ("OldStep", "misfit", "error"),
    ("InfoNone", "misfit", "error"),
    ("WrongShape", "misfit", "error"),
    ("MissingKey", "misfit", "error"),
    ("SpaceChanges", "space-changes", "error"),
    ("DictActions", "unsupported", "error"),
    ("MaskWrongSize", "misfit", "error"),
    ("MaskInverted", "raises", "error"),
    ("MaskLate", "misfit", "error"),
    ("MaskAllowsNothing", "mask-empty", "warning"),
    ("RaisesWhenMade", "raises", "error"),
    ("RaisesAtFirst", "raises", "error"),
    ("RaisesLater", "raises", "error"),
    ("SlowReset", "slow-reset", "note"),
    ("NeedsASeed", "unseeded", "warning"),
    ("CloseRaises", "close", "warning"),
    ("CloseHangs", "close", "warning"),
    ("StepHangs", "hangs", "error"),
    ("OneAtATime", "one-instance", "warning"),
    ("NoFinalObs", "no-final-obs", "error"),
    ("FinalObsOfReset", "final-obs", "error"),
    ("NoAutoreset", "no-autoreset", "error"),
    ("NoMode", "no-autoreset-mode", "warning"),
    ("AllTheSame", "same-seeds", "error"),
    ("VectorBuffer", "reused-buffer", "warning"),
    ("VectorRewardShape", "misfit", "error"),
    ("VectorLostReward", "last-reward", "warning"),
    ("VectorNan", "not-finite", "error"),
    ("TensorLimit", "time-limit", "error"),
    ("TensorNoLimit", "limit-ignored", "warning"),
    ("NotPure", "not-pure", "error"),
]
# Alarms that a fault brings along.
ALSO = {
    "NanLater": {"reset-leaks"},
    "NoMode": {"final-obs"},
}

SOUND = [
    *("faulty_envs:Sound-v0", "faulty_envs:Masked-v0", "faulty_envs:MaskMethod-v0", "faulty_envs:DictObservation-v0"),
    *(
        "faulty_envs:SoundDials-v0",
        "faulty_envs:SoundVector-v0",
        "faulty_envs:ReturnsHome-v0",
        "faulty_envs:SoundTensor-v0",
    ),
    *("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1"),
    *("FrozenLake-v1", "Taxi-v4", "Blackjack-v1", "odd_envs:NextStep-v0", "odd_envs:TwoDials-v0", "odd_envs:Dial-v0"),
    *("ppo_fast/CartPole-v1", "ppo_fast/MemoryChain-v0", "ppo_fast/RepeatPrevious-v0", "ppo_fast/RepeatFirst-v0"),
    *("ppo_fast/PendulumNoVel-v1", "examples.point_mass:PointMass-v0"),
]
SOUND_SLOW = [
    *("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5", "Ant-v5"),
    *("Humanoid-v5", "Pusher-v5", "LunarLander-v3", "BipedalWalker-v3", "LunarLander-v2", "CheetahRun-v1"),
]


def examined(env: str, **flags: Any) -> dict[str, Any]:
    """What the doctor says, without the pace of backends and in this process."""
    return doctor(
        Args(**{"env": env, "pace": False, "apart": False, "json": True, "seconds": 10.0, "steps": 800, **flags})
    )


def alarms(found: dict[str, Any]) -> list[str]:
    """The errors and warnings, in words."""
    return [f"{x['key']}: {x['where']}: {x['what']}" for x in found["findings"] if x["severity"] != "note"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "CLOSING", 0.1)
    monkeypatch.chdir(ROOT)  # of examples/


@pytest.mark.parametrize(("name", "key", "severity"), FAULTS, ids=[f"{name}-{key}" for name, key, _ in FAULTS])
def test_fault_is_found_and_named(name: str, key: str, severity: str) -> None:
    flags: dict[str, Any] = {"seconds": 0.5, "timeout": 0.1} if name == "StepHangs" else {}
    flags |= {"steps": 100} if name == "SlowReset" else {}
    found = examined(f"faulty_envs:{name}-v0", **flags)
    of_kind = [x for x in found["findings"] if x["key"] == key]
    assert [x["severity"] for x in of_kind] == [severity], alarms(found)
    assert of_kind[0]["what"] and of_kind[0]["where"] and "\n" not in of_kind[0]["what"]
    others = {x["key"] for x in found["findings"] if x["severity"] != "note"} - {key} - ALSO.get(name, set())
    assert not others or severity == "note" or name == "OutOfBounds", alarms(found)
    assert found["exit_status"] == int(any(x["severity"] == "error" for x in found["findings"]))


@pytest.mark.parametrize("env", SOUND)
def test_no_alarm_at_a_sound_environment(env: str) -> None:
    found = examined(env)
    assert not alarms(found)
    assert found["exit_status"] == 0 and found["facts"] and not found["left_out"]


@pytest.mark.slow
@pytest.mark.parametrize("env", SOUND_SLOW)
def test_no_alarm_at_a_sound_simulator(env: str) -> None:
    assert not alarms(examined(env, seconds=60.0))


def test_where_and_what_are_told() -> None:
    found = examined("faulty_envs:RaisesLater-v0")
    (finding,) = [x for x in found["findings"] if x["severity"] == "error"]
    assert finding["where"] == "single environment, step 20"
    assert finding["what"] == "raised ZeroDivisionError: division by zero"
    assert "return 1 / (20 - self.steps)" in finding["trace"] and "checkup" not in finding["trace"]


def test_figures_are_those_of_the_steps() -> None:
    found = examined("CartPole-v1", steps=500)
    single, tensor = found["facts"]
    assert (single["subject"], tensor["subject"]) == ("single environment", "tensor environment")
    assert single["ends"]["terminated"] == 1.0 and 9 < single["ends"]["mean_length"] < 60
    assert single["reward"] == {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0, "zeros": 0.0}
    assert list(single["numbers"]) == ["obs[0]", "obs[1]", "obs[2]", "obs[3]"]
    assert single["steps"] == 500 and tensor["autoreset"] == "SAME_STEP"
    assert found["auto"] == "tensor" and found["max_episode_steps"] == 500


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    examined("faulty_envs:OwnLimit-v0", json=False)
    text = capsys.readouterr().out
    assert "error   time-limit: single environment: all" in text and "self.max_steps = 30" in text
    assert "        -> a limit of time is truncated=True" in text
    assert text.splitlines()[-1].startswith("in all          1 error, 0 warnings")


@pytest.mark.parametrize("apart", [False, True])
def test_what_an_environment_prints_is_no_answer(apart: bool, capfd: pytest.CaptureFixture[str]) -> None:
    found = examined("faulty_envs:Chatty-v0", steps=20, apart=apart)
    said = capfd.readouterr()
    assert json.loads(said.out)["env_id"] == found["env_id"] and said.err.count("step\n") >= 20


@pytest.mark.fitted
def test_what_training_sets_is_told() -> None:
    """As a run says it, of a preset and of a recipe."""
    preset = "preset        --norm-obs --norm-reward --no-clip-vloss --update-epochs 2"
    assert examined("CartPole-v1", steps=20)["training"] == [preset]
    assert "(rewards of unknown scale)" in examined("FrozenLake-v1", steps=20)["training"][0]


def test_pace_of_the_backends(capsys: pytest.CaptureFixture[str]) -> None:
    found = examined("CartPole-v1", steps=100, pace=True, pace_seconds=0.05, json=False)
    paces = {pace["backend"]: pace for pace in found["paces"]}
    assert {"tensor", "sync", "async"} <= set(paces)
    assert all(pace["steps_per_second"] > 0 for pace in paces.values()), paces
    assert "steps per second" in capsys.readouterr().out


def test_death_of_the_process_is_a_finding() -> None:
    found = examined("faulty_envs:EndsTheProcess-v0", apart=True)
    (finding,) = found["findings"]
    assert finding["key"] == "dies" and finding["what"] == "ended its process with exit code 3"
    assert finding["where"] == "single environment, step 3"
    assert found["exit_status"] == 1


def test_apart_gives_the_same_as_here() -> None:
    here = examined("faulty_envs:OwnLimit-v0")
    there = examined("faulty_envs:OwnLimit-v0", apart=True)
    assert here["findings"] == there["findings"] and here["facts"][0]["numbers"] == there["facts"][0]["numbers"]


def test_broken_module_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "breaks_at_import.py").write_text("1 / 0\n")
    found = examined("breaks_at_import:Env-v0")
    assert alarms(found) == [
        "raises: breaks_at_import:Env-v0, imported: raised ZeroDivisionError: division by zero at "
        "the import of 'breaks_at_import'"
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"env": ""}, "env: name an environment"),
        ({"env": "CartPoll-v1"}, "env: no environment 'CartPoll-v1'; did you mean CartPole-v1"),
        ({"env": "CartPole-v1", "steps": 0}, "--steps: must be a whole number of at least 1"),
        ({"env": "Taxi-v4", "backend": "tensor"}, "--backend: Taxi-v4 has no tensor backend"),
        ({"env": "no_such_module:Env-v0"}, "env: can't import"),
    ],
)
def test_mistakes_are_one_line(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        examined(**flags)
    assert "\n" not in str(caught.value)


def test_caller_s_generators_are_put_back() -> None:
    np.random.seed(3)
    wanted = np.random.random(3)
    np.random.seed(3)
    examined("faulty_envs:GlobalRandom-v0")
    assert np.array_equal(np.random.random(3), wanted)


@pytest.mark.slow
def test_command_line() -> None:
    def run(*words: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        command = [sys.executable, "-m", "ppo_fast.doctor", *words, "--no-pace"]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    done = run("faulty_envs:SpecLimit-v0", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["counts"]["error"] == 1
    assert run("CartPole-v1").returncode == 0
    done = run("CartPoll-v1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "Traceback" not in run("faulty_envs:RaisesAtFirst-v0").stderr


def test_flags_are_those_of_the_command_line() -> None:
    args = cli.parse(Args, ["CartPole-v1", "--steps", "1e3", "--no-apart"], "")
    assert (args.env, args.steps, args.apart) == ("CartPole-v1", 1000, False)


def test_a_signal_is_no_finding() -> None:
    found = findings.Findings("x")
    with pytest.raises(KeyboardInterrupt):
        found.raised(KeyboardInterrupt(), "step 1")


def test_every_fault_has_an_environment() -> None:
    examined("faulty_envs:Sound-v0", steps=10)
    assert all(f"{name}-v0" in gymnasium.registry for name, _, _ in FAULTS)


class Passing(gymnasium.Env):
    """Nobody has registered it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, reward: float = 1.0):
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return (
            self.np_random.uniform(-1, 1, 2).astype(np.float32),
            self.reward,
            self.np_random.random() < 0.1,
            False,
            {},
        )


QUICK = Args(steps=200, seconds=5, pace=False)


@pytest.mark.parametrize("apart", [True, False])
def test_environments_that_nobody_registered(apart: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(gymnasium.registry)
    args = replace(QUICK, apart=apart)
    assert doctor(args, envs=Passing)["exit_status"] == 0
    assert "environment     own/Passing" in capsys.readouterr().out
    found = doctor(replace(args, env_kwargs={"reward": 1e20}), envs=Passing)
    assert "huge-reward" in [finding["key"] for finding in found["findings"]]
    twice = [lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: 2 * float(reward))]
    assert doctor(replace(args, env="CartPole-v1"), wrappers=twice)["facts"][0]["reward"]["mean"] == 2
    assert set(gymnasium.registry) == before


def test_a_vector_ready_made_is_one_line() -> None:
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(ValueError, match=r"^envs: several are looked at"):
        doctor(QUICK, envs=envs)
    with pytest.raises(ValueError, match=r"^env: name an environment"):
        doctor(QUICK)
