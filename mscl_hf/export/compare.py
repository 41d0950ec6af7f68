"""What all exports share: random images, the comparison of two outputs, and what a model's files do not say of it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


def random_images(config: PreTrainedConfig, batch: int, height: int, width: int) -> Tensor:
    """(batch, C, height, width), normal as normalised images are; the same at every call."""
    return torch.randn(batch, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))


def full_logits(network: PreTrainedModel, images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, K, H, W): the network's logits brought to the images' size as evaluation and the pipeline do it."""
    return F.interpolate(network(images).logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference over the largest absolute value wanted; infinite where the shapes differ or NaN came out."""
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def check_same(what: str, found: Tensor, wanted: Tensor, bound: float) -> float:
    """The difference; ValueError when it is above the bound."""
    distance = difference(found, wanted)
    if not distance <= bound:
        raise ValueError(f"{what} gives outputs that differ from this project's by {distance:.1e} of their size, more than {bound:g}; "
                         "nothing was written")  # fmt: skip
    return distance


def description(config: PreTrainedConfig, labels: bool = True) -> dict:
    """What a user of the weights must know: classes by id, normalisation of RGB in 0..1, size in px of the images."""
    about = {"image_mean": config.image_mean, "image_std": config.image_std, "shortest_edge": config.base_size or None,
             "size_multiple": config.size_multiple, "fixed_size": config.fixed_size}  # fmt: skip
    names = [config.id2label[i] for i in range(config.num_labels)]
    return ({"labels": names} if labels else {}) | about
