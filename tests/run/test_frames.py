"""Frames of every kind that environments render, in the bytes that an encoder takes."""

import numpy as np
import pytest
import torch

from ppo_fast.run.frames import Reel

# (height 4, width 6); the left half is dark, the right half as bright as can be.
GREY = np.repeat([[0] * 3 + [255] * 3], 4, axis=0).astype(np.uint8)
RGB = np.stack([GREY] * 3, axis=-1)
RGBA = np.concatenate([RGB, np.full((4, 6, 1), 7, np.uint8)], axis=-1)
KINDS = {
    "rgb": RGB,
    "rgba": RGBA,
    "grey": GREY,
    "grey with an axis": GREY[..., None],
    "grey and alpha": RGBA[..., 2:],
    "bool": GREY > 0,
    "float of 1": (RGB / 255).astype(np.float32),
    "float of 1, overshooting": np.float16(RGB / 255 * 1.03 - 0.01),
    "float of 255": RGB.astype(np.float64),
    "rgba, float of 1": RGBA / 255,
    "int64": RGB.astype(np.int64),
    "uint16": RGB.astype(np.uint16) * 257,
    "NaN where nothing is": np.where(RGB > 0, 1.0, np.nan),
    "channels first": np.moveaxis(RGB, -1, 0),
    "tensor": torch.from_numpy(RGB),
    "plain lists": RGB.tolist(),
    "not contiguous": RGB[:, ::-1][:, ::-1],
    "a list of one": [RGB],
    "a batch of one": RGB[None],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_the_same_picture(kind):
    (frame,) = Reel().frames(KINDS[kind])
    assert frame.dtype == np.uint8 and frame.shape == RGB.shape
    assert np.abs(frame.astype(int) - RGB).max() <= 3 and len(frame.tobytes()) == RGB.size


def test_all_frames_of_a_list_are_shown_and_an_empty_list_is_none():
    reel = Reel()
    assert [int(frame.max()) for frame in reel.frames([RGB, GREY // 5])] == [255, 51]
    assert list(reel.frames([])) == []


def test_floats_are_read_by_the_whole_film():
    """A dark frame of a film of 0 to 255 is not taken for a bright one of 0 to 1."""
    reel = Reel()
    shown = [next(iter(reel.frames(np.full((4, 4, 3), value)))).max() for value in (0.0, 200.0, 1.0)]
    assert shown == [0, 200, 1]


@pytest.mark.parametrize(
    ("shape", "even"), [((5, 7), (4, 6)), ((1, 9), (2, 8)), ((1, 1), (2, 2)), ((64, 64), (64, 64))]
)
def test_sizes_become_even(shape, even):
    (frame,) = Reel().frames(np.full((*shape, 3), 9, np.uint8))
    assert frame.shape == (*even, 3) and (frame == 9).all()


@pytest.mark.parametrize("shape", [(20, 20), (4, 4), (10, 40), (41, 10), (1, 300), (10, 11)])
def test_sizes_that_change_are_fitted_to_the_first(shape):
    reel = Reel()
    list(reel.frames(np.zeros((10, 10, 3), np.uint8)))
    picture = np.zeros((*shape, 3), np.uint8)
    picture[:, shape[1] // 2 :] = 200
    (frame,) = reel.frames(picture)
    assert frame.shape == (10, 10, 3) and frame[:, 5:].max() == 200 and frame[:, :4].max() == 0


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ("a\nb", "it renders text, no picture"),
        ({"rgb": RGB}, "it renders a dict of object, no picture"),
        (np.float32(3), r"shape \(\), not \(height, width, 3\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.zeros((8, 8, 7)), r"shape \(8, 8, 7\)"),
        (np.zeros((2, 2, 8, 8, 3)), "shape"),
        ([[[1, 2], [3]]], "rows of different lengths"),
        (RGB / 127.5 - 1, "numbers from -1 to 1, neither 0 to 1 nor 0 to 255"),
        (RGB.astype(int) * 4, "numbers from 0 to 1020"),
        (np.full((4, 4, 3), np.inf), "numbers from"),
    ],
)
def test_what_is_no_picture_is_said(shown, reason):
    with pytest.raises(ValueError, match=reason):
        list(Reel().frames(shown))
