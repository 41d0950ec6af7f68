"""BYOL: predict what a slowly moving copy of the network makes of the other view; no negatives."""

from torch import Tensor, nn

from ..losses import cosine_to_target
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import feature_map
from .heads import mlp, pooled
from .teacher import TaughtMethod, Teacher


class BYOL(TaughtMethod):
    """Online network: encoder, projector, predictor. Target: an exponential moving average of the first two, slower and slower."""

    title = "BYOL"
    paper = "Grill et al., NeurIPS, arXiv:2006.07733"
    year = 2020
    views = "two_crop"
    preset = "byol"
    labels = "no"
    transfers = "backbone"
    state = "EMA encoder"
    momentum_rises = True
    bn_views = "separate"
    head_statistics = True

    def __init__(
        self, network: MsclForPreTraining, embed_dim: int = 256, hidden_dim: int | None = None, ema_momentum: float = 0.996
    ):
        """hidden_dim: None = twice the backbone's width, which is the published 4096 on a ResNet-50. ema_momentum: at the start, 1 at the
        end."""
        super().__init__(network)
        self.ema_momentum, channels = ema_momentum, self.channels()
        hidden_dim = hidden_dim or 2 * channels
        self.projector = pooled(mlp(channels, hidden_dim, embed_dim, norm=True))
        self.predictor = mlp(embed_dim, hidden_dim, embed_dim, norm=True)
        self.teacher = Teacher(self.student())

    def student(self) -> dict[str, nn.Module]:
        """What the target follows."""
        return {**self.parts(), "head": self.projector}

    def project(self, image: Tensor) -> Tensor:
        """(B, E), of any length."""
        return self.projector(feature_map(self.parts(), self.normalise(image)))

    def forward(self, view1: Tensor, view2: Tensor, **rest) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8; each predicts the other one's target: 0 .. 8."""
        p1, p2 = self.both(lambda image: self.predictor(self.project(image)), view1, view2)
        z1, z2 = self.both(lambda image: self.teacher(self.normalise(image)), view1, view2)
        return {"loss": 4 - 2 * (cosine_to_target(p1, z2) + cosine_to_target(p2, z1))}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": unit(self.project(image))}
