"""python -m pytest tests/test_models.py"""

import re
from dataclasses import replace

import pytest
import torch
from conftest import save_small_clip, shared

import export
import models
from answering.console import UserError
from models import ARCHITECTURES, Checkpoint, build_model, is_transformer, read_state

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


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


def test_clip_from_a_local_folder(clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    model = build_model("clip_vit_base_patch32", CLASSES, init=clip_folder).eval()
    clip, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(clip.get_image_features(images).pooler_output, dim=-1)
        torch.testing.assert_close(model(images)[1], theirs)
        torch.testing.assert_close(model(images)[0], clip.logit_scale.exp() * theirs @ model.head.T)
        said = [prompt.format("Brazil") for prompt in models.PROMPTS]  # without its year
        tokens = tokenizer(said, padding=True, return_tensors="pt")
        texts = torch.nn.functional.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1).mean(0)
    torch.testing.assert_close(model.head[0], texts / texts.norm())
    assert (model.head @ model.head.T).fill_diagonal_(0).max() < 0.9999  # titles are told apart


def test_clip_keeps_its_learnt_head_in_a_checkpoint(tmp_path):
    model = build_model("clip_vit_base_patch32", CLASSES, pretrained=False)
    spec = models.preprocessing_for("clip_vit_base_patch32")
    assert spec["mean"] == pytest.approx([0.481, 0.458, 0.408], abs=1e-3)
    saved = Checkpoint("clip_vit_base_patch32", CLASSES, spec, {}, model.state_dict(), {})
    torch.testing.assert_close(saved.build().head, model.head)
    saved.save(tmp_path / "best.pt")
    again = build_model("clip_vit_base_patch32", CLASSES, init=tmp_path / "best.pt")
    torch.testing.assert_close(again.head, model.head)


def test_clip_of_other_patches_is_refused(tmp_path):
    with pytest.raises(UserError, match="patches of 16 pixels"):
        build_model("clip_vit_base_patch32", CLASSES, init=save_small_clip(tmp_path, patch_size=16))


def test_unreachable_hub_is_one_line():
    for arch in ("resnet10t", "clip_vit_base_patch32"):
        with pytest.raises(UserError, match=r"can.t be had .* --init, .* --no-pretrained"):
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
    with pytest.raises(UserError, match="backbone tensors fit; name the --arch"):
        build_model("test_vit", CLASSES, init=tmp_path / "best.pt")


def test_lightning_and_bare_checkpoints_load(tmp_path):
    import timm

    plain = timm.create_model("test_vit", num_classes=3, img_size=224).state_dict()
    torch.save(plain, tmp_path / "timm.pth")
    torch.save({"state_dict": {f"model.{k}": v for k, v in plain.items()}, "epoch": 3}, tmp_path / "lightning.ckpt")
    for name in ("timm.pth", "lightning.ckpt"):
        model = build_model("test_vit", CLASSES, init=tmp_path / name)
        assert torch.equal(model.backbone.state_dict()["blocks.0.attn.qkv.weight"], plain["blocks.0.attn.qkv.weight"])


def test_weights_of_another_input_size_are_resampled(tmp_path, capsys):
    import timm

    large = timm.create_model("test_vit", num_classes=3, img_size=288)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    model = build_model("test_vit", CLASSES, init=tmp_path / "large.pth")
    total = len(model.backbone.state_dict())
    assert f"{total} of {total} backbone tensors matched" in capsys.readouterr().out
    ours, theirs = model.backbone.pos_embed, large.pos_embed
    assert torch.equal(ours[:, 0], theirs[:, 0]) and ours.shape[1] == 1 + 14**2
    torch.testing.assert_close(ours[:, 1:].mean(1), theirs[:, 1:].mean(1), atol=2e-3, rtol=0)


def test_a_checkpoint_is_built_for_pictures_of_another_size(tmp_path):
    model = build_model("test_vit3", CLASSES, pretrained=False, intermediate=True)
    spec = models.preprocessing_for("test_vit3")
    made = models.Checkpoint("test_vit3", CLASSES, spec, {"intermediate": True}, model.state_dict(), {})
    larger = export.resize_checkpoint(made, 288).build()
    assert larger.backbone.pos_embed.shape[1] > model.backbone.pos_embed.shape[1]
    torch.testing.assert_close(
        larger.backbone.pos_embed[:, 1:].mean(1), model.backbone.pos_embed[:, 1:].mean(1), atol=5e-3, rtol=0
    )
    logits, embedding = larger(torch.zeros(1, 3, 288, 288))
    assert logits.shape == (1, len(CLASSES)) and embedding.shape == model.eval()(torch.zeros(1, 3, 224, 224))[1].shape
    with pytest.raises(UserError, match="train it at that size"):
        export.resize_checkpoint(replace(made, held_out={"folds": torch.zeros(1)}), 288)
    with pytest.raises(UserError, match="pixels"):
        build_model("vit_small_patch14_dinov2", [], pretrained=False, size=230)


def test_safetensors_load(tmp_path):
    from safetensors.torch import save_file

    model = build_model("test_resnet", CLASSES, pretrained=False)
    save_file(model.backbone.state_dict(), tmp_path / "weights.safetensors")
    again = build_model("test_resnet", CLASSES, init=tmp_path / "weights.safetensors")
    assert torch.equal(again.backbone.conv1[0].weight, model.backbone.conv1[0].weight)


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_is_refused(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        read_state(tmp_path / "evil.pt")
    assert "never run" not in capsys.readouterr().out
    (tmp_path / "cut.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:50])
    torch.save(torch.zeros(3), tmp_path / "bare.pt")
    for name in ("cut.pt", "bare.pt", "none.pt"):
        with pytest.raises(UserError, match=f"{name}: not a checkpoint of plain tensors, or damaged"):
            read_state(tmp_path / name)


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        ("mobilenetv2", "mobilenet_v2-b0353104.pth"),
        ("vit_small_patch14_dinov2", "vit_small_patch14_dinov2-224.pth"),
    ],
)
def test_real_weights_fit_whole(arch, weights, capsys):
    build_model(arch, CLASSES, init=shared("weights", weights))
    found = re.search(r"(\d+) of (\d+) backbone tensors matched", capsys.readouterr().out)
    assert found and found[1] == found[2]


def test_intermediate_features_of_a_transformer_are_what_timm_says_they_are():
    model = build_model("test_vit3", CLASSES, pretrained=False, intermediate=True).eval()
    images = torch.randn(2, 3, 224, 224)
    model.set_norm(torch.randn(9, model.head.in_features))
    with torch.no_grad():
        logits, embedding = model(images)
        blocks = [int(name.removeprefix("blocks.")) for name in model.intermediate]
        final, parts = model.backbone.forward_intermediates(
            images, indices=blocks, output_fmt="NLC", return_prefix_tokens=True
        )
        raw = [model.backbone.forward_head(final)]
        raw += [torch.cat([prefix[:, 0], tokens.mean(1)], 1) for tokens, prefix in parts]
    assert len(raw) == 4 and len(logits[0]) == 3
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
    assert model.intermediate == [] and model.head.in_features == 3
    assert model(torch.zeros(2, 3, 8, 8))[0].shape == (2, 2) and model.seen == []


def test_an_embedder_has_no_logits():
    model = build_model("test_resnet", [], pretrained=False).eval()
    logits, embedding = model(torch.zeros(2, 3, 224, 224))
    assert logits is None and embedding.ndim == 2


def test_a_checkpoint_comes_back_whole(tmp_path):
    model = build_model("test_vit3", CLASSES, pretrained=False, intermediate=True).eval()
    spec = models.preprocessing_for("test_vit3")
    wanted = Checkpoint("test_vit3", CLASSES, spec, {"intermediate": True}, model.state_dict(), {"top1": 0.5}, "abc")
    wanted.save(tmp_path / "best.pt")
    found = Checkpoint.load(tmp_path / "best.pt")
    assert {k: v for k, v in vars(found).items() if k != "model"} == {
        k: v for k, v in vars(wanted).items() if k != "model"
    }
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(found.build()(images)[0], model(images)[0])


def test_other_formats_are_one_line_with_the_mend(tmp_path):
    """What an older version wrote, a state dict of somebody else, and a file with a field too few."""
    saved = Checkpoint("test_resnet", CLASSES, {}, {}, {}, {})
    older = vars(saved) | {"format": "movie-by-frame checkpoint 1"}
    for state in (older, {"conv.weight": torch.zeros(3)}, {k: v for k, v in vars(saved).items() if k != "args"}):
        torch.save(state, tmp_path / "best.pt")
        with pytest.raises(
            UserError, match=r"best\.pt: .*; train again: python train\.py DATA; .* --classes"
        ) as caught:
            Checkpoint.load(tmp_path / "best.pt")
        assert "\n" not in str(caught.value) and caught.value.code == 2


def test_a_run_that_fits_no_model_here_is_one_line():
    saved = Checkpoint("test_resnet", CLASSES, {"size": 64}, {}, {"head.weight": torch.zeros(3, 5)}, {})
    with pytest.raises(UserError, match=r"the weights don't fit test_resnet .*train again") as caught:
        saved.build()
    assert "\n" not in str(caught.value)


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
    raw = embedding / model.scale * (1 + 1e-5) ** 0.5
    early = torch.cat([m.mean((2, 3)) for m in maps], 1)
    torch.testing.assert_close(raw[:, -early.shape[1] :], early)


@pytest.mark.parametrize(("arch", "gently"), [("test_vit", True), ("test_convnext", True), ("mobilenetv2", False)])
def test_transformers_are_told_from_cnns(arch, gently):
    assert is_transformer(build_model(arch, CLASSES, pretrained=False)) is gently


def test_multiply_adds_of_a_known_network():
    model = build_model("mobilenetv2", CLASSES, pretrained=False)
    assert models.multiply_adds(model, 224) == pytest.approx(0.3e9, rel=0.05)  # Sandler 2018
