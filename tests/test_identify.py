"""python -m pytest tests/test_identify.py"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import identify
from identify import Identifier, UserError, find_bars, preprocess, read_image

ROOT = Path(identify.__file__).parent


def encoded(image: Image.Image, form: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def test_import_needs_no_torch():
    code = (
        "import sys, identify; print([m for m in ('torch', 'torchvision', 'timm', 'cv2', 'scipy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


@pytest.mark.parametrize("size", [(240, 136), (100, 400), (1920, 800), (224, 224)])
def test_preprocess_equals_torchvision(size):
    from torchvision.transforms.v2.functional import resize, to_image

    image = draw_frame(0, 0, 0, size)
    ours = preprocess(np.asarray(image), identify.PREPROCESSING | {"crop_bars": False})
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


def test_original_rule_is_bounded_by_the_number_of_films():
    """The largest z is (C - 1) / sqrt(C): under 18 films only "unknown", under 33 never a film."""
    for films in (2, 5, 17, 18, 32, 33, 257):
        logits = np.zeros((1, films), np.float32)
        logits[0, 0] = 50
        (kind,) = identify.decide(logits, np.zeros((1, 4)), identify.ORIGINAL_RULE)
        assert kind == ("unknown" if films < 18 else "shortlist" if films < 33 else "movie")
    z = torch.randn(4, 40).numpy()
    reference = torch.sigmoid(
        (torch.tensor(z) - torch.tensor(z).mean(1, True)) / torch.tensor(z).std(1, keepdim=True) / 2.5
    )
    np.testing.assert_allclose(identify.confidences(z, identify.ORIGINAL_RULE), reference, atol=1e-6)


def test_rule_survives_packing():
    rule = {"rule": "calibrated", "score": "knn", "movie": 0.5, "bank": np.eye(3, 4), "k": 5}
    back = identify.unpack_rule(identify.pack_rule(rule))
    np.testing.assert_array_equal(back["bank"], rule["bank"])
    assert {k: v for k, v in back.items() if k != "bank"} == {k: v for k, v in rule.items() if k != "bank"}


def test_natural_order():
    assert sorted(["10.jpg", "2.jpg", "1.jpg"], key=identify.natural_key) == ["1.jpg", "2.jpg", "10.jpg"]


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
    assert identify.main([str(folder), str(broken), "--model", str(exported), "--json", "--batch", "5"]) == 1
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
        identify.main([str(frame), "--batch", "0"])
    assert caught.value.code == 2


def copy_export(exported: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("host.json", ".cache"))
    return folder


def test_host_decides_once_and_says_why(exported, dataset, tmp_path, capsys, monkeypatch):
    folder = copy_export(exported, tmp_path)
    identifier = Identifier(folder)
    assert "first start" in capsys.readouterr().err
    measured = json.loads((folder / "host.json").read_text())["measured"]
    assert {row["variant"] for row in measured} >= {
        "openvino int8", "onnxruntime int8", "onnxruntime fp32", "openvino fp32",
    }  # fmt: skip
    best = min((row for row in measured if row["agrees"]), key=lambda row: row["ms"])
    assert identifier.why.startswith(best["variant"]) and f"{identifier.runtime} {identifier.format}" in best["variant"]
    monkeypatch.setattr(identify, "measure_variants", None)  # the second start measures nothing
    assert Identifier(folder).why == identifier.why and not capsys.readouterr().err
    assert Identifier(folder, runtime="onnxruntime", format="fp32").path == folder / "model.onnx"
    frame = str(next((dataset / "movies").glob("*/*.jpg")))
    assert identify.main([frame, "--model", str(folder), "--verbose"]) == 0
    assert identifier.why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "picked"),
    [
        ([("openvino int8", 5, True), ("onnxruntime int8", 9, True)], ("openvino", "int8")),
        ([("openvino int8", 5, False), ("onnxruntime int8", 9, True)], ("onnxruntime", "int8")),
        ([("openvino int8", 5, False), ("openvino int8 in f32", 8, True)], ("openvino", "int8")),
        ([("openvino int8", 5, False), ("onnxruntime int8", 9, False)], None),
    ],
)
def test_a_format_that_fails_its_self_test_is_never_picked(exported, tmp_path, monkeypatch, rows, picked):
    folder = copy_export(exported, tmp_path)
    results = [{"variant": v, "ms": ms, "deviation": 0.1, "agrees": ok} for v, ms, ok in rows]
    results.append({"variant": "onnxruntime fp32", "error": "it crashed"})
    monkeypatch.setattr(identify, "measure_variants", lambda *_: results)
    if picked is None:
        with pytest.raises(UserError, match=r"off by 10%.*it crashed"):
            Identifier(folder)
        return
    identifier = Identifier(folder)
    assert (identifier.runtime, identifier.format) == picked
    assert "not usable here" in identifier.why


def test_a_precision_that_is_asked_for_is_measured_too(exported, tmp_path, monkeypatch):
    folder, asked = copy_export(exported, tmp_path), []

    def measure(variants, threads):
        asked.extend(map(str, variants))
        rows = [("openvino int8 in f32", 5, False), ("openvino fp32 in f32", 9, True)]
        return [{"variant": v, "ms": ms, "deviation": 0.1, "agrees": ok} for v, ms, ok in rows]

    monkeypatch.setattr(identify, "measure_variants", measure)
    identifier = Identifier(folder, precision="f32")
    assert (identifier.runtime, identifier.format) == ("openvino", "fp32") and "9.0 ms" in identifier.why
    assert asked == ["openvino int8 in f32", "openvino fp32 in f32"]
    with pytest.raises(UserError, match="change --runtime, --format or --precision"):
        Identifier(folder, runtime="onnxruntime", precision="f32")


def test_self_test_notices_a_cpu_that_computes_otherwise(exported, tmp_path, capsys):
    import onnx

    folder = copy_export(exported, tmp_path)
    assert identify.main(["--self-test", "--model", str(folder)]) == 0
    text = capsys.readouterr().out
    assert text.count("agrees") == 4 and "DISAGREES" not in text
    model = onnx.load(folder / "model.int8.onnx")
    scales = [i for i in model.graph.initializer if i.name.endswith("_scale") and i.dims and len(i.raw_data) > 64]
    for scale in scales[:3]:  # as if sums had saturated
        values = onnx.numpy_helper.to_array(scale).copy()
        values[::4] *= 0.3
        scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    onnx.save(model, folder / "model.int8.onnx")
    assert identify.main(["--self-test", "--model", str(folder / "model.int8.onnx")]) == 1
    assert "DISAGREES" in capsys.readouterr().out
    assert identify.main(["--self-test", "--model", str(folder)]) == 0  # the others still agree
    assert "DISAGREES" in capsys.readouterr().out


def test_reference_frames_are_the_same_everywhere():
    import hashlib

    frames = identify.reference_frames()
    assert frames.shape == (6, 224, 224, 3) and 40 < frames.std() < 90
    assert hashlib.sha256(frames.tobytes()).hexdigest()[:16] == "fdbfb78d3019570d"


def test_an_image_that_takes_too_long_is_refused(exported, dataset, tmp_path, monkeypatch):
    identifier = Identifier(exported / "model.onnx")
    files = [str(f) for f in sorted((dataset / "movies").glob("*/*.jpg"))[:2]]
    real, calls = identifier.load, []

    def slow(data):
        calls.append(data)
        while len(calls) == 1:
            pass
        return real(data)

    monkeypatch.setattr(identifier, "load", slow)
    monkeypatch.setattr(identify, "MAX_SECONDS", 0.2)
    (_, first), (_, second) = identify.identify_files(identifier, files)
    assert isinstance(first, UserError) and files[0] in str(first) and "seconds" in str(first)
    assert not isinstance(second, UserError)


def test_pipes_and_folders_are_no_frames(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            read_image(path)


def test_worker_answers_another_program(exported, dataset):
    """Pictures by length on stdin, a line of JSON each request on stdout; what can't be read does not end it."""
    files = sorted((dataset / "movies").glob("*/*.jpg"))[:2]
    pictures = [file.read_bytes() for file in files]

    def request(*data: bytes) -> bytes:
        return bytes([len(data)]) + b"".join(len(d).to_bytes(4, "little") + d for d in data)

    model = exported / "model.onnx"
    text = request(pictures[0]) + request(b"no picture") + request(b"") + request(*pictures) + request(pictures[1])
    command = [sys.executable, str(ROOT / "identify.py"), "--worker", "--model", str(model), "--runtime", "onnxruntime"]
    result = subprocess.run(command, input=text, capture_output=True, timeout=60, check=True)
    about, first, bad, empty, album, last = (json.loads(line) for line in result.stdout.splitlines())
    identifier = Identifier(model, runtime="onnxruntime")
    assert about["classes"] == identifier.classes and about["accuracy"]["split"] == "group"
    assert "not an image" in bad["error"] and "empty" in empty["error"]
    for answer, file in ((first, files[0]), (last, files[1])):
        expected = identifier.identify(file, top=3)
        assert answer["kind"] == expected.kind and answer["candidates"] == expected.as_dict()["candidates"]
    logits, embedding = identifier.logits(np.stack([identifier.load(file) for file in files]))
    mean = identifier.make_answers(logits.mean(0)[None], embedding.mean(0)[None], 3, 0.0)[0]
    assert album["candidates"] == mean.as_dict()["candidates"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_weights_are_not_held_twice(exported, monkeypatch):
    """OpenVINO keeps the file's pages behind its own packed copy; they are given back, and can still be read."""

    def held() -> int:
        """Kilobytes of files in the export's folder that are mapped and resident."""
        lines, inside, total = Path("/proc/self/smaps").read_text().splitlines(), False, 0
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = str(exported / "openvino") in line
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1])
        return total

    path, batch = exported / "openvino" / "model.xml", np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3))
    with monkeypatch.context() as patch:
        patch.setattr(identify, "release_files", lambda folder: None)
        keeps = Identifier(path)
        assert held() > 0
    before = keeps.logits(batch.astype(np.uint8))[0]
    identify.release_files(path.parent)
    assert held() == 0
    assert (keeps.logits(batch.astype(np.uint8))[0] == before).all()
    gives = Identifier(path)
    assert held() == 0 and (gives.logits(batch.astype(np.uint8))[0] == before).all()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_libraries_beside_the_model_stay_mapped(tmp_path):
    """As in /app with its .venv: their relocated pages would not come back from the file."""
    import _bisect

    if not getattr(_bisect, "__file__", None):
        pytest.skip("this Python has _bisect built in")
    shutil.copy(_bisect.__file__, tmp_path)
    script = "import _bisect, identify; from pathlib import Path; identify.release_files(Path('.'))"
    script += "; print(_bisect.__file__, _bisect.bisect_right([1, 2, 4], 3))"
    settings = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path) in done.stdout and done.stdout.strip().endswith(" 2")
