"""BYOL: predict the EMA teacher's embedding of the other view; no negatives."""

from torch import Tensor, nn

from ..losses import cosine_to_target
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .heads import mlp, pooled
from .teacher import EMATeacher, EMATeacherMethod


class BYOL(EMATeacherMethod):
    """Student: encoder, projector, predictor. Teacher: an EMA of encoder and projector, whose momentum rises to 1."""

    title = "BYOL"
    paper = "Grill et al., NeurIPS, arXiv:2006.07733"
    year = 2020
    preset = "byol"
    momentum_rises = True
    bn_views = "separate"
    head_statistics = True

    def __init__(
        self, network: MsclForPreTraining, embed_dim: int = 256, hidden_dim: int | None = None, ema_momentum: float = 0.996
    ):
        """hidden_dim: None = twice the backbone's width, the published 4096 on a ResNet-50. ema_momentum: at the start; 1 at the end."""
        super().__init__(network)
        self.ema_momentum, channels = ema_momentum, self.channels()
        hidden_dim = hidden_dim or 2 * channels
        self.projector = pooled(mlp(channels, hidden_dim, embed_dim, norm=True))
        self.predictor = mlp(embed_dim, hidden_dim, embed_dim, norm=True)
        self.teacher = EMATeacher(self.student())

    def student(self) -> dict[str, nn.Module]:
        return {**self.parts(), "head": self.projector}

    def project(self, image: Tensor) -> Tensor:
        """Return embeddings (B, E) of any length."""
        return self.projector(self.features(image))

    def forward(self, view1: Tensor, view2: Tensor, **_) -> dict[str, Tensor]:
        """Return the loss, in [0, 8], of view1, view2 (B, 3, H, W) uint8; each predicts the target of the other."""
        p1, p2 = self.encode_views(lambda image: self.predictor(self.project(image)), view1, view2)
        z1, z2 = self.encode_views(lambda image: self.teacher(self.normalize(image)), view1, view2)
        return {"loss": 4 - 2 * (cosine_to_target(p1, z2) + cosine_to_target(p2, z1))}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": unit(self.project(image))}
