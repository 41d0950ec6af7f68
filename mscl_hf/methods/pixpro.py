"""PixPro and PixContrast: a cell must look like the cells of the other crop that show the same place of the image."""

from torch import Tensor, nn

from ..losses import cosine_to_target, match_cells, matched_contrast, pixel_consistency, propagate
from ..losses.precision import raised
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import feature_map
from .heads import cells, mlp
from .teacher import TaughtMethod, Teacher


class _PixelMethod(TaughtMethod):
    views = "two_crop"
    preset = "byol"
    labels = "no"
    transfers = "backbone"
    state = "EMA encoder"
    momentum_rises = True
    bn_views = "separate"
    min_cells = 2

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
        """hidden_dim: None = twice the backbone's width, which is the published 4096 on a ResNet-50."""
        channels = self.channels()
        return mlp(channels, hidden_dim or 2 * channels, embed_dim, norm=True, dense=True)

    def maps(self, view1: Tensor, view2: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(B, C, h, w) of both views, the student's and the teacher's."""
        views = self.normalise(view1), self.normalise(view2)
        return self.both(lambda image: feature_map(self.parts(), image), *views), self.both(self.teacher.features, *views)

    def targets(self, maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, N, E) of both views by the teacher, from its maps."""
        return self.both(lambda features: cells(unit(self.teacher.parts["head"](features))), *maps)

    def match(self, boxes: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Which cells belong together (B, N, N), and for the log: the share of image pairs and of cells that have a match."""
        match = match_cells(boxes, features.shape[-2:], self.match_radius)
        return match, {"matched_images": match.flatten(1).any(1).float().mean(), "matched_cells": match.any(2).float().mean()}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        projected = self.head(feature_map(self.parts(), self.normalise(image)))
        return super().embeddings(image) | {"projection": cells(unit(projected))}


class PixPro(_PixelMethod):
    """What a cell and those like it make together must look like what the teacher makes of its match; no negatives."""

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
        """ema_momentum: at the start, 1 at the end. ppm_layers: of the propagation's transformation, 0 = none. instance_weight: of a loss
        of whole images beside (the paper's combination has 1), with a projector and a predictor of its own; 0 = without."""
        super().__init__(network, embed_dim, hidden_dim, ema_momentum, match_radius, match_empty)
        self.ppm_gamma, self.instance_weight = ppm_gamma, instance_weight
        self.transform = mlp(*[embed_dim] * (ppm_layers + 1), norm=True, dense=True)
        self.instance_head = self.predictor = None
        if instance_weight:
            self.instance_head = self.projector(embed_dim, hidden_dim)
            self.predictor = mlp(embed_dim, hidden_dim or 2 * self.channels(), embed_dim, norm=True, dense=True)
        self.teacher = Teacher(self.student())

    def student(self) -> dict[str, nn.Module]:
        return super().student() | ({"instance": self.instance_head} if self.instance_weight else {})

    def forward(self, view1: Tensor, view2: Tensor, boxes: Tensor, **rest) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8; boxes (B, 2, 4): where they lie in the image, see `match_cells`. -2 .. 2 without instances."""
        maps, teacher_maps = self.maps(view1, view2)
        y1, y2 = self.both(self.predict, *maps)
        z1, z2 = self.targets(teacher_maps)
        match, terms = self.match(boxes, maps[0])
        loss = pixel_consistency(y1, z2, match, self.match_empty) + pixel_consistency(y2, z1, match.transpose(1, 2), self.match_empty)
        if self.instance_weight:
            instance = self.instance_loss(maps, teacher_maps)
            terms |= {"loss_pixel": loss.detach(), "loss_instance": instance.detach()}
            loss = loss + self.instance_weight * instance
        return {"loss": loss, **terms}

    def predict(self, features: Tensor) -> Tensor:
        """Unit vectors (B, N, E): the projection of a map (B, C, h, w), propagated."""
        x = self.head(features)
        return propagate(cells(unit(x)), cells(unit(self.transform(x))), self.ppm_gamma)

    def instance_loss(self, maps: tuple[Tensor, Tensor], teacher_maps: tuple[Tensor, Tensor]) -> Tensor:
        """BYOL's on maps that are averaged behind the heads, as in the release: -2 .. 2."""
        p1, p2 = self.both(lambda x: raised(self.predictor(self.instance_head(x))).mean((2, 3)), *maps)
        z1, z2 = self.both(lambda x: raised(self.teacher.parts["instance"](x)).mean((2, 3)), *teacher_maps)
        return -cosine_to_target(p1, z2) - cosine_to_target(p2, z1)


class PixContrast(_PixelMethod):
    """A cell must find its matches among the cells of the other crop."""

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
        """ema_momentum: at the start, 1 at the end."""
        super().__init__(network, embed_dim, hidden_dim, ema_momentum, match_radius, match_empty)
        self.temperature = temperature
        self.teacher = Teacher(self.student())

    def forward(self, view1: Tensor, view2: Tensor, boxes: Tensor, **rest) -> dict[str, Tensor]:
        """view1, view2 (B, 3, H, W) uint8; boxes (B, 2, 4): where they lie in the image, see `match_cells`. Mean of both directions."""
        maps, teacher_maps = self.maps(view1, view2)
        x1, x2 = self.both(lambda features: cells(unit(self.head(features))), *maps)
        z1, z2 = self.targets(teacher_maps)
        match, terms = self.match(boxes, maps[0])
        loss = matched_contrast(x1, z2, match, self.temperature, self.match_empty)
        back = matched_contrast(x2, z1, match.transpose(1, 2), self.temperature, self.match_empty)
        return {"loss": (loss + back) / 2, **terms}
