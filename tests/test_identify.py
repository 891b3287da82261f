"""python -m pytest tests/test_identify.py"""

import base64
import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame, read_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_index import write_model

import identify
import index
from answering import model, runtimes
from answering.console import UserError
from answering.model import Answer, Candidate, Identifier, format_answer
from answering.pictures import PREPROCESSING, preprocess, read_image
from answering.runtimes import choose_file
from answering.screenshots import find_bars, find_still
from answering.stills import natural_key
from answering.store import Collection
from benchmarks.ways import screenshot

ROOT = Path(identify.__file__).parent


def encoded(image: Image.Image, form: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def test_import_needs_no_torch():
    heavy = ("torch", "torchvision", "timm", "cv2", "av", "scipy", "aiogram")
    code = f"import sys, identify; identify.Identifier; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


@pytest.mark.parametrize("size", [(240, 136), (100, 400), (1920, 800), (224, 224)])
def test_preprocess_equals_torchvision(size):
    from torchvision.transforms.v2.functional import resize, to_image

    image = draw_frame(0, 0, 0, size)
    ours = preprocess(np.asarray(image), PREPROCESSING | {"crop_bars": False})
    for theirs in (
        np.asarray(resize(image, [224, 224], antialias=True)),
        resize(to_image(image), [224, 224], antialias=True).permute(1, 2, 0).numpy(),
    ):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    # and with bars: torchvision on the cropped picture
    framed = np.zeros((size[1] + 60, size[0], 3), np.uint8)
    framed[30:-30] = np.asarray(image)
    left, top, right, bottom = find_bars(framed)
    theirs = np.asarray(resize(Image.fromarray(framed[top:bottom, left:right]), [224, 224], antialias=True))
    assert np.abs(preprocess(framed).astype(int) - theirs.astype(int)).max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 8), st.booleans())
def test_bars_are_found_as_drawn(letter, pillar, noise, subtitle):
    rng = np.random.default_rng(letter * 100 + pillar)
    height, width = 240, 320
    letter, pillar = (0 if bar < 8 else bar for bar in (letter, pillar))
    frame = rng.integers(0, noise + 1, (height, width, 3), dtype=np.uint8)
    frame[letter : height - letter, pillar : width - pillar] = rng.integers(60, 255, 3, dtype=np.uint8)
    if subtitle and letter > 30:
        frame[height - letter + 10 : height - letter + 20, 120:200] = 240
    left, top, right, bottom = find_bars(frame)
    assert 0 <= top - letter <= 2 and 0 <= (height - letter) - bottom <= 2
    assert 0 <= left - pillar <= 2 and 0 <= (width - pillar) - right <= 2


def test_dark_scenes_are_not_cut():
    black = np.zeros((200, 300, 3), np.uint8)
    assert find_bars(black) == (0, 0, 300, 200)
    night = black.copy()
    night[120:, :] = 90  # a dark sky over a lit street
    assert find_bars(night) == (0, 0, 300, 200)
    moon = black.copy()
    moon[90:110, 140:160] = 250
    assert find_bars(moon) == (0, 0, 300, 200)


def test_read_image_takes_what_people_send():
    picture = draw_frame(0, 0, 0)
    for form, mode in (
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("JPEG", "L"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("WEBP", "RGB"),
    ):
        rgb = read_image(encoded(picture.convert(mode), form))
        assert rgb.dtype == np.uint8 and rgb.shape == (136, 240, 3), (form, mode)
    grey = (np.asarray(picture.convert("L")).astype(np.uint16) * 257).astype(np.uint16)
    assert np.abs(read_image(encoded(Image.fromarray(grey), "PNG"))[..., 0].astype(int) - grey // 257).max() <= 1
    frames = [draw_frame(0, shot, 0) for shot in range(3)]
    animated = read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.abs(animated.astype(int) - np.asarray(frames[0])).mean() < 12
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(encoded(picture, "JPEG", exif=exif)).shape == (240, 136, 3)
    assert read_image(encoded(picture.resize((1920, 1088)), "JPEG"), draft=448).shape == (544, 960, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"GIF89a" + b"\0" * 40, "not an image"),
        (b"<html>not here</html>", "not an image"),
        (encoded(draw_frame(0, 0, 0), "JPEG")[:3000], "damaged"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "too small"),
        (encoded(Image.new("1", (8000, 7500)), "PNG"), "megapixels"),
        (encoded(Image.new("1", (50_000, 50_000)), "PNG"), "megapixels"),
        (b"\xff\xd8" + b"\0" * 20_000_001, "MB"),
    ],
)
def test_read_image_refuses_in_one_line(data, words):
    with pytest.raises(UserError, match=words) as caught:
        read_image(data)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2000))
def test_read_image_survives_hostile_bytes(noise, cut):
    good = encoded(draw_frame(1, 1, 1), "JPEG")
    for data in (noise, good[:cut] + noise + good[cut:]):
        with contextlib.suppress(UserError):
            assert read_image(data).dtype == np.uint8


def test_natural_order():
    assert sorted(["10.jpg", "2.jpg", "1.jpg"], key=natural_key) == ["1.jpg", "2.jpg", "10.jpg"]


@pytest.mark.parametrize("name", ["", "model.onnx", "model.int8.onnx", "openvino/model.xml"])
def test_every_format_answers_alike(exported, dataset, name):
    frames = sorted((dataset / "movies").glob("*/*.jpg"))[::9]
    reference, other = Identifier(exported / "model.onnx"), Identifier(exported / name)
    same = [reference.identify(f).candidates[0].title == other.identify(f).candidates[0].title for f in frames]
    assert np.mean(same) >= 0.8
    answer = other.identify(np.asarray(Image.open(frames[0])))
    assert answer.kind in ("movie", "shortlist", "unknown") and len(answer.candidates) == 3
    assert [c.confidence for c in answer.candidates] == sorted((c.confidence for c in answer.candidates), reverse=True)


def test_onnx_runs_on_openvino_too(exported, dataset):
    frame = next((dataset / "movies").glob("*/*.jpg"))
    a, b = (Identifier(exported / "model.onnx", runtime=r).identify(frame) for r in ("openvino", "onnxruntime"))
    assert a.candidates[0].title == b.candidates[0].title and a.kind == b.kind


def test_command_line(exported, dataset, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    folder = next((dataset / "movies").iterdir())
    assert identify.main([str(folder), str(broken), "--model", str(exported), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(list(folder.iterdir())) + 1
    assert set(lines[0]) == {"file", "kind", "candidates", "ms"} and lines[0]["ms"] > 0
    assert set(lines[0]["candidates"][0]) == {"title", "confidence"}
    assert set(lines[-1]) == {"file", "error"} and "not an image" in lines[-1]["error"]
    assert identify.main([str(next(folder.iterdir())), "--model", str(exported), "--guess"]) == 0
    assert " ms " in capsys.readouterr().out
    command = [sys.executable, "identify.py", "-", "--model", str(exported), "--json"]
    out = subprocess.run(command, input=next(folder.iterdir()).read_bytes(), capture_output=True, cwd=ROOT, check=True)
    assert json.loads(out.stdout)["file"] == "-"


@pytest.fixture(scope="module")
def indexed(exported, raw, tmp_path_factory) -> Path:
    """An export of a classifier, and beside it an index of the same films."""
    folder = tmp_path_factory.mktemp("indexed")
    shutil.copytree(exported, folder / "export")
    assert (
        index.main(["add", str(raw), "--model", str(folder / "export"), "--index", str(folder / "index.sqlite")]) == 0
    )
    return folder


def run_script(*argv) -> subprocess.CompletedProcess:
    """identify.py in a process of its own, as users run it."""
    return subprocess.run([sys.executable, "identify.py", *map(str, argv)], cwd=ROOT, capture_output=True, text=True)


def test_evidence_is_drawn_by_a_process(indexed, raw, tmp_path):
    frame = raw / "Film 1 (1991)" / "05_0.jpg"
    sheet = tmp_path / "proof.png"
    done = run_script(frame, "--model", indexed / "export", "--evidence", sheet, "--json")
    assert done.returncode == 0 and done.stderr == ""
    answer = json.loads(done.stdout)
    best = answer["candidates"][0]
    assert best["title"] == "Film 1 (1991)"
    keys = ["title", "file", "similarity", "time_ms", "from_ms", "to_ms", "thumbnail"]
    assert list(best["evidence"]) == keys and best["evidence"]["file"] == "05_0.jpg"
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width == 876
    frame, proof = read_pair(sheet)
    assert frame.std() > 10 and np.abs(frame - proof).mean() < 15  # the frame, and the still that it is


def spoil(place: Path, trouble: str) -> None:
    """Do to a collection what the trouble says."""
    if trouble == "damaged":
        place.write_bytes(place.read_bytes()[:20_000])
    if trouble == "holds no films":
        for film in Collection(place).films():
            assert index.main(["remove", film.title, "--index", str(place)]) == 0
    if trouble == "another model":
        collection = Collection(place)
        with collection.writing():
            about = collection.about()
            seen = np.random.default_rng(1).random((2, 512), np.float32)
            about.model.fingerprint = base64.b64encode(seen).decode()
            collection.write_about(about)


@pytest.mark.parametrize("trouble", ["damaged", "holds no films", "another model", "no index there"])
def test_a_classifier_answers_on_without_its_index_and_says_why(indexed, raw, tmp_path, trouble, capsys):
    shutil.copytree(indexed, tmp_path / "own")
    spoil(tmp_path / "own" / "index.sqlite", trouble)
    capsys.readouterr()
    command = [str(next(raw.glob("Film 1 */05_0.jpg"))), "--model", str(tmp_path / "own" / "export"), "--json"]
    if trouble == "no index there":
        command += ["--index", str(tmp_path / "none")]
    assert identify.main(command) == 0
    out, error = capsys.readouterr()
    assert error.startswith("identify.py: --index") and error.count("\n") == 1
    assert trouble in error and error.endswith("; the classifier answers alone\n")
    answer = json.loads(out)
    assert "evidence" not in answer["candidates"][0] and len(answer["candidates"]) == 3
    with pytest.raises(SystemExit) as caught:  # what can't be drawn is a usage error
        identify.main([*command, "--evidence", str(tmp_path / "proof.png")])
    assert caught.value.code == 2 and "--index" in capsys.readouterr().err
    assert not (tmp_path / "proof.png").exists()


def test_an_embedder_without_its_index_stops_with_the_same_line(tmp_path, capsys):
    write_model(tmp_path / "export", 4)
    (tmp_path / "index.sqlite").write_bytes(b"{" * 1000)
    draw_frame(0, 0, 0).save(tmp_path / "frame.png")
    assert identify.main([str(tmp_path / "frame.png"), "--model", str(tmp_path / "export")]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("identify.py: error: --index") and error.count("\n") == 1
    assert "is no file of index.py" in error and "answers alone" not in error


def test_bad_models_get_one_line(exported, tmp_path, capsys):
    import onnx

    frame = tmp_path / "a.jpg"
    draw_frame(0, 0, 0).save(frame)
    bare = onnx.load(exported / "model.onnx")
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "cut.onnx").write_bytes((exported / "model.onnx").read_bytes()[:5000])
    (tmp_path / "w.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    cases = [("bare.onnx", "no classes"), ("cut.onnx", "can't load"), ("w.pt", "export.py"), ("none", "export.py")]
    for name, words in [*cases, ("empty", "export.py")]:
        assert identify.main([str(frame), "--model", str(tmp_path / name)]) in (1, 2)
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error and name in error
    with pytest.raises(SystemExit) as caught:
        identify.main([str(frame), "--top", "0"])
    assert caught.value.code == 2


def copy_export(exported: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    return folder


OLD = {"avx2"}
VNNI = {"avx2", "avx_vnni"}
AVX512 = {"avx2", "avx512f"}
SERVER = AVX512 | {"avx512_vnni"}


@pytest.mark.parametrize(
    ("flags", "asked", "chosen"),
    [
        (VNNI, (None, None), "openvino int8"),
        (AVX512, (None, None), "openvino int8"),
        (set(), (None, None), "openvino int8"),
        (OLD, (None, None), "openvino fp32"),
        (OLD, ("onnxruntime", None), "onnxruntime fp32"),
        (OLD, (None, "int8"), "openvino int8"),
        (AVX512, ("onnxruntime", None), "onnxruntime fp32"),
        (SERVER, ("onnxruntime", None), "onnxruntime int8"),
        (AVX512, (None, "fp32"), "openvino fp32"),
        ({"asimd", "asimddp"}, (None, None), "onnxruntime int8"),
        ({"asimd"}, (None, None), "openvino fp32"),  # a Raspberry Pi 4
        ({"asimd", "asimddp"}, ("openvino", None), "openvino fp32"),
    ],
)
def test_the_file_is_chosen_by_the_cpu_and_what_is_asked(exported, flags, asked, chosen):
    file = choose_file(exported, *asked, flags)
    assert f"{file.runtime} {file.format}" == chosen and file.reason.startswith(chosen)
    int8 = {"openvino": "openvino/model.xml", "onnxruntime": "model.int8.onnx"}
    assert file.path == exported / ("model.onnx" if file.format == "fp32" else int8[file.runtime])


def test_a_runtime_that_is_not_installed_is_not_chosen(exported, monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "openvino" else object())
    file = choose_file(exported, None, None, SERVER)
    assert (file.runtime, file.format) == ("onnxruntime", "int8")
    with pytest.raises(UserError, match="--runtime"):
        choose_file(exported, "openvino", None, AVX512)
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        choose_file(exported, None, None, AVX512)


def test_folders_may_have_any_name(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "export.2026")
    assert Identifier(tmp_path / "export.2026").classes


def test_self_test_notices_a_cpu_that_computes_otherwise(exported, tmp_path, capsys):
    import onnx

    folder = copy_export(exported, tmp_path)
    assert identify.main(["--self-test", "--model", str(folder)]) == 0
    text = capsys.readouterr().out
    assert text.count("agrees") == 4 and "DISAGREES" not in text
    model = onnx.load(folder / "model.int8.onnx")
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.INT8:  # as if sums had saturated
            values = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.clip(-20, 20), weight.name))
    onnx.save(model, folder / "model.int8.onnx")
    assert identify.main(["--self-test", "--model", str(folder / "model.int8.onnx"), "--runtime", "onnxruntime"]) == 1
    assert "DISAGREES" in capsys.readouterr().out
    assert identify.main(["--self-test", "--model", str(folder)]) == 0  # the others still agree
    assert "DISAGREES" in capsys.readouterr().out


def test_reference_frames_are_the_same_everywhere():
    import hashlib

    frames = model.reference_frames()
    assert frames.shape == (6, 224, 224, 3) and 40 < frames.std() < 90
    assert hashlib.sha256(frames.tobytes()).hexdigest()[:16] == "fdbfb78d3019570d"


def test_pipes_and_folders_are_no_frames(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            read_image(path)


def test_several_pictures_of_one_film_get_one_answer(exported, dataset):
    files = sorted((dataset / "movies").glob("*/*.jpg"))[:3]
    identifier = Identifier(exported / "model.onnx", runtime="onnxruntime")
    batch = np.stack([identifier.load(file) for file in files])
    answer, mean = identifier.look([identifier.read(file) for file in files]), identifier.run(batch)
    mean = mean["probabilities"].mean(0)
    assert [c.title for c in answer.candidates] == [identifier.classes[c] for c in np.argsort(-mean, kind="stable")]
    assert [c.confidence for c in answer.candidates] == pytest.approx(sorted(mean, reverse=True), abs=1e-5)
    assert identifier.answers(batch[:0]) == []
    assert [c.title for c in identifier.identify(files).candidates] == [c.title for c in answer.candidates]


def test_the_still_inside_a_screenshot_is_found_and_plain_pictures_stay_whole():
    rng = np.random.default_rng(0)
    texture = Image.fromarray(rng.integers(0, 255, (60, 108, 3), np.uint8)).resize((540, 300), Image.Resampling.BICUBIC)
    for seed in range(4):  # light and dark interfaces, at several heights
        screen = screenshot(texture, np.random.default_rng(seed))
        left, top, right, bottom = find_still(np.asarray(screen))
        assert (left, right) == (0, 540) and abs(bottom - top - 300) <= 24
        inside = np.asarray(screen.crop((left, top, right, bottom)), float)
        assert inside.std(axis=1).mean() > 30  # texture, no interface
    assert find_still(np.asarray(texture)) is None
    assert find_still(np.zeros((400, 300, 3), np.uint8)) is None  # nothing in it
    assert find_still(np.zeros((20, 20, 3), np.uint8)) is None


def test_an_unknown_screenshot_is_cropped_to_its_still_and_tried_again(exported, dataset):
    identifier = Identifier(exported / "model.onnx", runtime="onnxruntime")
    file = sorted((dataset / "movies").glob("*/*.jpg"))[0]
    screen = screenshot(Image.open(file).convert("RGB"), np.random.default_rng(1))
    identifier.contract.decision |= {"movie": 2.0, "shortlist": 2.0}  # all is unknown
    seen, name_film = [], identifier.name_film
    identifier.name_film = lambda pictures, top=3: seen.append(pictures[0].shape) or name_film(pictures, top)
    identifier.identify(screen)
    assert len(seen) == 2 and seen[1][0] < seen[0][0]  # the whole, then what lies inside
    identifier.contract.decision |= {"movie": 0.0, "shortlist": 0.0}
    assert identifier.identify(screen).look is None and len(seen) == 3
    identifier.name_film = lambda pictures, top=3: Answer(
        "movie" if pictures[0].shape[0] < seen[0][0] else "unknown", [Candidate("A", 0.5)], 1.0
    )
    answer = identifier.identify(screen)
    assert answer.as_dict()["look"] == "still" and "still inside" in format_answer(answer)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "movie-by-frame 1", "export it again"),
        ("classes", "[1, 2, 3]", r"metadata is damaged \(classes\)"),
        ("classes", '["A", "A", "B"]', "damaged"),
        ("classes", '["A", "B"]', "2 classes"),
        ("classes", "[" * 100_000, "damaged"),
        ("preprocessing", "{}", r"metadata is damaged \(preprocessing\)"),
        ("accuracy", "{", r"metadata is damaged \(accuracy\)"),
        ("decision", '{"movie": "high"}', r"metadata is damaged \(decision\)"),
        ("decision", '{"movie": 0.5, "shortlist": 0.9}', "damaged"),
    ],
)
def test_a_damaged_contract_is_one_line_with_the_mend(exported, tmp_path, key, value, words):
    import onnx

    model = onnx.load(exported / "model.onnx")
    onnx.helper.set_model_props(model, {item.key: item.value for item in model.metadata_props} | {key: value})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=words) as caught:
        Identifier(tmp_path / "m.onnx")
    assert "export" in str(caught.value) and "\n" not in str(caught.value)


def test_every_field_of_the_preprocessing_is_heeded(exported, tmp_path):
    frame = draw_frame(0, 0, 0, (1200, 500))
    framed = Image.new("RGB", (1200, 700))
    framed.paste(frame, (0, 100))
    found = {}
    for name, changed in (("as", {}), ("cubic", {"interpolation": "bicubic"}), ("bars", {"crop_bars": False})):
        shutil.copy(exported / "model.onnx", tmp_path / "m.onnx")
        contract = Identifier(tmp_path / "m.onnx").contract
        replace(contract, preprocessing=contract.preprocessing | changed).save(tmp_path / "m.onnx")
        found[name] = Identifier(tmp_path / "m.onnx").load(framed)
    plain = np.asarray(frame.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found["as"] - plain).mean() < 3 < np.abs(found["bars"] - plain).mean()
    assert not np.array_equal(found["as"], found["cubic"])
