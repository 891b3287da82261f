"""python -m pytest tests/test_wear.py"""

import numpy as np
import pytest
from conftest import draw_frame
from PIL import Image

from answering.screenshots import find_bars, find_still
from answering.wear import COPIES, wear
from benchmarks.ways import WAYS

CHANGES = [lambda image, rng, kind=kind: wear(image, kind, rng) for kind in range(len(COPIES))]
CHANGES += [change for name, change in WAYS.items() if name != "as it is"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [(480, 270), (40, 70), (1920, 400), (20, 2200)])
def test_a_changed_frame_is_another_picture_and_the_same_each_time(change, size):
    image = draw_frame(1, 2, 3, size)
    before = np.asarray(image).copy()
    changed, again = (change(image, np.random.default_rng(5)) for _ in range(2))
    assert changed.mode == "RGB" and min(changed.size) >= 16
    assert changed.size == again.size and np.array_equal(changed, again)
    assert changed.size != image.size or not np.array_equal(changed, image)
    assert np.array_equal(image, before)  # what was given stays as it is


def test_ways_do_what_their_names_say():
    image, rng = draw_frame(0, 1, 2, (400, 200)), np.random.default_rng(3)
    rgb = np.asarray(image)
    assert np.array_equal(WAYS["as it is"](image, rng), rgb)
    assert np.array_equal(np.asarray(WAYS["mirrored"](image, rng))[:, ::-1], rgb)
    assert WAYS["crop, 60% of the sides"](image, rng).size == (240, 120)
    assert WAYS["square from the middle"](image, rng).size == (200, 200)
    assert WAYS["240 pixels wide"](image, rng).size == (240, 120)
    grey = np.asarray(WAYS["grey"](image, rng))
    assert np.array_equal(grey[..., 0], grey[..., 2])
    bars = np.asarray(WAYS["bars added"](image, rng))
    left, top, right, bottom = find_bars(bars)
    assert (left, right) == (0, 400) and abs(bottom - top - 200) <= 6
    screen = np.asarray(WAYS["a phone's screenshot"](image, rng))
    left, top, right, bottom = find_still(screen)
    assert screen.shape == (1170, 540, 3) and abs(bottom - top - 270) <= 24


def test_a_crop_is_a_part_of_the_picture():
    rgb = np.arange(30 * 50 * 3, dtype=np.uint32).reshape(30, 50, 3).astype(np.uint8)
    part = np.asarray(WAYS["crop, 80% of the sides"](Image.fromarray(rgb), np.random.default_rng(0)))
    places = [(y, x) for y in range(7) for x in range(11) if np.array_equal(rgb[y : y + 24, x : x + 40], part)]
    assert part.shape == (24, 40, 3) and len(places) >= 1
