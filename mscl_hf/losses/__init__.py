"""Losses as functions of tensors; they import torch and nothing else."""

from .info_nce import global_contrast, local_contrast
from .labels import labels_at, sample_pixels
from .multi_scale import LOSS_SUBSETS, MultiScaleLoss, parse_losses
from .pixel_contrast import PixelContrast, pixel_contrast

__all__ = [
    "LOSS_SUBSETS",
    "MultiScaleLoss",
    "PixelContrast",
    "global_contrast",
    "labels_at",
    "local_contrast",
    "parse_losses",
    "pixel_contrast",
    "sample_pixels",
]
