"""MoCo: contrast images with the keys of a momentum encoder, in a queue of earlier batches."""

from torch import Tensor

from ..losses import info_nce
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .heads import mlp, pooled
from .memory import Queue
from .teacher import EMATeacher, EMATeacherMethod


class MoCoV2(EMATeacherMethod):
    """MoCo with a head of two layers, temperature 0.2, blur and SimCLR's weaker color distortion."""

    title = "MoCo v2"
    paper = "Chen et al., arXiv:2003.04297"
    year = 2020
    preset = "moco_v2"
    state = "EMA encoder, queue"

    def __init__(
        self,
        network: MsclForPreTraining,
        temperature: float = 0.2,
        embed_dim: int = 128,
        hidden_dim: int | None = None,
        queue_size: int = 65536,
        ema_momentum: float = 0.999,
    ):
        """hidden_dim: None = the backbone's width, 0 = a linear head."""
        super().__init__(network)
        self.temperature, self.ema_momentum = temperature, ema_momentum
        channels = self.channels()
        hidden = [] if hidden_dim == 0 else [hidden_dim or channels]
        self.head = pooled(mlp(channels, *hidden, embed_dim))
        self.teacher = EMATeacher(self.student())
        self.queue = Queue(queue_size, embed_dim)

    def forward(self, view1: Tensor, view2: Tensor, **_) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8: queries and keys."""
        queries, keys = self.embed(view1), unit(self.teacher(self.normalize(view2)))
        loss = info_nce(queries, keys, self.queue.read(), self.temperature)
        if self.training:
            self.queue.write(keys)
        return {"loss": loss}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": self.embed(image)}


class MoCoV1(MoCoV2):
    """MoCo with a linear head, temperature 0.07 and the first color distortion."""

    title = "MoCo v1"
    paper = "He et al., CVPR, arXiv:1911.05722"
    preset = "moco_v1"

    def __init__(
        self,
        network: MsclForPreTraining,
        temperature: float = 0.07,
        embed_dim: int = 128,
        queue_size: int = 65536,
        ema_momentum: float = 0.999,
    ):
        super().__init__(network, temperature, embed_dim, 0, queue_size, ema_momentum)
