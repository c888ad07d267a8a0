"""A video of an episode, and what a machine without a screen needs to draw one."""

import math
import os
import re
import sys
from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_fast import names
from ppo_fast.run import randomness
from ppo_fast.run.frames import Reel
from ppo_fast.run.play import EVAL_SEED, Player, greedy
from ppo_fast.stops import is_of_code

# The index comes first, so that a browser starts to play before it has all of the file.
INDEX_FIRST = ["-movflags", "+faststart"]
# Costs a third of the time for a file of twice the size, on one core: others may be training.
PRESET = "superfast"
FPS = 30.0  # where an environment does not say
SLOWEST = 0.01  # frames a second that ffmpeg can write down


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
        ValueError: `--capture-video: ...` when moviepy is missing or the environment renders no pictures.
    """
    try:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
    except ImportError as problem:
        raise ValueError('--capture-video: needs moviepy: pip install "ppo_fast[video]"') from problem
    part = path.with_name(f".{path.name}.part.mp4")
    frames = _frames(envs, agent, seed, max_steps)
    try:
        first = next(frames, None)
        if first is None:
            raise _cannot(envs, "it renders nothing")
        height, width = first.shape[:2]
        with FFMPEG_VideoWriter(
            str(part), (width, height), _fps(envs.metadata), preset=PRESET, threads=1, ffmpeg_params=INDEX_FIRST
        ) as writer:
            encoder = writer.proc
            for frame in chain([first], frames):
                writer.write_frame(frame)
        # A short film is refused when it is whole, and without a word.
        if not part.exists() or (encoder is not None and encoder.returncode):
            raise _cannot(envs, f"ffmpeg does not take frames of {width} x {height} pixels")
        part.replace(path)
    except OSError as problem:
        if problem.errno is not None:  # the disk's
            raise
        raise _cannot(envs, f"ffmpeg: {_of_ffmpeg(str(problem))}") from problem
    finally:
        frames.close()  # now, so that the shared generators are put back
        part.unlink(missing_ok=True)
        envs.close()
    return path


def _frames(envs: Any, agent: Player, seed: int, max_steps: int) -> Generator[np.ndarray]:
    """What `_seen` gives, with the generators that a process shares as `play.play` seeds them."""
    with randomness.seeded(seed + EVAL_SEED):
        yield from _seen(envs, agent, seed, max_steps)


def _seen(envs: Any, agent: Player, seed: int, max_steps: int) -> Iterator[np.ndarray]:
    """What is seen of the first environment's greedy episode, a frame a step, more where it renders lists of them.

    Raises:
        ValueError: `--capture-video: ...` when a step shows no picture.
    """
    act = greedy(agent)
    reel = Reel()
    obs = envs.reset(seed=seed + EVAL_SEED)[0]
    for _ in range(max_steps):
        shown = _shown(envs)
        try:
            yield from reel.frames(shown)
        except ValueError as problem:
            raise _cannot(envs, str(problem)) from problem
        obs, _, terminated, truncated, _ = envs.step(act(obs))
        if terminated[0] or truncated[0]:
            return


def _shown(envs: Any) -> Any:
    """What the first environment shows now.

    Raises:
        ValueError: `--capture-video: ...` when it shows nothing, with the reason where its renderer gives one.
    """
    reason = "it renders nothing"
    frames = None
    try:
        frames = envs.render()
    except NotImplementedError:  # gymnasium.Env's own render()
        pass
    except BaseException as problem:  # pygame, MuJoCo and OpenGL each have their own
        if not is_of_code(problem):
            raise
        reason = names.first_line(problem)
    if frames is None or len(frames) == 0 or frames[0] is None:
        raise _cannot(envs, reason)
    return frames[0]


def _cannot(envs: Any, reason: str) -> ValueError:
    return ValueError(f"--capture-video: {envs.spec_id} can't be filmed: {reason}")


def _of_ffmpeg(text: str) -> str:
    """The first thing that ffmpeg itself says in a message of moviepy, without the address of who says it."""
    said = text.partition("writing file")[2].splitlines()[1:] or [text]
    return re.sub(r"^\[.*?\]\s*", "", next((line.strip() for line in said if line.strip()), text))


def _fps(metadata: Any) -> float:
    """Frames a second, as an environment says; FPS where it says nothing, or nonsense."""
    fps = metadata.get("render_fps")
    try:
        fps = float(fps)
    except (TypeError, ValueError):
        return FPS
    return fps if SLOWEST <= fps < math.inf else FPS


def render_without_a_display() -> None:
    """Let MuJoCo and pygame draw on a machine without a screen. Before the first environment is made: they look once.

    Without a word pygame would look for a screen and a sound card, and complain. What is set already wins.
    """
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_screen:
        for name, value in (("MUJOCO_GL", "egl"), ("SDL_VIDEODRIVER", "dummy"), ("SDL_AUDIODRIVER", "dummy")):
            os.environ.setdefault(name, value)
