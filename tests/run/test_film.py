"""Videos of episodes: a frame a step, whole or not at all, on machines without a screen too."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from players import Staircase, Upright, rule, staircase

from ppo_fast.envs import make
from ppo_fast.run.film import record, render_without_a_display
from ppo_fast.run.play import EVAL_SEED, play


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
        proc = SimpleNamespace(returncode=0)

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
    for envs, limit, expected in ((staircase(indices=[0, 1]), 50, [0]), (staircase(indices=[1]), 50, [*range(11)])):
        taken.clear()
        record(envs, Upright(), 0, tmp_path / "a.mp4", limit)
        assert taken == expected
    taken.clear()
    record(staircase(indices=[1]), Upright(), 0, tmp_path / "a.mp4", max_steps=4)
    assert taken == [0, 1, 2, 3]
    assert {size for size, _ in held} == {(6, 4)}  # even, as h264 wants it


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


@pytest.mark.parametrize("size", [(1, 1), (33, 63)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_film_of_floats_shows_their_colour(tmp_path, monkeypatch, channels, size):
    """Of frames of any depth, and of sizes that grow: before, such films were noise."""
    pytest.importorskip("moviepy")
    from moviepy import VideoFileClip

    def render(self):
        return np.full((size[0] + self.steps, *size[1:], channels), 0.5, np.float32)

    monkeypatch.setattr(Staircase, "render", render)
    path = record(staircase(indices=[1]), Upright(), 0, tmp_path / "a.mp4")
    with VideoFileClip(str(path)) as clip:
        assert clip.size == [max(2, size[1] // 2 * 2), max(2, size[0] // 2 * 2)]
        shown = clip.get_frame(0)
        assert shown is not None and abs(int(shown.mean()) - 128) <= 3


@pytest.mark.parametrize("fps", [None, 0, -5, "fast", float("nan"), 1e-9, [30]])
def test_a_speed_that_is_none_is_the_usual_one(tmp_path, monkeypatch, fps):
    pytest.importorskip("moviepy")
    from moviepy import VideoFileClip

    monkeypatch.setattr(Staircase, "render", lambda self: np.zeros((16, 16, 3), np.uint8))
    envs = staircase(indices=[1])
    envs.metadata["render_fps"] = fps
    with VideoFileClip(str(record(envs, Upright(), 0, tmp_path / "a.mp4"))) as clip:
        assert clip.fps == 30


def test_an_encoder_that_refuses_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("moviepy")
    monkeypatch.setattr(Staircase, "render", lambda self: np.zeros((2, 40_000, 3), np.uint8))
    # It may say so when the first frame comes, or when all have.
    with pytest.raises(ValueError, match=r"^--capture-video: Staircase can't be filmed: ffmpeg.*40000") as told:
        record(staircase(indices=[1]), Upright(), 0, tmp_path / "a.mp4")
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())


def test_an_encoder_that_refuses_late_leaves_no_empty_film(tmp_path, monkeypatch):
    """It has made the file by then, and says nothing but its exit status."""
    pytest.importorskip("moviepy")
    from moviepy.video.io import ffmpeg_writer

    class Writer:
        proc = SimpleNamespace(returncode=187)

        def __init__(self, filename, size, fps, **options):
            Path(filename).write_bytes(b"")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write_frame(self, frame):
            pass

    monkeypatch.setattr(ffmpeg_writer, "FFMPEG_VideoWriter", Writer)
    monkeypatch.setattr(Staircase, "render", lambda self: np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"can't be filmed: ffmpeg does not take"):
        record(staircase(indices=[1]), Upright(), 0, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
