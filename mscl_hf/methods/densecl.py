"""DenseCL: MoCo on whole images, and beside it on places, each matched with the place of the other view that looks most like it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import dense_contrast, info_nce, most_alike
from ..losses.gather import gather_rows
from ..losses.precision import raised
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import feature_map
from .heads import cells, mlp, pooled
from .queue import Queue
from .teacher import TaughtMethod, Teacher


class DenseCL(TaughtMethod):
    """Two heads on the backbone's map, one for the image and one for its places, and a queue of keys for each."""

    title = "DenseCL"
    paper = "Wang et al., CVPR, arXiv:2011.09157"
    year = 2021
    views = "two_crop"
    preset = "moco_v2"
    labels = "no"
    transfers = "backbone"
    state = "EMA encoder, two queues"
    min_cells = 2

    def __init__(
        self,
        network: MsclForPreTraining,
        temperature: float = 0.2,
        embed_dim: int = 128,
        hidden_dim: int | None = None,
        queue_size: int = 65536,
        ema_momentum: float = 0.999,
        dense_weight: float = 0.5,
        dense_warmup: float = 0.0,
        grid: int | None = None,
    ):
        """hidden_dim: None = the backbone's width, which is the published 2048 on a ResNet-50. dense_weight: the dense loss has so much of
        the whole, none of it in the first `dense_warmup` of training. grid: pool maps to so many places on a side; None = as they are."""
        super().__init__(network)
        if not 0 <= dense_weight <= 1:
            raise ValueError(f"--dense-weight is {dense_weight}: DenseCL's dense loss has that share of the whole; give a number in 0..1")
        self.temperature, self.ema_momentum, self.grid = temperature, ema_momentum, grid
        self.dense_weight, self.dense_warmup = dense_weight, dense_warmup
        channels = self.channels()
        self.head = pooled(mlp(channels, hidden_dim or channels, embed_dim))
        self.dense_head = mlp(channels, hidden_dim or channels, embed_dim, dense=True)
        self.teacher = Teacher(self.student())
        self.queue, self.dense_queue = Queue(queue_size, embed_dim), Queue(queue_size, embed_dim)

    def student(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {**self.parts(), "head": self.head, "dense": self.dense_head}

    def places(self, features: Tensor) -> Tensor:
        """A map (B, C, h, w) on the grid of places that are contrasted."""
        if self.grid is None:
            return features
        return F.adaptive_avg_pool2d(features, [min(self.grid, side) for side in features.shape[-2:]])

    @torch.no_grad()
    def keys(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's key of the image (B, E), its places before the head (B, C, h, w) and behind it (B, E, h, w), of any length."""
        features, parts = self.teacher.features(self.normalise(image)), self.teacher.parts
        places = self.places(features)
        return parts["head"](features), places, raised(parts["dense"](places))

    def forward(self, view1: Tensor, view2: Tensor, **rest) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8: queries and keys. Where they lie in the image plays no part."""
        features = feature_map(self.parts(), self.normalise(view1))
        places = self.places(features)
        key, key_places, dense_keys = self.keys(view2)
        match = most_alike(cells(places), cells(key_places))
        loss_global = info_nce(unit(self.head(features)), unit(key), self.queue.read(), self.temperature)
        loss_dense = dense_contrast(
            cells(unit(self.dense_head(places))), cells(unit(dense_keys)), match, self.dense_queue.read(), self.temperature
        )
        if self.training:
            self.queue.write(gather_rows(raised(key))[0])
            self.dense_queue.write(gather_rows(dense_keys.mean((2, 3)))[0])
        # Weighed by zero rather than left out: DDP waits for a gradient of each weight.
        share = 0.0 if self.progress < self.dense_warmup else self.dense_weight
        loss = (1 - share) * loss_global + share * loss_dense
        return {"loss": loss, "loss_global": loss_global.detach(), "loss_dense": loss_dense.detach()}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        features = feature_map(self.parts(), self.normalise(image))
        dense = cells(unit(self.dense_head(self.places(features))))
        return super().embeddings(image) | {"projection": unit(self.head(features)), "dense": dense}
