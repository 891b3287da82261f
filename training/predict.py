"""Frames through a network: logits and embeddings, batch by batch."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from training.device import synchronised_clock
from training.frames import Split, normalise, take_batch


@torch.no_grad()
def predict(
    model: nn.Module,
    frames: Subset | torch.Tensor,
    spec: dict,
    *,
    device: torch.device,
    bf16: bool,
    batch: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """(logits float32 [N, C], embedding float32 [N, D]) of frames uint8 [N, S, S, 3]; leaves the model in eval mode.

    spec: preprocessing, the keys of answering.pictures.PREPROCESSING. bf16: compute in bfloat16 where autocast does.
    """
    model.eval()
    if not len(frames):
        return np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)
    logits = []
    embeddings = []
    for start in range(0, len(frames), batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            inputs = normalise(take_batch(frames, slice(start, start + batch), device), spec)
            outputs = model(inputs)
            logits.append(outputs[0].float().to("cpu", non_blocking=True))
            embeddings.append(outputs[1].float().to("cpu", non_blocking=True))
    synchronised_clock(device)  # what comes from a GPU is there now
    return torch.cat(logits).numpy(), torch.cat(embeddings).numpy()


def embed_split(model: nn.Module, split: Split, spec: dict, *, bf16: bool) -> np.ndarray:
    """Embedding float32 [N, D] of a split's frames by a network that does not change: computed once, kept there."""
    if split.embedding is None:
        device = next(model.parameters()).device
        _, split.embedding = predict(model, split.frames, spec, device=device, bf16=bf16)
    return split.embedding


@torch.no_grad()
def logits_of(model: nn.Module, embedding: np.ndarray) -> np.ndarray:
    """What a model with a linear head makes of embeddings [N, D]: logits float32 [N, C]."""
    if not len(embedding):
        return np.zeros((0, 1), np.float32)
    return model.head(torch.from_numpy(embedding).to(model.head.weight)).float().cpu().numpy()
