"""SimSiam: a predictor on one view, a stopped gradient on the other; no negatives and no teacher."""

from torch import Tensor

from ..losses import cosine_to_target
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .heads import mlp, pooled


class SimSiam(Method):
    """A projector of three layers, and a predictor with a bottleneck and a constant learning rate."""

    title = "SimSiam"
    paper = "Chen & He, CVPR, arXiv:2011.10566"
    year = 2021
    preset = "moco_v2"
    bn_views = "separate"
    head_statistics = True
    constant_lr = ("predictor.",)

    def __init__(self, network: MsclForPreTraining, embed_dim: int | None = None, hidden_dim: int | None = None):
        """embed_dim: None = the backbone's width, 2048 on a ResNet-50; hidden_dim, of the predictor: None = a quarter of it."""
        super().__init__(network)
        width = embed_dim or self.channels()
        self.projector = pooled(mlp(self.channels(), width, width, width, norm=True, last_norm="plain"))
        self.predictor = mlp(width, hidden_dim or max(1, width // 4), width, norm=True)

    def project(self, image: Tensor) -> Tensor:
        """Return embeddings (B, E) of any length."""
        return self.projector(self.features(image))

    def forward(self, view1: Tensor, view2: Tensor, **_) -> dict[str, Tensor]:
        """Return the loss, in [-1, 1], of view1, view2 (B, 3, H, W) uint8."""
        z1, z2 = self.encode_views(self.project, view1, view2)
        p1, p2 = self.encode_views(self.predictor, z1, z2)
        return {"loss": -(cosine_to_target(p1, z2) + cosine_to_target(p2, z1)) / 2}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": unit(self.project(image))}
