"""Frames for training: decoded once into a file of the dataset, drawn from there, cropped and worn on the device."""

import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from image import UserError, preprocess, read_image

STORE_FORMAT = 2  # raised when image.py decodes or crops otherwise


def load_frames(files: list[Path], spec: dict, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decoded and preprocessed frames uint8 [N, S, S, 3], or [N, height, width, 3] for a size (width, height)."""

    def load(file: Path) -> np.ndarray:
        return preprocess(read_image(file, draft=2 * (size[1] if size else spec["size"])), spec, size)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.stack(list(pool.map(load, files)))


class FrameStore:
    """The frames of a manifest, decoded once each, when a run first asks for them, into one file of uint8.

    The file is [all rows, height, width, 3], as nanoGPT's train.bin is one of tokens; a second one of a byte a row says
    which are there. Both are named by the frames' files, the preprocessing and the size, so that folds, runs and
    exports share them. folder: usually .frames in the dataset. Raises UserError when the disk is full.
    """

    def __init__(self, rows: list[dict], spec: dict, folder: Path, size: tuple[int, int] | None = None):
        self.rows, self.spec, self.size, self.folder = rows, spec, size, folder
        width, height = size or (spec["size"],) * 2
        stats = [os.stat(row["file"]) for row in rows]
        listed = [[row["path"], stat.st_size, stat.st_mtime_ns] for row, stat in zip(rows, stats, strict=True)]
        how = [STORE_FORMAT, spec["crop_bars"], spec["interpolation"], width, height]
        key = hashlib.sha256(json.dumps([listed, how]).encode()).hexdigest()[:16]
        kind = f"{width}x{height}" + ("" if spec["crop_bars"] else "-bars")
        self.path, self.shape = folder / f"{kind}-{key}.bin", (len(rows), height, width, 3)
        self.kind = kind

    def decode(self, rows: list[dict], chunk: int = 256) -> None:
        """Decode those of these rows of the manifest that are not there yet. Raises UserError for a full disk."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs on the same frames one decodes
                self._decode([row["place"] for row in rows], chunk)
        except OSError as error:
            text = f"{error.strerror or error}; {np.prod(self.shape) / 1e9:.1f} GB of decoded frames go there"
            raise UserError(f"--cache {self.folder}: {text}") from None

    def _decode(self, places: list[int], chunk: int) -> None:
        if not self.path.exists():
            for old in self.folder.glob(f"{self.kind}-*"):  # of frames that have changed since
                old.unlink()
        nbytes = int(np.prod(self.shape[1:]))
        with open(self.path, "ab") as file, open(self.path.with_suffix(".done"), "ab") as marks:
            file.truncate(nbytes * self.shape[0])
            marks.truncate(self.shape[0])
        done = np.memmap(self.path.with_suffix(".done"), np.uint8, "r+")
        missing = [place for place in sorted(set(places)) if not done[place]]
        with open(self.path, "r+b") as file, tqdm(total=len(missing), unit="frame", desc="decode", disable=None) as bar:
            for start in range(0, len(missing), chunk):
                part = missing[start : start + chunk]
                frames = load_frames([self.rows[place]["file"] for place in part], self.spec, self.size)
                for place, frame in zip(part, frames, strict=True):
                    os.pwrite(file.fileno(), frame, place * nbytes)
                os.fsync(file.fileno())
                done[part] = 1
                bar.update(len(part))

    def take(self, rows: list[dict]) -> "Subset":
        """Frames of these rows, which are decoded."""
        frames = np.memmap(self.path, np.uint8, "r", shape=self.shape)
        return Subset(frames, np.array([row["place"] for row in rows], int))


class Subset:
    """Some frames of uint8 [N, H, W, 3], as torch tensors when they are indexed."""

    def __init__(self, frames: np.ndarray, places: np.ndarray):
        self.frames, self.places = frames, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, which) -> torch.Tensor:
        return torch.from_numpy(np.array(self.frames[self.places[which]]))

    def to(self, device: torch.device) -> "Subset | torch.Tensor":
        """All of them on a GPU, if they take less than half of what is free there; else as they are."""
        nbytes = len(self) * int(np.prod(self.frames.shape[1:]))
        if device.type != "cuda" or nbytes > 0.5 * torch.cuda.mem_get_info(device)[0]:
            return self
        return torch.cat([self[start : start + 1024].to(device) for start in range(0, len(self), 1024)])


# ---------------------------------------------------------------------------------------- augmentation


def normalise(frames: torch.Tensor, spec: dict) -> torch.Tensor:
    """uint8 or 0..255 float [N, S, S, 3] -> float32 [N, 3, S, S], channels last in memory."""
    mean, std = (torch.tensor(spec[k], device=frames.device) * 255 for k in ("mean", "std"))
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)


def augment(frames: torch.Tensor, spec: dict, recipe: dict, size: int) -> torch.Tensor:
    """Random crops, flips and wear of a batch at once, on its device. uint8 [N, H, W, 3] -> float32 [N, 3, size, size].

    What users send: pieces of a frame, mirrored uploads, other brightness, blurred and small pictures, subtitles. Draws
    from torch's generators.
    """
    from torchvision.transforms import RandomResizedCrop

    n, device = len(frames), frames.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=device) * (high - low) + low

    # random-resized-crop as one affine grid. The original's ratios are in pixels, ours in shares of each side
    sides = frames.shape[1:3] if recipe["aspect"] else (1000, 1000)
    ratio = (3 / 4, 4 / 3) if recipe["crop"] < 1 else (sides[1] / sides[0],) * 2
    frame = torch.empty(1, *sides, device="meta")
    boxes = [RandomResizedCrop.get_params(frame, [recipe["crop"], 1.0], ratio) for _ in range(n)]
    top, left, height, width = torch.tensor(boxes, dtype=torch.float32, device=device).T
    (height, top), (width, left) = (
        (a / sides[i], b / sides[i]) for i, (a, b) in enumerate(((height, top), (width, left)))
    )
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = width * torch.where(uniform(0, 1, n) < recipe["flip"], -1.0, 1.0)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    images = frames.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if strength := recipe["colour"]:
        factor = uniform(1 - strength, 1 + strength, 3, n, 1, 1, 1)
        images = images * factor[0]
        images = (images - images.mean((1, 2, 3), keepdim=True)) * factor[1] + images.mean((1, 2, 3), keepdim=True)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * factor[2]
        images = images + uniform(-20, 20, n, 3, 1, 1) * strength  # white balance
    if chance := recipe["corrupt"]:
        worn = uniform(0, 1, 3, n, 1, 1, 1) < chance
        small = F.interpolate(F.avg_pool2d(images, 3, 3, ceil_mode=True), size=(size, size), mode="bilinear")
        images = torch.where(worn[0], small, images)
        noise = torch.randn(images.shape, device=device) * uniform(2, 12, n, 1, 1, 1)
        images = torch.where(worn[1], images + noise, images)
        line = torch.arange(size, device=device).view(1, 1, size, 1) / size  # a band of letters at the bottom
        band = (line > uniform(0.8, 0.88, n, 1, 1, 1)) & (line < 0.93)
        letters = F.interpolate((uniform(0, 1, n, 1, 1, size // 4) > 0.5).float(), size=(1, size))
        images = torch.where(worn[2] & band & (letters > 0), torch.full_like(images, 235), images)
    return normalise(images.clamp(0, 255).permute(0, 2, 3, 1), spec)
