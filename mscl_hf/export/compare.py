"""Functions of all exports: random images, comparison of outputs, and the description that weights alone do not contain."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


def random_images(config: PreTrainedConfig, batch: int, height: int, width: int) -> Tensor:
    """Return normally distributed images (batch, C, height, width), as normalized images are; equal in every call."""
    return torch.randn(batch, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))


def full_logits(network: PreTrainedModel, images: Tensor) -> Tensor:
    """Return the network's logits (B, K, H, W) for images (B, C, H, W), upsampled as in evaluation and in transformers' pipeline."""
    return F.interpolate(network(images).logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def check_same(name: str, output: Tensor, expected: Tensor, bound: float) -> float:
    """Return max |output - expected| / max |expected|. Raises ValueError where it is above the bound.

    It is infinite where the shapes differ or the output is not finite.
    """
    relative = float("inf")
    if output.shape == expected.shape and output.isfinite().all():
        relative = float((output - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not relative <= bound:
        raise ValueError(f"The relative difference between {name} and this project's model is {relative:.1e}; expected at most {bound:g}. "
                         "Nothing was written.")  # fmt: skip
    return relative


def description(config: PreTrainedConfig, labels: bool = True) -> dict:
    """Return the names of the classes by id, mean and standard deviation of the channels in [0, 1], and the sizes of images [px]."""
    statistics = {"image_mean": config.image_mean, "image_std": config.image_std, "shortest_edge": config.base_size or None,
                  "size_multiple": config.size_multiple, "fixed_size": config.fixed_size}  # fmt: skip
    names = [config.id2label[i] for i in range(config.num_labels)]
    bands = {} if config.bands is None else {"bands": config.bands}
    return ({"labels": names} if labels else {}) | statistics | bands
