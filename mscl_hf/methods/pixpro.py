"""PixPro and PixContrast: positives are positions of two crops that show the same part of the image."""

from torch import Tensor, nn

from ..losses import cosine_to_target, match_positions, matched_contrast, pixel_consistency, propagate
from ..losses.arguments import at_least_float32
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import feature_map
from .heads import flatten_positions, mlp
from .teacher import EMATeacher, EMATeacherMethod


class _PixelMethod(EMATeacherMethod):
    preset = "byol"
    momentum_rises = True
    bn_views = "separate"
    min_positions = 2

    def __init__(
        self,
        network: MsclForPreTraining,
        embed_dim: int,
        hidden_dim: int | None,
        ema_momentum: float,
        match_radius: float,
        match_empty: str,
    ):
        super().__init__(network)
        self.ema_momentum, self.match_radius, self.match_empty = ema_momentum, match_radius, match_empty
        self.head = self.projector(embed_dim, hidden_dim)

    def projector(self, embed_dim: int, hidden_dim: int | None) -> nn.Sequential:
        """Return a projector. hidden_dim: None = twice the backbone's width, the published 4096 on a ResNet-50."""
        channels = self.channels()
        return mlp(channels, hidden_dim or 2 * channels, embed_dim, norm=True, dense=True)

    def maps(self, view1: Tensor, view2: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the feature maps (B, C, h, w) of both views by the student and by the teacher."""
        views = self.normalize(view1), self.normalize(view2)
        return self.encode_views(lambda image: feature_map(self.parts(), image), *views), self.encode_views(self.teacher.features, *views)

    def targets(self, maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the teacher's unit vectors (B, N, E) of both views, from its feature maps."""
        return self.encode_views(lambda features: flatten_positions(unit(self.teacher.parts["head"](features))), *maps)

    def match(self, boxes: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return which positions match (B, N, N), and to log: the share of image pairs and of positions with a match."""
        match = match_positions(boxes, features.shape[-2:], self.match_radius)
        return match, {"matched_images": match.flatten(1).any(1).float().mean(), "matched_positions": match.any(2).float().mean()}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        projected = self.head(self.features(image))
        return super().embeddings(image) | {"projection": flatten_positions(unit(projected))}


class PixPro(_PixelMethod):
    """Consistency of the propagated embedding of a position with the teacher's embedding of its match; no negatives."""

    title = "PixPro"
    paper = "Xie et al., CVPR, arXiv:2011.10043"
    year = 2021

    def __init__(
        self,
        network: MsclForPreTraining,
        embed_dim: int = 256,
        hidden_dim: int | None = None,
        ema_momentum: float = 0.99,
        ppm_gamma: float = 2.0,
        ppm_layers: int = 1,
        match_radius: float = 0.7,
        match_empty: str = "skip",
        instance_weight: float = 0.0,
    ):
        """ema_momentum: at the start; 1 at the end. ppm_layers: of the transformation in the propagation. instance_weight: weight of an
        additional image-level loss, with a projector and a predictor of its own (the paper's combination: 1)."""
        super().__init__(network, embed_dim, hidden_dim, ema_momentum, match_radius, match_empty)
        self.ppm_gamma, self.instance_weight = ppm_gamma, instance_weight
        self.transform = mlp(*[embed_dim] * (ppm_layers + 1), norm=True, dense=True)
        self.instance_head = self.predictor = None
        if instance_weight:
            self.instance_head = self.projector(embed_dim, hidden_dim)
            self.predictor = mlp(embed_dim, hidden_dim or 2 * self.channels(), embed_dim, norm=True, dense=True)
        self.teacher = EMATeacher(self.student())

    def student(self) -> dict[str, nn.Module]:
        return super().student() | ({"instance": self.instance_head} if self.instance_weight else {})

    def forward(self, view1: Tensor, view2: Tensor, boxes: Tensor, **_) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8; boxes (B, 2, 4): see `match_positions`. The loss of pixels is in [-2, 2]."""
        maps, teacher_maps = self.maps(view1, view2)
        y1, y2 = self.encode_views(self.predict, *maps)
        z1, z2 = self.targets(teacher_maps)
        match, terms = self.match(boxes, maps[0])
        loss = pixel_consistency(y1, z2, match, self.match_empty) + pixel_consistency(y2, z1, match.transpose(1, 2), self.match_empty)
        if self.instance_weight:
            instance = self.instance_loss(maps, teacher_maps)
            terms |= {"loss_pixel": loss.detach(), "loss_instance": instance.detach()}
            loss = loss + self.instance_weight * instance
        return {"loss": loss, **terms}

    def predict(self, features: Tensor) -> Tensor:
        """Return unit vectors (B, N, E): the propagated projection of a map (B, C, h, w)."""
        x = self.head(features)
        return propagate(flatten_positions(unit(x)), flatten_positions(unit(self.transform(x))), self.ppm_gamma)

    def instance_loss(self, maps: tuple[Tensor, Tensor], teacher_maps: tuple[Tensor, Tensor]) -> Tensor:
        """Return BYOL's loss, in [-2, 2], of maps that are averaged after the heads, as released."""
        p1, p2 = self.encode_views(lambda x: at_least_float32(self.predictor(self.instance_head(x))).mean((2, 3)), *maps)
        z1, z2 = self.encode_views(lambda x: at_least_float32(self.teacher.parts["instance"](x)).mean((2, 3)), *teacher_maps)
        return -cosine_to_target(p1, z2) - cosine_to_target(p2, z1)


class PixContrast(_PixelMethod):
    """InfoNCE of the matches of a position among the positions of the other crop."""

    title = "PixContrast"
    paper = "Xie et al., CVPR, arXiv:2011.10043"
    year = 2021

    def __init__(
        self,
        network: MsclForPreTraining,
        temperature: float = 0.3,
        embed_dim: int = 256,
        hidden_dim: int | None = None,
        ema_momentum: float = 0.99,
        match_radius: float = 0.7,
        match_empty: str = "skip",
    ):
        """ema_momentum: at the start; 1 at the end."""
        super().__init__(network, embed_dim, hidden_dim, ema_momentum, match_radius, match_empty)
        self.temperature = temperature
        self.teacher = EMATeacher(self.student())

    def forward(self, view1: Tensor, view2: Tensor, boxes: Tensor, **_) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8; boxes (B, 2, 4): see `match_positions`. Mean of both directions."""
        maps, teacher_maps = self.maps(view1, view2)
        x1, x2 = self.encode_views(lambda features: flatten_positions(unit(self.head(features))), *maps)
        z1, z2 = self.targets(teacher_maps)
        match, terms = self.match(boxes, maps[0])
        loss = matched_contrast(x1, z2, match, self.temperature, self.match_empty)
        back = matched_contrast(x2, z1, match.transpose(1, 2), self.temperature, self.match_empty)
        return {"loss": (loss + back) / 2, **terms}
