"""From the pixels of an image to logits and class ids: the one way that evaluation, `mscl-predict` and `mscl-demo` use.

Letters: B images, K classes, H W height and width of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..config import InferenceConfig
from ..data.pixels import BadSample
from ..models.normalization import image_statistics, normalize
from .bands import ScaledImage, logit_bands
from .batches import InBatches
from .inference import argmax, is_one_view, predict_ids, predict_logits, resize, view_size
from .windows import uses_windows

MAX_MAP = 2**28  # numbers of a map of logits (K, H, W) that is in memory at once: 1 GiB
MAX_WHOLE = 2**25  # pixels that the network receives at once
BATCH_ON_GPU = 8
CHANNELS_AT_ONCE = 8  # of the logits that `predict_ids` enlarges at once


class Predictor:
    """Class ids and logits of images in levels of 0 to 255, (H, W, 3) uint8 or float32, see `rgb_array`.

    Images are normalized by image_mean and image_std of the configuration; ValueError where it lacks them.
    """

    def __init__(
        self, model: Callable, config, device: torch.device, options: InferenceConfig,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):  # fmt: skip
        """model: model(pixel_values=x).logits is (B, K, h, w). config: of the network. autocast: as `Accelerator.autocast`."""
        self.config, self.device, self.options, self.autocast = config, device, options, autocast
        self.model = InBatches(model, options.eval_batch_size or (1 if device.type == "cpu" else BATCH_ON_GPU))
        self.statistics = image_statistics(config, device)

    @classmethod
    def of_network(cls, network: nn.Module, accelerator: Accelerator, options: InferenceConfig) -> Predictor:
        """Return the predictor of a network on the accelerator's device and in its precision."""
        return cls(network, network.config, accelerator.device, options, accelerator.autocast)

    def ids(self, images: Sequence[np.ndarray], size: tuple[int, int] | None = None) -> list[Tensor]:
        """Return the class ids (H, W) of each image, integers on the device. All images have one size. size: of the ids, None = theirs."""
        size = size or images[0].shape[:2]
        if not self._is_large(size):
            with self.autocast():
                return predict_ids(self.model, torch.cat([*map(self.normalized, images)]), size, self.options, self.model.size)
        return [torch.cat([argmax(band).short() for band in self.bands(image, size)]) for image in images]

    def at_once(self, size: tuple[int, int], out_size: tuple[int, int]) -> int:
        """Return how many images of this size (H, W) `ids` may be given, for ids of out_size. Of an image in windows, it is one."""
        views = [view_size(size, scale, self.options) for scale in self.options.scales]
        pixels = max(height * width for height, width in views)
        if self._is_large(out_size) or any(uses_windows(view, self.options) for view in views):
            return 1
        maps = self.model.size if is_one_view(self.options) else MAX_MAP // (out_size[0] * out_size[1] * self.config.num_labels)
        return max(1, min(self.model.size, MAX_WHOLE // pixels, maps))

    def bands(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """Yield the class logits in bands (1, K, rows, W), float32, from the top to the bottom; a small image is one band.

        Of several views (see `predict_logits`) the softmax of the logits is the mean of the probabilities.
        """
        size = size or image.shape[:2]
        if self._is_large(size):
            scaled = [self._scaled(image, scale) for scale in self.options.scales]
            yield from logit_bands(self._in_precision, scaled, size, self.options, self.model.size)
            return
        with self.autocast():
            logits = predict_logits(self.model, self.normalized(image), size, self.options, self.model.size)
        yield logits

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Raise BadSample for an image of this size (H, W) that is too large for the network at once. name: of the image."""
        if self.options.mode == "slide":
            return
        for scale in self.options.scales:
            height, width = view_size(size, scale, self.options)
            if height * width > MAX_WHOLE:
                raise BadSample(
                    f"{name} would be {width} x {height} px for the network; expected at most {MAX_WHOLE:,} px at once. "
                    "Give --mode slide, and a new --output-dir."
                )

    def normalized(self, image: np.ndarray) -> Tensor:
        """Return the pixels as the network reads them, (1, 3, H, W) float32."""
        pixels = torch.from_numpy(np.array(image)).to(self.device)
        return normalize(pixels.permute(2, 0, 1)[None], *self.statistics)

    def _is_large(self, size: tuple[int, int]) -> bool:
        """Return whether the logits are computed in bands: the choice depends on the size only, so that all commands agree."""
        in_parts = is_one_view(self.options) and self.options.mode == "whole"
        channels = CHANNELS_AT_ONCE if in_parts else self.config.num_labels
        return size[0] * size[1] * channels > MAX_MAP

    def _in_precision(self, pixel_values: Tensor) -> SimpleNamespace:
        with self.autocast():
            return SimpleNamespace(logits=self.model(pixel_values=pixel_values).logits)

    def _scaled(self, image: np.ndarray, scale: float) -> ScaledImage:
        """Return the image at a scale. At its stored size only crops are normalized, else one channel after another, to save memory."""
        size = view_size(image.shape[:2], scale, self.options)
        if size == image.shape[:2]:
            return ScaledImage(size, lambda rows, columns: self.normalized(image[rows, columns]))
        channels = []
        for channel in range(image.shape[2]):
            pixels = torch.tensor(image[:, :, channel], dtype=torch.float32, device=self.device)
            mean, std = (values[0, channel, 0, 0] for values in self.statistics)
            channels.append(resize(pixels.div_(255).sub_(mean).div_(std)[None, None], size, antialias=True))
        scaled = torch.cat(channels, 1)
        return ScaledImage(size, lambda rows, columns: scaled[..., rows, columns])


def finite(model: Callable) -> Callable:
    """Return the model, which raises ValueError where it would return NaN or infinity."""

    def checked(pixel_values: Tensor) -> SimpleNamespace:
        logits = model(pixel_values=pixel_values).logits
        if not logits.isfinite().all():
            raise ValueError("The network returns NaN or infinity; expected finite numbers. Choose an earlier checkpoint.")
        return SimpleNamespace(logits=logits)

    return checked
