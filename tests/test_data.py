"""python -m pytest tests/test_data.py"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

import frames
from data import assign_folds, choose_rows, read_manifest, split_fingerprint
from frames import FrameStore, augment, load_frames, normalise
from image import PREPROCESSING, UserError
from recipes import RECIPES


def test_splits_that_are_asked_for(dataset):
    rows = read_manifest(dataset)
    chosen, classes = choose_rows(rows)
    assert len(classes) == 3 and len(chosen["train"]) > len(chosen["val"]) > 0
    tests = [choose_rows(rows, fold=k)[0] for k in range(5)]
    assert sorted(r["path"] for t in tests for r in t["test"]) == sorted(
        r["path"] for s in ("train", "val", "test") for r in chosen[s]
    )
    for fold in tests:
        groups = [{r["group"] for r in fold[s]} for s in ("train", "val", "test")]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    random, _ = choose_rows(rows, split="random")
    assert {r["group"] for r in random["train"]} & {r["group"] for r in random["test"]}  # that is what it is for
    small, _ = choose_rows(rows, limit=6)
    assert all(len(part) <= 6 for part in small.values())
    assert len(choose_rows(rows, subset=2)[1]) == 2
    with pytest.raises(UserError, match="only 3 films"):
        choose_rows(rows, subset=4)


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_folds_cut_no_group_and_leave_every_film_something(groups):
    rows = [{"movie": "A", "group": f"A#{group}", "place": place} for place, group in enumerate(groups)]
    folds = assign_folds(rows)
    assert all(len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1 for group in groups)
    assert all((folds != k).any() for k in range(5))
    small = [groups.count(group) <= 0.4 * len(groups) for group in groups]
    assert all(f >= 0 for f, held in zip(folds, small, strict=True) if held)
    order = np.random.default_rng(0).permutation(len(rows))  # train and val come one behind the other
    assert (assign_folds([rows[i] for i in order]) == folds[order]).all()


def test_a_fingerprint_tells_splits_apart(dataset):
    rows = read_manifest(dataset)
    prints = [split_fingerprint(choose_rows(rows, **how)[0]) for how in ({}, {"fold": 1}, {"limit": 9}, {})]
    assert prints[0] == prints[3] and len(set(prints)) == 3


def test_frames_are_decoded_once_and_only_when_asked_for(dataset, tmp_path, monkeypatch):
    rows = read_manifest(dataset)
    decoded, real = [], frames.load_frames
    monkeypatch.setattr(frames, "load_frames", lambda files, *a: decoded.extend(files) or real(files, *a))
    few, fold = choose_rows(rows, limit=6)[0]["train"], choose_rows(rows, fold=2)[0]["test"]
    store = FrameStore(rows, PREPROCESSING, tmp_path, (96, 64))
    store.decode(few)
    assert sorted(decoded) == sorted(row["file"] for row in few)
    found = store.take(few)
    assert len(found) == 6 and torch.equal(
        found[:], torch.from_numpy(load_frames([r["file"] for r in few], PREPROCESSING, (96, 64)))
    )
    assert found[torch.tensor([2, 0])].shape == (2, 64, 96, 3)
    FrameStore(rows, PREPROCESSING, tmp_path, (96, 64)).decode(few + fold)  # another run, another split
    assert len(decoded) == len({row["path"] for row in few + fold})
    FrameStore(rows, PREPROCESSING | {"crop_bars": False}, tmp_path, (96, 64)).decode(few)
    assert len(list(tmp_path.glob("*.bin"))) == 2


def test_stopped_decoding_goes_on_where_it_was(dataset, tmp_path, monkeypatch):
    rows, real, calls = read_manifest(dataset), frames.load_frames, []

    def stop(files, *a):
        calls.append(files)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(files, *a)

    monkeypatch.setattr(frames, "load_frames", stop)
    with pytest.raises(KeyboardInterrupt):
        FrameStore(rows, PREPROCESSING, tmp_path, (96, 64)).decode(rows, chunk=10)
    store = FrameStore(rows, PREPROCESSING, tmp_path, (96, 64))
    store.decode(rows, chunk=10)
    assert sum(map(len, calls)) == len(rows) + 10
    assert torch.equal(store.take(rows)[:], torch.from_numpy(real([r["file"] for r in rows], PREPROCESSING, (96, 64))))


def test_changed_frames_are_decoded_anew_and_a_full_disk_is_one_line(dataset, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(dataset, tmp_path / "d")
    rows = read_manifest(tmp_path / "d")
    FrameStore(rows, PREPROCESSING, tmp_path / "c", (96, 64)).decode(rows)
    (before,) = (tmp_path / "c").glob("*.bin")
    shutil.copy(rows[1]["file"], rows[0]["file"])
    FrameStore(rows, PREPROCESSING, tmp_path / "c", (96, 64)).decode(rows)
    (after,) = (tmp_path / "c").glob("*.bin")
    assert before.name != after.name

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frames.os, "pwrite", full)
    with pytest.raises(UserError, match=r"--cache .*No space left"):
        FrameStore(rows, PREPROCESSING, tmp_path / "c", (90, 60)).decode(rows)


def test_crops_of_the_original_are_torchvisions(monkeypatch):
    """Shares of the sides and aspect ratios of 4,000 crops against torchvision's RandomResizedCrop."""
    from torchvision.transforms import RandomResizedCrop

    # a picture whose colours tell where a crop was taken from: red runs across, green runs down
    y, x = torch.meshgrid(torch.arange(150), torch.arange(380), indexing="ij")
    picture = torch.stack([x * 255 / 379, y * 255 / 149, x * 0], -1).to(torch.uint8)
    plain = RECIPES["original"] | {"flip": 0.0}
    torch.manual_seed(0)
    images = torch.cat([augment(picture.expand(500, -1, -1, -1), PREPROCESSING, plain, 8) for _ in range(8)])
    mean, std = (torch.tensor(PREPROCESSING[k]).view(3, 1, 1) for k in ("mean", "std"))
    shares = images * std + mean
    across, down = shares[:, 0], shares[:, 1]
    width, height = (across[:, 0, -1] - across[:, 0, 0]) * 8 / 7, (down[:, -1, 0] - down[:, 0, 0]) * 8 / 7
    torch.manual_seed(1)
    image = torch.zeros(3, 1500, 3800)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)], float)
    quantiles = np.linspace(0.02, 0.98, 25)
    for ours, wanted in ((width, theirs[:, 3] / 3800), (height, theirs[:, 2] / 1500)):
        np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(wanted, quantiles), atol=0.04)


def test_augment_keeps_shape_and_is_repeatable():
    batch = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    recipe, drawn = RECIPES["best"], []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(augment(batch, PREPROCESSING, recipe, 48))
    assert drawn[0].shape == (5, 3, 48, 48) and torch.equal(*drawn) and torch.isfinite(drawn[0]).all()
    plain = recipe | {"crop": 1.0, "flip": 0, "colour": 0, "corrupt": 0}
    same = augment(batch, PREPROCESSING, plain, 64)
    torch.testing.assert_close(same, normalise(batch, PREPROCESSING), atol=1e-3, rtol=1e-3)
    mirrored = augment(batch, PREPROCESSING, plain | {"flip": 1.0}, 64)
    torch.testing.assert_close(mirrored, same.flip(3), atol=1e-3, rtol=1e-3)
