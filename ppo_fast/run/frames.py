"""Whatever an environment renders, as frames for an encoder: bytes (height, width, 3), one size a film.

reel = Reel()
for picture in reel.frames(env.render()):      # RGB, RGBA, grey, float, bool, channels first, a list of those
    picture                                    # (H, W, 3) uint8, H and W even and the same for the whole film
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA
# Floats up to here are parts of 1, a little too bright perhaps; larger ones are of 255.
BRIGHTEST_PART = 2.0
FULL = 255
SLACK = 0.05  # of the range, by which a renderer's rounding may leave it


class Reel:
    """The frames of one film. It remembers the size of the first, and whether floats are parts of 1 or of 255."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None  # height, width
        self._parts_of_one = True

    def frames(self, shown: Any) -> Iterator[np.ndarray]:
        """What one call of `render()` has shown: a frame, or each frame of a list; none for an empty list.

        Raises:
            ValueError: what it is instead, in a few words.
        """
        # A list of lists of pixels is one frame.
        if isinstance(shown, (list, tuple)) and not any(isinstance(item, (list, tuple)) for item in shown):
            for item in shown:
                yield from self.frames(item)
            return
        array = _array(shown)
        for frame in array if array.ndim == 4 else [array]:
            yield self._fitted(self._bytes(_channels_last(frame)))

    def _bytes(self, frame: np.ndarray) -> np.ndarray:
        """A frame (H, W, C) of any numbers as colours (H, W, 3) in bytes; an alpha channel is left out."""
        if frame.dtype == np.bool_:
            frame = frame * np.uint8(FULL)
        elif frame.dtype == np.uint16:
            frame = (frame // (FULL + 2)).astype(np.uint8) if frame.max() > FULL else frame.astype(np.uint8)
        elif frame.dtype != np.uint8:
            frame = self._scaled(frame)
        colours = frame[..., :3] if frame.shape[-1] >= 3 else frame[..., :1]
        return np.broadcast_to(colours, (*colours.shape[:2], 3))

    def _scaled(self, frame: np.ndarray) -> np.ndarray:
        """Whole numbers 0 to 255, or floats 0 to 1 or 0 to 255, as bytes. NaN becomes black."""
        numbers = np.nan_to_num(frame, nan=0.0) if frame.dtype.kind == "f" else frame
        low, high = float(numbers.min()), float(numbers.max())
        if frame.dtype.kind != "f" or high > BRIGHTEST_PART:
            self._parts_of_one = False
        full = 1 if self._parts_of_one else FULL
        if low < -SLACK * full or high > max(BRIGHTEST_PART, (1 + SLACK) * full):
            raise ValueError(f"its frames hold numbers from {low:g} to {high:g}, neither 0 to 1 nor 0 to 255")
        return np.clip(np.rint(numbers * (FULL / full)), 0, FULL).astype(np.uint8)

    def _fitted(self, frame: np.ndarray) -> np.ndarray:
        """A frame in the size of the first one, which is made even: h264 has no other that every player takes."""
        height, width = frame.shape[:2]
        even = (max(2, height // 2 * 2), max(2, width // 2 * 2))
        if self._size is None:
            self._size = even
        if self._size != even:
            return _stretched(frame, *self._size)
        if 1 in (height, width):
            frame = np.repeat(np.repeat(frame, 2 if height == 1 else 1, axis=0), 2 if width == 1 else 1, axis=1)
        return frame[: even[0], : even[1]]


def _on_host(x: Any) -> Any:
    """A tensor on the CPU; anything else as it is."""
    return x.detach().cpu() if hasattr(x, "detach") else x


def _array(shown: Any) -> np.ndarray:
    """What was shown as an array of 2 to 4 axes, none of them empty."""
    if isinstance(shown, (str, bytes)):
        raise ValueError("it renders text, no picture")
    try:
        array = np.asarray(_on_host(shown))
    except ValueError as problem:  # rows of different lengths
        raise ValueError("it renders rows of different lengths, no picture") from problem
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it renders a {type(shown).__name__} of {array.dtype}, no picture")
    if not 2 <= array.ndim <= 4 or array.size == 0:
        raise ValueError(f"its frames have the shape {array.shape}, not (height, width, 3)")
    return array


def _channels_last(frame: np.ndarray) -> np.ndarray:
    """A frame as (H, W, C)."""
    if frame.ndim == 2:
        return frame[..., None]
    if frame.shape[-1] not in CHANNELS and frame.shape[0] in CHANNELS:
        frame = np.moveaxis(frame, 0, -1)
    if frame.shape[-1] not in CHANNELS:
        raise ValueError(f"its frames have the shape {frame.shape}, not (height, width, 3)")
    return frame


def _stretched(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """All of a frame as large as it fits into this size, in the middle of black."""
    scale = min(height / frame.shape[0], width / frame.shape[1])
    rows = _nearest(frame.shape[0], scale)
    columns = _nearest(frame.shape[1], scale)
    top, left = (height - len(rows)) // 2, (width - len(columns)) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + len(rows), left : left + len(columns)] = frame[rows][:, columns]
    return canvas


def _nearest(length: int, scale: float) -> np.ndarray:
    """For each line of the scaled picture the line of the original that it shows."""
    scaled = max(1, round(length * scale))
    return np.minimum((np.arange(scaled) + 0.5) * length / scaled, length - 1).astype(np.intp)
