"""The memory of a fine-tuning step by network, image size and batch, and the largest batch for the memory of common GPUs."""

import itertools

import numpy as np
import torch

from mscl_hf.methods import SegmentationTraining
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation

from .processes import measure, reset_peak
from .step import DEVICE, peak_mb

NETWORKS = {  # and the image sizes
    "resnet50": (321, 513), "convnext_tiny": (320, 512), "vit_small_patch14_dinov2": (322, 518), "vit_base_patch14_dinov2": (322, 518),
}  # fmt: skip
MODES = ("plain", "checkpointing", "frozen")
BATCHES = (2, 4, 6)
CLASSES = 21
BUDGETS = (8, 16, 24, 80)  # GB
USABLE = 0.9  # share of a GPU's memory: the rest is for the context of CUDA and for gaps


def measure_memory(networks: dict[str, tuple[int, ...]] = NETWORKS, batches: tuple[int, ...] = BATCHES) -> list[dict]:
    """A row for each network, image size, mode and batch, each measured in a new process."""
    cells = [(backbone, size) for backbone, sizes in networks.items() for size in sizes]
    return [
        measure("memory", backbone=backbone, size=size, mode=mode, batch=batch)
        for (backbone, size), mode, batch in itertools.product(cells, MODES, batches)
    ]


def memory(backbone: str, size: int, mode: str, batch: int) -> dict:
    """Peak MB of two fine-tuning steps with AdamW in bf16, weights and optimizer included."""
    torch.manual_seed(0)
    reset_peak()
    before = peak_mb("cpu") if DEVICE == "cpu" else 0
    method = SegmentationTraining(MsclForSemanticSegmentation(build_config(backbone, image_size=size, base_size=0, num_labels=CLASSES)))
    method.train().to(DEVICE, memory_format=torch.channels_last)
    if mode == "checkpointing":
        method.network.activation_checkpointing_enable()
    if mode == "frozen":
        method.freeze("backbone")
    optimizer = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad])
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
    masks = torch.randint(0, CLASSES, (batch, size, size), dtype=torch.uint8, device=DEVICE)
    for _ in range(2):  # the second one with the states of the optimizer
        with torch.autocast(DEVICE, torch.bfloat16):
            value = method(images, masks)["loss"]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"device": DEVICE, "peak_mb": round(peak_mb() - before)}


def largest_batches(batches: list[int], peaks: list[float]) -> tuple[float, float, list[int]]:
    """Return fixed MB, MB per image, and the largest batch of each of BUDGETS, extrapolated along a straight line through the peaks."""
    each, fixed = np.polyfit(batches, peaks, 1)
    return float(fixed), float(each), [max(0, int((USABLE * budget * 1024 - fixed) // each)) for budget in BUDGETS]
