"""python -m pytest tests/test_filter.py"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from strange_reader import examine_or_hang

import filter as frames_filter
from answering import reading
from answering.console import UserError
from answering.stills import list_stills
from filter import Frame, filter_films, find_conflicts
from training.dataset import MANIFEST, NEAR_BITS, Lookup, film_offset, group_frames, split_groups
from training.detector import import_yolo, person_detector, resize_frame

ROOT = Path(__file__).parent.parent


def manifest(out: Path) -> list[dict]:
    with open(out / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_dataset_is_what_the_design_says(dataset):
    rows = manifest(dataset)
    assert list(rows[0]) == MANIFEST
    known = [r for r in rows if not r["split"].startswith("unknown")]
    assert {r["movie"] for r in known} == {f"Film {i} ({1990 + i})" for i in range(3)}
    assert {r["split"] for r in known} == {"train", "val", "test"}
    assert {r["split"] for r in rows if r not in known} <= {"unknown_val", "unknown_test"}
    for row in rows:
        with Image.open(dataset / row["path"]) as image:
            assert image.size == (600, 256)
    on_disk = {str(p.relative_to(dataset)) for p in dataset.glob("*/*/*.jpg") if ".filter" not in p.parts}
    assert on_disk == {r["path"] for r in rows}
    assert (dataset / "report.png").stat().st_size > 1000
    with open(dataset / "report.csv", newline="") as file:
        assert {r["decision"] for r in csv.DictReader(file)} == {"ADD", "DELETE"}


def test_unknown_films_are_split_by_count():
    for count in range(1, 6):
        splits = list(frames_filter.split_unknown([f"Film {k} ({1990 + count})" for k in range(count)]).values())
        assert splits.count("unknown_val") - splits.count("unknown_test") == count % 2


def test_no_group_in_two_splits(dataset):
    splits = defaultdict(set)
    for row in manifest(dataset):
        splits[row["group"]].add(row["split"])
    assert all(len(s) == 1 for s in splits.values())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=120), st.floats(0, 0.999), st.integers(0, 4))
def test_splits_hold_groups_together(groups, offset, fold):
    for arcs in (split_groups(groups, offset), split_groups(groups, offset, (fold / 5, (fold + 1) / 5), 0.1)):
        where = defaultdict(set)
        for group, split in zip(groups, arcs, strict=True):
            where[group].add(split)
        assert all(len(s) == 1 for s in where.values())
        assert "train" in arcs
        if len(where) >= 3:
            assert set(arcs) == {"train", "val", "test"}


@settings(max_examples=50, deadline=None)
@given(st.integers(40, 400), st.floats(0, 0.999))
def test_split_shares(frames, offset):
    arcs = split_groups(list(range(frames)), offset)
    assert abs(arcs.count("test") / frames - 0.15) < 0.04 and abs(arcs.count("val") / frames - 0.15) < 0.04


def test_folds_cover_every_group_once():
    groups = list(range(100))
    tests = []
    for fold in range(5):
        arcs = split_groups(groups, 0.3, (fold / 5, (fold + 1) / 5), 0.1)
        tests.append([group for group, arc in zip(groups, arcs, strict=True) if arc == "test"])
    assert sorted(g for test in tests for g in test) == groups


def hashed(phash: int, shot=None, time=None) -> Frame:
    """A frame that was kept, of a picture with this hash."""
    return Frame(file=f"{phash}", shot=shot, time=time, source="folder", imdb=None, phash=f"{phash:016x}")


def test_groups_join_near_duplicates_and_shots():
    far = [int(v) for v in np.random.default_rng(0).integers(0, 2**63, 6)]
    assert group_frames([hashed(far[0], 1), hashed(far[1], 1), hashed(far[2], 2)]) == [0, 0, 1]
    assert group_frames([hashed(far[0], 1), hashed(far[1], 2), hashed(far[0] ^ 7, 3)]) == [0, 1, 0]
    timed = [hashed(far[0], None, 0), hashed(far[1], None, 59_000), hashed(far[2], None, 61_000)]
    assert group_frames(timed) == [0, 0, 1]
    assert group_frames([hashed(far[0]), hashed(far[0] ^ 0xFFFF), hashed(far[2])]) == [0, 0, 1]


@st.composite
def near_hashes(draw) -> list[int]:
    """Hashes of which many differ from an earlier one by a few bits."""
    hashes = [draw(st.integers(0, 2**64 - 1))]
    for bits in draw(st.lists(st.lists(st.integers(0, 63), max_size=14), max_size=30)):
        value = draw(st.sampled_from(hashes))
        for bit in bits:
            value ^= 1 << bit
        hashes.append(value)
    return hashes


@settings(max_examples=100, deadline=None)
@given(near_hashes(), st.data())
def test_groups_are_what_every_pair_says(hashes, data):
    """Frames are in one group if a chain of shots and near-duplicates leads from one to the other."""
    shots = data.draw(st.lists(st.integers(0, 40), min_size=len(hashes), max_size=len(hashes)))
    crops = [data.draw(st.sampled_from(hashes)) for _ in hashes]
    frames = [
        replace(hashed(value, shot), crops=[f"{crop:016x}"])
        for value, shot, crop in zip(hashes, shots, crops, strict=True)
    ]
    group = list(range(len(frames)))
    for i in range(len(frames)):
        for j in range(len(frames)):
            near = min((hashes[j] ^ probe).bit_count() for probe in (hashes[i], crops[i])) <= NEAR_BITS
            if near or shots[i] == shots[j]:
                group = [group[i] if g == group[j] else g for g in group]
    number: dict = {}
    assert group_frames(frames) == [number.setdefault(g, len(number)) for g in group]


@settings(max_examples=100, deadline=None)
@given(near_hashes())
def test_lookup_finds_what_a_look_at_all_finds(hashes):
    pictures = Lookup(list)
    for i, value in enumerate(hashes):
        assert pictures.near(f"{value:016x}") == {j for j in range(i) if (hashes[j] ^ value).bit_count() <= 2}
        pictures.add(f"{value:016x}", i)


def test_a_copy_is_a_duplicate_of_the_first_of_its_kind(tmp_path):
    """Also where copies stand in later chunks than their original."""
    folder = tmp_path / "raw" / "A (2000)"
    folder.mkdir(parents=True)
    for n in range(3 * frames_filter.CHUNK):
        draw_frame(0, n % 40, 0).save(folder / f"{n:03}.png")
    filter_films([tmp_path / "raw"], tmp_path / "out", detector="none", min_frames=1)
    with open(tmp_path / "out" / "verdicts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [verdict["verdict"] for verdict in rows] == ["kept"] * 40 + ["duplicate"] * (len(rows) - 40)
    first: dict = {}
    for n, verdict in enumerate(rows):
        original = first.setdefault(n % 40, verdict["file"])
        assert verdict["reason"] == ("" if original == verdict["file"] else f"the same picture as {original}")


def test_near_duplicates_land_in_one_group_by_picture(tmp_path):
    """Brighter, recompressed and slightly cropped copies of a frame belong to its group."""
    folder = tmp_path / "raw" / "A (2000)"
    folder.mkdir(parents=True)
    for shot in range(6):
        image = draw_frame(0, shot, 0)
        image.save(folder / f"a{shot}.jpg")
        image.point(lambda v: min(255, int(v * 1.25))).save(folder / f"z{shot}_bright.jpg")
        image.crop((4, 3, 236, 133)).save(folder / f"z{shot}_crop.jpg")
        image.crop((22, 12, 218, 124)).resize((300, 170)).save(folder / f"z{shot}_zoom.jpg")
    filter_films([tmp_path / "raw"], tmp_path / "out", detector="none", min_frames=1)
    rows = manifest(tmp_path / "out")
    groups = {Path(r["path"]).stem: r["group"] for r in rows}
    assert {f"z{shot}_zoom" for shot in range(6)} < set(groups)  # too far from the whole picture to be its duplicate
    for name, group in groups.items():
        assert group == groups.get(f"a{name[1]}", group)


def test_same_picture_under_two_titles_is_dropped_from_both():
    value = 0x123456789ABCDEF0
    found = find_conflicts({"A": [hashed(value), hashed(5)], "B": [hashed(value ^ 3), hashed(2**40 + 99)]})
    assert found == {("A", str(value)): "B", ("B", str(value ^ 3)): "A"}


def test_adding_a_film_moves_nothing(raw, dataset, tmp_path):
    more = tmp_path / "raw"
    more.mkdir()
    for film in raw.iterdir():
        shutil.copytree(film, more / film.name)
    (more / "New (2020)").mkdir()
    for shot in range(20):
        draw_frame(4, 100 + shot, 0).save(more / "New (2020)" / f"{shot}.jpg")
    filter_films([more], tmp_path / "out", detector="none", min_frames=12)
    before, after = manifest(dataset), manifest(tmp_path / "out")
    assert [r for r in after if r["movie"] != "New (2020)"] == before
    assert len(after) > len(before)


def test_again_is_byte_for_byte_the_same_and_does_nothing_twice(raw, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    for out, threads in ((one, 1), (two, 4)):
        filter_films([raw], out, detector="none", min_frames=12, threads=threads)
    assert (one / "manifest.csv").read_bytes() == (two / "manifest.csv").read_bytes()
    monkeypatch.setattr(frames_filter, "examine", None)  # a second run must not look at a frame again
    filter_films([raw], one, detector="none", min_frames=12)
    assert (one / "manifest.csv").read_bytes() == (two / "manifest.csv").read_bytes()
    filter_films([raw], one, detector="none", min_frames=5)  # another threshold only moves folders
    assert {r["movie"] for r in manifest(one) if r["split"] == "train"} == {p.name for p in (one / "movies").iterdir()}


def test_killed_and_continued(raw, dataset, tmp_path):
    code = (
        "import filter, os, sys, pathlib\n"
        "real, n = filter.drop_duplicates, [0]\n"
        "def drop_duplicates(*a):\n"
        "    n[0] += 1\n"
        "    if n[0] > 3: os.kill(os.getpid(), 9)\n"
        "    return real(*a)\n"
        "filter.drop_duplicates = drop_duplicates\n"
        "filter.filter_films([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]), detector='none', min_frames=12)\n"
    )
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(raw), str(out)], cwd=ROOT).returncode == -9
    assert not (out / "manifest.csv").exists() and len(list((out / ".filter").glob("*.json"))) == 1
    filter_films([raw], out, detector="none", min_frames=12)
    assert (out / "manifest.csv").read_bytes() == (dataset / "manifest.csv").read_bytes()


def test_a_still_that_hangs_or_crashes_its_decoder_costs_itself_alone(tmp_path, monkeypatch):
    folder = tmp_path / "raw" / "A (1999)"
    folder.mkdir(parents=True)
    for shot, name in enumerate(("a", "b", "hang", "c", "crash", "d", "e")):
        draw_frame(0, shot, 0).save(folder / f"{name}.png")
    monkeypatch.setattr(frames_filter, "examine", examine_or_hang)
    monkeypatch.setattr(reading, "MAX_SECONDS", 3.0)
    report = filter_films([folder.parent], tmp_path / "out", detector="none", min_frames=1, threads=2)
    assert (report["A (1999)"].unreadable, report["A (1999)"].kept) == (2, 5)
    with open(tmp_path / "out" / "verdicts.csv", newline="", encoding="utf-8") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file) if row["verdict"] == "unreadable"}
    assert reasons["hang.png"] == "took over 3 seconds to read" and "can't be read" in reasons["crash.png"]


def test_hostile_folder(tmp_path):
    folder = tmp_path / "raw" / "Фильм №1 (2001)"
    folder.mkdir(parents=True)
    good = draw_frame(0, 0, 0)
    for shot in range(4):
        draw_frame(0, shot, 0).save(folder / f"кадр {shot}.png")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture")
    good.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (90, 60), "red").save(folder / "thumb.png")
    Image.new("1", (10_000, 6_000)).save(folder / "huge.png")
    Image.new("RGB", (300, 200)).save(folder / "black.png")
    draw_frame(1, 9, 0).convert("CMYK").save(folder / "cmyk.jpg")
    good.save(folder / "twin.png")
    grey = np.asarray(draw_frame(2, 9, 0).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "sixteen.png")
    moving = [draw_frame(3, 9, 0), draw_frame(3, 10, 0)]
    moving[0].save(folder / "moving.gif", save_all=True, append_images=moving[1:])
    turned = Image.Exif()
    turned[0x0112] = 6  # upright after a quarter turn
    draw_frame(4, 9, 0).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=turned)
    (folder / "loop").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")  # whoever opens it waits for ever
    good.save(folder / "locked.jpg")
    (folder / "locked.jpg").chmod(0)
    locked = 0 if os.access(folder / "locked.jpg", os.R_OK) else 1  # the superuser may read everything
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.is_file()}
    report = filter_films([tmp_path / "raw"], tmp_path / "out", detector="none", min_frames=1)
    assert before == {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.is_file()}
    counts = report["Фильм №1 (2001)"]
    assert counts.unreadable == 7 + locked and counts.too_small == 1 and counts.dark == 1
    assert counts.duplicate == 2 - locked and counts.kept == 8 and counts.total == 19
    (row,) = (r for r in manifest(tmp_path / "out") if r["path"].endswith("turned.jpg"))
    assert int(row["width"]) > int(row["height"])
    with open(tmp_path / "out" / "verdicts.csv", newline="") as file:
        assert all(r["reason"] for r in csv.DictReader(file) if r["verdict"] != "kept")


def test_sidecar_may_be_damaged(tmp_path):
    folder = tmp_path / "raw" / "A (1999)"
    folder.mkdir(parents=True)
    for shot in range(3):
        draw_frame(0, shot, 0).save(folder / f"{shot}.jpg")
    (folder / "frames.jsonl").write_text('{"file": "0.jpg", "shot_time_ms": "x"}\n[1]\n{"file": \n{"id": 3}\nnull\n')
    assert [still.time_ms for still in list_stills(folder)] == [None] * 3


def test_movienet_names_carry_shots(tmp_path):
    for name in ("shot_0001_img_0.jpg", "shot_0001_img_1.jpg", "shot_0002_img_0.jpg"):
        draw_frame(0, 0, 0).save(tmp_path / name)
    assert [still.shot for still in list_stills(tmp_path)] == [1, 1, 2]


def test_usage_errors_are_one_line(tmp_path, raw, capsys):
    (tmp_path / "x" / "Film 0 (1990)").mkdir(parents=True)
    (tmp_path / "void").mkdir()
    cases = [
        ([str(tmp_path / "nowhere")], 2),
        ([str(tmp_path / "void")], 2),
        ([str(raw), str(tmp_path / "x")], 2),
        ([str(raw), "--detector", str(tmp_path / "no.pt")], 2),
        ([str(raw), "--subsets", "9", "--detector", "none", "--min-frames", "12"], 1),
    ]
    for argv, code in cases:
        assert frames_filter.main([*argv, "--out", str(tmp_path / "out")]) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("filter.py: error:")
    with pytest.raises(SystemExit):
        frames_filter.main([str(raw), "--size", "0x9"])


def test_archives(raw, tmp_path):
    filter_films([raw], tmp_path, detector="none", min_frames=5, subsets=[1, 2])
    names = {}
    for draw in (1, 2, "all"):
        with zipfile.ZipFile(tmp_path / f"movies_{draw}_processed.zip") as archive:
            names[draw] = {n.split("/")[0] for n in archive.namelist()}
    assert len(names[1]) == 1 and len(names[2]) == 2 and names[1] < names[2] < names["all"]


def test_size_keep_aspect(raw, tmp_path):
    filter_films([raw], tmp_path, detector="none", min_frames=12, size="keep-aspect")
    with Image.open(tmp_path / manifest(tmp_path)[0]["path"]) as image:
        assert image.size == (240, 136)  # never enlarged
    assert frames_filter.fit_size(1920, 800, "keep-aspect") == (614, 256)


@pytest.mark.parametrize("weights", ["yolov8n.pt", "yolo11n.onnx"])
def test_detector_sees_what_ultralytics_sees(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, folder = str(shared("weights", weights)), shared("frames", "known")
    options = {"confidence": 0.25, "device": "cpu", "batch": 4, "size": "600x256"}
    detect = frames_filter.person_detector(path, **options)
    files = sorted(folder.glob("Shaun*/*.jpg"))[::8] + sorted(folder.glob("Big*/*.jpg"))[::8]
    people = [np.asarray(Image.open(file).resize((600, 256))) for file in files]
    found = np.array(detect([*people, np.full((256, 600, 3), 128, np.uint8)]))
    assert found[-1] == 0 and 4 <= (found > 0).sum() <= len(files) - 4
    net = import_yolo()(path, task="detect")
    theirs = [len(net.predict(p[..., ::-1], classes=[0], device="cpu", verbose=False)[0].boxes) for p in people]
    assert ((found[:-1] > 0) == (np.array(theirs) > 0)).mean() >= 0.9
    made = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.xml")}
    assert len(made) == (1 if weights.endswith(".pt") else 0)
    frames_filter.person_detector(path, **options)
    assert made == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.xml")}  # exported once


def test_film_offset_is_the_same_on_every_machine():
    assert [round(film_offset(title), 6) for title in ("A", "B")] == [0.334395, 0.873023]


def test_a_detector_of_torchvision_counts_its_persons(raw, tmp_path):
    """With random weights, and a threshold in the middle of its scores: as many as torchvision itself gives."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(0)
    net = get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None).eval()
    with torch.no_grad():
        for name, values in net.head.classification_head.named_parameters():
            if name.endswith(".1.bias"):
                values[1::91] = 3.0  # it sees persons before all else
    torch.save(net.state_dict(), tmp_path / "ssdlite.pth")
    pictures = [np.asarray(draw_frame(film, 0, 0)) for film in range(3)]
    with torch.no_grad():
        resized = [torch.from_numpy(resize_frame(rgb, "600x256")).permute(2, 0, 1) / 255 for rgb in pictures]
        found = net(resized)
    scores = torch.cat([one["scores"][one["labels"] == 1] for one in found])
    assert len(scores) > 3
    confidence = float(scores.min() + scores.max()) / 2
    wanted = [int(((one["labels"] == 1) & (one["scores"] >= confidence)).sum()) for one in found]
    options = {"confidence": confidence, "device": "cpu", "batch": 2, "size": "600x256"}
    detect = person_detector("ssdlite", file=tmp_path / "ssdlite.pth", **options)
    assert detect(pictures) == wanted and 0 < sum(wanted) < len(scores)
    with pytest.raises(UserError, match="--weights"):
        person_detector("fasterrcnn", file=tmp_path / "ssdlite.pth", **options)
    with pytest.raises(SystemExit):
        frames_filter.main([str(raw), "--weights", str(tmp_path / "ssdlite.pth")])


def test_what_leaves_raw_leaves_the_dataset_and_conflicts_come_back(raw, tmp_path, monkeypatch, capsys):
    """A film that shares a picture with another loses it, and has it again when the other film goes."""
    more, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, more)
    twin = more / "Twin (2020)"
    twin.mkdir()
    for file in sorted((raw / "Film 0 (1990)").glob("*.jpg"))[:20:4]:
        shutil.copy(file, twin)
    filter_films([more], out, detector="none", min_frames=12)
    with_twin = manifest(out)
    assert not any(r["movie"] == "Twin (2020)" for r in with_twin)
    assert not (out / "movies" / "Twin (2020)").exists() and not (out / "unknown" / "Twin (2020)").exists()
    with monkeypatch.context() as patch:
        patch.setattr(frames_filter, "examine", None)  # no frame is looked at again
        filter_films([more], out, detector="none", min_frames=12)
        assert manifest(out) == with_twin
        shutil.rmtree(twin)
        filter_films([more], out, detector="none", min_frames=12)
    assert len(manifest(out)) > len(with_twin)
    assert "Twin (2020) is no longer" in capsys.readouterr().err
    filter_films([raw], tmp_path / "fresh", detector="none", min_frames=12)
    assert manifest(out) == manifest(tmp_path / "fresh")
    on_disk = {str(p.relative_to(out)) for p in out.glob("*/*/*.jpg") if ".filter" not in p.parts}
    assert on_disk == {r["path"] for r in manifest(out)}


def test_changed_options_and_files_are_done_again(raw, tmp_path):
    more, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, more)
    filter_films([more], out, detector="none", min_frames=12)
    filter_films([more], out, detector="none", min_frames=12, size="320x180")
    with Image.open(out / manifest(out)[0]["path"]) as image:
        assert image.size == (320, 180)
    changed = sorted((more / "Film 1 (1991)").glob("*.jpg"))[0]
    Image.new("RGB", (240, 136)).save(changed)
    report = filter_films([more], out, detector="none", min_frames=12, size="320x180")
    assert report["Film 1 (1991)"].dark == 1 and report["Film 0 (1990)"].dark == 0


def test_frames_without_people_are_dropped(raw, tmp_path, monkeypatch):
    every_other = lambda images: [n % 2 for n in range(len(images))]  # noqa: E731
    monkeypatch.setattr(frames_filter, "person_detector", lambda *a, **k: every_other)
    report = filter_films([raw], tmp_path, detector="fake.pt", min_frames=2)
    assert all(film.no_person > 0 for film in report.values() if film.total > 4)
    assert {r["persons"] for r in manifest(tmp_path)} == {"1"}


def test_names_never_collide(tmp_path):
    folder = tmp_path / "raw" / "A (1999)"
    for shot, name in enumerate(("1/2_3.jpg", "1_2/3.jpg", "1/2/3.jpg", "1_2_3.jpg", "1_2_3.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_frame(0, shot, 0).save(folder / name)
    filter_films([tmp_path / "raw"], tmp_path / "out", detector="none", min_frames=1)
    assert len({r["path"] for r in manifest(tmp_path / "out")}) == 5


def test_folders_of_others_are_left_alone(raw, tmp_path):
    (tmp_path / "movies" / "Film 0 (1990)").mkdir(parents=True)
    (tmp_path / "movies" / "Film 0 (1990)" / "film.mkv").write_text("mine")
    with pytest.raises(UserError, match="did not make"):
        filter_films([raw], tmp_path, detector="none")
    with pytest.raises(UserError, match="lie in each other"):
        filter_films([raw], raw / "Film 0 (1990)" / "out", detector="none")
    assert (tmp_path / "movies" / "Film 0 (1990)" / "film.mkv").exists()


def test_two_processes_make_what_one_makes(raw, tmp_path):
    command = [sys.executable, str(ROOT / "filter.py"), str(raw), "--detector", "none", "--min-frames", "12"]
    subprocess.run([*command, "--out", str(tmp_path / "one")], check=True, capture_output=True)
    for again in range(2):  # from nothing, and over a finished run of which frames are missing
        processes = []
        for rank in (0, 1):
            environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            argv = [*command, "--out", str(tmp_path / "two")]
            processes.append(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True))
        texts = [process.communicate(timeout=100)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert "films left 3" in texts[0] and not texts[1]
        for name in ("manifest.csv", "report.csv", "verdicts.csv"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        if not again:
            next((tmp_path / "two" / "movies").glob("*/*.jpg")).unlink()


def test_full_disk_and_bad_folders_take_one_line_and_nothing_good(raw, tmp_path):
    command = [sys.executable, str(ROOT / "filter.py"), str(raw), "--detector", "none", "--min-frames", "12"]

    def run(out: Path, limit: int | None = None) -> subprocess.CompletedProcess:
        # a cap on the size of files stands for a disk that fills up: the write fails in the middle
        cap = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
        return subprocess.run([*command, "--out", str(out)], preexec_fn=cap, capture_output=True, text=True)

    out = tmp_path / "out"
    assert run(out).returncode == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "manifest.csv"}
    result = run(out, 4000)  # the manifest is larger
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and "filter.py: error" in result.stderr
    assert not list(out.rglob(".*.part"))
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "manifest.csv"}
    assert {p for p in before if after.get(p) != before[p]} == set()
    assert run(out).returncode == 0
    result = run(tmp_path / "full", 2000)  # not even a frame fits
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert run(tmp_path / "full").returncode == 0
    assert manifest(tmp_path / "full") == manifest(out)
    (tmp_path / "file").write_text("in the way")
    result = run(tmp_path / "file" / "out")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and str(tmp_path / "file") in result.stderr
