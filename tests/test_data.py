"""python -m pytest tests/test_data.py (training/dataset.py and training/frames.py)"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from answering.console import UserError
from answering.pictures import PREPROCESSING, preprocess
from training.dataset import assign_folds, choose_rows, label_rows, read_manifest, split_fingerprint
from training.frames import (
    FrameStore,
    augment,
    default_cache,
    load_frames,
    normalise,
    resize_by_pillow,
    resize_by_products,
)
from training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PLAIN = RECIPES["best"] | {"crop": 1.0, "flip": 0.0, "colour": 0.0, "corrupt": 0.0}


def test_splits_that_are_asked_for(dataset):
    rows = read_manifest(dataset)
    chosen, classes = choose_rows(rows)
    assert len(classes) == 3 and len(chosen["train"]) > len(chosen["val"]) > 0
    tests = [choose_rows(rows, fold=k)[0] for k in range(5)]
    assert sorted(r.path for t in tests for r in t["test"]) == sorted(
        r.path for s in ("train", "val", "test") for r in chosen[s]
    )
    for fold in tests:
        groups = [{r.group for r in fold[s]} for s in ("train", "val", "test")]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    random, _ = choose_rows(rows, split="random")
    assert {r.group for r in random["train"]} & {r.group for r in random["test"]}  # that is what it is for
    small, _ = choose_rows(rows, limit=6)
    assert all(len(part) <= 6 for part in small.values())
    assert len(choose_rows(rows, subset=2)[1]) == 2
    with pytest.raises(UserError, match="only 3 films"):
        choose_rows(rows, subset=4)


def test_unknown_films_have_no_label(dataset):
    chosen, classes = choose_rows(read_manifest(dataset))
    labels = label_rows(chosen, classes)
    assert [classes[i] for i in labels["val"]] == [row.movie for row in chosen["val"]]
    assert set(labels["unknown_val"]) | set(labels["unknown_test"]) == {-1}


def test_the_fingerprint_tells_splits_apart(dataset):
    rows = read_manifest(dataset)
    ways = ({}, {"fold": 0}, {"fold": 1}, {"limit": 9})
    found = {split_fingerprint(choose_rows(rows, **options)[0]) for options in ways}
    assert len(found) == 4 and split_fingerprint(choose_rows(rows)[0]) in found


def test_a_film_without_training_frames_is_one_line(dataset):
    rows = [row for row in read_manifest(dataset) if (row.movie[:6], row.split) != ("Film 1", "train")]
    with pytest.raises(UserError, match=r"Film 1 .* has no training frames"):
        choose_rows(rows)


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_folds_cut_no_group_and_leave_every_film_something(groups):
    rows = [SimpleNamespace(movie="A", group=f"A#{group}", place=place) for place, group in enumerate(groups)]
    folds = assign_folds(rows)
    assert all(len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1 for group in groups)
    assert all((folds != k).any() for k in range(5))
    small = [groups.count(group) <= 0.4 * len(groups) for group in groups]
    assert all(f >= 0 for f, held in zip(folds, small, strict=True) if held)
    order = np.random.default_rng(0).permutation(len(rows))  # train and val come one behind the other
    assert (assign_folds([rows[i] for i in order]) == folds[order]).all()


# -------------------------------------------------------------------------------------- decoded frames


def marks(folder: Path) -> int:
    """Frames that are marked as decoded."""
    return sum(int(np.fromfile(path, np.uint8).sum()) for path in folder.glob("*.done"))


def test_frames_are_decoded_once_and_only_those_asked_for(dataset, tmp_path):
    rows = read_manifest(dataset)
    chosen, _ = choose_rows(rows)
    store = FrameStore(rows, PREPROCESSING, tmp_path, (96, 64))
    store.decode(chosen["val"])
    assert marks(tmp_path) == len(chosen["val"])
    wanted = load_frames([row.file for row in chosen["val"]], PREPROCESSING, (96, 64))
    assert wanted.shape[1:] == (64, 96, 3)
    found = store.take(chosen["val"])
    assert len(found) == len(wanted) and found[:].dtype == torch.uint8 and (found[:].numpy() == wanted).all()
    assert (found[torch.tensor([2, 0])].numpy() == wanted[[2, 0]]).all()
    (path,) = tmp_path.glob("*.bin")
    where = chosen["val"][0].place
    with open(path, "r+b") as file:  # a byte that no decoder gives would be lost, were the frame decoded again
        file.seek(where * wanted[0].size)
        file.write(bytes([wanted[0].flat[0] ^ 255]))
    fold, _ = choose_rows(rows, fold=2)
    again = FrameStore(rows, PREPROCESSING, tmp_path, (96, 64))
    for part in fold.values():
        again.decode(part)
    assert list(tmp_path.glob("*.bin")) == [path] and marks(tmp_path) == sum(map(len, fold.values()))
    assert again.take(rows[where : where + 1])[0].flatten()[0] == wanted[0].flat[0] ^ 255


def test_changed_frames_replace_the_old_ones_and_nothing_else(dataset, tmp_path):
    rows = read_manifest(dataset)[:4]
    (tmp_path / "mine.bin").touch()
    FrameStore(rows, PREPROCESSING, tmp_path, (96, 64)).decode(rows)
    FrameStore(rows, PREPROCESSING | {"crop_bars": False}, tmp_path, (96, 64)).decode(rows)
    before = set(tmp_path.glob("*-96x64-*"))
    FrameStore(rows[:3], PREPROCESSING, tmp_path, (96, 64)).decode(rows[:3])  # a frame has gone
    after = set(tmp_path.glob("*-96x64-*"))
    assert len(before) == len(after) == 4 and len(before & after) == 2 and (tmp_path / "mine.bin").exists()


def test_datasets_share_a_cache_and_leave_each_others_frames_alone(dataset, tmp_path):
    cache = tmp_path / "cache"
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        shutil.copytree(dataset, place, ignore=shutil.ignore_patterns(".frames"))
        rows = read_manifest(place)[:4]
        FrameStore(rows, PREPROCESSING, cache, (96, 64)).decode(rows)
    before = set(cache.iterdir())
    assert len(before) == 4
    changed = read_manifest(places[0])[:3]
    FrameStore(changed, PREPROCESSING, cache, (96, 64)).decode(changed)
    after = set(cache.iterdir())
    assert len(after) == 4 and len(before & after) == 2  # those of the other dataset
    own = FrameStore(changed, PREPROCESSING, default_cache(places[0]), (96, 64)).path.name
    places[0].rename(tmp_path / "moved")
    moved = read_manifest(tmp_path / "moved")[:3]
    assert FrameStore(moved, PREPROCESSING, default_cache(tmp_path / "moved"), (96, 64)).path.name == own


def test_a_full_disk_is_one_line_and_marks_nothing(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    rows = read_manifest(dataset)
    store = FrameStore(rows, PREPROCESSING, tmp_path, (96, 64))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"--cache .*No space left on device; .* GB of decoded frames"):
            store.decode(rows[:8])
    assert marks(tmp_path) == 0
    store.decode(rows[:8])  # there is room again
    wanted = load_frames([row.file for row in rows[:8]], PREPROCESSING, (96, 64))
    assert (store.take(rows[:8])[:].numpy() == wanted).all()


def test_killed_decoding_continues(dataset, tmp_path):
    code = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from training.dataset import read_manifest
from training.frames import FrameStore
from answering.pictures import PREPROCESSING
real, calls = os.fsync, []
def fsync(number):
    real(number)
    calls.append(number)
    if len(calls) == 3: os.kill(os.getpid(), 9)
os.fsync = fsync
rows = read_manifest(Path(sys.argv[1]))
FrameStore(rows, PREPROCESSING, Path(sys.argv[2]), (96, 64)).decode(rows, chunk=8)
"""
    result = subprocess.run([sys.executable, "-c", code, str(dataset), str(tmp_path)], cwd=ROOT, capture_output=True)
    rows = read_manifest(dataset)
    assert result.returncode == -9 and 0 < marks(tmp_path) < len(rows)
    store = FrameStore(rows, PREPROCESSING, tmp_path, (96, 64))
    store.decode(rows)
    assert (store.take(rows)[:].numpy() == load_frames([row.file for row in rows], PREPROCESSING, (96, 64))).all()


# ---------------------------------------------------------------------------------------- augmentation


def test_augment_keeps_shape_and_is_repeatable():
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    for recipe in (RECIPES["best"] | {"corrupt": 0.5}, RECIPES["original"]):
        torch.manual_seed(1)
        one = augment(frames, PREPROCESSING, recipe, 48)
        torch.manual_seed(1)
        two = augment(frames, PREPROCESSING, recipe, 48)
        assert one.shape == (5, 3, 48, 48) and torch.equal(one, two) and torch.isfinite(one).all()
        assert not torch.equal(one, augment(frames, PREPROCESSING, recipe, 48))


def test_nothing_asked_of_augment_is_the_normalised_frame():
    frames = torch.randint(0, 256, (5, 64, 96, 3), dtype=torch.uint8)
    square = frames[:, :, :64].contiguous()
    mean, std = (torch.tensor(PREPROCESSING[key]) for key in ("mean", "std"))
    torch.testing.assert_close(normalise(square, PREPROCESSING), ((square / 255 - mean) / std).permute(0, 3, 1, 2))
    same = augment(square, PREPROCESSING, PLAIN, 64)
    torch.testing.assert_close(same, normalise(square, PREPROCESSING), atol=1e-3, rtol=1e-3)
    mirrored = augment(square, PREPROCESSING, PLAIN | {"flip": 1.0}, 64)
    torch.testing.assert_close(mirrored, same.flip(3), atol=1e-3, rtol=1e-3)
    squashed = augment(frames, PREPROCESSING, PLAIN, 32)  # whole frames of any shape
    assert squashed.shape == (5, 3, 32, 32)
    torch.testing.assert_close(squashed.mean(), normalise(frames, PREPROCESSING).mean(), atol=0.02, rtol=0.02)


def test_frames_are_resized_for_training_as_they_are_for_answering():
    """A whole frame as preprocess has it; on a GPU, and of a part of it, within the rounding of two passes."""
    frames = torch.randint(0, 256, (3, 90, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0.0, 0.0, 160.0, 90.0]]).repeat(3, 1)
    spec = PREPROCESSING | {"size": 48, "crop_bars": False}
    served = torch.from_numpy(np.stack([preprocess(frame.numpy(), spec) for frame in frames])).permute(0, 3, 1, 2)
    assert torch.equal(resize_by_pillow(frames, whole, 48), served.float())
    parts = torch.tensor([[3.3, 5.5, 150.2, 80.1], [100.7, 0.0, 131.9, 20.0], [0.0, 60.4, 160.0, 90.0]])
    for boxes in (whole, parts):
        for size in (48, 120):
            exact = resize_by_pillow(frames, boxes, size)
            assert (resize_by_products(frames, boxes, size) - exact).abs().max() < 1.1


def crop_boxes(recipe: dict, frames: int, height: int, width: int) -> np.ndarray:
    """(width, height, centre x, centre y) [4, N] of random crops, as shares of the frame's, told by its colours."""
    ramp = torch.zeros(height, width, 3)
    ramp[..., 0] = (torch.arange(width) + 0.5) / width * 255
    ramp[..., 1] = ((torch.arange(height) + 0.5) / height * 255)[:, None]
    spec = {"mean": [0.0] * 3, "std": [1.0] * 3}
    torch.manual_seed(0)
    out = augment(ramp.round().to(torch.uint8).expand(frames, -1, -1, -1), spec, recipe, 8).numpy()
    x, y = out[:, 0, 4], out[:, 1, :, 4]
    first, last = 1, 6  # a crop at the edge repeats the last column, so look a little inside
    sides = [(part[:, last] - part[:, first]) * 8 / (last - first) for part in (x, y)]
    return np.stack([*sides, *((part[:, last] + part[:, first]) / 2 for part in (x, y))])


def test_crops_of_the_original_are_torchvisions():
    """Sides and places of 4,000 crops against torchvision's RandomResizedCrop."""
    ours = crop_boxes(RECIPES["original"], 4000, 30, 76)  # near 600 to 256
    torch.manual_seed(1)
    image = torch.zeros(3, 300, 760)  # larger, so that whole pixels do not matter
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    top, left, height, width = np.array(theirs, float).T
    theirs = np.stack([width / 760, height / 300, (left + width / 2) / 760, (top + height / 2) / 300])
    shares = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(ours, shares, axis=1), np.quantile(theirs, shares, axis=1), atol=0.03)


def test_our_crops_keep_their_share_of_the_frame_whatever_its_shape():
    width, height, x, y = crop_boxes(PLAIN | {"crop": 0.3}, 500, 40, 90)
    assert 0.28 < (width * height).min() < 0.4 and (width * height).max() > 0.9
    assert (width / height).min() > 0.7 and (width / height).max() < 1.42
    assert min((x - width / 2).min(), (y - height / 2).min()) > -0.02
    assert max((x + width / 2).max(), (y + height / 2).max()) < 1.02
