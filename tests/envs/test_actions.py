"""How actions get into a Box, and numbers that are hidden from a policy: the same on every backend."""

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from ppo_fast.envs import make
from ppo_fast.envs.actions import map_to
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.envs.spaces import ActionDecoder

INF = np.inf
RAW = np.array([-9.0, -1.0, -0.5, 0.0, 0.25, 1.0, 7.0], np.float32)
UNIT = np.array([0.0, 0.0, 0.25, 0.5, 0.625, 1.0, 1.0])  # where in a mapped range these are

BACKENDS = ["tensor", "sync", "async"]
if importlib.util.find_spec("envpool") is not None:
    BACKENDS.append("envpool")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(100, 200), (-2, 2), (0, 1), (-0.4, 0.4), (0.1, 0.7), (-1e4, 3), (5, 5)])
def test_finite_bounds_are_mapped_from_minus_one_to_one(low, high, dtype):
    space = spaces.Box(low, high, (1,), dtype)
    decoder = ActionDecoder(space, len(RAW), "", "rescale")
    assert decoder.space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    actions = decoder(torch.tensor(RAW)[:, None])
    assert actions.dtype == dtype and all(space.contains(action) for action in actions)
    atol = max(abs(low), abs(high)) * max(1e-6, float(np.finfo(dtype).eps))
    np.testing.assert_allclose(actions[:, 0], low + UNIT * (high - low), atol=atol)


def test_each_dimension_for_itself():
    """Mapped where both bounds are finite and no stand-in for infinity, else clipped."""
    low = np.array([-3, -1, -INF, 0, 2, -3e38, -1e7], np.float32)
    high = np.array([3, 1, INF, INF, 4, 3e38, 1], np.float32)
    box = map_to(spaces.Box(low, high), "rescale")
    given = np.full((1, 7), 0.5, np.float32)
    assert box(given).tolist() == [[1.5, 0.5, 0.5, 0.5, 3.5, 0.5, 0.5]]
    assert box(10 * given).tolist() == [[3, 1, 5, 5, 4, 5, 1]]
    assert box(-10 * given).tolist() == [[-3, -1, -5, 0, 2, -5, -5]]
    assert torch.equal(box.on(torch.device("cpu"))(torch.tensor(given)), torch.tensor(box(given)))


def test_auto_maps_what_is_unlike_a_policys_range():
    """Bounds from one to three on both sides are clipped to, and so are those that are none."""
    low = np.array([-1, -2, -3, -0.9, -3.1, -100, 0, -1, 100, 5, -INF], np.float32)
    high = np.array([1, 2, 3, 0.9, 3.1, 100, 1, 2, 200, INF, INF], np.float32)
    of_a_fifth = map_to(spaces.Box(low, high), "auto")(np.full((1, 11), 0.2, np.float32))
    wanted = [0.2, 0.2, 0.2, 0.2 * 0.9, 0.2 * 3.1, 20, 0.6, 0.8, 160, 5, 0.2]
    np.testing.assert_allclose(of_a_fifth[0], wanted, rtol=1e-6)


def test_bounds_of_one_and_none_are_left_alone_bit_for_bit():
    """Minus zero, too: there is no arithmetic."""
    raw = np.array([[-0.0, -0.0], [1e-45, 3.0], [-7.0, 0.3]], np.float32)
    for low, high in (((-1, -1), (1, 1)), ((-1, -INF), (1, INF))):
        space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        for bounds in ("auto", "rescale", "clip"):
            assert map_to(space, bounds)(raw).tobytes() == np.clip(raw, space.low, space.high).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_maps_alike(backend):
    """A raw action under "rescale" does what the mapped one does under "clip"."""
    n = len(RAW)
    raw = torch.tensor(RAW)[:, None]
    env, plain = [make("Pendulum-v1", n, "cpu", backend, action_bounds=bounds) for bounds in ("rescale", "clip")]
    assert env.single_action_space == spaces.Box(-1.0, 1.0, (1,))
    assert plain.single_action_space == spaces.Box(-2.0, 2.0, (1,))
    assert torch.equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])
    for _ in range(3):
        ours, theirs = env.step(raw), plain.step((2 * raw).clamp(-2, 2))
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert not torch.equal(ours[0], plain.step(raw)[0]), "clipping the raw ones is something else"
    env.close()
    plain.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_hides_alike(backend):
    """Also in the true successors of episodes that end."""
    whole = make("CartPole-v1", 4, "cpu", backend, max_episode_steps=5)
    part = make("CartPole-v1", 4, "cpu", backend, max_episode_steps=5, hide=(1, 3))
    high = whole.single_observation_space.high[[0, 2]]
    assert part.single_observation_space == spaces.Box(-high, high)
    assert torch.equal(part.reset(seed=3)[0], whole.reset(seed=3)[0][:, [0, 2]])
    for step in range(12):
        action = torch.tensor([0, 1, 1, step % 2])
        ours, theirs = part.step(action), whole.step(action)
        assert torch.equal(ours[0], theirs[0][:, [0, 2]]) and torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[4]["final_obs"], theirs[4]["final_obs"][:, [0, 2]])
    part.close()
    whole.close()


def test_hidden_in_groups_and_of_what_can_not_be_hidden():
    env = make("CartPole-v1", 4, "cpu", "async", groups=2, hide=[0])
    assert env.reset(seed=0)[0].shape == (4, 3) and env.step(torch.ones(4).long())[4]["final_obs"].shape == (4, 3)
    env.close()
    for backend in ("tensor", "sync"):
        with pytest.raises(ValueError, match="--hide: an observation's numbers are 0 to 3, got 4"):
            make("CartPole-v1", 2, "cpu", backend, hide=(1, 4))
        with pytest.raises(ValueError, match="--hide: nothing would be left of 4 numbers"):
            make("CartPole-v1", 2, "cpu", backend, hide=range(4))


class Robot(gymnasium.Env):
    """Observations of two keys, and an action mask."""

    observation_space = spaces.Dict(foot=spaces.Box(-1, 1, (2,)), joints=spaces.Box(-3, 3, (3,)))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.seen(), {"action_mask": np.array([1, 0], np.int8)}

    def step(self, action):
        return self.seen(), 0.0, False, False, {"action_mask": np.array([0, 1], np.int8)}

    def seen(self):
        return {"foot": np.array([0.1, 0.2], np.float32), "joints": np.array([1, 2, 3], np.float32)}


def test_columns_stay_with_their_keys_and_the_mask_with_the_actions():
    envs = gymnasium.vector.SyncVectorEnv([Robot] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    env = HostVectorEnv(envs, hide=(1, 2, 4))
    obs = env.reset(seed=0)[0]
    torch.testing.assert_close(obs, torch.tensor([[0.1, 2, 1, 0]] * 2))
    wanted = {"foot": slice(0, 1), "joints": slice(1, 2), "action_mask": slice(2, 4)}
    assert env.columns == wanted and env.mask_size == 2
    torch.testing.assert_close(env.step(torch.zeros(2).long())[0], torch.tensor([[0.1, 2, 0, 1]] * 2))
    with pytest.raises(ValueError, match="0 to 4, got 5"):  # which is the mask's
        HostVectorEnv(envs, hide=(5,))


def test_images_have_no_numbers_to_hide():
    class Camera(Robot):
        observation_space = spaces.Box(0, 255, (2, 2), np.uint8)
        action_space = spaces.Box(-1.0, 1.0, (1,))

    envs = gymnasium.vector.SyncVectorEnv([Camera], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="--hide: only flat observations have numbers to hide"):
        HostVectorEnv(envs, hide=(0,))
