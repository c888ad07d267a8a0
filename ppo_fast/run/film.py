"""A video of an episode, and what a machine without a screen needs to draw one."""

import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_fast import names
from ppo_fast.run.play import EVAL_SEED, Player, greedy

# The index comes first, so that a browser starts to play before it has all of the file.
INDEX_FIRST = ["-movflags", "+faststart"]
# Costs a third of the time for a file of twice the size, on one core: others may be training.
PRESET = "superfast"


@torch.no_grad()
def record(envs: Any, agent: Player, seed: int, path: Path, max_steps: int = 10_000) -> Path:
    """Write one greedy episode of the first environment as an mp4 and return its path.

    Frames go to the encoder one by one, so a long episode needs no more memory than a short one; the file appears when
    it is whole. The last frame shows the state before the step that ended the episode: what is drawn after that step is
    the next episode.

    Args:
        envs: one environment made with `render_mode="rgb_array"`, closed here.
        agent: whose episode it is.
        seed: of the run. The episode is the first of those that `play.evaluate` plays with this seed, if made for one
            environment.
        path: of the file. What is not finished lies beside it, under a name that begins with a dot and goes on with
            the file's.
        max_steps: frames at most, for environments that never end an episode and for videos while training.

    Raises:
        ValueError: `--capture-video: ...` when moviepy is missing or the environment renders nothing.
    """
    try:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
    except ImportError as problem:
        raise ValueError('--capture-video: needs moviepy: pip install "ppo_fast[video]"') from problem
    fps = int(envs.metadata.get("render_fps") or 30)
    part = path.with_name(f".{path.name}.part.mp4")
    frames = _frames(envs, agent, seed, max_steps)
    try:
        first = next(frames)
        height, width = first.shape[:2]
        with FFMPEG_VideoWriter(
            str(part), (width, height), fps, preset=PRESET, threads=1, ffmpeg_params=INDEX_FIRST
        ) as writer:
            for frame in chain([first], frames):
                writer.write_frame(frame)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        envs.close()
    return path


def _frames(envs: Any, agent: Player, seed: int, max_steps: int) -> Iterator[np.ndarray]:
    """What is seen of the first environment's greedy episode, a frame a step."""
    act = greedy(agent)
    obs = envs.reset(seed=seed + EVAL_SEED)[0]
    for _ in range(max_steps):
        yield _frame(envs)
        obs, _, terminated, truncated, _ = envs.step(act(obs))
        if terminated[0] or truncated[0]:
            return


def _frame(envs: Any) -> np.ndarray:
    """What the first environment shows, (height, width, 3), of even sizes: h264 has no others that every player takes.

    Raises:
        ValueError: `--capture-video: ...` when it shows nothing, with the reason where its renderer gives one.
    """
    reason = "it renders nothing"
    frames = None
    try:
        frames = envs.render()
    except NotImplementedError:  # gymnasium.Env's own render()
        pass
    except Exception as problem:  # pygame, MuJoCo and OpenGL each have their own
        reason = names.first_line(problem)
    if frames is None or len(frames) == 0 or frames[0] is None:
        raise ValueError(f"--capture-video: {envs.spec_id} can't be filmed: {reason}")
    frame = np.asarray(frames[0])
    height, width = frame.shape[:2]
    return frame[: height // 2 * 2, : width // 2 * 2]


def render_without_a_display() -> None:
    """Let MuJoCo and pygame draw on a machine without a screen. Before the first environment is made: they look once.

    Without a word pygame would look for a screen and a sound card, and complain. What is set already wins.
    """
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_screen:
        for name, value in (("MUJOCO_GL", "egl"), ("SDL_VIDEODRIVER", "dummy"), ("SDL_AUDIODRIVER", "dummy")):
            os.environ.setdefault(name, value)
