"""DenseCL: MoCo on whole images and on positions, each matched with the most similar position of the other view."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import dense_contrast, info_nce, nearest_positions
from ..losses.arguments import at_least_float32
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .heads import flatten_positions, mlp, pooled
from .memory import Queue
from .teacher import EMATeacher, EMATeacherMethod


class DenseCL(EMATeacherMethod):
    """Two heads on the feature map, one for the image and one for its positions, each with a queue of keys."""

    title = "DenseCL"
    paper = "Wang et al., CVPR, arXiv:2011.09157"
    year = 2021
    preset = "moco_v2"
    state = "EMA encoder, two queues"
    min_positions = 2

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
        """hidden_dim: None = the backbone's width, the published 2048 on a ResNet-50. dense_weight: share of the dense loss in the loss, 0
        in the first `dense_warmup` of training. grid: side that feature maps are pooled to; None = no pooling."""
        super().__init__(network)
        if not 0 <= dense_weight <= 1:
            raise ValueError(f"--dense-weight is {dense_weight}; expected a share in [0, 1] with --method densecl.")
        self.temperature, self.ema_momentum, self.grid = temperature, ema_momentum, grid
        self.dense_weight, self.dense_warmup = dense_weight, dense_warmup
        channels = self.channels()
        self.head = pooled(mlp(channels, hidden_dim or channels, embed_dim))
        self.dense_head = mlp(channels, hidden_dim or channels, embed_dim, dense=True)
        self.teacher = EMATeacher(self.student())
        self.queue, self.dense_queue = Queue(queue_size, embed_dim), Queue(queue_size, embed_dim)

    def student(self) -> dict[str, nn.Module]:
        return {**self.parts(), "head": self.head, "dense": self.dense_head}

    def on_grid(self, features: Tensor) -> Tensor:
        """Return a feature map (B, C, h, w) pooled to the grid of positions that are contrasted."""
        if self.grid is None:
            return features
        return F.adaptive_avg_pool2d(features, [min(self.grid, side) for side in features.shape[-2:]])

    @torch.no_grad()
    def keys(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's keys (B, E), its feature map on the grid (B, C, h, w) and its dense keys (B, E, h, w), of any length."""
        features, parts = self.teacher.features(self.normalize(image)), self.teacher.parts
        grid = self.on_grid(features)
        return parts["head"](features), grid, at_least_float32(parts["dense"](grid))

    def forward(self, view1: Tensor, view2: Tensor, **_) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8: queries and keys; their positions in the image are not used."""
        features = self.features(view1)
        grid = self.on_grid(features)
        key, key_grid, dense_keys = self.keys(view2)
        match = nearest_positions(flatten_positions(grid), flatten_positions(key_grid))
        loss_global = info_nce(unit(self.head(features)), unit(key), self.queue.read(), self.temperature)
        anchors = flatten_positions(unit(self.dense_head(grid)))
        loss_dense = dense_contrast(anchors, flatten_positions(unit(dense_keys)), match, self.dense_queue.read(), self.temperature)
        if self.training:
            self.queue.write(at_least_float32(key))
            self.dense_queue.write(dense_keys.mean((2, 3)))
        # A weight of zero, since DDP waits for a gradient of each parameter.
        share = 0.0 if self.fraction_done < self.dense_warmup else self.dense_weight
        loss = (1 - share) * loss_global + share * loss_dense
        return {"loss": loss, "loss_global": loss_global.detach(), "loss_dense": loss_dense.detach()}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image)
        dense = flatten_positions(unit(self.dense_head(self.on_grid(features))))
        return super().embeddings(image) | {"projection": unit(self.head(features)), "dense": dense}
