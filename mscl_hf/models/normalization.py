"""Normalization of images by the mean and standard deviation in a model's configuration."""

import torch
from torch import Tensor


def image_statistics(config, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Return image_mean and image_std of a configuration, each (1, C, 1, 1) float32.

    Raises ValueError where the configuration lacks them: any other values would change the predictions without an error.
    """
    values = [getattr(config, name, None) for name in ("image_mean", "image_std")]
    if None in values:
        raise ValueError(
            f"image_mean and image_std of the model's configuration are {values[0]} and {values[1]}; expected a number for each channel. "
            "Set them to the values that the model was trained with."
        )
    mean, std = (torch.tensor(numbers, dtype=torch.float32, device=device).view(1, -1, 1, 1) for numbers in values)
    return mean, std


def normalize(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (image / 255 - mean) / std of images (B, C, H, W) with values in [0, 255]. mean, std: (1, C, 1, 1)."""
    return (image.float() / 255 - mean).div_(std)  # the result has the type of mean and std
