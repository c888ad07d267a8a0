"""--env-kwargs: typed on the command line or given in Python, kept by a run, and used wherever its policy plays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_env_view import small

import ppo_fast
from ppo_fast import compare, doctor, evaluate
from ppo_fast.run import cli, find
from ppo_fast.train import Args, train

SHORT = {"max_episode_steps": 5}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--env-kwargs is_slippery=False size=8", {"is_slippery": False, "size": 8}),
        ("--env_kwargs=size=-1 --seed 3", {"size": -1}),
        ("--env-kwargs a=true b=null c=1.5 d=1e-3 e=4x4", {"a": True, "b": None, "c": 1.5, "d": 1e-3, "e": "4x4"}),
        ("--env-kwargs a=[1,2] b='8' c=(1,) d={'x':1} e=", {"a": [1, 2], "b": "8", "c": [1], "d": {"x": 1}, "e": ""}),
        ('--env-kwargs {"a":true,"b":[1]}', {"a": True, "b": [1]}),
        ("--env-kwargs a=1 --env-kwargs b=2 a=3", {"a": 3, "b": 2}),
        ("--env-kwargs max-episode-steps=3", {"max_episode_steps": 3}),
        ("--env-kwargs url=a=b", {"url": "a=b"}),
        ("--env-kwargs", {}),
        ("", {}),
    ],
)
def test_words(words: str, expected: dict[str, Any]) -> None:
    args = cli.parse(Args, words.split(), "")
    assert evaluate.plain_args(args).env_kwargs == expected
    assert ("env_kwargs" in (args.flags_given or ())) == bool(words)


def test_a_dictionary_in_python_becomes_a_plain_one() -> None:
    given = {"a": np.int64(3), "b": (1, np.float32(0.5)), "c": Path("x"), "d": {"e": np.array([1, 2])}}
    assert evaluate.plain_args(Args(env_kwargs=given)).env_kwargs == {
        "a": 3,
        "b": [1, 0.5],
        "c": "x",
        "d": {"e": [1, 2]},
    }
    for wrong in ({"a": object()}, {"a": [1, float("inf")]}, {3: 1}, {"a b": 1}, [("a", 1)], "a=1"):
        with pytest.raises(ValueError, match=r"^--env-kwargs: "):
            train(Args(env_kwargs=wrong))  # type: ignore[arg-type]


def test_a_run_keeps_them(tmp_path: Path) -> None:
    """Episodes of 5 steps, in training, its evaluation, a resumed run and wherever else the policy plays."""
    args = small(tmp_path, env_id="Pendulum-v1", env_kwargs=SHORT)
    assert train(args)["eval/mean_length"] == 5
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["env_kwargs"] == SHORT
    again = train(Args(resume=str(folder), total_timesteps=320))
    assert again["eval/mean_length"] == 5
    for file in (folder, max((folder / "checkpoints").glob("checkpoint-*.pt"))):
        for backend in (None, "tensor"):
            found = evaluate.evaluate(evaluate.Args(run=str(file), episodes=3, backend=backend, cuda=False))
            assert found["greedy"]["mean_length"] == 5
    assert ppo_fast.load(folder).flags["env_kwargs"] == SHORT
    with pytest.raises(ValueError, match=r"env-kwargs: is .* can't change"):
        train(Args(resume=str(folder), total_timesteps=320, env_kwargs={"max_episode_steps": 6}))


def test_a_run_of_other_keywords_is_not_like_this_one(tmp_path: Path) -> None:
    train(small(tmp_path, env_id="Pendulum-v1", env_kwargs=SHORT))
    (folder,) = tmp_path.iterdir()
    (folder / "result.json").unlink()
    alike = {"env_id": "Pendulum-v1", "env_kwargs": {}}
    assert find.unfinished(tmp_path, "ppo_fast.train", alike) is None
    assert find.unfinished(tmp_path, "ppo_fast.train", {**alike, "env_kwargs": SHORT}) is not None


def test_other_keywords_are_another_environment_to_compare(tmp_path: Path) -> None:
    one = small(tmp_path, env_id="Pendulum-v1", env_kwargs=SHORT)
    for args in (one, replace(one, env_kwargs={"max_episode_steps": 6}, seed=2)):
        train(args)
    with pytest.raises(ValueError, match=r"different environments .*Pendulum-v1 max_episode_steps=5 in"):
        compare.compare(compare.Args(runs=(str(tmp_path / "*"),), run_root=str(tmp_path)))


def test_the_doctor_takes_them() -> None:
    args = doctor.Args(env="Pendulum-v1", env_kwargs=SHORT, seconds=2, steps=50, apart=False)
    found = doctor.doctor(args)
    assert found["max_episode_steps"] == 5 and "no-limit" not in str(found)
    with pytest.raises(ValueError, match="--env-kwargs: Pendulum-v1 does not take gravity"):
        doctor.doctor(replace(args, env_kwargs={"gravity": 1}))


@pytest.mark.parametrize("kwargs", [{}, {"max_episode_steps": -1}, SHORT])
def test_an_environment_without_ends_is_told_of_once(
    kwargs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_id = "Pendulum-v1" if kwargs else "odd_envs:Endless-v0"
    flags = {"num_envs": 2, "num_steps": 256, "total_timesteps": 3072, "eval_episodes": 0, "quiet": True}
    train(small(tmp_path, env_id=env_id, env_kwargs=kwargs, **flags))
    said = capsys.readouterr()
    told = (said.out + said.err).count(
        "which has no time limit: without ends there are no returns; --env-kwargs max_ep"
    )
    assert told == (0 if kwargs == SHORT else 1)
