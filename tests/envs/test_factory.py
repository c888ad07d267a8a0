"""make(): which backend is chosen, and one line for each mistake."""

import re
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ppo_fast.envs import BACKENDS, available_backends, make

# The import of Box2D's own bindings warns.
box2d = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


@pytest.fixture
def tiny_env(tmp_path, monkeypatch):
    """A module on the path that registers Tiny-v0 when it is imported."""
    (tmp_path / "tiny_module.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Tiny-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=7)\n"
        "gymnasium.register('TinyTensor-v0', vector_entry_point='ppo_fast.envs.cartpole:TensorCartPole')\n"
        "gymnasium.register('NoJax-v0', vector_entry_point='no_such_module:Env')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("Tiny-v0", "TinyTensor-v0", "NoJax-v0"):
        gymnasium.registry.pop(name, None)
    sys.modules.pop("tiny_module", None)


def refusal(*args, **kwargs):
    with pytest.raises(ValueError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "backend"), [("CartPole-v1", "tensor"), ("Acrobot-v1", "tensor"), ("Taxi-v4", "sync")]
)
def test_auto_takes_the_fastest_exact_backend(env_id, backend):
    env = make(env_id, 2, torch.device("cpu"))
    assert (env.backend, env.spec_id, env.num_envs, env.device) == (backend, env_id, 2, torch.device("cpu"))
    env.close()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_named_backend_is_taken(backend):
    env = make("CartPole-v1", 2, "cpu", backend)
    assert env.backend == backend
    env.close()


def test_auto_respects_arguments():
    env: Any = make("CartPole-v1", 2, "cpu", max_episode_steps=9)
    assert env.backend == "tensor" and env.max_episode_steps == 9
    env = make("Pendulum-v1", 2, "cpu", g=9.81)
    assert env.backend == "tensor" and env.g == 9.81
    env = make("CartPole-v1", 2, "cpu", render_mode="rgb_array")
    assert env.backend == "sync"
    env.close()
    assert "use sync" in refusal("CartPole-v1", 2, "cpu", "tensor", render_mode="rgb_array")


def test_available_backends():
    assert available_backends("CartPole-v1") == ("tensor", "entry_point", "sync", "async", "envpool")
    assert available_backends("ppo_fast/CartPole-v1") == ("tensor", "sync", "async")
    assert available_backends("Taxi-v4") == ("sync", "async")
    assert available_backends("CheetahRun-v1") == ("envpool",)


def test_unknown_ids_come_with_near_matches():
    assert refusal("CartPol-v1", 2).startswith("--env-id: no environment 'CartPol-v1'; did you mean CartPole-v1")
    assert "did you mean LunarLander" in refusal("LunarLandr-v3", 2)
    assert "module:Env-v0" in refusal("zzzzzzz", 2)
    assert "can't import 'no_such_module'" in refusal("no_such_module:Env-v0", 2)
    assert refusal("", 2).startswith("--env-id: no environment ''")


ENVIRONMENTS_OF_A_MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Crane(CartPoleEnv):
    pass

gymnasium.register("Crane-v0", entry_point="MODULE:Crane")
gymnasium.register("harbour/Lighthouse-v0", entry_point=Crane)
gymnasium.register("OldCartPole-v1", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
"""


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("Crain-v0", "Crane-v0"),
        ("Crane", "Crane-v0"),
        ("Crane-v3", "Crane-v0"),
        ("Lighthouse-v0", "harbour/Lighthouse-v0"),
        ("OldCartPol-v1", "OldCartPole-v1"),  # which another package makes
        ("MountainCa-v0", "MountainCar-v0"),
    ],
)
@pytest.mark.parametrize("module", ["quay", "port.quay"])
def test_what_is_suggested_after_a_module_can_be_used(module, wrong, near, tmp_path, monkeypatch):
    """Ids of a module are there only where it is named."""
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(ENVIRONMENTS_OF_A_MODULE.replace("MODULE", module))
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(gymnasium.registry)
    try:
        said = refusal(f"{module}:{wrong}", 2)
        first = re.split(r" or |\?", said.partition("did you mean ")[2])[0]
        assert first == f"{module}:{near}", said
        make(first, 2).close()
    finally:
        gymnasium.registry.clear()
        gymnasium.registry.update(known)
        for name in ("quay", "port.quay", "port"):
            sys.modules.pop(name, None)


def test_what_only_envpool_has_is_suggested_without_the_module():
    assert "did you mean FishSwim-v1" in refusal("os:FishSwm-v1", 2)


@pytest.mark.parametrize("num_envs", [0, -5, 2.0, True])
def test_bad_num_envs(num_envs):
    assert refusal("CartPole-v1", num_envs).startswith("--num-envs: ")


def test_bad_backends():
    message = refusal("CartPole-v1", 2, "cpu", "gpu")
    assert message == "--backend: no backend 'gpu'; choose from auto, tensor, entry_point, sync, async, envpool"
    assert refusal("Taxi-v4", 2, "cpu", "tensor") == "--backend: Taxi-v4 has no tensor backend; it has sync, async"
    assert refusal("Taxi-v4", 2, "cpu", "envpool") == "--backend: Taxi-v4 has no envpool backend; it has sync, async"
    assert refusal("CheetahRun-v1", 2, "cpu", "sync") == "--backend: CheetahRun-v1 has no sync backend; it has envpool"
    assert "has no entry_point backend" in refusal("Acrobot-v1", 2, "cpu", "entry_point")


def test_unsupported_spaces_name_what_is_supported():
    gymnasium.register("Text-v0", "test_factory:TextEnv")
    try:
        for backend in ("sync", "async"):
            message = refusal("Text-v0", 2, "cpu", backend)
            assert message.startswith("--env-id: Text-v0 has Text observations; supported are Box, Discrete")
    finally:
        gymnasium.registry.pop("Text-v0")


def test_a_refused_vector_is_closed():
    gymnasium.register("TextVector-v0", vector_entry_point="test_factory:TextVector")
    try:
        assert "Text observations" in refusal("TextVector-v0", 2)
    finally:
        gymnasium.registry.pop("TextVector-v0")
    assert TextVector.closings == 1


class TextVector(gymnasium.vector.VectorEnv):
    closings = 0
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012
    single_observation_space, single_action_space = gymnasium.spaces.Text(5), gymnasium.spaces.Discrete(2)

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def close_extras(self, **kwargs):
        TextVector.closings += 1


class TextEnv(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Text(5), gymnasium.spaces.Discrete(2)


def test_a_module_is_imported_for_its_environment(tiny_env):
    env = make("tiny_module:Tiny-v0", 2, "cpu")
    assert (env.backend, env.spec_id) == ("sync", "tiny_module:Tiny-v0")
    env.reset(seed=0)
    ends = [env.step(torch.tensor([0, 1]))[3] for _ in range(7)]
    assert ends[6].all() and not torch.stack(ends[:6]).any()
    env.close()
    # A tensor environment of the user's own is recognised by its class.
    assert make("tiny_module:TinyTensor-v0", 2, "cpu").backend == "tensor"
    assert "needs a package that is missing; No module named 'no_such_module'" in refusal("tiny_module:NoJax-v0", 2)


def test_a_missing_package_names_the_extra():
    """In a process of its own, where packages can't be imported whether they are installed or not."""
    remedies = {name: f'pip install "ppo_fast[{name}]"' for name in ("box2d", "mujoco", "envpool")}
    envpool = f"--backend: envpool needs a package that is missing; {remedies['envpool']}"
    wanted = {
        ("LunarLander-v3", "auto"): f"--env-id: LunarLander-v3 needs a package that is missing; {remedies['box2d']}",
        ("HalfCheetah-v5", "auto"): f"--env-id: HalfCheetah-v5 needs a package that is missing; {remedies['mujoco']}",
        ("CartPole-v1", "envpool"): envpool,
        ("CheetahRun-v1", "envpool"): envpool,
        ("CheetahRun-v1", "auto"): "--env-id: no environment 'CheetahRun-v1'; did you mean HalfCheetah",
    }
    code = f"""
import sys
sys.modules |= dict.fromkeys(("Box2D", "mujoco", "envpool"))
from ppo_fast.envs import make
for env_id, backend in {list(wanted)}:
    try:
        make(env_id, 2, "cpu", backend)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(wanted), done.stderr
    for line, beginning in zip(lines, wanted.values(), strict=True):
        assert line.startswith(beginning)


MUJOCO_AND_BOX2D = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "LunarLander-v3", "BipedalWalker-v3")


@box2d
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("env_id", MUJOCO_AND_BOX2D)
def test_mujoco_and_box2d(env_id, backend, tmp_path, monkeypatch, capfd):
    """They run without a warning, and MuJoCo neither prints nor logs its own for each environment."""
    monkeypatch.chdir(tmp_path)
    env: Any = make(env_id, 3, "cpu", backend)
    obs, _ = env.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(30):
        space = env.single_action_space
        actions = rng.integers(4, size=3) if env_id == "LunarLander-v3" else rng.uniform(-2, 2, (3, space.shape[0]))
        obs, reward, *_, info = env.step(torch.as_tensor(actions))
        assert obs.isfinite().all() and reward.isfinite().all() and info["final_obs"].isfinite().all()
    env.close()
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
