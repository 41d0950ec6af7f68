"""Losses as functions of tensors. They import torch only; `multi_scale` also imports its options, which are free of torch."""

from .affinity import adaptive_affinity, affinity, affinity_decay
from .copy_paste import foreground_contrast, foreground_mean
from .cosine import cosine_to_target
from .dense import dense_contrast, nearest_positions
from .dice import dice_loss
from .hard_pixels import hard_pixel_cross_entropy
from .info_nce import global_contrast, info_nce, local_contrast, nt_xent
from .instance import instance_nce, instance_softmax, nce_normalizer
from .labels import labels_at, sample_pixels
from .multi_scale import MultiScaleLoss
from .pixel_contrast import PixelContrast, pixel_contrast
from .pixel_propagation import match_positions, matched_contrast, pixel_consistency, propagate
from .region_mutual_information import one_versus_rest, region_mutual_information
from .released import ReleasedPixelLoss, listed_pixel_contrast, released_pixel_contrast
from .slices import region_contrast, slice_contrast

__all__ = [
    "MultiScaleLoss",
    "PixelContrast",
    "ReleasedPixelLoss",
    "adaptive_affinity",
    "affinity",
    "affinity_decay",
    "cosine_to_target",
    "dense_contrast",
    "dice_loss",
    "foreground_contrast",
    "foreground_mean",
    "global_contrast",
    "hard_pixel_cross_entropy",
    "info_nce",
    "instance_nce",
    "instance_softmax",
    "labels_at",
    "listed_pixel_contrast",
    "local_contrast",
    "match_positions",
    "matched_contrast",
    "nearest_positions",
    "nce_normalizer",
    "nt_xent",
    "one_versus_rest",
    "pixel_consistency",
    "pixel_contrast",
    "propagate",
    "region_contrast",
    "region_mutual_information",
    "released_pixel_contrast",
    "sample_pixels",
    "slice_contrast",
]
