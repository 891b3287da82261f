"""What training frames go through on their way into a network: random crops, flips and wear, a batch at once."""

import torch
import torch.nn.functional as F
from torchvision.ops import roi_align
from torchvision.transforms import RandomResizedCrop

from data import normalise


def augment(frames: torch.Tensor, spec: dict, recipe: dict, size: int) -> torch.Tensor:
    """Random crops, flips and wear of a batch at once, on its device. uint8 [N, H, W, 3] -> float32 [N, 3, size, size].

    What users send: pieces of a frame, mirrored uploads, other brightness, blurred and small pictures, subtitles. Draws
    from torch's generators.
    """
    count, device = len(frames), frames.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=device) * (high - low) + low

    # crops of torchvision's sizes; the original's aspect ratios are in pixels, ours in shares of each side
    shape = torch.tensor(frames.shape[1:3])
    sides = shape if recipe["aspect"] else torch.tensor([1000, 1000])
    ratio = (3 / 4, 4 / 3) if recipe["crop"] < 1 else (sides[1] / sides[0],) * 2
    blank = torch.empty(1, *sides, device="meta")
    boxes = [RandomResizedCrop.get_params(blank, [recipe["crop"], 1.0], ratio) for _ in range(count)]
    top, left, height, width = (torch.tensor(boxes) * (shape / sides).repeat(2)).to(device).T
    boxes = torch.stack([torch.arange(count, device=device), left, top, left + width, top + height], 1)
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
