"""A policy played again from its files: exactly as its own run did, and one line for what can't be played."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from torch import nn

from ppo_fast import envs as environments, evaluate as program
from ppo_fast.evaluate import Args, evaluate, figures_of
from ppo_fast.run import checkpoint, cli
from ppo_fast.run.play import Episodes
from ppo_fast.run.policy import load_policy, save_policy
from ppo_fast.train import Args as TrainArgs, train

TINY = TrainArgs(
    num_envs=8, num_steps=32, total_timesteps=2048, cuda=False, compile="off", eval_episodes=7, quiet=True, seed=5
)
# Every kind of agent: statistics of observations, one backbone, other seeds than 1, continuous actions, a host backend.
KINDS = {
    "separate": {},
    "shared": {"shared_backbone": True, "hidden_sizes": (32, 16)},
    "normalised": {"norm_obs": True, "norm_reward": True, "env_id": "Pendulum-v1"},
    "host": {"backend": "sync", "env_id": "Acrobot-v1", "total_timesteps": 512},
}


def trained(root: Path, **changes) -> tuple[Path, dict]:
    """A run folder and its result.json."""
    train(dataclasses.replace(TINY, run_root=str(root), **changes))
    (folder,) = root.iterdir()
    return folder, json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("evaluate"), save_interval=3, keep_checkpoints=10)


def expected(result: dict, policy: str) -> dict:
    """The figures of result.json under the names that evaluate prints."""
    prefix = {"greedy": "eval/", "sampled": "eval/sampled_"}[policy]
    names = ("mean_return", "std_return", "min_return", "max_return", "mean_length", "episodes")
    return {name: result[prefix + name] for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_the_runs_own_evaluation_is_reproduced_exactly(kind, tmp_path, capsys):
    """From policy.safetensors and from the last checkpoint: same backend, seed and number of episodes, same figures."""
    folder, result = trained(tmp_path / "runs", **KINDS[kind])
    backend = json.loads((folder / "config.json").read_text())["backend_used"]
    last = max((folder / "checkpoints").glob("checkpoint-*.pt"))
    for file in (folder, last):
        found = evaluate(Args(run=str(file), backend=backend, episodes=7, cuda=False))
        for policy in ("greedy", "sampled"):
            assert {name: found[policy][name] for name in expected(result, policy)} == expected(result, policy)
    assert result["eval/mean_return"] != result["eval/sampled_mean_return"]
    other = evaluate(Args(run=str(folder), backend=backend, episodes=7, seed=6, cuda=False))
    assert other["greedy"] != found["greedy"] or other["sampled"] != found["sampled"]


def test_a_policy_trained_with_tf32_is_played_without_a_card(run, tmp_path, monkeypatch, capsys):
    """How its products were made is no part of it. In the checkpoint alone, as if it came from another machine."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    rebuilt = program.rebuild_flags
    monkeypatch.setattr(
        program,
        "rebuild_flags",
        lambda policy, trusts: (
            rebuilt(policy, trusts)[0],
            dataclasses.replace(rebuilt(policy, trusts)[1], precision="tf32"),
            [],
        ),
    )
    for cuda in (True, False):
        if not (cuda and torch.cuda.is_available()):
            assert evaluate(Args(run=str(folder), episodes=2, cuda=cuda))["greedy"]["episodes"] == 2


def test_episodes_are_gymnasiums_own_unless_another_backend_is_asked_for(run, capsys):
    folder, _ = run
    assert evaluate(Args(run=str(folder), episodes=2))["backend"] == "sync"
    assert evaluate(Args(run=str(folder), episodes=2, backend="tensor"))["backend"] == "tensor"
    assert evaluate(Args(run=str(folder), episodes=2, backend="auto"))["backend"] == "tensor"


def test_an_environment_that_only_exists_as_tensors_is_played_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "available_backends", lambda env_id: ("tensor",))
    envs = program.make_envs(Args(), TINY, torch.device("cpu"), 3)
    assert envs.backend == "tensor"
    with pytest.raises(ValueError, match="--video: CartPole-v1 has no single environment"):
        program.film(Args(), TINY, None, torch.device("cpu"), 1, tmp_path)


def test_the_newer_of_policy_and_checkpoint_is_played(run, tmp_path, capsys):
    """After a resumed run was killed, policy.safetensors is that of the stop before."""
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    assert evaluate(Args(run=str(folder), episodes=1))["policy"] == str(folder / "policy.safetensors")
    last = max((folder / "checkpoints").glob("checkpoint-*.pt"))
    os.utime(last, (2e9, 2e9))
    assert evaluate(Args(run=str(folder), episodes=1))["policy"] == str(last)
    (folder / "policy.safetensors").unlink()
    assert evaluate(Args(run=str(folder), episodes=1))["policy"] == str(last)
    first = evaluate(Args(run=str(min((folder / "checkpoints").glob("checkpoint-*.pt"))), episodes=20))
    assert first["sampled"] != evaluate(Args(run=str(last), episodes=20))["sampled"]


def test_latest_is_the_run_that_wrote_last(run, tmp_path, capsys):
    for name, when in (("old", 1e9), ("new", 2e9), ("older", 0.5e9)):
        (tmp_path / name).mkdir()
        shutil.copy(run[0] / "policy.safetensors", tmp_path / name)
        os.utime(tmp_path / name / "policy.safetensors", (when, when))
    found = evaluate(Args(run_root=str(tmp_path), episodes=1))
    assert found["policy"] == str(tmp_path / "new" / "policy.safetensors")


def test_one_policy_only_and_the_printed_lines(run, capsys):
    folder, _ = run
    result = evaluate(Args(run=str(folder), policy="sampled", episodes=3))
    assert "greedy" not in result
    out = capsys.readouterr().out
    assert out.splitlines()[1] == "environment  CartPole-v1, backend sync, seed 5"
    assert out.splitlines()[2].startswith(f"sampled      {result['sampled']['mean_return']:.2f} +- ")
    result = evaluate(Args(run=str(folder), policy="greedy", episodes=1, json=True))
    said = json.loads(capsys.readouterr().out)  # strict: no NaN for the interval that one episode does not have
    assert said["greedy"]["mean_return_low"] is None
    assert said["greedy"]["mean_return"] == result["greedy"]["mean_return"]


def test_the_interval_is_that_of_the_mean():
    returns = torch.tensor(np.random.default_rng(0).exponential(10.0, 400))
    found = figures_of(Episodes(returns, torch.ones(400).long()), seed=0)
    error = float(returns.std() / 20)
    assert found["mean_return_low"] == pytest.approx(found["mean_return"] - 1.96 * error, abs=0.2 * error)
    assert found["mean_return_high"] == pytest.approx(found["mean_return"] + 1.96 * error, abs=0.2 * error)


def test_a_video_of_the_policy(run, tmp_path, capsys):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    result = evaluate(Args(run=str(folder), episodes=1, video=True))
    assert result["video"] == str(folder / "videos" / "evaluate-seed5.mp4")
    assert Path(result["video"]).read_bytes()[4:8] == b"ftyp"
    changed = evaluate(Args(run=str(folder), episodes=1, video=True, env_kwargs={"max_episode_steps": 9}))
    assert changed["video"] == str(folder / "videos" / "evaluate-seed5-max_episode_steps=9.mp4")


def test_an_environment_changed_by_keywords(run, tmp_path, capsys):
    before = (run[0] / "config.json").read_bytes()
    result = evaluate(Args(run=str(run[0]), episodes=4, env_kwargs={"max_episode_steps": 7}))
    assert result["env_kwargs"] == {"max_episode_steps": 7}
    assert result["greedy"]["mean_length"] <= 7 < run[1]["eval/mean_length"]
    said = capsys.readouterr()
    assert "CartPole-v1 max_episode_steps=7, backend sync" in said.out and said.err == ""
    assert (run[0] / "config.json").read_bytes() == before


class OfSize(gymnasium.Env):
    """Observations of so many numbers, and actions of one kind or another, as many."""

    def __init__(self, size=4, parts=False):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (size,))
        self.action_space = gymnasium.spaces.MultiDiscrete([2, 2]) if parts else gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.2), False, {}


def test_keywords_that_change_spaces_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "OfSize-v0", EnvSpec("OfSize-v0", lambda **kwargs: OfSize(**kwargs)))
    folder, _ = trained(tmp_path, env_id="OfSize-v0", backend="sync", preset=False)
    capsys.readouterr()
    evaluate(Args(run=str(folder), episodes=2, env_kwargs={"parts": True}))
    assert "note: these keywords make other spaces than the policy was trained on" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^--env-kwargs: .* does not fit"):
        evaluate(Args(run=str(folder), episodes=2, env_kwargs={"size": 5}))


def test_a_window(run, monkeypatch, capsys):
    """On SDL's dummy screen; without any screen it is one line."""
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    monkeypatch.setattr("pygame.time.Clock", lambda: SimpleNamespace(tick=lambda fps: None))
    evaluate(Args(run=str(run[0]), render="human", episodes=2, policy="sampled"))
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["episode", "1", "return"], ["episode", "2", "return"],
    ]  # fmt: skip
    for name in program.SCREENS:
        monkeypatch.delenv(name, raising=False)
    if sys.platform == "linux":
        with pytest.raises(ValueError, match="--render: there is no screen here"):
            evaluate(Args(run=str(run[0]), render="human"))


def altered(folder: Path, target: Path, **facts) -> Path:
    """A copy of the policy with other facts; None takes one away."""
    weights, known = load_policy(folder)
    known = {key: value for key, value in (known | facts).items() if value is not None}
    return save_policy(target, weights, known)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"program": "os"}, "its program is os, which is no training program: it has no Args"),
        ({"program": "antigravity"}, "its program is antigravity, which is no training program: it has no Args"),
        ({"program": "ppo_fast.train; import os"}, "which has no file of its own"),
        ({"program": "../train"}, "which has no file of its own"),
        ({"program": "__main__"}, "which has no file of its own"),
        ({"program": "ppo_fast.training"}, "its program is ppo_fast.training, which is not here"),
        ({"program": ["ppo_fast.train"]}, "which has no file of its own"),
        ({"program": "ppo_fast.train_gone"}, "its program is ppo_fast.train_gone, which is not here"),
        ({"env_id": None}, "does not say which environment it is for"),
        ({"hidden_sizes": [64, 32]}, "does not fit CartPole-v1 and the Agent of "),
        ({"hidden_sizes": [-1]}, "holds flags that can't be used: --hidden-sizes: must be"),
        ({"env_id": "Pendulum-v1"}, "does not fit Pendulum-v1"),
        ({"norm_obs": True}, "does not fit CartPole-v1"),
    ],
)
def test_files_that_say_something_else_than_they_should_are_one_line(run, tmp_path, facts, said):
    path = altered(run[0], tmp_path, **facts)
    with pytest.raises(ValueError, match=r"^run: ") as problem:
        evaluate(Args(run=str(path), episodes=1))
    assert said in str(problem.value) and "\n" not in str(problem.value)


def test_an_unknown_environment_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"^--env-id: no environment 'CartPole-v9'"):
        evaluate(Args(run=str(altered(run[0], tmp_path, env_id="CartPole-v9"))))


@pytest.mark.parametrize("name", ["ppo_fast.train_right", "übung.größer-2"])
def test_a_program_is_found_by_the_name_in_the_file(run, tmp_path, monkeypatch, capsys, name):
    """Another program's Args and Agent are used: here one whose agent always pushes the cart to the right."""
    module = type(sys)(name)

    class Agent(nn.Module):
        def __init__(self, envs, args):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def act(self, obs, noise):
            return torch.ones(len(obs), dtype=torch.long), None

    module.Args, module.Agent = TrainArgs, Agent  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, name, module)
    facts = load_policy(run[0])[1] | {"program": name}
    save_policy(tmp_path, {"weight": torch.ones(1)}, facts)
    assert evaluate(Args(run=str(tmp_path), policy="greedy"))["greedy"]["max_return"] <= 11


def damaged(folder: Path, target: Path) -> None:
    """One file of each kind that can't be used."""
    policy = (folder / "policy.safetensors").read_bytes()
    saved = max((folder / "checkpoints").glob("checkpoint-*.pt")).read_bytes()
    (target / "half.safetensors").write_bytes(policy[: len(policy) // 2])
    (target / "none.safetensors").write_bytes(b"")
    (target / "half.pt").write_bytes(saved[: len(saved) // 2])
    (target / "flipped.pt").write_bytes(saved[:5000] + bytes([saved[5000] ^ 1]) + saved[5001:])
    checkpoint.write(target / "other.pt", {"weights": torch.ones(3)})
    (target / "empty").mkdir()


@pytest.mark.parametrize("name", ["half.safetensors", "none.safetensors", "half.pt", "flipped.pt", "other.pt", "empty"])
def test_damaged_and_missing_files_are_one_line(run, tmp_path, name):
    damaged(run[0], tmp_path)
    with pytest.raises(ValueError, match=r"^run: ") as problem:
        evaluate(Args(run=str(tmp_path / name)))
    assert name in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: run: no run with a policy or a checkpoint below runs"),
        (["nowhere"], "error: run: nowhere is neither a run folder, a checkpoint, a policy file nor 'latest'"),
        (["a", "b"], "error: unexpected 'b' after 'a'"),
        (["--episodes", "0"], "error: --episodes: must be a whole number of at least 1"),
        (["--backend", "gpu"], "error: --backend: must be auto,"),
        (["--render", "human", "--video"], "error: --render: a window comes without --video"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate, Args, "")
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith(said) and err.count("\n") == 1
