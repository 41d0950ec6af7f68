"""Multi-scale contrast learning, the method of the 2025 paper: global, local and pixel contrast of an image and its enhanced copy."""

from dataclasses import asdict

import torch
from torch import Tensor

from ..config import ContrastConfig
from ..losses import MultiScaleLoss, labels_at, sample_pixels
from ..models.modeling_mscl import MsclForPreTraining, MsclPreTrainingOutput
from .base import Method
from .heads import flatten_positions
from .memory import Queue


class MSCL(Method):
    """Contrast of whole images, of blocks and of labelled pixels, each with a head of its own.

    Unlabelled images of a batch take part in the global and the local loss only.
    """

    title = "multi-scale contrast"
    paper = "Zhang et al., Pre-Training Study on Image Segmentation"
    year = 2025
    views = "pair"
    geometry = "crops"
    pixel_layers = 1  # a thin head leaves the separation of classes to the decoder
    reads_masks = "with the pixel loss"
    bn_views = "joint"
    trained_parts = "backbone, decoder"
    state = "queue with --queue-size"
    heads = ("global", "local", "pixel")

    @classmethod
    def uses_unlabelled(cls, contrast: ContrastConfig) -> bool:
        return contrast.terms != ("pixel",)

    @classmethod
    def uses_labels(cls, contrast: ContrastConfig) -> bool:
        return "pixel" in contrast.terms

    @classmethod
    def loss_of(cls, contrast: ContrastConfig) -> MultiScaleLoss:
        """Return the loss with these options and those that the method fixes. Raises ValueError where they differ (zhao)."""
        return MultiScaleLoss(**asdict(contrast) | {"pixel_scope": contrast.pixel_scope or "batch"})

    def __init__(self, network: MsclForPreTraining, loss: MultiScaleLoss | None = None):
        super().__init__(network)
        self.loss = loss or MultiScaleLoss()
        self.min_batch = self.loss.min_batch
        self.queue = Queue(self.loss.queue_size, network.config.global_dim) if self.loss.queue_size else None

    def forward(
        self,
        image: Tensor,
        enhanced: Tensor,
        mask: Tensor,
        enhanced_mask: Tensor,
        labelled: Tensor,
        boxes: Tensor | None = None,
        **_,
    ) -> dict[str, Tensor]:
        """image, enhanced (B, 3, H, W) in [0, 255]; mask, enhanced_mask (B, H, W), 255 = ignored; labelled (B',): indices of the labelled
        images; boxes (B, 2, 4): the part that both views show, in [0, 1] of each; None: both show the same crop."""
        image_embeds, enhanced_embeds = self._embed(image, enhanced, boxes, pixel_images=labelled)
        labels = enhanced_labels = None
        if "pixel" in self.loss.terms:
            image_embeds["pixel"], labels = self._pixels(image_embeds.pop("pixel_map"), mask[labelled])
            enhanced_embeds["pixel"], enhanced_labels = self._pixels(enhanced_embeds.pop("pixel_map"), enhanced_mask[labelled])
        past = None if self.queue is None else self.queue.read()
        terms = self.loss(image_embeds, enhanced_embeds, labels, enhanced_labels, past)
        if self.queue is not None and self.training:
            self.queue.write(enhanced_embeds["global"])
        return terms

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        """Return the embeddings of the backbone and of every head that the loss reads."""
        out = self.network(self.normalize(image), self.loss.terms)
        spaces = {"backbone": flatten_positions(out.feature_maps[-1])}
        for name in self.loss.terms:
            vectors = getattr(out, f"{name}_embeds")
            spaces[name] = flatten_positions(vectors) if vectors.dim() == 4 else vectors
        return spaces

    def _pixels(self, embeds: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B', N, E) and labels (B', N) of the pixels to contrast, from maps (B', E, h, w) and masks (B', S, S)."""
        labels = labels_at(masks, embeds.shape[-2:], self.loss.label_downsampling)
        vectors = flatten_positions(embeds)
        if self.loss.pixel_sample == "all" or not len(labels):
            return vectors, labels
        positions, labels = sample_pixels(labels, self.loss.pixel_sample, self.loss.pixel_count)
        return vectors.gather(1, positions[..., None].expand(-1, -1, vectors.shape[2])), labels

    def _embed(self, image: Tensor, enhanced: Tensor, boxes: Tensor | None, pixel_images: Tensor) -> tuple[dict, dict]:
        """Return the embeddings of both views by head, "pixel_map" (B', E, h, w), from one forward pass (joint batch statistics) or two."""
        views = [self.normalize(image), self.normalize(enhanced)]
        heads, count = self.loss.terms, len(image)
        view_boxes = [None, None] if boxes is None else [boxes[:, 0], boxes[:, 1]]
        if self.network.config.bn_views == "joint":
            all_boxes = None if boxes is None else torch.cat(view_boxes)
            both = _by_head(self.network(torch.cat(views), heads, all_boxes, torch.cat([pixel_images, pixel_images + count])))
            # A chunk for each view: one for both would add up the gradients in another order.
            image_embeds, enhanced_embeds = ({head: value.chunk(2)[half] for head, value in both.items()} for half in (0, 1))
            return image_embeds, enhanced_embeds
        image_embeds, enhanced_embeds = (_by_head(self.network(view, heads, box, pixel_images)) for view, box in zip(views, view_boxes))
        return image_embeds, enhanced_embeds


def _by_head(out: MsclPreTrainingOutput) -> dict[str, Tensor]:
    embeds = {"global": out.global_embeds, "local": out.local_embeds, "pixel_map": out.pixel_embeds}
    return {head: value for head, value in embeds.items() if value is not None}
