"""Frames for training: decoded once into a file of the dataset, drawn from there, changed at random on the device."""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Subset
from tqdm import tqdm

from answering.console import UserError
from answering.cores import count_cores
from answering.pictures import preprocess, read_image
from training.dataset import ManifestRow

STORE_FORMAT = 2  # raised when answering.pictures decodes or crops otherwise


# ------------------------------------------------------------------------------------------- decoded frames


def default_cache(data: Path) -> Path:
    """The folder of a dataset's decoded frames. data: the dataset, or its manifest."""
    return (data if data.is_dir() else data.parent) / ".frames"


def load_frames(files: list[Path], spec: dict, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decoded and preprocessed frames uint8 [N, S, S, 3], or [N, height, width, 3] for a size (width, height)."""
    height = size[1] if size else spec["size"]

    def load(file: Path) -> np.ndarray:
        return preprocess(read_image(file, draft=2 * height), spec, size)

    with ThreadPoolExecutor(count_cores()) as pool:
        return np.stack(list(pool.map(load, files)))


def name_dataset(row: ManifestRow, folder: Path) -> str:
    """What tells a dataset from others in a folder of decoded frames; "" in the dataset's own, which may be moved.

    row: one of its frames.
    """
    root = row.file.parents[len(Path(row.path).parts) - 1].resolve()
    if folder.resolve() == default_cache(root).resolve():
        return ""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:8] + "-"


class FrameStore:
    """The frames of a manifest, decoded once each, when a run first asks for them, into one file of uint8.

    It is [all rows, height, width, 3]; a second one of a byte a row says which are there. Both are named by the frames'
    files, preprocessing and size (width, height), so that folds, runs and exports share them, usually in DATA/.frames.
    In another folder, which datasets may share, they are named by the dataset too.
    """

    def __init__(self, rows: list[ManifestRow], spec: dict, folder: Path, size: tuple[int, int] | None = None):
        self.rows = rows  # all of the manifest
        self.spec = spec
        self.folder = folder
        self.size = size  # None for the size that the model takes
        width, height = size or (spec["size"], spec["size"])
        self.shape = (len(rows), height, width, 3)
        stats = [os.stat(row.file) for row in rows]
        listed = [[row.path, stat.st_size, stat.st_mtime_ns] for row, stat in zip(rows, stats, strict=True)]
        settings = [STORE_FORMAT, spec["crop_bars"], spec["interpolation"], width, height]
        key = hashlib.sha256(json.dumps([listed, settings]).encode()).hexdigest()[:16]
        # what the names of its files begin with, up to the key; no kind is the beginning of another
        self.kind = f"{name_dataset(rows[0], folder)}{width}x{height}-{'cut' if spec['crop_bars'] else 'bars'}"
        self.path = folder / f"{self.kind}-{key}.bin"
        self.marks = self.path.with_suffix(".done")  # a byte a row: 1 where the frame is decoded
        self.frame_bytes = math.prod(self.shape[1:])

    def decode(self, rows: list[ManifestRow], chunk: int = 256) -> None:
        """Decode those of these rows of the manifest that are not there yet. Raises UserError for a full disk."""
        try:
            self._make_files()
            self._decode_missing(rows, chunk)
        except OSError as error:
            size = f"{math.prod(self.shape) / 1e9:.1f} GB of decoded frames go there"
            raise UserError(f"--cache {self.folder}: {error.strerror or error}; {size}") from None

    def _make_files(self) -> None:
        """Both files at their full length, sparse until frames are written; those of changed frames are deleted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"{self.kind}-*"):
            if old.stem != self.path.stem:
                old.unlink()
        lengths = {self.path: self.frame_bytes * len(self.rows), self.marks: len(self.rows)}
        for path, length in lengths.items():
            with open(path, "ab") as file:
                file.truncate(length)

    def _decode_missing(self, rows: list[ManifestRow], chunk: int) -> None:
        done = np.memmap(self.marks, np.uint8, "r+")
        missing = [place for place in sorted({row.place for row in rows}) if not done[place]]
        bar = tqdm(total=len(missing), unit="frame", desc="decode", disable=None)
        with open(self.path, "r+b") as file, bar:
            for start in range(0, len(missing), chunk):
                places = missing[start : start + chunk]
                frames = load_frames([self.rows[place].file for place in places], self.spec, self.size)
                for place, frame in zip(places, frames, strict=True):
                    file.seek(place * self.frame_bytes)
                    file.write(frame)
                file.flush()
                os.fsync(file.fileno())  # frames are on disk before they are marked
                done[places] = 1
                bar.update(len(places))

    def take(self, rows: list[ManifestRow]) -> Subset:
        """Frames of these rows, which are decoded: uint8 tensors [N, height, width, 3] when it is indexed."""
        frames = torch.from_file(str(self.path), size=math.prod(self.shape), dtype=torch.uint8).view(self.shape)
        return Subset(frames, torch.tensor([row.place for row in rows], dtype=torch.long))


@dataclass
class Split:
    """A split of the dataset: train, val, test, unknown_val or unknown_test."""

    rows: list[ManifestRow]
    labels: np.ndarray  # class index a frame, int [N]; -1 for films that are no class
    frames: Subset | None  # uint8 [N, S, S, 3], as the model takes them; None where this run does not read them
    embedding: np.ndarray | None = None  # float32 [N, D] of a network that does not change, once it was asked for


# ---------------------------------------------------------------------------------------- on their way to the model


def take_batch(frames: Subset | torch.Tensor, pick: slice | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Frames uint8 [N, H, W, 3] on the device; to a GPU through pinned memory, so that the copy blocks nobody."""
    batch = frames[pick]
    if device.type != batch.device.type:
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def to_device(frames: Subset, device: torch.device) -> Subset | torch.Tensor:
    """All frames on the GPU, if they take less than half of what is free there; else as they are."""
    shape = (len(frames), *frames.dataset.shape[1:])
    if device.type != "cuda" or math.prod(shape) > 0.5 * torch.cuda.mem_get_info(device)[0]:
        return frames
    copied = torch.empty(shape, dtype=torch.uint8, device=device)
    for start in range(0, len(frames), 256):
        copied[start : start + 256] = take_batch(frames, slice(start, start + 256), device)
    return copied


def normalise(frames: torch.Tensor, spec: dict) -> torch.Tensor:
    """uint8 or 0..255 float [N, S, S, 3] -> float32 [N, 3, S, S], channels last in memory."""
    mean, std = (torch.tensor(spec[key]).to(frames.device, non_blocking=True) * 255 for key in ("mean", "std"))
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------- augmentation


def augment(frames: torch.Tensor, spec: dict, recipe: dict, size: int) -> torch.Tensor:
    """A batch as users might send it, by random changes. uint8 [N, H, W, 3] -> float32 [N, 3, size, size], normalised.

    They send pieces of a frame, mirrored uploads, other brightness, blurred and small pictures, subtitles. The draws
    are torch's, on the device of the frames, and the CPU never waits for a GPU. recipe: see training.recipes.
    """
    images = random_crops(frames, size, recipe["crop"], aspect_in_pixels=recipe["aspect"])
    images = random_flips(images, recipe["flip"])
    if recipe["colour"]:
        images = random_colours(images, recipe["colour"])
    if recipe["corrupt"]:
        images = random_degradation(images, recipe["corrupt"])
    return normalise(images.clamp(0, 255).permute(0, 2, 3, 1), spec)


def uniform(low: float, high: float, *shape: int, device: torch.device) -> torch.Tensor:
    """Random numbers in [low, high)."""
    return torch.rand(*shape, device=device) * (high - low) + low


def random_crops(frames: torch.Tensor, size: int, least_share: float, *, aspect_in_pixels: bool) -> torch.Tensor:
    """A crop of each frame, resized: uint8 [N, H, W, 3] -> float32 [N, 3, size, size], 0..255.

    torchvision's RandomResizedCrop: the first of ten random shapes that fits, cut to fit if none does. least_share: of
    the picture's area that a crop keeps, 1 for the whole picture. Aspect ratios are of pixels, or of the shares of
    width and height. Crops are resized as answering.pictures.preprocess resizes what is asked about.
    """
    device = frames.device
    count, height, width = frames.shape[:3]
    largest_ratio = 4 / 3 if least_share < 1 else 1.0
    spread = math.log(largest_ratio)
    area = uniform(least_share, 1, count, 10, device=device)
    ratio = uniform(-spread, spread, count, 10, device=device).exp()
    if aspect_in_pixels and spread:
        ratio *= height / width
    sides = torch.stack([area * ratio, area / ratio]).sqrt()  # shares of width and height, [2, N, 10]
    first_that_fits = (sides <= 1).all(0).float().argmax(1)
    wide, high = sides[:, torch.arange(count, device=device), first_that_fits].clamp(max=1)
    left = uniform(0, 1, count, device=device) * (1 - wide) * width
    top = uniform(0, 1, count, device=device) * (1 - high) * height
    boxes = torch.stack([left, top, left + wide * width, top + high * height], 1)
    return resize_by_products(frames, boxes, size) if frames.is_cuda else resize_by_pillow(frames, boxes, size)


def resize_by_pillow(frames: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes of frames, resized as answering.pictures.preprocess does it: float32 [N, 3, size, size], 0..255.

    frames: uint8 [N, H, W, 3], on the CPU; boxes: left, top, right and bottom in pixels, [N, 4].
    """

    def resize(frame: np.ndarray, box: list[float]) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box))

    with ThreadPoolExecutor(count_cores()) as pool:
        crops = np.stack(list(pool.map(resize, frames.numpy(), boxes.tolist())))
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float()


def resize_by_products(frames: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """What resize_by_pillow gives but for its rounding, by products of matrices, which suit a GPU."""
    count, height, width = frames.shape[:3]
    left, top, right, bottom = boxes.T
    down = resizing_weights(top, bottom, height, size)
    low = (down @ frames.float().view(count, height, 3 * width)).view(count, size, width, 3)
    rows = low.permute(0, 3, 1, 2).reshape(count, 3 * size, width)
    return (rows @ resizing_weights(left, right, width, size).transpose(1, 2)).view(count, 3, size, size)


def resizing_weights(start: torch.Tensor, end: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """Weights [N, size, length] that make `size` pixels of a stretch of each row of `length` pixels.

    start, end: of the stretch, in pixels, [N]. Bilinear and antialiased as Pillow's resize(box=...): a triangle about
    each new pixel, as wide as two new pixels or two old ones, whichever are larger.
    """
    scale = ((end - start) / size)[:, None, None]
    centres = start[:, None, None] + scale * (torch.arange(size, device=start.device)[:, None] + 0.5)
    pixels = torch.arange(length, device=start.device) + 0.5
    weights = (1 - (pixels - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


def random_flips(images: torch.Tensor, chance: float) -> torch.Tensor:
    """images [N, 3, S, S], some of them mirrored."""
    flipped = uniform(0, 1, len(images), 1, 1, 1, device=images.device) < chance
    return torch.where(flipped, images.flip(3), images)


def random_colours(images: torch.Tensor, strength: float) -> torch.Tensor:
    """images [N, 3, S, S] of other brightness, contrast, saturation and white balance. strength: 0..1."""
    count, device = len(images), images.device
    brightness, contrast, saturation = uniform(1 - strength, 1 + strength, 3, count, 1, 1, 1, device=device)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    return images + uniform(-20, 20, count, 3, 1, 1, device=device) * strength  # white balance


def random_degradation(images: torch.Tensor, chance: float) -> torch.Tensor:
    """images [N, 3, S, S], each with this chance of being shrunk, of noise, and of a subtitle."""
    shrunk, noisy, subtitled = uniform(0, 1, 3, len(images), 1, 1, 1, device=images.device) < chance
    images = torch.where(shrunk, shrink(images), images)
    images = torch.where(noisy, add_noise(images), images)
    return torch.where(subtitled, draw_subtitles(images), images)


def shrink(images: torch.Tensor) -> torch.Tensor:
    """images [N, 3, S, S] at a third of their size, enlarged again."""
    small = F.avg_pool2d(images, 3, 3, ceil_mode=True)
    return F.interpolate(small, size=images.shape[2:], mode="bilinear")


def add_noise(images: torch.Tensor) -> torch.Tensor:
    """images [N, 3, S, S] with Gaussian noise of 2 to 12 grey levels."""
    noise = torch.randn(images.shape, device=images.device)
    return images + noise * uniform(2, 12, len(images), 1, 1, 1, device=images.device)


def draw_subtitles(images: torch.Tensor) -> torch.Tensor:
    """images [N, 3, S, S] with a band of light strokes at the bottom, as wide as letters."""
    count, size = len(images), images.shape[-1]
    device = images.device
    line = torch.arange(size, device=device).view(1, 1, size, 1) / size  # 0 at the top, 1 at the bottom
    band = (line > uniform(0.8, 0.88, count, 1, 1, 1, device=device)) & (line < 0.93)
    strokes = (uniform(0, 1, count, 1, 1, size // 4, device=device) > 0.5).float()
    strokes = F.interpolate(strokes, size=(1, size)) > 0
    return torch.where(band & strokes, 235.0, images)
