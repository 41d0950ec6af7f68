"""Chaitanya et al.: contrast of whole slices of volumes for the backbone, then of regions of a slice for the decoder."""

from typing import Any

import torch
from torch import Tensor, nn

from ..losses import nt_xent, region_contrast, slice_contrast
from ..losses.slices import REGION_SIDE, region_patches
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .heads import mlp, pooled

PAPER = "Chaitanya et al., NeurIPS, arXiv:2006.10511"
# Versions of a slice that are contrasted; `image` is the slice itself.
VERSIONS = {"GR": ("view1", "view2"), "GD-": ("image", "view1", "view2"), "GD": ("image", "view1")}


class ChaitanyaGlobal(Method):
    """The first stage. Slices at about the same position of different volumes are not negatives (GD-), or positives (GD), of each other.

    GR is SimCLR's loss, without volumes; it is the default, since most images belong to no volume. Unlike in the paper, the head pools the
    map instead of flattening it, so that images can have any size, and batches are random instead of one slice of each partition of a few
    volumes: an anchor may have no positive in another volume, but always its own other versions.
    """

    title = "Chaitanya et al., global"
    paper = PAPER
    year = 2020
    views = "slices"
    preset = "chaitanya"
    bn_views = "joint"
    min_batch = 2

    def __init__(
        self,
        network: MsclForPreTraining,
        variant: str = "GR",
        temperature: float = 0.1,
        partitions: int = 4,
        embed_dim: int = 128,
        hidden_dim: int = 1024,
    ):
        super().__init__(network)
        if variant not in VERSIONS:
            raise ValueError(f"--variant is {variant}; expected one of {', '.join(VERSIONS)} with --method chaitanya_global.")
        if partitions < 2:
            raise ValueError(f"--partitions is {partitions}; expected at least 2.")
        self.variant, self.temperature, self.partitions = variant, temperature, partitions
        layers = nn.Linear(self.channels(), hidden_dim, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden_dim, embed_dim, bias=False)
        self.head = pooled(nn.Sequential(*layers))

    def check_data(self, data: Any) -> None:
        if self.variant == "GR":
            return
        parts = [] if data.images is None else data.sources
        if not parts or any(part.slices is None for part in parts):
            raise ValueError(
                f"--variant is {self.variant}; expected images with a volume and a position. Use --dataset folder with a sub-folder per "
                "volume, hf with columns volume and position, camvid (a volume per video), or --variant GR."
            )
        slices = [one for part in parts for one in part.slices]
        partitions = self._partition(torch.tensor([one.position for one in slices])).unique()
        volumes, min_volumes = {one.volume for one in slices}, 2 if self.variant == "GD" else 1
        if len(partitions) < 2 or len(volumes) < min_volumes:
            raise ValueError(
                f"--variant is {self.variant} and the {len(slices)} slices are of {len(partitions)} partitions and {len(volumes)} volumes; "
                f"expected at least 2 and {min_volumes}. Add images, or use --variant GR."
            )

    def _partition(self, position: Tensor) -> Tensor:
        return (position * self.partitions).long().clamp(max=self.partitions - 1)

    def forward(self, volume: Tensor | None = None, position: Tensor | None = None, **views) -> dict[str, Tensor]:
        """image, view1, view2 (B, 3, H, W) uint8: slices and two augmented copies of each; volume (B,): numbers of the volumes;
        position (B,): of the slices in them, in [0, 1]."""
        views = [views[name] for name in VERSIONS[self.variant]]
        if self.network.config.bn_views == "joint":
            embeds = self.embed(torch.cat(views)).chunk(len(views))
        else:
            embeds = [self.embed(view) for view in views]
        if self.variant == "GR":
            return {"loss": nt_xent(*embeds, self.temperature)}
        if volume is None or position is None:
            raise ValueError(f"--variant is {self.variant}; expected batches with volume and position.")
        versions = torch.stack(list(embeds), 1)  # (B, V, E)
        return {"loss": slice_contrast(versions, self._partition(position), volume, self.temperature, self.variant == "GD")}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": self.embed(image)}


class ChaitanyaGlobalLocal(Method):
    """The second stage: contrast 13 regions of the decoder's map with the near regions of both views.

    The views differ in brightness and contrast only. The backbone, trained by the first stage, is frozen with its batch statistics.
    """

    title = "Chaitanya et al., global, then local"
    paper = PAPER
    year = 2020
    views = "pair"
    preset = "chaitanya"
    bn_views = "joint"
    trained_parts = "backbone, decoder"
    min_positions = 7  # below that regions coincide
    trains_decoder = True
    first_stage = ChaitanyaGlobal

    def __init__(self, network: MsclForPreTraining, temperature: float = 0.1, embed_dim: int = 128):
        super().__init__(network)
        self.temperature = temperature
        channels = self.channels()
        self.project = mlp(channels, channels, channels, dense=True, norm=True)
        self.head = nn.Linear(channels * REGION_SIDE**2, embed_dim, bias=False)

    def train(self, mode: bool = True) -> "ChaitanyaGlobalLocal":
        super().train(mode)
        self.network.backbone.eval()
        return self

    def check_data(self, data: Any) -> None:
        geometry = getattr(getattr(data.view, "options", None), "geometry", "shared")
        if geometry == "crops":
            raise ValueError("--geometry is crops; expected shared or none with --method chaitanya_global_local.")

    def embed(self, image: Tensor) -> Tensor:
        """Return unit vectors (B, R, E) of the regions."""
        with torch.no_grad():
            maps = self.network.backbone(self.normalize(image)).feature_maps
        return unit(self.head(region_patches(self.project(self.network.decoder(list(maps))))))

    def forward(self, image: Tensor, enhanced: Tensor, **_) -> dict[str, Tensor]:
        """image, enhanced (B, 3, H, W) uint8, of one crop."""
        return {"loss": region_contrast(*self.encode_views(self.embed, image, enhanced), self.temperature)}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"regions": self.embed(image)}
