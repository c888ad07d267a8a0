"""The examples: an environment outside the package is learned, a sweep's words reach the flags."""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pytest
import torch
import yaml
from env_checker import check_vector_env

from examples import point_mass
from ppo_fast.envs import available_backends, make
from ppo_fast.run import play
from ppo_fast.run.cli import parse
from ppo_fast.train import Args, train

ROOT = Path(__file__).resolve().parent.parent
ENV_ID = "examples.point_mass:PointMass-v0"


def at_rest(obs):
    return (obs[:, :2].norm(dim=-1) < point_mass.NEAR) & (obs[:, 2:].norm(dim=-1) < point_mass.SLOW)


def test_point_mass_keeps_the_contract_of_environments():
    check_vector_env(lambda: make(ENV_ID, 64, max_episode_steps=20), steps=50, limit=20, terminal=at_rest)
    assert available_backends(ENV_ID) == ("tensor",)


def test_point_mass_beside_a_plain_loop():
    """One mass in float64, step by step, with no tensor operation in common."""
    env = make(ENV_ID, 1)
    x, y, *_ = (float(number) for number in env.reset(seed=3)[0][0])
    speed = [0.0, 0.0]
    for step in range(60):
        push = (1.0, -0.4) if step < 40 else (-1.0, 3.0)  # runs into the right wall; the last one is clipped
        obs, reward, terminated, truncated, _ = env.step(torch.tensor([push]))
        place = [x, y]
        for axis in range(2):
            speed[axis] += 0.1 * (min(1.0, push[axis]) - 0.5 * speed[axis])
            there = place[axis] + 0.1 * speed[axis]
            place[axis] = min(1.0, max(-1.0, there))
            speed[axis] = speed[axis] if there == place[axis] else 0.0
        x, y = place
        assert obs[0].tolist() == pytest.approx([x, y, *speed], abs=1e-5)
        assert reward.item() == pytest.approx(-0.1 * (x * x + y * y) ** 0.5, abs=1e-5)
        assert not terminated and not truncated


def test_point_mass_is_learned_in_seconds(tmp_path):
    """Doing nothing sensible returns about -8; stopping in the middle by the straight way about -0.6."""
    draw = torch.Generator().manual_seed(0)
    aimless = play.play(make(ENV_ID, 50), lambda obs: torch.randn(50, 2, generator=draw), seed=1).figures("")
    assert aimless["mean_return"] < -6
    args = Args(env_id=ENV_ID, total_timesteps=100_000, eval_episodes=50, quiet=True, run_root=str(tmp_path))
    assert train(args)["eval/mean_return"] > -1.2


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_environment_of_ones_own_from_python(here, capsys):
    runpy.run_path(str(ROOT / "examples" / "own_environment.py"), run_name="__main__")
    assert capsys.readouterr().out.rstrip().endswith("cell 9\ncell 10")


def test_the_notebook(here):
    """Its cells, one after the other in one namespace, as a kernel runs them; the last line's value is not shown."""
    matplotlib.use("agg")
    notebook = json.loads((ROOT / "examples" / "own_environment.ipynb").read_text())
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), namespace)
    assert namespace["cells"][-1] == 10 and namespace["result"]["eval/mean_return"] > 0
    assert matplotlib.pyplot.gca().get_lines()
    matplotlib.pyplot.close("all")
    outputs = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(outputs), "no results are kept"


def sweep_words(command, values):
    """The command line that W&B's agent makes of a sweep's command and one choice of its parameters."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    words = []
    for word in create_sweep_command(command):
        words += macros.get(str(word).removeprefix("${").removesuffix("}"), [str(word)])
    return words


@pytest.mark.parametrize("macro", ["args", "args_no_equals", "args_no_boolean_flags"])
def test_every_spelling_of_a_sweep_reaches_the_flags(macro):
    sweep = yaml.safe_load((ROOT / "examples" / "sweep.yaml").read_text())
    command = ["${" + macro + "}" if word == "${args}" else word for word in sweep["command"]]
    parameters = sweep["parameters"]
    assert set(parameters) <= {field.name for field in dataclasses.fields(Args)}
    for pick in (0, -1):
        # The first and last value of a list, the bounds of a distribution.
        values = {
            name: p["values"][pick] if "values" in p else p[("min", "max")[pick]] for name, p in parameters.items()
        }
        words = sweep_words(command, values)
        args = parse(Args, words[words.index("ppo_fast.train") + 1 :], "")
        assert args.track
        for name, value in values.items():
            # Where W&B leaves out what is False, the default stands.
            left_out = macro == "args_no_boolean_flags" and value is False
            assert getattr(args, name) == (getattr(Args(), name) if left_out else value), name


def test_the_sweep_optimises_what_a_run_reports():
    sweep = yaml.safe_load((ROOT / "examples" / "sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "eval/mean_return", "goal": "maximize"}
    assert "${args}" in sweep["command"]  # the one spelling that says what is False
