"""Frames for training: decoded once into a file of the dataset, drawn from there, cropped and worn on the device."""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Subset
from torchvision.ops import roi_align
from tqdm import tqdm

from answering.console import UserError
from answering.pictures import preprocess, read_image
from training.dataset import ManifestRow

STORE_FORMAT = 2  # raised when image.py decodes or crops otherwise


def load_frames(files: list[Path], spec: dict, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decoded and preprocessed frames uint8 [N, S, S, 3], or [N, height, width, 3] for a size (width, height)."""

    def load(file: Path) -> np.ndarray:
        return preprocess(read_image(file, draft=2 * (size[1] if size else spec["size"])), spec, size)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.stack(list(pool.map(load, files)))


class FrameStore:
    """The frames of a manifest, decoded once each, when a run first asks for them, into one file of uint8.

    It is [all rows, height, width, 3]; a second one of a byte a row says which are there. Both are named by the frames'
    files, preprocessing and size (width, height), so that folds, runs and exports share them, usually in DATA/.frames.
    """

    def __init__(self, rows: list[ManifestRow], spec: dict, folder: Path, size: tuple[int, int] | None = None):
        self.rows, self.spec, self.size, self.folder = rows, spec, size, folder
        width, height = size or (spec["size"],) * 2
        stats = [os.stat(row.file) for row in rows]
        listed = [[row.path, stat.st_size, stat.st_mtime_ns] for row, stat in zip(rows, stats, strict=True)]
        how = [STORE_FORMAT, spec["crop_bars"], spec["interpolation"], width, height]
        key = hashlib.sha256(json.dumps([listed, how]).encode()).hexdigest()[:16]
        self.kind = f"{width}x{height}-{'cut' if spec['crop_bars'] else 'bars'}"  # none begins as another does
        self.path, self.shape = folder / f"{self.kind}-{key}.bin", (len(rows), height, width, 3)

    def decode(self, rows: list[ManifestRow], chunk: int = 256) -> None:
        """Decode those of these rows of the manifest that are not there yet. Raises UserError for a full disk."""
        nbytes, marks = math.prod(self.shape[1:]), self.path.with_suffix(".done")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(f"{self.kind}-*"):  # of frames that have changed since
                if old.stem != self.path.stem:
                    old.unlink()
            for path, length in ((self.path, nbytes * len(self.rows)), (marks, len(self.rows))):
                with open(path, "ab") as file:
                    file.truncate(length)
            done = np.memmap(marks, np.uint8, "r+")
            missing = [place for place in sorted({row.place for row in rows}) if not done[place]]
            bar = tqdm(total=len(missing), unit="frame", desc="decode", disable=None)
            with open(self.path, "r+b") as file, bar:
                for start in range(0, len(missing), chunk):
                    part = missing[start : start + chunk]
                    frames = load_frames([self.rows[place].file for place in part], self.spec, self.size)
                    for place, frame in zip(part, frames, strict=True):
                        os.pwrite(file.fileno(), frame, place * nbytes)
                    os.fsync(file.fileno())
                    done[part] = 1
                    bar.update(len(part))
        except OSError as error:
            text = f"{error.strerror or error}; {math.prod(self.shape) / 1e9:.1f} GB of decoded frames go there"
            raise UserError(f"--cache {self.folder}: {text}") from None

    def take(self, rows: list[ManifestRow]) -> Subset:
        """Frames of these rows, which are decoded: uint8 tensors [N, height, width, 3] when it is indexed."""
        frames = torch.from_file(str(self.path), size=math.prod(self.shape), dtype=torch.uint8).view(self.shape)
        return Subset(frames, torch.tensor([row.place for row in rows], dtype=torch.long))


def take_batch(frames: Subset | torch.Tensor, pick: slice | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Frames uint8 [N, H, W, 3] on the device; to a GPU through pinned memory, so that nobody waits for them."""
    part = frames[pick]
    return (part.pin_memory() if device.type != part.device.type else part).to(device, non_blocking=True)


def to_device(frames: Subset, device: torch.device) -> Subset | torch.Tensor:
    """All of them on a GPU, if they take less than half of what is free there; else as they are."""
    shape = (len(frames), *frames.dataset.shape[1:])
    if device.type != "cuda" or math.prod(shape) > 0.5 * torch.cuda.mem_get_info(device)[0]:
        return frames
    there = torch.empty(shape, dtype=torch.uint8, device=device)
    for start in range(0, len(frames), 256):
        there[start : start + 256] = take_batch(frames, slice(start, start + 256), device)
    return there


def normalise(frames: torch.Tensor, spec: dict) -> torch.Tensor:
    """uint8 or 0..255 float [N, S, S, 3] -> float32 [N, 3, S, S], channels last in memory."""
    mean, std = (torch.tensor(spec[k]).to(frames.device, non_blocking=True) * 255 for k in ("mean", "std"))
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)


def augment(frames: torch.Tensor, spec: dict, recipe: dict, size: int) -> torch.Tensor:
    """Random crops, flips and wear of a batch at once, on its device. uint8 [N, H, W, 3] -> float32 [N, 3, size, size].

    What users send: pieces of a frame, mirrored uploads, other brightness, blurred and small pictures, subtitles. The
    draws are torch's, and a GPU is never waited for.
    """
    count, device = len(frames), frames.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=device) * (high - low) + low

    # torchvision's crops: the first of ten shapes that fits, cut to fit if none does; in shares of width and height
    (height, width), numbers = frames.shape[1:3], torch.arange(count, device=device)
    spread = math.log(4 / 3) if recipe["crop"] < 1 else 0.0
    area, ratio = uniform(recipe["crop"], 1, count, 10), uniform(-spread, spread, count, 10).exp()
    if recipe["aspect"] and spread:  # the original's aspect ratios are in pixels
        ratio *= height / width
    sides = torch.stack([area * ratio, area / ratio]).sqrt()
    wide, high = sides[:, numbers, (sides <= 1).all(0).float().argmax(1)].clamp(max=1)
    left, top = uniform(0, 1, count) * (1 - wide) * width, uniform(0, 1, count) * (1 - high) * height
    boxes = torch.stack([numbers, left, top, left + wide * width, top + high * height], 1)
    images = roi_align(frames.permute(0, 3, 1, 2).float(), boxes, size, sampling_ratio=1, aligned=True)
    images = torch.where(uniform(0, 1, count, 1, 1, 1) < recipe["flip"], images.flip(3), images)
    if strength := recipe["colour"]:
        factor = uniform(1 - strength, 1 + strength, 3, count, 1, 1, 1)
        images = images * factor[0]
        images = (images - images.mean((1, 2, 3), keepdim=True)) * factor[1] + images.mean((1, 2, 3), keepdim=True)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * factor[2]
        images = images + uniform(-20, 20, count, 3, 1, 1) * strength  # white balance
    if chance := recipe["corrupt"]:
        worn = uniform(0, 1, 3, count, 1, 1, 1) < chance
        small = F.interpolate(F.avg_pool2d(images, 3, 3, ceil_mode=True), size=(size, size), mode="bilinear")
        images = torch.where(worn[0], small, images)
        noise = torch.randn(images.shape, device=device) * uniform(2, 12, count, 1, 1, 1)
        images = torch.where(worn[1], images + noise, images)
        line = torch.arange(size, device=device).view(1, 1, size, 1) / size  # a band of letters at the bottom
        band = (line > uniform(0.8, 0.88, count, 1, 1, 1)) & (line < 0.93)
        letters = F.interpolate((uniform(0, 1, count, 1, 1, size // 4) > 0.5).float(), size=(1, size))
        images = torch.where(worn[2] & band & (letters > 0), 235.0, images)
    return normalise(images.clamp(0, 255).permute(0, 2, 3, 1), spec)
