"""Play whole episodes with a policy: an evaluation that no short episode can bias, and a video."""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Added to a run's seed for its evaluation: episodes that training has not seen.
EVAL_SEED = 1_000_000


class Episodes(NamedTuple):
    """The episodes of `play`, one per environment."""

    returns: Tensor  # (N,) f64, undiscounted sums of the environment's own rewards
    lengths: Tensor  # (N,) i64, steps

    def figures(self, prefix: str) -> dict[str, float | int]:
        """Mean, standard deviation (of the episodes, not of the mean), extremes and count, as in result.json."""
        returns = self.returns
        figures = {"mean_return": returns.mean(), "std_return": returns.std(correction=0)}
        figures |= {
            "min_return": returns.min(),
            "max_return": returns.max(),
            "mean_length": self.lengths.double().mean(),
        }
        return {**{prefix + name: float(x) for name, x in figures.items()}, prefix + "episodes": len(returns)}


@torch.no_grad()
def play(envs: Any, act: Callable[[Tensor], Tensor], seed: int, max_steps: int = 1_000_000) -> Episodes:
    """The first episode of each of N freshly reset environments.

    One episode per environment, the long ones too: counting episodes as they end would favour the short ones.

    Args:
        envs: an environment of `ppo_fast.envs.make`.
        act: observations (N, *S) to actions (N, ...).
        seed: of the reset.
        max_steps: for environments that never end an episode; what was gathered until then is the return.
    """
    obs = envs.reset(seed=seed)[0]
    returns = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
    lengths = torch.zeros(envs.num_envs, dtype=torch.int64, device=envs.device)
    running = torch.ones(envs.num_envs, dtype=torch.bool, device=envs.device)
    for step in range(max_steps):
        obs, reward, terminated, truncated, _ = envs.step(act(obs))
        returns += torch.where(running, reward, 0.0)
        lengths += running
        running &= ~(terminated | truncated)
        # Looking at the device stalls it: now and then is enough there.
        if (not running.is_cuda or step % 32 == 31) and not running.any():
            break
    return Episodes(returns, lengths)


def evaluate(envs: Any, agent: Any, seed: int) -> dict[str, float | int]:
    """An agent's figures over one episode of each environment, greedy as "eval/..." and sampled as "eval/sampled_...".

    Args:
        envs: fresh environments, closed here. Their number is the number of episodes.
        agent: `act(obs, noise or None) -> action, log_prob`, and `head.draw_noise(shape, generator)`.
        seed: of the environments (moved away from the training's) and of the sampling.
    """
    draw = torch.Generator(envs.device).manual_seed(seed)

    def sampled(obs: Tensor) -> Tensor:
        return agent.act(obs, agent.head.draw_noise(obs.shape[:1], draw))[0]

    figures = play(envs, lambda obs: agent.act(obs, None)[0], seed + EVAL_SEED).figures("eval/")
    figures |= play(envs, sampled, seed + EVAL_SEED).figures("eval/sampled_")
    envs.close()
    return figures


@torch.no_grad()
def record(envs: Any, agent: Any, seed: int, path: Path, max_steps: int = 10_000) -> Path:
    """Write one greedy episode of the first environment as an mp4 and return its path.

    Frames go to the encoder one by one, so a long episode needs no more memory than a short one; the file appears when
    it is whole. The last frame shows the state before the step that ended the episode: what is drawn after that step is
    the next episode.

    Args:
        envs: one environment made with `render_mode="rgb_array"`, closed here.
        seed: of the run. The episode is the first of those that `evaluate` plays with this seed, if made for one
            environment.
        max_steps: frames at most, for environments that never end an episode and for videos while training.

    Raises:
        ValueError: `--capture-video: ...` when moviepy is missing or the environment renders nothing.
    """
    try:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
    except ImportError as problem:
        raise ValueError('--capture-video: needs moviepy: pip install "ppo_fast[video]"') from problem
    fps, part = int(envs.metadata.get("render_fps") or 30), path.with_name(f".{path.name}.part.mp4")
    frames = _frames(envs, agent, seed, max_steps)
    try:
        first = next(frames)
        # The index first, so that a browser starts to play before it has all of the file.
        flags = ["-movflags", "+faststart"]
        # The preset that costs a third of the time for a file of twice the size, on one core: others may be training.
        with FFMPEG_VideoWriter(
            str(part), first.shape[1::-1], fps, preset="superfast", threads=1, ffmpeg_params=flags
        ) as writer:
            for frame in chain([first], frames):
                writer.write_frame(frame)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        envs.close()
    return path


def _frames(envs: Any, agent: Any, seed: int, max_steps: int) -> Iterator[np.ndarray]:
    """What is seen of the first environment's greedy episode, a frame a step."""
    obs = envs.reset(seed=seed + EVAL_SEED)[0]
    for _ in range(max_steps):
        yield _frame(envs)
        obs, _, terminated, truncated, _ = envs.step(agent.act(obs, None)[0])
        if terminated[0] or truncated[0]:
            return


def render_without_a_display() -> None:
    """Let MuJoCo and pygame draw on a machine without a screen. Before the first environment is made: they look once.

    Without a word pygame would look for a screen and a sound card, and complain. What is set already wins.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        for name, value in (("MUJOCO_GL", "egl"), ("SDL_VIDEODRIVER", "dummy"), ("SDL_AUDIODRIVER", "dummy")):
            os.environ.setdefault(name, value)


def _frame(envs: Any) -> np.ndarray:
    """What the first environment shows, (height, width, 3), of even sizes: h264 has no others that every player takes.

    Raises:
        ValueError: `--capture-video: ...` when it shows nothing, with the reason where its renderer gives one.
    """
    reason = "it renders nothing"
    try:
        frames = envs.render()
    except NotImplementedError:  # gymnasium.Env's own render()
        frames = None
    except Exception as problem:  # pygame, MuJoCo and OpenGL each have their own
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        frames = None
    if frames is None or len(frames) == 0 or frames[0] is None:
        raise ValueError(f"--capture-video: {envs.spec_id} can't be filmed: {reason}")
    frame = np.asarray(frames[0])
    return frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]
