"""python -m pytest tests/test_export.py"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import export
from export import export_model, fit_rule, fit_temperature, lowest_threshold, verify_rule
from identify import Identifier, UserError, preprocess
from models import build_model, preprocessing_for


def test_export_leaves_what_the_design_says(exported):
    files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file() and ".cache" not in p.parts}
    files -= {"host.json"}  # left, like .cache, by identify.py
    assert files == {
        "model.onnx", "model.int8.onnx", "openvino/model.xml", "openvino/model.bin",
        "model.json", "report.md", "calibration.png",
    }  # fmt: skip
    assert [p.name for p in exported.parent.iterdir()] == ["export"]
    report = json.loads((exported / "model.json").read_text())
    assert len(report["classes"]) == 3 and report["accuracy"]["top1"] >= 0.8
    assert {row["score"] for row in report["scores"]} >= {"msp", "standardised", "pnorm", "gen", "knn", "rmd"}


def test_contract_holds_with_bare_onnxruntime(exported, dataset):
    """Everything that another program needs stands in the file itself."""
    import onnxruntime

    frame = next((dataset / "movies").glob("*/*.jpg"))
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(exported / name)
        (image,) = session.get_inputs()
        assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [224, 224, 3])
        assert [o.name for o in session.get_outputs()] == ["logits", "embedding"]
        metadata = session.get_modelmeta().custom_metadata_map
        classes = json.loads(metadata["classes"])
        size = json.loads(metadata["preprocessing"])["size"]
        pixels = np.asarray(Image.open(frame).resize((size, size), Image.Resampling.BILINEAR))  # these have no bars
        logits, embedding = session.run(None, {"image": np.stack([pixels] * 3)})
        assert logits.shape == (3, 3) and logits.dtype == np.float32 and embedding.ndim == 2
        answer = Identifier(exported / name).identify(frame)
        assert classes[logits[0].argmax()] == answer.candidates[0].title


def test_onnx_equals_torch(exported, run, dataset):
    model, state, frames, _ = export.load_checkpoint(run / "best.pt", dataset)
    with torch.no_grad():
        wanted = export.Exported(model, state["preprocessing"])(torch.from_numpy(frames["test"]))
    logits, embedding = export.run_all(exported / "model.onnx", frames["test"])
    np.testing.assert_allclose(logits, wanted[0], atol=1e-4)
    np.testing.assert_allclose(embedding, wanted[1], atol=1e-3)


def test_transformer_exports(dataset, tmp_path):
    from train import train_model

    recipe = {"epochs": 0, "probe": 30.0, "levels": True, "refit": True}
    run = train_model(dataset, arch="test_vit3", pretrained=False, recipe=recipe, out=tmp_path / "runs")
    report = export_model(run / "best.pt", dataset, tmp_path / "export", max_drop=100, alphas=(0.5,))
    frame = preprocess(np.full((300, 400, 3), 90, np.uint8))
    for name in ("model.onnx", "model.int8.onnx", "openvino/model.xml"):
        logits, _ = Identifier(tmp_path / "export" / name).logits(np.stack([frame, frame]))
        assert logits.shape == (2, 3) and np.isfinite(logits).all()
    assert report["architecture"] == "test_vit3" and report["refit"]


@pytest.mark.parametrize(("arch", "levels"), [("test_vit", False), ("test_vit3", True), ("test_vit2", True)])
def test_a_restructured_transformer_computes_the_same(arch, levels):
    """Split matrices and a padding token; with the padding among the keys it would not be the same."""
    torch.manual_seed(0)
    model = build_model(arch, list("abc"), pretrained=False, levels=levels).eval()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        images = torch.randn(2, 3, 224, 224)
        wanted = model(images)
        changed = export.restructure(model, 224).eval()
        for one, two in zip(wanted, changed(images), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
        tokens = []
        for block in changed.backbone.blocks:
            block.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
        changed(images)
        assert changed.padding == 1 and all(count % 2 == 0 for count in tokens[:-1])
        assert tokens[-1] == (1 if model.backbone.global_pool == "token" else tokens[0])
        for block in changed.backbone.blocks[:-1]:
            block.attn.padding = 0
        assert (changed(images)[1] - wanted[1]).abs().max() > 1e-4
    cnn = build_model("test_resnet", list("abc"), pretrained=False)
    assert export.restructure(cnn, 224) is cnn


def test_failed_gate_leaves_the_old_export(run, dataset, exported, tmp_path, monkeypatch):
    out = tmp_path / "export"
    shutil.copytree(exported, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}

    def broken(source, target, frames, *, transformer, overflow_fix):
        import onnx

        model = onnx.load(source)
        for weight in model.graph.initializer:
            if weight.name.endswith("head.weight"):
                values = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
        onnx.save(model, target)
        return "broken"

    monkeypatch.setattr(export, "quantise_onnx", broken)
    with pytest.raises(UserError, match="int8 ONNX loses"):
        export_model(run / "best.pt", dataset, out)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_clip_exports(tmp_path):
    """CLIP's position embedding must not take the name of our output."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from identify import PREPROCESSING
    from models import ClipClassifier

    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = ClipClassifier(CLIPVisionModelWithProjection(config), torch.randn(5, config.projection_dim), 2.66).eval()
    export.export_onnx(model, PREPROCESSING, tmp_path / "clip.onnx")
    image = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = export.Exported(model, PREPROCESSING)(image)
    for ours, theirs in zip(export.run_all(tmp_path / "clip.onnx", image.numpy()), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


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
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
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
    report = json.loads((tmp_path / "export" / "model.json").read_text())
    assert report["preprocessing"]["crop_bars"] is False and report["decision"]["rule"] == "original"
    assert Identifier(tmp_path / "export" / "model.int8.onnx").self_test()["agrees"]
    assert export.main([*argv, "--frames", str(raw / "Film 0 (1990)")]) == 0
    assert Identifier(tmp_path / "export" / "openvino" / "model.xml").classes[1] == "Film: part 1 (1951)"
    argv += ["--frames", str(raw / "Film 0 (1990)"), "--alphas", "0.5"]
    assert export.main(argv) == 0
    eight = (tmp_path / "export" / "openvino" / "model.bin").read_bytes()
    assert export.main([*argv, "--overflow-fix"]) == 0
    assert eight != (tmp_path / "export" / "openvino" / "model.bin").read_bytes()


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


def test_overflow_fix_keeps_weights_to_seven_bits(exported, tmp_path):
    import openvino

    frames = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    largest = {}
    for fix in (False, True):
        export.quantise_openvino(exported / "model.onnx", tmp_path / "m.xml", frames, alpha=None, overflow_fix=fix)
        operations = openvino.Core().read_model(str(tmp_path / "m.xml")).get_ops()
        weights = [o for o in operations if o.get_type_name() == "Constant" and o.get_element_type().size == 1]
        largest[fix] = [int(np.abs(o.data.astype(int)).max()) for o in weights if o.data.ndim == 4]
    assert max(largest[False]) > 64 >= max(largest[True])


@pytest.mark.parametrize("transformer", [False, True])
def test_overflow_fix_reaches_onnx_runtime(exported, tmp_path, transformer):
    import onnx

    frames = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    for fix in (False, True):
        options = {"transformer": transformer, "overflow_fix": fix}
        export.quantise_onnx(exported / "model.onnx", tmp_path / "m.onnx", frames, **options)
        tensors = onnx.load(tmp_path / "m.onnx").graph.initializer
        weights = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8]
        assert (max(np.abs(w.astype(int)).max() for w in weights if w.size > 1) > 64) is not fix
        scales = [t for t in tensors if t.name.endswith("_scale") and t.data_type == onnx.TensorProto.FLOAT]
        assert any(len(t.dims) and t.dims[0] > 1 for t in scales)  # one a channel: of a whole matrix it is too coarse


def test_options_that_would_be_ignored_are_refused(run, dataset, tmp_path, capsys):
    classes = ["--classes", "c.txt"]
    cases = [["--arch", "test_vit"], ["--frames", "."], [*classes, "--max-drop", "1"], [*classes, "--overflow-fix"]]
    for argv in cases:
        with pytest.raises(SystemExit) as stop:
            export.main([str(run / "best.pt"), *argv])
        assert stop.value.code == 2 and ".py: error: --" in capsys.readouterr().err
    argv = [str(run / "best.pt"), "--alphas", "0.5", "--out", str(tmp_path / "e"), "--data", str(dataset)]
    assert export.main(argv) == 2
    assert "for transformers" in capsys.readouterr().err and not (tmp_path / "e").exists()


def test_out_must_not_hold_other_things(run, dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other things"):
        export_model(run / "best.pt", dataset, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 6)) * 2
    odds = torch.softmax(torch.tensor(logits), 1).numpy()
    labels = np.array([rng.choice(6, p=p) for p in odds])
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)


def test_lowest_threshold():
    score, right = np.array([0.9, 0.8, 0.7, 0.7, 0.5]), np.array([1, 1, 0, 1, 0], bool)
    assert lowest_threshold(score, right, 0.95) == 0.8
    assert lowest_threshold(score, right, 0.75) == 0.7
    assert lowest_threshold(score, right, 0.1) == 0.5
    assert lowest_threshold(score, ~right, 0.95) == float("inf")


@pytest.mark.parametrize("seed", range(3))
def test_rule_keeps_its_targets_on_new_frames(seed):
    """On drawn features: known films in clusters, unknown ones between them; half to fit, half to check."""
    rng = np.random.default_rng(seed)
    classes, dim = 12, 32
    centres = rng.normal(size=(classes, dim)) * 1.2

    def draw(n):
        labels = rng.integers(0, classes, n)
        known, unknown = centres[labels] + rng.normal(size=(n, dim)), rng.normal(size=(n // 2, dim)) * 1.4
        return known @ centres.T / 4, known, labels, unknown @ centres.T / 4, unknown

    _, embedding, labels, *_ = draw(600)
    statistics = export.embedding_statistics(embedding, labels, classes)
    logits, embedding, labels, *unknown = draw(1500)
    rule, table = fit_rule([(logits, embedding, labels, statistics)], tuple(unknown), statistics)
    assert {row["score"] for row in table} == set(export.SCORES)
    check = verify_rule(rule, *draw(1500))
    assert check["named_right"] >= 0.92 and check["known_named"] > 0.3
    assert check["unknown_refused"] > 0.5
    best = max(row["auroc"] for row in table)
    assert check["auroc"] > best - 0.05


def test_rule_of_a_refit_model_is_fitted_on_stretches_it_had_not_seen():
    """Each stretch with the answers and statistics of the others; what the model was fitted on would look too good."""
    rng = np.random.default_rng(0)
    labels, stretch = rng.integers(0, 4, 200), rng.integers(-1, 5, 200)
    embedding = rng.normal(size=(200, 16))
    outputs = {s: (np.full((len(e), 4), np.nan), e) for s, e in (("train", embedding[:150]), ("val", embedding[150:]))}
    held_out = {"stretch": torch.from_numpy(stretch), "logits": torch.from_numpy(rng.normal(size=(200, 4)))}
    outputs["unknown_val"] = (rng.normal(size=(30, 4)), rng.normal(size=(30, 16)))
    split = {"train": labels[:150], "val": labels[150:]}
    parts, unknown, statistics = export.calibration_parts(held_out, outputs, split, 4)
    assert [len(part[0]) for part in parts] == [(stretch == k).sum() for k in range(5)]
    for k, (logits, features, truth, others) in enumerate(parts):
        assert (logits == held_out["logits"].numpy()[stretch == k]).all() and (truth == labels[stretch == k]).all()
        # features of length 1 stand in the bank, and none of this stretch does
        assert (export.l2_normalise(features) @ others["bank"].T).max() < 0.999
    assert len(statistics["bank"]) == 200
    known = sum(len(part[0]) for part in parts)  # the share of unknown frames stays what it was beside val
    assert len(unknown[0]) / known == pytest.approx(30 / 50, rel=0.2)
    rule, table = fit_rule(parts, unknown, statistics)
    knn = next(row for row in table if row["score"] == "knn")
    assert 0.3 < knn["auroc"] < 0.7  # noise: with themselves in the bank the known ones would be told apart for certain
    assert rule["movie"] >= rule["shortlist"]


def test_wrong_checkpoints_are_one_line(dataset, tmp_path, capsys, run, raw):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "torn.pt").write_bytes((run / "best.pt").read_bytes()[:999])
    from filter import filter_films

    filter_films([raw], tmp_path / "more", detector="none", min_frames=5)
    cases = [("other.pt", dataset, "train.py"), ("torn.pt", dataset, "torn.pt"), ("none.pt", dataset, "no such file")]
    for name, data, words in [*cases, (run / "best.pt", tmp_path / "more", "--data")]:
        assert export.main([str(tmp_path / name), "--data", str(data), "--out", str(tmp_path / "e")]) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("export.py: error:") and words in error
    assert not (tmp_path / "e").exists()


def test_biases_of_depthwise_layers_are_corrected(exported, tmp_path):
    import onnx

    def read(path):
        return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}

    frames = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    torch.manual_seed(0)
    path, spec = tmp_path / "m.onnx", preprocessing_for("mobilenetv2")
    model = build_model("mobilenetv2", ["A", "B"], pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # else the exporter finds no biases worth keeping
            module.bias.data.uniform_(-0.5, 0.5)
    export.export_float(model, spec, path, frames)
    assert export.is_depthwise(path) and not export.is_depthwise(exported / "model.onnx")
    before = read(path)
    export.correct_biases(path, frames)
    after = read(path)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(changed) > 40 and all(before[name].ndim == 1 for name in changed)
    shutil.copy(exported / "model.onnx", tmp_path / "sum.onnx")  # NNCF fails at sums of two products
    export.correct_biases(tmp_path / "sum.onnx", frames)
    assert (tmp_path / "sum.onnx").read_bytes() == (exported / "model.onnx").read_bytes()


def test_convolutions_of_a_transformer_keep_their_biases(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "correct_biases", None)
    path, some = tmp_path / "m.onnx", np.zeros((1, 224, 224, 3), np.uint8)
    model = build_model("test_convnext", ["A", "B"], pretrained=False).eval()
    export.export_float(model, preprocessing_for("test_convnext"), path, some)
    assert export.is_depthwise(path)
    assert export.quantise_onnx(path, tmp_path / "q.onnx", None, transformer=True) == "dynamic"
