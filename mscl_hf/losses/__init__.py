"""Losses as functions of tensors. They import torch only; `multi_scale` also imports its options, which are free of torch."""

from .affinity import adaptive_affinity, affinity, affinity_decay
from .consistency import class_probabilities, mean_over_valid, summed_binary_cross_entropy, summed_squared_difference
from .copy_paste import foreground_contrast, foreground_mean
from .cosine import cosine_to_target
from .dense import dense_contrast, nearest_positions
from .dice import dice_loss, dice_of_sums, dice_sums
from .distillation import similarity_divergence
from .hard_pixels import hard_pixel_cross_entropy, mean_of_hard_pixels, pixel_cross_entropy
from .info_nce import global_contrast, info_nce, local_contrast, nt_xent
from .instance import instance_nce, instance_softmax, nce_normalizer
from .labels import labels_at, sample_pixels
from .multi_scale import MultiScaleLoss
from .pixel_contrast import PixelLossValue, pixel_contrast
from .pixel_propagation import match_positions, matched_contrast, pixel_consistency, propagate
from .region_mutual_information import one_versus_rest, region_mutual_information
from .regional_contrast import HARD_BELOW, LABELLED_FROM, regional_contrast
from .released import ReleasedPixelLoss, listed_pixel_contrast, released_pixel_contrast
from .slices import region_contrast, slice_contrast
