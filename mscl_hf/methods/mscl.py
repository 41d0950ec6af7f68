"""Multi-scale contrast learning: the 2025 paper's method, L = L_g + L_l + L_p on an image and its colour-enhanced copy."""

import torch
from torch import Tensor

from ..losses import MultiScaleLoss
from ..losses.pixel_contrast import IGNORE
from ..modeling_mscl import MsclForPreTraining, MsclPreTrainingOutput
from .base import Method

LABEL_DOWN = ("centre", "majority", "pure")


class MSCL(Method):
    """Contrast of whole images, of local blocks and of labelled pixels, each with a head of its own.

    Unlabelled images of a batch take part in the global and the local loss only.
    """

    title = "multi-scale contrast"
    paper = "Pre-Training Study on Image Segmentation based on Multi-Scale Contrast Learning"
    year = 2025
    views = "pair"
    labels = "with p"
    transfers = "backbone, decoder"
    state = "-"

    def __init__(self, network: MsclForPreTraining, loss: MultiScaleLoss | None = None, label_down: str = "centre"):
        if label_down not in LABEL_DOWN:
            raise ValueError(f"label_down is {label_down!r}; choose one of {', '.join(LABEL_DOWN)}")
        super().__init__(network)
        self.loss = loss or MultiScaleLoss.from_options(network.config.contrast)
        self.label_down = label_down
        self.min_batch = self.loss.min_batch

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """batch: image, enhanced (B, 3, S, S) uint8; mask, enhanced_mask (B, S, S); boxes (B, 2, 4); labelled (B',) indices."""
        image, enhanced = self._embed(batch)
        if "p" not in self.loss.heads:
            return self.loss(image, enhanced, labels=None)
        size, rows = image["map"].shape[-2:], batch["labelled"]
        labels, enhanced_labels = (
            labels_at(batch[key][rows], size, self.label_down) for key in ("mask", "enhanced_mask")
        )
        return self.loss(image, enhanced, labels, enhanced_labels)

    def _embed(self, batch: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings of both views by head, through one forward (joint batch statistics) or one forward each."""
        views = [self.normalise(batch["image"]), self.normalise(batch["enhanced"])]
        rows, count = batch["labelled"], len(batch["image"])
        boxes = None if _whole(batch["boxes"]) else batch["boxes"]
        heads = self.loss.heads
        if self.network.config.bn_views == "joint":
            both = None if boxes is None else torch.cat([boxes[:, 0], boxes[:, 1]])
            out = self.network(torch.cat(views), heads, both, torch.cat([rows, rows + count]))
            return _split(out, 0), _split(out, 1)
        outs = [self.network(x, heads, None if boxes is None else boxes[:, i], rows) for i, x in enumerate(views)]
        return _by_head(outs[0]), _by_head(outs[1])


def _whole(boxes: Tensor) -> bool:
    """Both views show the same crop, so that the blocks are those of the whole map, as in the paper."""
    return bool((boxes == boxes.new_tensor([0.0, 0.0, 1.0, 1.0])).all())


def _by_head(out: MsclPreTrainingOutput) -> dict[str, Tensor]:
    found = {"g": out.global_embeds, "l": out.local_embeds}
    if out.pixel_embeds is not None:
        found |= {"p": out.pixel_embeds.flatten(2).transpose(1, 2), "map": out.pixel_embeds}  # (B', h*w, E), (B', E, h, w)
    return {head: value for head, value in found.items() if value is not None}


def _split(out: MsclPreTrainingOutput, half: int) -> dict[str, Tensor]:
    return {head: value.chunk(2)[half] for head, value in _by_head(out).items()}


def labels_at(labels: Tensor, size: tuple[int, int], how: str = "centre") -> Tensor:
    """Labels (B, H, W) at the resolution of a feature map (h, w), flattened: (B, h*w) int64.

    centre: the label under the centre of each cell, row floor((i + 0.5) H / h); plain nearest interpolation would take the corner and
    shift labels by half a stride. majority: the commonest label of the cell, ties to the smaller id, ignored pixels not counted.
    pure: that label where it covers at least 3/4 of the cell, else ignored.
    """
    rows, columns = (
        ((torch.arange(n, device=labels.device) + 0.5) * full / n).long() for n, full in zip(size, labels.shape[-2:])
    )
    if how == "centre":
        return labels[:, rows][:, :, columns].flatten(1).long()
    votes = _votes(labels.long(), size)  # (B, h*w, 256)
    cell = votes.sum(2)
    counted = votes[..., :IGNORE]
    best = counted.argmax(2)  # the first of equals: the smaller id
    most = counted.gather(2, best[..., None])[..., 0]
    enough = most > 0 if how == "majority" else most >= 0.75 * cell
    return torch.where(enough, best, IGNORE)


def _votes(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """How many pixels of each of the 256 ids fall into each cell: (B, h*w, 256)."""
    (h, w), (full_h, full_w) = size, labels.shape[-2:]
    rows = torch.arange(full_h, device=labels.device) * h // full_h
    columns = torch.arange(full_w, device=labels.device) * w // full_w
    cell = (rows[:, None] * w + columns[None, :]).expand_as(labels)
    flat = (cell * 256 + labels).flatten(1)
    votes = torch.zeros(len(labels), h * w * 256, device=labels.device)
    votes.scatter_add_(1, flat, torch.ones_like(flat, dtype=votes.dtype))
    return votes.view(len(labels), h * w, 256)
