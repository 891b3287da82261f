"""python -m pytest tests/test_models.py"""

import pytest
import torch
from conftest import shared

import models
from image import UserError
from models import ARCHITECTURES, build_model, is_transformer, load_weights, read_state

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


def test_clip_texts_tell_titles_apart():
    torch.manual_seed(0)
    model = build_model("clip_vit_base_patch32", CLASSES, pretrained=False)
    head = model.head.detach()
    assert head.shape == (3, 512) and torch.allclose(head.norm(dim=1), torch.ones(3))
    assert (head @ head.T).fill_diagonal_(0).max() < 0.9999
    ids = models.byte_tokenizer()("Brazil")["input_ids"]
    assert len(ids) == len("Brazil") + 2  # a token a byte, and the two ends


def test_clip_from_a_local_folder(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"projection_dim": 16}, vision_config=small | {"projection_dim": 16}, projection_dim=16
    )
    clip = CLIPModel(config)
    clip.save_pretrained(tmp_path)
    models.byte_tokenizer().save_pretrained(tmp_path)
    model = build_model("clip_vit_base_patch32", CLASSES, init=tmp_path).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(clip.eval().get_image_features(images).pooler_output, dim=-1)
        torch.testing.assert_close(model(images)[1], theirs)
        torch.testing.assert_close(model(images)[0], clip.logit_scale.exp() * theirs @ model.head.T)


def test_unreachable_hub_is_one_line():
    for arch in ("resnet10t", "clip_vit_base_patch32"):
        with pytest.raises(UserError, match=r"--init .* --no-pretrained"):
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
    assert "new head" in capsys.readouterr().out
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


def test_levels_of_a_transformer_are_what_timm_says_they_are():
    model = build_model("test_vit3", CLASSES, pretrained=False, levels=True).eval()
    images = torch.randn(2, 3, 224, 224)
    model.set_norm(torch.randn(9, sum(model.dims)))
    with torch.no_grad():
        logits, embedding = model(images)
        blocks = [int(name.removeprefix("blocks.")) for name in model.levels]
        final, parts = model.backbone.forward_intermediates(
            images, indices=blocks, output_fmt="NLC", return_prefix_tokens=True
        )
        raw = [model.backbone.forward_head(final)]
        raw += [torch.cat([prefix[:, 0], tokens.mean(1)], 1) for tokens, prefix in parts]
    assert model.dims == [part.shape[1] for part in raw] and len(model.dims) == 4
    expected = (torch.cat(raw, 1) - model.norm.running_mean) / (model.norm.running_var + 1e-5).sqrt()
    lengths = torch.cat([torch.full((d,), d**-0.5) for d in model.dims])
    torch.testing.assert_close(embedding, expected * lengths, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.stack(model.level_logits(embedding)).mean(0), logits)


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
    model = models.Classifier(backbone, 3, 2, models.find_levels(backbone))
    assert model.levels == [] and model.dims == [3]
    assert model(torch.zeros(2, 3, 8, 8))[0].shape == (2, 2) and model.seen == []


def test_a_run_that_fits_no_model_here_is_one_line(tmp_path):
    state = {"model": {"head.weight": torch.zeros(3, 5)}, "arch": "test_resnet", "classes": CLASSES}
    torch.save(state | {"preprocessing": {}, "args": {}}, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"best\.pt: its weights don't fit test_resnet") as caught:
        models.load_run(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2", "densenet121", "test_convnext", "test_resnet"])
def test_levels_of_a_cnn_are_means_of_its_maps(arch):
    model = build_model(arch, CLASSES, pretrained=False, levels=True).eval()
    maps = []
    for name in model.levels:
        model.backbone.get_submodule(name).register_forward_hook(lambda _, __, out: maps.append(out))
    with torch.no_grad():
        _, embedding = model(torch.randn(2, 3, 64, 64))
    sides = [m.shape[-1] for m in maps]
    assert len(maps) == 3 and sides == sorted(sides, reverse=True)
    raw = embedding / model.scale * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(raw[:, model.dims[0] :], torch.cat([m.mean((2, 3)) for m in maps], 1))


def test_transformers_are_told_from_cnns():
    kinds = {"deit_base_patch16_224": True, "clip_vit_base_patch32": True, "resnet50": False, "mobilenetv2": False}
    assert {arch: is_transformer(arch) for arch in kinds} == kinds
