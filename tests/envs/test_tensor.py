"""Tensor environments beside Gymnasium's originals, their resets, their saved state, and the compiled core."""

import math
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

import ppo_fast
from ppo_fast.envs import make
from ppo_fast.envs.tensor import TensorVectorEnv

IDS = ("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1")
WITHOUT_VELOCITIES = {
    "ppo_fast/CartPoleNoVel-v1": ("CartPole-v1", [0, 2]),
    "ppo_fast/MountainCarNoVel-v0": ("MountainCar-v0", [0]),
    "ppo_fast/MountainCarContinuousNoVel-v0": ("MountainCarContinuous-v0", [0]),
    "ppo_fast/PendulumNoVel-v1": ("Pendulum-v1", [0, 1]),
}
MEMORY = ("ppo_fast/MemoryChain5-v0", "ppo_fast/RepeatPrevious-v0", "ppo_fast/RepeatFirst-v0")
ALL_IDS = (*IDS, *WITHOUT_VELOCITIES, *MEMORY)
# Largest deviation of one float32 step from Gymnasium's float64 one, relative to 1 + |value|. Acrobot's Runge-Kutta
# step of 0.2 s amplifies rounding: its accelerations reach some hundred rad/s².
TOLERANCE = dict.fromkeys(IDS, 2e-6) | {"Acrobot-v1": 1e-4}


def tensor_env(env_id, num_envs, **env_kwargs):
    env: Any = make(env_id, num_envs, "cpu", "tensor", **env_kwargs)
    assert isinstance(env, TensorVectorEnv)
    return env


def sample_action(env, generator):
    """Actions for all environments; Box ones up to twice beyond their bounds."""
    space = env.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.randint(int(space.n), (env.num_envs,), generator=generator)
    return (torch.rand((env.num_envs, 1), generator=generator) * 4 - 2) * float(space.high[0])


def original_step(original: Any, physics, action):
    """One step of Gymnasium's environment from `physics`, in float64."""
    original.state = physics.double().numpy()
    original.steps_beyond_terminated = None
    given = int(action) if action.ndim == 0 else action.numpy()
    obs, reward, terminated, _, _ = original.step(given)
    return obs, reward, terminated


def close(a, b, tolerance):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.all(np.abs(a - b) <= tolerance * (1 + np.abs(b)))


@pytest.mark.parametrize("env_id", IDS)
def test_beside_gymnasium_for_ten_thousand_steps(env_id):
    """Transition by transition from the same state, over states that a random policy and random starts reach."""
    env = tensor_env(env_id, 10)
    original = gymnasium.make(env_id).unwrapped
    original.reset(seed=0)
    generator = torch.Generator().manual_seed(1)
    env.reset(seed=1)
    terminations = 0
    for step in range(1000):
        if step % 50 == 0:  # states far from the start, also some that end at once
            env.state = (wide_physics(env_id, env.num_envs, generator), env.state[1])
        action = sample_action(env, generator)
        physics = env.state[0]
        _, obs, reward, terminated, _ = env.transition(env.state, action, torch.zeros(10, 0))
        for i in range(env.num_envs):
            wanted = original_step(original, physics[i], action[i])
            assert close(obs[i], wanted[0], TOLERANCE[env_id]), (env_id, step, physics[i], obs[i], wanted[0])
            assert close(reward[i], wanted[1], TOLERANCE[env_id])
            assert bool(terminated[i]) == wanted[2]
        terminations += int(terminated.sum())
        env.step(action)
    original.close()
    assert terminations > 0 or env_id == "Pendulum-v1"


def wide_physics(env_id, n, generator):
    scale = {
        "CartPole-v1": [2.4, 2.0, 0.2, 2.0],
        "MountainCar-v0": [0.9, 0.07],
        "MountainCarContinuous-v0": [0.9, 0.07],
        "Acrobot-v1": [math.pi, math.pi, 4 * math.pi, 9 * math.pi],
        "Pendulum-v1": [20.0, 8.0],
    }[env_id]
    centre = -0.3 if env_id.startswith("MountainCar") else 0.0
    uniform = torch.rand((n, len(scale)), generator=generator) * 2 - 1
    return uniform * torch.tensor(scale) + centre * (torch.arange(len(scale)) == 0)


def test_cartpole_episodes_beside_gymnasium():
    """Whole episodes to the limit in float64, each engine with a state of its own for a hundred steps at a time.

    The pole is unstable: equal actions amplify one rounding tenfold every thirty steps, in float32 beyond all meaning.
    """
    original: Any = gymnasium.make("CartPole-v1")
    env = tensor_env("CartPole-v1", 4)
    obs, _ = env.reset(seed=3)
    for i in range(env.num_envs):
        original.reset(seed=0)
        original.unwrapped.state = obs[i].double().numpy()
        state, ends, step = (env.state[0][i : i + 1].double(), env.state[1][i : i + 1]), [False, False], 0
        while not any(ends):
            x, speed, angle, spin = state[0][0].tolist()
            action = int(angle + 0.4 * spin + 0.02 * x + 0.05 * speed > 0)  # balances
            if step % 100 == 0:
                original.unwrapped.state = state[0][0].numpy()
            state, _, reward, *our_ends = env.transition(state, torch.tensor([action]), torch.zeros(1, 0))
            _, wanted_reward, *ends, _ = original.step(action)
            step += 1
            assert np.abs(state[0][0].numpy() - np.array(original.unwrapped.state)).max() < 1e-10
            assert float(reward) == wanted_reward and [bool(end) for end in our_ends] == ends
        assert step == 500 and ends == [False, True]
    original.close()


@pytest.mark.parametrize("env_id", IDS)
def test_limits_and_spaces_are_the_originals(env_id):
    env, spec = tensor_env(env_id, 2), gymnasium.spec(env_id)
    original = gymnasium.make(env_id)
    assert env.max_episode_steps == spec.max_episode_steps
    assert env.single_observation_space == original.observation_space
    assert env.single_action_space == original.action_space
    original.close()
    # A harmless policy: no environment ends by itself before its limit, but CartPole, which is put upright at every
    # step.
    env.reset(seed=0)
    action = torch.zeros(2, 1) if env_id in ("MountainCarContinuous-v0", "Pendulum-v1") else torch.ones(2).long()
    for step in range(1, env.max_episode_steps + 1):
        if env_id == "CartPole-v1":
            env.state = (torch.zeros(2, 4), env.state[1])
        _, _, terminated, truncated, _ = env.step(action)
        assert not terminated.any()
        assert torch.equal(truncated, torch.full((2,), step == env.max_episode_steps))


def ks_statistic(a, b):
    """The two-sample Kolmogorov-Smirnov statistic: the largest distance of the empirical distribution functions."""
    values = np.sort(np.concatenate([a, b]))
    left = np.searchsorted(np.sort(a), values, side="right") / len(a)
    right = np.searchsorted(np.sort(b), values, side="right") / len(b)
    return np.abs(left - right).max()


@pytest.mark.parametrize("after_an_end", [False, True])
@pytest.mark.parametrize("env_id", IDS)
def test_resets_are_distributed_as_the_originals(env_id, after_an_end):
    n = 2000
    env = tensor_env(env_id, n, max_episode_steps=1)
    ours, _ = env.reset(seed=11)
    if after_an_end:
        action = sample_action(env, torch.Generator().manual_seed(0))
        ours, _, _, truncated, _ = env.step(action)
        assert truncated.all()
    original = gymnasium.make(env_id)
    theirs = np.stack([original.reset(seed=seed)[0] for seed in range(n)])
    original.close()
    critical = 1.95 * math.sqrt(2 / n)  # p = 0.001
    for column in range(ours.shape[1]):
        assert ks_statistic(ours[:, column].numpy(), theirs[:, column]) < critical, (env_id, column)


def test_ks_statistic_tells_distributions_apart():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-0.05, 0.05, 2000), rng.uniform(-0.045, 0.045, 2000)
    critical = 1.95 * math.sqrt(2 / 2000)
    assert ks_statistic(a, rng.uniform(-0.05, 0.05, 2000)) < critical
    assert ks_statistic(a, 2 * b) > critical


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_state_continues_bit_for_bit(env_id):
    def go_on(env, steps):
        generator = torch.Generator().manual_seed(4)
        rows = [env.step(sample_action(env, generator)) for _ in range(steps)]
        return [torch.cat([obs.flatten(), reward, info["final_obs"].flatten()]) for obs, reward, _, _, info in rows]

    env = tensor_env(env_id, 8, max_episode_steps=7)
    env.reset(seed=2)
    go_on(env, 10)
    saved = env.get_state()
    frozen = {name: tensor.clone() for name, tensor in saved.items()}
    wanted = go_on(env, 30)
    assert all(torch.equal(saved[name], frozen[name]) for name in frozen), "set_state holds on to it"

    resumed = tensor_env(env_id, 8, max_episode_steps=7)
    resumed.set_state(saved)
    assert all(torch.equal(a, b) for a, b in zip(go_on(resumed, 30), wanted, strict=True))
    assert all(torch.equal(saved[name], frozen[name]) for name in frozen)


def test_saved_state_shares_no_memory():
    """A captured graph writes the state in place; neither what was saved nor what was loaded may move with it."""
    env = tensor_env("CartPole-v1", 3)
    env.reset(seed=0)
    saved = env.get_state()
    frozen = {name: tensor.clone() for name, tensor in saved.items()}
    for scribbled in range(2):
        for tensor in env.state:
            tensor.fill_(7 + scribbled)
        assert all(torch.equal(saved[name], frozen[name]) for name in frozen)
        env.set_state(saved)


@pytest.mark.parametrize("env_id", WITHOUT_VELOCITIES)
def test_without_velocities_beside_the_whole(env_id):
    """The same episodes as with velocities, which are cut away, also from what follows an end; and as Gymnasium's."""
    original, seen = WITHOUT_VELOCITIES[env_id]
    whole, part = tensor_env(original, 6, max_episode_steps=9), tensor_env(env_id, 6, max_episode_steps=9)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(whole.reset(seed=5)[0][:, seen], part.reset(seed=5)[0])
    for _ in range(30):
        action = sample_action(whole, generator)
        obs, *others, info = whole.step(action)
        obs_part, *others_part, info_part = part.step(action)
        assert torch.equal(obs_part, obs[:, seen]) and torch.equal(info_part["final_obs"], info["final_obs"][:, seen])
        assert all(torch.equal(a, b) for a, b in zip(others, others_part, strict=True))

    space: Any = gymnasium.make(original).observation_space
    assert part.single_observation_space == gymnasium.spaces.Box(space.low[seen], space.high[seen])
    hosts = [make(name, 3, "cpu", "sync") for name in (original, env_id)]
    assert hosts[1].single_observation_space == part.single_observation_space
    assert torch.equal(hosts[0].reset(seed=5)[0][:, seen], hosts[1].reset(seed=5)[0])
    for _ in range(5):
        action = sample_action(hosts[0], generator)
        steps = [host.step(action) for host in hosts]
        assert torch.equal(steps[0][0][:, seen], steps[1][0]) and torch.equal(steps[0][1], steps[1][1])
    spec, wanted = gymnasium.spec(env_id), gymnasium.spec(original)
    assert (spec.max_episode_steps, spec.reward_threshold) == (wanted.max_episode_steps, wanted.reward_threshold)


def test_columns_that_can_not_be_hidden():
    env = tensor_env("CartPole-v1", 2)
    for columns, said in (((4,), "0 to 3, got 4"), ((-1,), "got -1"), ((0, 1, 2, 3), "nothing would be left")):
        with pytest.raises(ValueError, match=f"--hide: .*{said}"):
            env.hide(columns)
    env.hide((0,))
    env.hide((1,))  # of what is left of the angles and velocities: the angle
    assert torch.equal(env.reset(seed=0)[0], env.state[0][:, [1, 3]])


def test_state_of_another_size_or_incomplete_is_refused():
    env = tensor_env("CartPole-v1", 3)
    with pytest.raises(ResetNeeded):
        env.get_state()
    env.reset(seed=0)
    saved = env.get_state()
    with pytest.raises(ValueError, match="of 3 environments, this is one of 4"):
        tensor_env("CartPole-v1", 4).set_state(saved)
    del saved["generator"]
    with pytest.raises(ValueError, match="lacks generator"):
        env.set_state(saved)


def test_reset_mask_resets_only_these():
    env = tensor_env("CartPole-v1", 4)
    mask = np.array([True, False, False, True])
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": mask})
    env.reset(seed=0)
    for _ in range(5):
        before, *_ = env.step(torch.ones(4).long())
    after, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(after[1:3], before[1:3])
    assert (after[[0, 3]].abs() <= 0.05).all() and (after[[0, 3]] != before[[0, 3]]).any(1).all()
    assert env.state[1].tolist() == [0, 5, 5, 0]
    for wrong in (mask[:3], mask.astype(int)):
        with pytest.raises(ValueError, match="reset_mask"):
            env.reset(options={"reset_mask": wrong})


def test_seeds():
    env = tensor_env("CartPole-v1", 4)
    first, second = env.reset(seed=7)[0], env.reset()[0]
    assert not torch.equal(first, second), "a reset without a seed goes on with the stream"
    assert torch.equal(env.reset(seed=7)[0], first) and torch.equal(env.reset()[0], second)
    others = [tensor_env("CartPole-v1", 4).reset()[0] for _ in range(2)]
    assert not torch.equal(*others), "without a seed the start comes from fresh entropy"
    with pytest.raises(ValueError, match="--seed"):
        env.reset(seed=-1)


def test_numpy_actions_equal_tensors_and_shapes_are_checked():
    envs = [tensor_env("Pendulum-v1", 3) for _ in range(2)]
    actions = np.array([[0.5], [-9.0], [1.0]], dtype=np.float32)
    with pytest.raises(ResetNeeded):
        envs[0].step(actions)
    for env in envs:
        env.reset(seed=1)
    assert torch.equal(envs[0].step(actions)[0], envs[1].step(torch.tensor(actions))[0])
    for wrong in (actions[:2], actions[:, 0], np.concatenate([actions, actions])):
        with pytest.raises(ValueError, match=r"shape \(3, 1\)"):
            envs[0].step(wrong)


def test_box_actions_are_clipped_as_on_the_host():
    """Gymnasium's MountainCarContinuous charges for the action as given; here it always gets the clipped one."""
    reward = {}
    for backend in ("tensor", "sync"):
        env = make("MountainCarContinuous-v0", 2, "cpu", backend)
        env.reset(seed=0)
        reward[backend] = env.step(torch.tensor([[5.0], [-0.5]]))[1]
        env.close()
    torch.testing.assert_close(reward["tensor"], torch.tensor([-0.1, -0.025]))
    torch.testing.assert_close(reward["sync"], reward["tensor"])


def test_sutton_barto_reward():
    env: Any = make("CartPole-v1", 2, "cpu", "auto", sutton_barto_reward=True)
    assert env.backend == "tensor"
    env.reset(seed=0)
    env.state = (torch.tensor([[0.0, 0, 0, 0], [2.41, 0, 0, 0]]), env.state[1])
    assert env.step(torch.ones(2).long())[1].tolist() == [0, -1]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("env_id", ALL_IDS)
def test_step_compiles_to_one_graph_without_recompiles(env_id, backend):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph if backend == "eager" else torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    env = tensor_env(env_id, 6, max_episode_steps=9)
    env.reset(seed=0)
    compiled = torch.compile(env.step_state, fullgraph=True, backend=counting)
    noise, generator = env.draw_noise(25), torch.Generator().manual_seed(0)
    state = other = env.state
    for row in noise:
        action = sample_action(env, generator)
        with torch.no_grad():
            state, *outputs = compiled(state, action, row)
            other, *wanted = env.step_state(other, action, row)
        assert all(torch.equal(a, b) for a, b in zip([*state, *outputs], [*other, *wanted], strict=True))
    assert len(graphs) == 1, f"{len(graphs)} graphs: a break or a recompile"
    torch._dynamo.reset()


def test_registration():
    vector: Any = gymnasium.make_vec("ppo_fast/CartPole-v1", num_envs=64)
    assert type(vector).__name__ == "TensorCartPole" and vector.num_envs == 64
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and vector.spec.id == "ppo_fast/CartPole-v1"
    for env_id in IDS:
        single: Any = gymnasium.make(f"ppo_fast/{env_id}")
        assert type(single.unwrapped) is type(gymnasium.make(env_id).unwrapped)
        assert single.spec.max_episode_steps == gymnasium.spec(env_id).max_episode_steps
    before = dict(gymnasium.registry)
    ppo_fast._register_tensor_environments()
    assert dict(gymnasium.registry) == before


def test_importing_the_package_does_not_import_torch():
    code = "import sys, ppo_fast; assert 'torch' not in sys.modules and 'ppo_fast.envs' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
