"""python -m pytest tests/test_export.py"""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
import torch
from conftest import draw_frame, shared, write_video
from onnxruntime.quantization import quantize_dynamic
from PIL import Image

import export
from answering.console import UserError
from answering.model import Identifier, cpu_flags, reference_frames, relative_error
from answering.pictures import PREPROCESSING, preprocess
from export import export_model
from models import Checkpoint, build_model, preprocessing_for
from training.dataset import choose_rows, read_manifest
from training.metrics import fit_temperature
from training.quantise import scale_tokens, write_web
from training.rule import (
    ORIGINAL_RULE,
    SCORES,
    Rule,
    UnknownFrames,
    check_rule,
    fit_rule,
    join_unknown,
    leave_films_out,
)

OUTPUTS = ["logits", "probabilities", "known", "embedding"]


def test_export_leaves_what_the_design_says(exported):
    files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert files == {
        "model.onnx", "model.int8.onnx", "openvino/model.xml", "openvino/model.bin",
        "model.json", "report.md", "README.md", "calibration.png", "strangers.npz",
    }  # fmt: skip
    assert [p.name for p in exported.parent.iterdir()] == ["export"]
    contract = json.loads((exported / "model.json").read_text())
    assert contract["format"] == "movie-by-frame 2" and len(contract["classes"]) == 3
    assert contract["accuracy"]["top1"] >= 0.8 and contract["accuracy"]["split"] == "group"
    assert contract["decision"]["targets"] == {"movie": 0.95, "shortlist": 0.8}
    report = (exported / "report.md").read_text()
    assert all(score in report for score in SCORES) and "openvino int8" in report
    assert (exported / "README.md").read_text().startswith("---\nlibrary_name: onnx")


def test_model_json_and_the_metadata_are_one_schema(exported):
    shown = json.loads((exported / "model.json").read_text())
    for name in ("model.onnx", "model.int8.onnx", "openvino/model.xml"):
        inside = vars(Identifier(exported / name).contract)
        assert inside | {"self_test": 0} == shown | {"self_test": 0}


def frames_of(dataset, split: str = "test") -> list:
    rows = choose_rows(read_manifest(dataset))[0][split]
    return [row.file for row in rows]


def test_the_metadata_alone_give_identifys_answers(exported, dataset):
    """Two comparisons, as any language can make them, on every test and unknown frame."""
    import onnxruntime

    files = [file for split in ("test", "unknown_val", "unknown_test") for file in frames_of(dataset, split)]
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(exported / name)
        (image,) = session.get_inputs()
        assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [224, 224, 3])
        assert [output.name for output in session.get_outputs()] == OUTPUTS
        metadata = session.get_modelmeta().custom_metadata_map
        classes, decision = json.loads(metadata["classes"]), json.loads(metadata["decision"])
        identifier = Identifier(exported / name, runtime="onnxruntime")
        for file in files:
            pixels = np.asarray(Image.open(file).resize((224, 224), Image.Resampling.BILINEAR))  # these have no bars
            _, probabilities, known, _ = session.run(OUTPUTS, {"image": pixels[None]})
            kind = "unknown" if known[0] < decision["shortlist"] else "shortlist"
            kind = "movie" if known[0] >= decision["movie"] else kind
            answer = identifier.identify(file)
            best = np.argsort(-probabilities[0], kind="stable")
            assert (kind, [classes[c] for c in best]) == (answer.kind, [c.title for c in answer.candidates])
            assert probabilities.sum() == pytest.approx(1, abs=1e-4) and 0 <= known[0] <= 1


def test_onnx_equals_torch(exported, run, dataset):
    checkpoint = Checkpoint.load(run / "best.pt")
    frames = np.stack([preprocess(np.asarray(Image.open(file))) for file in frames_of(dataset)])
    wanted = export.Exported(checkpoint.build(), checkpoint.preprocessing, ORIGINAL_RULE).run(frames)
    found = export.run_batches(Identifier(exported / "model.onnx").run, frames, batch=3)
    for name in ("logits", "embedding"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-3)


def test_transformer_exports(dataset, tmp_path):
    from train import train_model

    recipe = {"epochs": 0, "probe": 0.3, "intermediate": True, "refit": True}
    run = train_model(dataset, arch="test_vit3", pretrained=False, recipe=recipe, out=tmp_path / "runs")
    export_model(run / "best.pt", dataset, tmp_path / "export", max_drop=100)
    frame = preprocess(np.full((300, 400, 3), 90, np.uint8))
    for name in ("model.onnx", "model.int8.onnx", "openvino/model.xml"):
        outputs = Identifier(tmp_path / "export" / name).run(np.stack([frame, frame]))
        assert outputs["logits"].shape == (2, 3) and all(np.isfinite(value).all() for value in outputs.values())
    assert "folds of train and val" in (tmp_path / "export" / "report.md").read_text()


def test_an_embedder_needs_no_training(raw, tmp_path, capsys):
    model = build_model("test_vit3", [], pretrained=False, intermediate=True)
    torch.save(model.backbone.state_dict(), tmp_path / "weights.pth")
    argv = ["--arch", "test_vit3", "--init", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "e")]
    assert export.main(argv) == 0
    assert {p.name for p in (tmp_path / "e").iterdir()} >= {"model.onnx", "model.int8.onnx", "model.json"}
    assert export.main([*argv, "--frames", str(raw / "Film 0 (1990)")]) == 0
    frame = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    for name in ("model.onnx", "model.int8.onnx", "openvino/model.xml"):
        identifier = Identifier(tmp_path / "e" / name)
        outputs = identifier.run(frame)
        assert set(outputs) == {"embedding"} and outputs["embedding"].shape[1] == model.scale.numel()
        with pytest.raises(UserError, match="knows no films"):
            identifier.answers(frame)
    assert export.main(["--arch", "test_vit3", "--init", str(tmp_path / "none"), "--out", str(tmp_path / "f")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_embedder_is_calibrated_on_videos_where_there_are_no_stills(tmp_path, capsys):
    pictures = [np.asarray(draw_frame(film, shot, 0)) for film in range(2) for shot in range(3) for _ in range(4)]
    folder = tmp_path / "films"
    folder.mkdir()
    for film in range(2):
        write_video(folder / f"Film {film} (1990).avi", pictures[12 * film : 12 * film + 12])
    (folder / "Broken (1991).avi").write_bytes(b"RIFF" + bytes(1000))
    sample = export.read_sample(folder, PREPROCESSING)
    assert sample.dtype == np.uint8 and sample.shape[1:] == (224, 224, 3) and len(sample) >= 12
    known = np.stack([preprocess(rgb) for rgb in pictures[::4]]).astype(int)
    nearest = np.abs(sample[:, None] - known[None]).mean((2, 3, 4))
    assert nearest.min(1).max() < 12  # each is a frame of the films
    assert len(set(nearest.argmin(1).tolist())) == 6  # and each shot is there
    assert "Broken (1991).avi" in capsys.readouterr().err
    with pytest.raises(UserError, match="no video"):
        (tmp_path / "empty").mkdir()
        export.read_sample(tmp_path / "empty", PREPROCESSING)


def test_a_failed_gate_leaves_the_old_export(run, dataset, exported, tmp_path, monkeypatch):
    out = tmp_path / "export"
    shutil.copytree(exported, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    real = export.write_int8

    def broken(fp32, onnx_path, *rest):
        real(fp32, onnx_path, *rest)
        model = onnx.load(onnx_path)
        for weight in model.graph.initializer:
            if weight.name.endswith("head.weight"):
                values = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
        onnx.save(model, onnx_path)

    monkeypatch.setattr(export, "write_int8", broken)
    with pytest.raises(UserError, match="onnxruntime int8"):
        export_model(run / "best.pt", dataset, out)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_clip_exports(tmp_path):
    """CLIP's position embedding must not take the name of our output."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from models import ClipClassifier

    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = ClipClassifier(CLIPVisionModelWithProjection(config), torch.randn(5, config.projection_dim), 2.66).eval()
    module = export.Exported(model, preprocessing_for("clip_vit_base_patch32"), Rule("gen", 2.0, 0.5, 1.0))
    export.write_onnx(module, tmp_path / "clip.onnx")
    image = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    import onnxruntime

    found = onnxruntime.InferenceSession(tmp_path / "clip.onnx").run(OUTPUTS, {"image": image})
    for ours, theirs in zip(found, module.run(image).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def weights_of(path) -> list[np.ndarray]:
    """The int8 weights of layers, of an .onnx or an OpenVINO .xml."""
    if path.suffix == ".onnx":
        tensors = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
        found = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    else:
        import openvino

        constants = [o for o in openvino.Core().read_model(path).get_ops() if o.get_type_name() == "Constant"]
        found = [o.data for o in constants if o.get_element_type().to_string() == "i8"]
    return [weight.astype(int) for weight in found if weight.ndim >= 2 and weight.size > 100]


def test_int8_weights_cannot_saturate(exported):
    """CPUs without VNNI add two products of 8 bits in 16: with 7-bit weights the sum fits."""
    weights = weights_of(exported / "openvino" / "model.xml")
    assert weights and max(np.abs(weight).max() for weight in weights) <= 64


def test_the_head_of_an_int8_file_stays_in_float(exported, dataset):
    """logits, probabilities and known follow from the int8 file's own embedding as they do in float."""
    initial = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exported / "model.onnx").graph.initializer}
    weight, bias = (next(v for k, v in initial.items() if k.endswith(f"head.{part}")) for part in ("weight", "bias"))
    frames = np.stack([preprocess(np.asarray(Image.open(file))) for file in frames_of(dataset)[:4]])
    for name in ("model.int8.onnx", "openvino/model.xml"):
        outputs = Identifier(exported / name, precision="f32" if name.endswith("xml") else None).run(frames)
        logits = outputs["embedding"] @ (weight.T if weight.shape[0] == 3 else weight) + bias
        np.testing.assert_allclose(outputs["logits"], logits, atol=1e-3, rtol=1e-3)


def test_nets_that_normalise_layers_and_convolve_export(tmp_path):
    """ConvNeXt: LayerNorm, so dynamic int8 in ONNX Runtime, though its convolutions are depthwise."""
    model = build_model("test_convnext", ["A", "B"], pretrained=False).eval()
    module = export.Exported(model, preprocessing_for("test_convnext"), ORIGINAL_RULE)
    export.write_onnx(module, tmp_path / "m.onnx")
    export.write_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", tmp_path / "o" / "m.xml", None, True)
    kinds = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert {"Conv", "DynamicQuantizeLinear"} <= kinds and not (tmp_path / "o").exists()


def test_int8_of_real_weights_is_near_float(tmp_path):
    """MobileNetV2 with ImageNet's weights, calibrated on real frames: depthwise layers need their biases corrected."""
    init, frames = shared("weights", "mobilenet_v2-b0353104.pth"), shared("frames", "known", "Shaun of the Dead (2004)")
    argv = ["--arch", "mobilenetv2", "--init", str(init), "--frames", str(frames), "--out", str(tmp_path / "e")]
    assert export.main(argv) == 0
    exact = Identifier(tmp_path / "e" / "model.onnx")
    batch = np.stack([exact.load(file) for file in sorted(frames.glob("*.jpg"))[::10]])
    wanted = exact.run(batch)["embedding"]
    files = ["openvino/model.xml"]
    if "avx2" not in cpu_flags() or cpu_flags() & {"avx512_vnni", "avx_vnni"}:
        files.append("model.int8.onnx")  # elsewhere sums of 8-bit products saturate, and choose_file prefers fp32
    for name in files:
        assert relative_error(Identifier(tmp_path / "e" / name).run(batch)["embedding"], wanted) < 0.3


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(torch model, state dict file, classes.txt) as the original project published them, of a small ViT."""
    import timm

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("original")
    model = timm.create_model("test_vit", num_classes=40, img_size=224).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.save({f"model.{k}": v for k, v in model.state_dict().items()}, folder / "model.pt")
    titles = [f"Film: part {i} ({1950 + i})" for i in range(40)]
    (folder / "classes.txt").write_text("\n".join(f"{title}: {i}" for i, title in enumerate(titles)) + "\n")
    return model, folder / "model.pt", folder / "classes.txt"


def test_weights_of_the_original_answer_as_its_bot_did(original, raw, tmp_path):
    """The same film with the same confidence to 1e-4, at float32, from files of several kinds."""
    from torchvision import transforms

    model, weights, classes_file = original
    argv = [str(weights), "--arch", "test_vit", "--classes", str(classes_file), "--out", str(tmp_path / "export")]
    assert export.main(argv) == 0
    frame = next(raw.glob("*/*.jpg"))
    wide = Image.new("RGB", (2000, 1200))  # with bars, and large enough for a JPEG to be decoded at reduced scale
    wide.paste(Image.open(frame).resize((2000, 800)), (0, 200))
    wide.save(tmp_path / "wide.jpg")
    normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normal])
    identifier = Identifier(tmp_path / "export" / "model.onnx")
    for file in (frame, tmp_path / "wide.jpg"):
        with torch.no_grad():
            z = model(transform(Image.open(file).convert("RGB"))[None])[0]
        sure = torch.sigmoid((z - z.mean()) / z.std() / 2.5)
        answer = identifier.identify(file, top=40)
        index = [identifier.classes.index(c.title) for c in answer.candidates]
        np.testing.assert_allclose([c.confidence for c in answer.candidates], sure[index], atol=1e-4)
        assert index[0] == int(z.argmax())
        best = float(sure.max())
        assert answer.kind == ("movie" if best >= 0.9 else "shortlist" if best >= 0.83 else "unknown")
    contract = json.loads((tmp_path / "export" / "model.json").read_text())
    assert contract["preprocessing"]["crop_bars"] is False and contract["decision"]["movie"] == 0.9
    assert export.main([*argv, "--frames", str(raw / "Film 0 (1990)")]) == 0
    assert Identifier(tmp_path / "export" / "openvino" / "model.xml").classes[1] == "Film: part 1 (1951)"


def test_wrong_weights_of_the_original_are_one_line(original, tmp_path, capsys):
    _, weights, classes_file = original
    lines = classes_file.read_text().splitlines()
    cases = {
        "gap": ("\n".join(lines[1:]), "without a gap"),
        "twice": ("\n".join([*lines, lines[0]]), "line 41"),
        "words": ("Brazil (1985)\n", "line 1"),
        "fewer": ("\n".join(lines[:39]), "40 outputs"),
    }
    for name, (text, words) in cases.items():
        (tmp_path / name).write_text(text)
        argv = [str(weights), "--arch", "test_vit", "--classes", str(tmp_path / name), "--out", str(tmp_path / "e")]
        assert export.main(argv) in (1, 2)
        assert words in capsys.readouterr().err
    argv = [str(weights), "--arch", "resnet10t", "--classes", str(classes_file), "--out", str(tmp_path / "e")]
    assert export.main(argv) == 1 and "don't fit resnet10t" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_options_that_would_be_ignored_are_refused(run, capsys):
    best, classes = str(run / "best.pt"), ["--classes", "c.txt"]
    cases = [
        [best, "--arch", "test_vit"],
        [best, "--frames", "."],
        [best, *classes, "--max-drop", "1"],
        [],
        ["--arch", "x"],
    ]
    for argv in [*cases, [best, "--init", "hub"], [best, "--unknown-share", "1"], ["--init", "hub", "--data", "."]]:
        with pytest.raises(SystemExit) as stop:
            export.main(argv)
        assert stop.value.code == 2 and ": error: " in capsys.readouterr().err


def test_out_must_not_hold_other_things(run, dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"other things .*thesis.txt"):
        export_model(run / "best.pt", dataset, tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(UserError, match="is a file"):
        export_model(run / "best.pt", dataset, tmp_path / "thesis.txt")


def test_an_export_is_written_anew_over_its_own_files_and_what_belongs_there(tmp_path):
    out = tmp_path / "export"
    (out / "openvino").mkdir(parents=True)
    (out / "model.onnx").write_text("old")
    (out / "titles.csv").write_text("title,tconst,ru")
    (out / ".DS_Store").write_text("finder")
    (out / "@eaDir").mkdir()
    (out / "@eaDir" / "x").write_text("nas")
    with export.fresh_folder(out) as work:
        (work / "model.onnx").write_text("new")
    assert (out / "model.onnx").read_text() == "new" and not (out / "openvino").exists()
    assert (out / "titles.csv").read_text() == "title,tconst,ru" and (out / "@eaDir" / "x").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"export"}
    with pytest.raises(ZeroDivisionError), export.fresh_folder(out):
        raise ZeroDivisionError
    assert (out / "titles.csv").exists() and (out / "model.onnx").read_text() == "new"


def test_the_best_run_that_is_fast_enough_is_exported(run, dataset, tmp_path, capsys):
    """Two runs: one whose figures are better and whose export took 99 ms, and the real one, not exported so far."""
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "real")
    shutil.copytree(run, runs / "slow")
    report = json.loads((runs / "slow" / "test.json").read_text())
    report["test"]["balanced"] = 0.9
    (runs / "real" / "test.json").write_text(json.dumps(report))
    for name in ("real", "slow"):
        (runs / name / "predictions.csv").unlink()  # which tell of other figures than these
    report["test"]["balanced"] = 1.0
    report["args"]["lr"] = 0.5
    (runs / "slow" / "test.json").write_text(json.dumps(report))
    shutil.rmtree(runs / "slow" / "export.json", ignore_errors=True)
    (runs / "slow" / "export.json").write_text('{"formats": {"onnxruntime int8": {"ms": 99.0, "mb": 5.0}}}')
    argv = [str(runs), "--best", "--out", str(tmp_path / "out"), "--max-drop", "20"]
    assert export.main([*argv, "--max-ms", "0.0001"]) == 1
    out, err = capsys.readouterr()
    assert out.count("left: test_resnet") == 2 and "99.0 ms" in out
    assert "--max-ms 0.0001: none of the 2 is as fast" in err
    assert not (tmp_path / "out").exists() and (runs / "real" / "export.json").exists()  # what it takes is known now
    assert export.main([*argv, "--max-ms", "98"]) == 0
    out = capsys.readouterr().out
    assert "taken: test_resnet, random weights, fine-tuned, 14 epochs (lr 0.003)" in out and "takes 99.0 ms" in out
    assert Identifier(tmp_path / "out").classes == Checkpoint.load(run / "best.pt").classes
    assert "| 99.0 |" in (runs / "results.md").read_text()


def test_what_best_cannot_choose_from_is_one_line(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "runs" / "one")
    shutil.copytree(run, tmp_path / "runs" / "two")
    report = json.loads((tmp_path / "runs" / "two" / "test.json").read_text())
    report["args"]["data"] = "elsewhere"
    (tmp_path / "runs" / "two" / "test.json").write_text(json.dumps(report))
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ([str(empty), "--best"], "holds no finished run"),
        ([str(tmp_path / "runs"), "--best"], "name one with --data"),
        ([str(tmp_path / "runs"), "--best", "--data", "third"], "no run on a grouped split of third"),
        ([str(tmp_path / "runs")], "choose among its runs with --best"),
    ]
    for argv, words in cases:
        assert export.main([*argv, "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    for argv in (["x.pt", "--best"], [str(tmp_path / "runs"), "--max-ms", "3"]):
        with pytest.raises(SystemExit):
            export.main(argv)
    assert not (tmp_path / "out").exists()


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 6)) * 2
    odds = torch.softmax(torch.tensor(logits), 1).numpy()
    labels = np.array([rng.choice(6, p=p) for p in odds])
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_rule_keeps_its_targets_on_new_frames(seed):
    """On drawn features: known films in clusters, unknown ones between them; half to fit, half to check."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 32)) * 1.2

    def draw(n):
        labels = rng.integers(0, 12, n)
        known, unknown = centres[labels] + rng.normal(size=(n, 32)), rng.normal(size=(n // 2, 32)) * 1.4
        return (known @ centres.T / 4).astype(np.float32), labels, (unknown @ centres.T / 4).astype(np.float32)

    logits, labels, unknown = draw(1500)
    rule, table = fit_rule(logits, labels, UnknownFrames(unknown, np.arange(len(unknown)) % 30), 0.3)
    assert {row.score for row in table} == set(SCORES)
    check = check_rule(rule, *draw(1500), 0.3)
    assert check.named_right >= 0.92 and check.known_named > 0.3 and check.unknown_refused > 0.5
    assert check.auroc > max(row.auroc for row in table) - 0.05
    few, many = (check_rule(rule, *draw(1500), share).named_right for share in (0.05, 0.8))
    assert few > many  # the more often people send unknown films, the more of the named are wrong


def test_films_left_out_stand_for_unknown_ones():
    """Without a single unknown film, the thresholds of a discriminant come near those that true ones give."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(40, 32)) * 1.2
    labels = rng.integers(0, 20, 2000)
    known = ((centres[labels] + rng.normal(size=(2000, 32))) @ centres[:20].T / 4).astype(np.float32)
    others = rng.integers(20, 40, 1000)
    unknown = ((centres[others] + rng.normal(size=(1000, 32))) @ centres[:20].T / 4).astype(np.float32)
    nobody = UnknownFrames(np.zeros((0, 20), np.float32), np.zeros(0, int))
    right = []
    for taught in (nobody, join_unknown([nobody, leave_films_out(known, labels)])):
        rule, _ = fit_rule(known, labels, taught, 0.3)
        right.append(check_rule(rule, known, labels, unknown, 0.3).named_right)
    assert right[0] < 0.9 < 0.93 <= right[1]


@pytest.mark.parametrize("score", SCORES)
def test_known_grows_with_its_score(score):
    logits = torch.randn(400, 7, generator=torch.Generator().manual_seed(0)) * 4
    rule, value = Rule(score, 2.0, 3.0, -1.0), SCORES[score](logits / 2)
    known = rule.known(logits)
    assert ((known >= 0) & (known <= 1)).all() and (known[value.argsort()].diff() >= 0).all()


def test_energy_by_its_formula():
    logits = np.random.default_rng(2).normal(0, 5, (20, 9))
    wanted = scipy.special.logsumexp(logits - logits.mean(1, keepdims=True), axis=1)
    assert SCORES["energy"](torch.from_numpy(logits)).numpy() == pytest.approx(wanted)


def test_evened_tokens_change_nothing_in_float_and_help_in_8_bits(tmp_path):
    torch.manual_seed(0)
    model = build_model("test_vit3", [], pretrained=False, intermediate=True).eval()
    with torch.no_grad():
        for block in model.backbone.blocks:  # some tokens have a hundred times what others have
            block.mlp.fc1.bias += 40 * (torch.rand(block.mlp.fc1.bias.shape) < 0.05)
    spec = preprocessing_for("test_vit3")
    export.write_onnx(export.Exported(model, spec, None), tmp_path / "plain.onnx")
    graph = onnx.load(tmp_path / "plain.onnx")
    assert len(scale_tokens(graph)) > 8 and {"FastGelu"} <= {node.op_type for node in graph.graph.node}
    onnx.save(graph, tmp_path / "even.onnx")
    frames, found = reference_frames(spec["size"], 4), {}
    write_web(tmp_path / "plain.onnx", tmp_path / "web.onnx", True)
    quantize_dynamic(tmp_path / "plain.onnx", tmp_path / "uneven.onnx", op_types_to_quantize=["MatMul"])
    for name in ("plain", "even", "web", "uneven"):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        found[name] = session.run(["embedding"], {"image": frames})[0]
    assert relative_error(found["even"], found["plain"]) < 2e-3  # GELU by tanh
    errors = [relative_error(found[name], found["plain"]) for name in ("web", "uneven")]
    assert errors[0] < 0.01 and errors[0] < 0.8 * errors[1]


def test_original_rule_is_bounded_by_the_number_of_films():
    """The largest z is (C - 1) / sqrt(C): under 18 films only "unknown", under 33 never a film."""
    for films in (2, 5, 17, 18, 32, 33, 257):
        logits = np.zeros((1, films), np.float32)
        logits[0, 0] = 50
        _, (kind,) = ORIGINAL_RULE.decide(logits)
        assert kind == ("unknown" if films < 18 else "shortlist" if films < 33 else "movie")


def test_wrong_checkpoints_are_one_line(dataset, tmp_path, capsys, run, raw):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save(torch.load(run / "best.pt", weights_only=True) | {"format": "of 2030"}, tmp_path / "new.pt")
    (tmp_path / "torn.pt").write_bytes((run / "best.pt").read_bytes()[:999])
    from filter import filter_films

    filter_films([raw], tmp_path / "more", detector="none", min_frames=5)
    cases = [("other.pt", dataset, "train.py"), ("torn.pt", dataset, "torn.pt"), ("none.pt", dataset, "no such file")]
    cases += [("new.pt", dataset, "of 2030"), (run / "best.pt", tmp_path / "more", "--data")]
    for name, data, words in cases:
        assert export.main([str(tmp_path / name), "--data", str(data), "--out", str(tmp_path / "e")]) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("export.py: error:") and words in error
    assert not (tmp_path / "e").exists()
