"""CP2: contrast an image pasted onto two backgrounds, as a whole and pixel by pixel."""

from torch import Tensor

from ..losses import foreground_contrast, foreground_mean, info_nce, labels_at
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .heads import flatten_positions, mlp
from .memory import Queue
from .teacher import EMATeacher, EMATeacherMethod


class CP2(EMATeacherMethod):
    """A momentum encoder of backbone and decoder: both are trained, so that fine-tuning adds only a classifier."""

    title = "CP2"
    paper = "Wang et al., ECCV, arXiv:2203.11709"
    year = 2022
    views = "copy_paste"
    preset = "moco_v2"
    trained_parts = "backbone, decoder"
    state = "EMA network, queue"
    min_positions = 2
    trains_decoder = True

    def __init__(
        self,
        network: MsclForPreTraining,
        temperature: float = 0.2,
        embed_dim: int = 128,
        hidden_dim: int | None = None,
        queue_size: int = 65536,
        ema_momentum: float = 0.999,
        dense_weight: float = 0.2,
        dense_temperature: float = 1.0,
        dense_axis: str = "key",
    ):
        """hidden_dim: None = the decoder's width (published: 512). dense_axis: softmax over positions of the "key" (printed) or of the
        "query" (released)."""
        super().__init__(network)
        self.temperature, self.ema_momentum = temperature, ema_momentum
        self.dense_weight, self.dense_temperature, self.dense_axis = dense_weight, dense_temperature, dense_axis
        self.head = mlp(self.channels(), hidden_dim or self.channels(), embed_dim, dense=True)
        self.teacher = EMATeacher(self.student())
        self.queue = Queue(queue_size, embed_dim)

    def forward(self, view1: Tensor, view2: Tensor, pasted1: Tensor, pasted2: Tensor, **_) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8: queries and keys; pasted1, pasted2 (B, H, W) bool: where they show the common image."""
        queries, keys = self.embed(view1), unit(self.teacher(self.normalize(view2)))
        masks = [labels_at(pasted, keys.shape[-2:]).bool() for pasted in (pasted1, pasted2)]
        queries, keys = flatten_positions(queries), flatten_positions(keys)
        key = foreground_mean(keys, masks[1])
        instance = info_nce(foreground_mean(queries, masks[0]), key, self.queue.read(), self.temperature)
        dense = foreground_contrast(queries, keys, *masks, self.dense_temperature, self.dense_axis)
        if self.training:
            self.queue.write(key)
        loss = instance + self.dense_weight * dense
        return {"loss": loss, "loss_instance": instance.detach(), "loss_dense": dense.detach()}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"dense": flatten_positions(self.embed(image))}
