"""Whether environments show images, which no program of this version learns from."""

from collections.abc import Iterator

import numpy as np
from gymnasium import spaces

from ppo_fast.envs.contract import Environments

SMALLEST = 32  # rows and columns of an image, at least: a smaller grid of bytes may be symbols


def refuse_images(envs: Environments, env_id: str) -> None:
    """Raise ValueError where what environments show is an image, or has one in it. They are closed then."""
    for shape in _images_in(envs.own_spaces.observation):
        envs.close()
        raise ValueError(
            f"--env-id: {env_id} shows images {shape}, which need a program for pixels: this version has none, and the "
            "networks of this one are for vectors"
        )


def _images_in(space: spaces.Space) -> Iterator[tuple[int, ...]]:
    """The shapes of the images in a space: arrays of bytes, or of numbers from 0 to 255, of two sides or more."""
    if isinstance(space, spaces.Dict):
        for part in space.spaces.values():
            yield from _images_in(part)
    elif isinstance(space, spaces.Tuple):
        for part in space.spaces:
            yield from _images_in(part)
    elif isinstance(space, spaces.Box):
        is_of_bytes = space.dtype == np.uint8 or (bool((space.low == 0).all()) and bool((space.high == 255).all()))
        if is_of_bytes and sum(side >= SMALLEST for side in space.shape) >= 2:
            yield space.shape
