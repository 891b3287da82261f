"""Small pictures that stand in for films: each has its own texture, each shot its own light and composition."""

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the same sums in the same order, here and in the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

SHARED = Path(__file__).parent.parent.parent / "shared"


def shared(*parts: str) -> Path:
    """A file of the developers' own test data, which users do not have."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the developers' test data")
    return path


def draw_frame(film: int, shot: int, frame: int, size: tuple[int, int] = (240, 136)) -> Image.Image:
    """A frame: the shot gives its large shapes, the film its fine texture, the frame a little noise."""
    rng = np.random.default_rng([film, shot])
    large = Image.fromarray(rng.integers(40, 216, (4, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    y, x = np.mgrid[: size[1], : size[0]]
    kinds = [
        (x // 6) % 2,
        (y // 6) % 2,
        (x // 6 + y // 6) % 2,
        ((x + y) // 8) % 2,
        ((x % 14 - 7) ** 2 + (y % 14 - 7) ** 2) < 20,
    ]
    texture = np.asarray(kinds[film % len(kinds)], np.float32)[..., None] * 50 - 25
    noise = np.random.default_rng([film, shot, frame]).normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(large) + texture + noise).clip(0, 255).astype(np.uint8))


def write_video(path: Path, pictures: list[np.ndarray], *, codec: str = "mjpeg", rate: int = 24, **options) -> Path:
    """Pictures uint8 [H, W, 3], one a frame, as a video. options: of the encoder."""
    av = pytest.importorskip("av", reason="needs av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={name: str(value) for name, value in options.items()})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 20_000_000  # clean pictures
        for rgb in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def draw_credits(
    lines: int, *, size: tuple[int, int] = (640, 360), colours: tuple = ("black", "white"), seed: int = 0
) -> Image.Image:
    """A title card, or a credits roll of so many lines. colours: of the background and of the letters."""
    rng = np.random.default_rng(seed)
    width, height = size
    card = Image.new("RGB", size, colours[0])
    draw = ImageDraw.Draw(card)
    font = ImageFont.load_default(max(9, height // 22))
    top = max(0, (height - lines * height // 14) // 2)
    for line in range(lines):
        names = ["".join(rng.choice(list("abcdehimnorstuw"), rng.integers(4, 9))).title() for _ in range(4)]
        at = top + line * height // 14
        draw.text((width // 2 - 9, at), " ".join(names[:2]), colours[1], font, anchor="ra")
        draw.text((width // 2 + 9, at), " ".join(names[2:]), colours[1], font)
    return card


def read_pair(sheet: Path) -> list[np.ndarray]:
    """Float [150, 360, 3]: a part of the frame and of its proof, below a title of one line, as sheet.py draws them."""
    from answering.sheet import GAP, LEADING, MARGIN, PAIR, TEXT, TITLE

    top = MARGIN + round(TITLE * LEADING) + round(TEXT * LEADING) + GAP + 20
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"), float)[top : top + 150]
    lefts = (MARGIN + 20, MARGIN + PAIR + GAP + 20)
    return [pixels[:, left : left + PAIR - 40] for left in lefts]


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """3 films of 12 shots x 4 frames with sidecars, 6 more with too few frames."""
    root = tmp_path_factory.mktemp("raw")
    for film in range(9):
        folder = root / f"Film {film} ({1990 + film})"
        folder.mkdir()
        lines = []
        for shot in range(12 if film < 3 else 3):
            for frame in range(4 if film < 3 else 2):
                name = f"{shot:02}_{frame}.jpg"
                draw_frame(film, shot, frame).save(folder / name, quality=92)
                lines.append(json.dumps({"file": name, "shot": shot, "shot_time_ms": shot * 9000 + frame * 40}))
        (folder / "frames.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="session")
def dataset(raw, tmp_path_factory) -> Path:
    from filter import filter_films

    out = tmp_path_factory.mktemp("work") / "small"
    filter_films([raw], out, detector="none", min_frames=12)
    return out


@pytest.fixture(scope="session")
def run(dataset, tmp_path_factory) -> Path:
    from train import train_model

    out = tmp_path_factory.mktemp("runs")
    settings = {"epochs": 14, "batch_size": 16, "lr": 3e-3, "crop": 0.7, "train_size": 128}
    return train_model(dataset, arch="test_resnet", pretrained=False, recipe=settings, out=out)


@pytest.fixture(scope="session")
def exported(run, dataset, tmp_path_factory) -> Path:
    from export import export_model

    out = tmp_path_factory.mktemp("exported") / "export"
    export_model(run / "best.pt", dataset, out, max_drop=20)
    return out


def quick(dataset: Path, out: Path, **kwargs) -> Path:
    """A run of a few seconds; returns its folder. recipe: beside or instead of the values here."""
    from train import train_model

    recipe = {"epochs": 3, "batch_size": 16, "lr": 2e-3, "train_size": 64} | kwargs.pop("recipe", {})
    kwargs = {"arch": "test_resnet", "pretrained": False, "precision": "fp32"} | kwargs
    return train_model(dataset, recipe=recipe, out=out, **kwargs)


def figures_of(run: Path) -> dict:
    """test.json of a run."""
    return json.loads((run / "test.json").read_text())


def save_small_clip(folder: Path, **vision) -> Path:
    """A CLIP of two small layers with random weights, in the layout of save_pretrained; its tokens are bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"projection_dim": 512}
    CLIPModel(CLIPConfig(text_config=small, vision_config=small | vision, projection_dim=512)).save_pretrained(folder)
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    vocab = {token: index for index, token in enumerate(tokens)}
    vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    return folder
