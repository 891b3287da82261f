"""python -m pytest tests/test_models.py"""

import pytest
import torch
from conftest import save_small_clip, shared

import models
from image import UserError
from models import ARCHITECTURES, Checkpoint, build_model, is_transformer, load_weights, read_state

CLASSES = ["Brazil (1985)", "Face/Off (1997)", "WALL·E (2008)"]


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "resnet10t", "test_vit"])
def test_every_architecture_gives_logits_and_embedding(arch):
    torch.manual_seed(0)
    model = build_model(arch, CLASSES, pretrained=False).eval()
    with torch.no_grad():
        logits, embedding = model(torch.randn(2, 3, 224, 224))
    assert logits.shape == (2, 3) and embedding.ndim == 2 and torch.isfinite(logits).all()
    assert not torch.equal(embedding[0], embedding[1])
    spec = models.preprocessing_for(arch)
    assert spec["size"] == 224 and len(spec["mean"]) == 3


def test_clip_from_a_local_folder(tmp_path):
    from transformers import CLIPModel

    save_small_clip(tmp_path, 16)
    clip, model = CLIPModel.from_pretrained(tmp_path), build_model(models.CLIP, CLASSES, init=tmp_path).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(clip.eval().get_image_features(images).pooler_output, dim=-1)
        torch.testing.assert_close(model(images)[1], theirs)
        torch.testing.assert_close(model(images)[0], clip.logit_scale.exp() * theirs @ model.head.T)
    head = model.head.detach()  # texts about the titles, which tell them apart
    assert torch.allclose(head.norm(dim=1), torch.ones(3)) and (head @ head.T).fill_diagonal_(0).max() < 0.9999


def test_unreachable_hub_is_one_line():
    for arch in ("resnet10t", "clip_vit_base_patch32"):
        with pytest.raises(UserError, match=r"can't be had.*--init.*--no-pretrained"):
            build_model(arch, CLASSES)


def test_unknown_names_are_one_line(tmp_path):
    with pytest.raises(UserError, match="neither one of"):
        build_model("resnet5000", CLASSES)
    with pytest.raises(UserError, match="no such file"):
        build_model("resnet10t", CLASSES, init=tmp_path / "none.pth")


def test_own_checkpoint_keeps_its_head_only_for_the_same_films(tmp_path, capsys):
    model = build_model("test_resnet", CLASSES, pretrained=False)
    torch.save({"model": model.state_dict(), "classes": CLASSES}, tmp_path / "best.pt")
    same = build_model("test_resnet", CLASSES, init=tmp_path / "best.pt")
    assert torch.equal(same.head.weight, model.head.weight)
    assert "head taken over" in capsys.readouterr().out
    other = build_model("test_resnet", CLASSES[::-1], init=tmp_path / "best.pt")
    assert not torch.equal(other.head.weight, model.head.weight)
    assert "head new" in capsys.readouterr().out
    with pytest.raises(UserError, match="tensors fit"):
        build_model("test_vit", CLASSES, init=tmp_path / "best.pt")


def test_lightning_and_bare_checkpoints_load(tmp_path):
    import timm

    plain = timm.create_model("test_vit", num_classes=3, img_size=224).state_dict()
    torch.save(plain, tmp_path / "timm.pth")
    torch.save({"state_dict": {f"model.{k}": v for k, v in plain.items()}, "epoch": 3}, tmp_path / "lightning.ckpt")
    for name in ("timm.pth", "lightning.ckpt"):
        model = build_model("test_vit", CLASSES, init=tmp_path / name)
        assert torch.equal(model.backbone.state_dict()["blocks.0.attn.qkv.weight"], plain["blocks.0.attn.qkv.weight"])


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_is_refused(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        read_state(tmp_path / "evil.pt")
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        ("mobilenetv2", "mobilenet_v2-b0353104.pth"),
        ("vit_small_patch14_dinov2", "vit_small_patch14_dinov2-224.pth"),
    ],
)
def test_real_weights_fit_whole(arch, weights, capsys):
    model = build_model(arch, CLASSES, init=shared("weights", weights))
    total = sum(k.startswith("backbone.") for k in model.state_dict())
    assert f"{total} of {total} backbone tensors matched" in capsys.readouterr().out
    load_weights(model, shared("weights", weights), CLASSES)


def test_intermediate_features_of_a_transformer_are_what_timm_says_they_are():
    model = build_model("test_vit3", CLASSES, pretrained=False, intermediate=True).eval()
    images = torch.randn(2, 3, 224, 224)
    embeddings = torch.randn(9, len(model.scale))
    normed = model.set_norm(embeddings)
    torch.testing.assert_close(normed.mean(0), torch.zeros(len(model.scale)), atol=1e-5, rtol=0)
    with torch.no_grad():
        _, embedding = model(images)
        blocks = [int(name.removeprefix("blocks.")) for name in model.intermediate]
        final, parts = model.backbone.forward_intermediates(
            images, indices=blocks, output_fmt="NLC", return_prefix_tokens=True
        )
        raw = [model.backbone.forward_head(final)]
        raw += [torch.cat([prefix[:, 0], tokens.mean(1)], 1) for tokens, prefix in parts]
    assert len(raw) == 4
    expected = (torch.cat(raw, 1) - model.norm.running_mean) / (model.norm.running_var + 1e-5).sqrt()
    lengths = torch.cat([torch.full((part.shape[1],), part.shape[1] ** -0.5) for part in raw])
    torch.testing.assert_close(embedding, expected * lengths, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gives", [lambda x: (x, (7, 7)), lambda x: x[0, 0, 0, 0]])
def test_blocks_that_cannot_be_read_are_left_out(gives):
    class Block(torch.nn.Module):
        def forward(self, x):
            return gives(x)

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(Block() for _ in range(6))

        def forward(self, x):
            for block in self.blocks:
                block(x)
            return x.mean((2, 3))

    backbone = Backbone()
    model = models.Classifier(backbone, 2, models.find_intermediate(backbone))
    assert not model.intermediate and model.head.in_features == 3
    assert model(torch.zeros(2, 3, 8, 8))[0].shape == (2, 2)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    model = build_model("test_resnet", CLASSES, pretrained=False).eval()
    spec, args = models.preprocessing_for("test_resnet"), {"intermediate": False}
    Checkpoint("test_resnet", CLASSES, spec, args, model.state_dict(), {"top1": 0.5}).save(tmp_path / "best.pt")
    back, image = Checkpoint.load(tmp_path / "best.pt"), torch.randn(1, 3, 224, 224)
    assert (back.classes, back.preprocessing, back.figures) == (CLASSES, spec, {"top1": 0.5})
    torch.testing.assert_close(back.build()(image)[0], model(image)[0])


def test_checkpoints_of_another_format_or_build_are_one_line(tmp_path):
    torch.save({"model": {}, "arch": "test_resnet", "classes": CLASSES}, tmp_path / "old.pt")
    with pytest.raises(UserError, match=r"old\.pt: .*python train\.py"):
        Checkpoint.load(tmp_path / "old.pt")
    checkpoint = Checkpoint("test_resnet", CLASSES, {}, {}, {"head.weight": torch.zeros(3, 5)}, {})
    with pytest.raises(UserError, match="don't fit test_resnet") as caught:
        checkpoint.build()
    assert "\n" not in str(caught.value)


def test_an_embedder_has_no_head():
    model = build_model("test_vit3", [], pretrained=False, intermediate=True).eval()
    logits, embedding = model(torch.randn(2, 3, 224, 224))
    assert logits is None and embedding.shape == (2, len(model.scale))


@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2", "densenet121", "test_convnext", "test_resnet"])
def test_intermediate_features_of_a_cnn_are_means_of_its_maps(arch):
    model = build_model(arch, CLASSES, pretrained=False, intermediate=True).eval()
    maps = []
    for name in model.intermediate:
        model.backbone.get_submodule(name).register_forward_hook(lambda _, __, out: maps.append(out))
    with torch.no_grad():
        _, embedding = model(torch.randn(2, 3, 64, 64))
    sides = [m.shape[-1] for m in maps]
    assert len(maps) == 3 and sides == sorted(sides, reverse=True)
    means = torch.cat([m.mean((2, 3)) for m in maps], 1)
    raw = embedding / model.scale * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(raw[:, -means.shape[1] :], means)


def test_transformers_are_told_from_cnns():
    kinds = {"deit_base_patch16_224": True, "clip_vit_base_patch32": True, "resnet50": False, "mobilenetv2": False}
    assert {arch: is_transformer(build_model(arch, CLASSES, pretrained=False)) for arch in kinds} == kinds
