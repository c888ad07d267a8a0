"""Evaluation episodes against a plain loop over single environments."""

import os
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ppo_fast.algorithm.networks import CategoricalHead
from scripted_envs import Scripted

from ppo_fast.envs import make
from ppo_fast.envs.host import HostVectorEnv
from ppo_fast.run.play import EVAL_SEED, Episodes, evaluate, play, record, render_without_a_display


def rule(obs):
    """Push the cart to the side the pole leans to: episodes of some 40 steps, of many lengths."""
    return (obs[..., 2] > 0).long()


class Staircase(Scripted):
    """Every episode of environment i takes 1 + 10 i steps and gives 1, 2, 3, ... as rewards. Odd ones are truncated."""

    def step(self, action):
        self.steps += 1
        ended, odd = self.steps >= 1 + 10 * self.index, self.index % 2 == 1
        return self._obs(), float(self.steps), ended and not odd, ended and odd, {}


def staircase(mode=AutoresetMode.SAME_STEP, envs=6):
    makers = [lambda i=i: Staircase(i) for i in range(envs)]
    return HostVectorEnv(SyncVectorEnv(makers, autoreset_mode=mode, copy=False), "cpu", "sync", "Staircase")


def idle(obs):
    return torch.zeros(len(obs)).long()


def test_the_first_episode_of_every_environment():
    """As single environments of Gymnasium give it, reset with the same seeds and played by the same rule."""
    env = make("CartPole-v1", 12, "cpu", "sync")
    episodes = play(env, rule, seed=5)
    returns, lengths = [], []
    for seed in env.spread(5):  # pyright: ignore[reportAttributeAccessIssue]
        single = gymnasium.make("CartPole-v1")
        obs, total, steps, ended = single.reset(seed=seed)[0], 0.0, 0, False
        while not ended:
            obs, reward, terminated, truncated, _ = single.step(rule(torch.tensor(obs)).item())
            total, steps, ended = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    assert episodes.returns.tolist() == returns and episodes.lengths.tolist() == lengths
    assert len(set(lengths)) > 3
    env.close()


def test_a_tensor_environment_against_a_plain_loop():
    episodes = play(make("CartPole-v1", 50, "cpu", "tensor"), rule, seed=5)
    env = make("CartPole-v1", 50, "cpu", "tensor")
    obs, first_end = env.reset(seed=5)[0], [0] * 50
    for step in range(1, 501):
        obs, _, terminated, truncated, _ = env.step(rule(obs))
        for i in (terminated | truncated).nonzero().flatten().tolist():
            first_end[i] = first_end[i] or step
    assert episodes.lengths.tolist() == first_end
    assert episodes.returns.tolist() == first_end


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_long_episodes_count_as_much_as_short_ones(mode):
    """The first environment ends 51 episodes while the last plays one. Six episodes counted as they end would all have
    been short."""
    episodes = play(staircase(mode), idle, seed=0)
    lengths = [1, 11, 21, 31, 41, 51]
    assert episodes.lengths.tolist() == lengths
    assert episodes.returns.tolist() == [n * (n + 1) / 2 for n in lengths]


def test_it_stops_when_all_have_ended():
    seen = []
    play(staircase(envs=3), lambda obs: seen.append(1) or idle(obs), seed=0)
    assert len(seen) == 21


def test_max_steps_cuts_what_still_runs():
    episodes = play(staircase(), idle, seed=0, max_steps=12)
    assert episodes.lengths.tolist() == [1, 11, 12, 12, 12, 12]
    assert episodes.returns.tolist() == [1, 66, 78, 78, 78, 78]
    episodes = play(staircase(), idle, seed=0, max_steps=0)
    assert not episodes.lengths.any()


def test_the_same_seed_gives_the_same_episodes():
    env = make("CartPole-v1", 20)
    first, same, other = (play(env, rule, seed).lengths for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_nothing_is_differentiated():
    weight = torch.ones(4, requires_grad=True)

    def act(obs):
        assert not (obs @ weight).requires_grad
        return rule(obs)

    play(make("CartPole-v1", 3), act, seed=0, max_steps=5)


def test_figures():
    returns, lengths = [1.0, 2.0, 6.0], [1, 2, 6]
    figures = Episodes(torch.tensor(returns).double(), torch.tensor(lengths)).figures("eval/")
    assert figures == {
        "eval/mean_return": 3.0,
        "eval/std_return": pytest.approx(np.std(returns)),
        "eval/min_return": 1.0,
        "eval/max_return": 6.0,
        "eval/mean_length": 3.0,
        "eval/episodes": 3,
    }
    assert all(type(x) in (int, float) for x in figures.values())
    assert Episodes(torch.tensor([7.0]).double(), torch.tensor([7])).figures("")["std_return"] == 0.0


class Upright:
    """An agent that plays `rule` greedily and at random when it samples."""

    head = CategoricalHead(2)

    def act(self, obs, noise):
        action = rule(obs) if noise is None else self.head.sample(torch.zeros(len(obs), 2), noise)
        return action, torch.zeros(len(obs))


def test_evaluation_is_of_greedy_and_of_sampled_episodes():
    """On the same environments, from seeds that training does not use; closed afterwards, and equal for equal seeds."""
    env = make("CartPole-v1", 30)
    figures = evaluate(env, Upright(), seed=3)
    greedy = play(make("CartPole-v1", 30), rule, seed=3 + EVAL_SEED).figures("eval/")
    assert {name: figures[name] for name in greedy} == greedy
    assert figures["eval/sampled_mean_return"] < 0.8 * figures["eval/mean_return"]
    assert figures["eval/sampled_episodes"] == figures["eval/episodes"] == 30
    assert env.closed
    assert evaluate(make("CartPole-v1", 30), Upright(), seed=3) == figures
    assert evaluate(make("CartPole-v1", 30), Upright(), seed=4) != figures


def test_a_video_of_the_first_episode(tmp_path):
    """One frame for every step of the episode and none of the next one."""
    pytest.importorskip("moviepy")
    from moviepy import VideoFileClip

    length = int(play(make("CartPole-v1", 1, "cpu", "sync"), rule, seed=3 + EVAL_SEED).lengths[0])
    path = record(make("CartPole-v1", 1, "cpu", render_mode="rgb_array"), Upright(), 3, tmp_path / "episode.mp4")
    with VideoFileClip(str(path)) as clip:
        assert clip.fps == 50 and clip.size == [600, 400]
        assert abs(clip.duration * clip.fps - length) <= 1


def test_frames_are_of_this_episode_and_go_to_the_encoder_one_by_one(tmp_path, monkeypatch):
    """Each frame shows the step it is of, none the reset after the end; `max_steps` bounds them."""
    from moviepy.video.io import ffmpeg_writer

    taken, held = [], []

    class Writer:
        def __init__(self, filename, size, fps, **options):
            Path(filename).write_bytes(b"")
            held.append((size, fps))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write_frame(self, frame):
            taken.append(int(frame[0, 0, 0]))

    monkeypatch.setattr(ffmpeg_writer, "FFMPEG_VideoWriter", Writer)
    monkeypatch.setattr(Staircase, "render", lambda self: np.full((5, 7, 3), self.steps, dtype=np.uint8))
    for envs, limit, expected in ((staircase(envs=2), 50, [0]), (staircase_from(1), 50, [*range(11)])):
        taken.clear()
        record(envs, Upright(), 0, tmp_path / "a.mp4", limit)
        assert taken == expected
    taken.clear()
    record(staircase_from(1), Upright(), 0, tmp_path / "a.mp4", max_steps=4)
    assert taken == [0, 1, 2, 3]
    assert {size for size, _ in held} == {(6, 4)}  # even, as h264 wants it


def staircase_from(index):
    """One environment whose episode takes 1 + 10 * index steps."""
    envs = SyncVectorEnv([lambda: Staircase(index)], autoreset_mode=AutoresetMode.SAME_STEP, copy=False)
    return HostVectorEnv(envs, "cpu", "sync", "Staircase")


def test_a_video_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("moviepy")
    kept = tmp_path / "episode.mp4"
    kept.write_bytes(b"the one before")
    env = make("CartPole-v1", 1, "cpu", render_mode="rgb_array")
    env.reset(seed=0)
    shown = [env.render, env.render, lambda: 1 / 0]
    monkeypatch.setattr(env, "render", lambda: shown.pop(0)())
    with pytest.raises(ValueError, match="--capture-video: CartPole-v1 can't be filmed: division by zero"):
        record(env, Upright(), 3, kept)
    assert [path.name for path in tmp_path.iterdir()] == ["episode.mp4"] and kept.read_bytes() == b"the one before"
    assert env.closed


def test_mujoco_draws_without_a_display_unless_told_otherwise(monkeypatch):
    for display, chosen, expected in (("", None, "egl"), (":0", None, None), ("", "osmesa", "osmesa")):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        if chosen is not None:
            monkeypatch.setenv("MUJOCO_GL", chosen)
        render_without_a_display()
        assert os.environ.get("MUJOCO_GL") == (expected if sys.platform == "linux" else chosen)


def test_what_renders_nothing_is_refused(tmp_path, monkeypatch):
    """Environments that return None, and those without a render() of their own."""
    pytest.importorskip("moviepy")
    for _ in range(2):
        with pytest.raises(ValueError, match="--capture-video: Staircase can't be filmed: it renders nothing"):
            record(staircase(), Upright(), 0, tmp_path / "episode.mp4")
        monkeypatch.setattr(Staircase, "render", lambda self: None)
