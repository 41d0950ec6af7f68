"""SimCLR: contrast two crops of an image with those of the other images of the batch."""

from torch import Tensor

from ..losses import nt_xent
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .heads import mlp, pooled


class SimCLR(Method):
    """A head with BatchNorm, in the last layer without shift, and NT-Xent over the 2B vectors."""

    title = "SimCLR"
    paper = "Chen et al., ICML, arXiv:2002.05709"
    year = 2020
    preset = "simclr"
    bn_views = "joint"
    min_batch = 2

    def __init__(
        self,
        network: MsclForPreTraining,
        temperature: float = 0.1,
        embed_dim: int = 128,
        hidden_dim: int | None = None,
        head_layers: int = 2,
    ):
        """hidden_dim: None = the backbone's width. head_layers: 2 as in the paper, 3 as in its second version."""
        super().__init__(network)
        self.temperature, channels = temperature, self.channels()
        hidden = [hidden_dim or channels] * (head_layers - 1)
        self.head = pooled(mlp(channels, *hidden, embed_dim, norm=True, last_norm="scale"))

    def forward(self, view1: Tensor, view2: Tensor, **_) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8."""
        return {"loss": nt_xent(*self.encode_views(self.embed, view1, view2), self.temperature)}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": self.embed(image)}
