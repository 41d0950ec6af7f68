"""Chaitanya et al.: contrast of whole slices of volumes for the encoder, then of the regions of a slice for the decoder."""

from typing import Any

import torch
from torch import Tensor, nn

from ..losses import nt_xent, region_contrast, slice_contrast
from ..losses.slices import REGION_CELLS, region_patches
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method, feature_map
from .heads import mlp, pooled

PAPER = "Chaitanya et al., NeurIPS, arXiv:2006.10511"
# Which versions of a slice are contrasted: `image` is the slice itself.
VERSIONS = {"GR": ("view1", "view2"), "GD-": ("image", "view1", "view2"), "GD": ("image", "view1")}


class ChaitanyaGlobal(Method):
    """The first stage. Slices at about the same place of different volumes look alike: none is a negative of the other (GD-), and they must
    find each other (GD); GR knows nothing of volumes and is SimCLR's loss.

    Not as in the paper: GR is the default, since most images belong to no volume; the head pools the map, which it flattened, so that the
    size of the images is free; batches are drawn at random, where the paper takes a slice of each partition of a few volumes. An anchor
    of a random batch may have no partner in another volume; its own other versions it always has.
    """

    title = "Chaitanya et al., global"
    paper = PAPER
    year = 2020
    views = "slices"
    preset = "chaitanya"
    labels = "no"
    bn_views = "joint"
    transfers = "backbone"
    state = "-"
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
            raise ValueError(f"--variant is {variant!r}; --method chaitanya_global has {', '.join(VERSIONS)}: take one of them")
        if partitions < 2:
            raise ValueError(f"--partitions is {partitions}; slices of at least 2 partitions are needed to be contrasted")
        self.variant, self.temperature, self.partitions = variant, temperature, partitions
        layers = nn.Linear(self.channels(), hidden_dim, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden_dim, embed_dim, bias=False)
        self.head = pooled(nn.Sequential(*layers))

    def check_data(self, data: Any) -> None:
        if self.variant == "GR":
            return
        parts = [] if data.images is None else data.sources
        asks = f"--variant {self.variant} contrasts slices by their place in a volume"
        if not parts or any(part.slices is None for part in parts):
            raise ValueError(
                f"{asks}, and the data does not tell it; give --dataset folder with a sub-folder for each volume, an hf data set with "
                "columns volume and position, camvid (whose volumes are video sequences), or --variant GR"
            )
        slices = [place for part in parts for place in part.slices]
        partitions = self._partition(torch.tensor([place.position for place in slices])).unique()
        volumes, wanted = {place.volume for place in slices}, 2 if self.variant == "GD" else 1
        if len(partitions) < 2 or len(volumes) < wanted:
            raise ValueError(
                f"{asks} and needs slices of 2 partitions and {wanted} volumes at least; the {len(slices)} slices are of {len(partitions)} "
                f"and {len(volumes)}; give more of them, or --variant GR"
            )

    def _partition(self, position: Tensor) -> Tensor:
        return (position * self.partitions).long().clamp(max=self.partitions - 1)

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E)."""
        return unit(self.head(feature_map(self.parts(), self.normalise(image))))

    def forward(self, volume: Tensor | None = None, position: Tensor | None = None, **views) -> dict[str, Tensor]:
        """image, view1, view2 (B, 3, H, W) uint8: slices and two augmented copies of each; volume (B,): numbers of the volumes,
        position (B,) of the slices in them, in 0..1."""
        views = [views[name] for name in VERSIONS[self.variant]]
        if self.network.config.bn_views == "joint":
            embeds = self.embed(torch.cat(views)).chunk(len(views))
        else:
            embeds = [self.embed(view) for view in views]
        if self.variant == "GR":
            return {"loss": nt_xent(*embeds, self.temperature)}
        if volume is None or position is None:
            raise ValueError(f"--variant {self.variant} needs the volume and the position of every slice; a batch came without them")
        versions = torch.stack(list(embeds), 1)  # (B, V, E)
        return {"loss": slice_contrast(versions, self._partition(position), volume, self.temperature, self.variant == "GD")}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": self.embed(image)}


class ChaitanyaGlobalLocal(Method):
    """The second stage. 13 regions of the decoder's map must find themselves in the other view, among those near them; the views differ in
    brightness and contrast only. The backbone, which the first stage has trained, is held still, batch statistics and all."""

    title = "Chaitanya et al., global, then local"
    paper = PAPER
    year = 2020
    views = "pair"
    preset = "chaitanya"
    labels = "no"
    bn_views = "joint"
    transfers = "backbone, decoder"
    state = "-"
    min_cells = 7  # so that the regions differ
    first_stage = ChaitanyaGlobal

    def __init__(self, network: MsclForPreTraining, temperature: float = 0.1, embed_dim: int = 128):
        super().__init__(network)
        self.temperature = temperature
        channels = self.channels()
        self.project = mlp(channels, channels, channels, dense=True, norm=True)
        self.head = nn.Linear(channels * REGION_CELLS**2, embed_dim, bias=False)

    def parts(self) -> dict[str, nn.Module]:
        """The decoder is what is trained, wherever `--attach` says that heads sit."""
        return {"backbone": self.network.backbone, "decoder": self.network.decoder}

    def train(self, mode: bool = True) -> "ChaitanyaGlobalLocal":
        super().train(mode)
        self.network.backbone.eval()
        return self

    def check_data(self, data: Any) -> None:
        geometry = getattr(getattr(data.view, "options", None), "geometry", "shared")
        if geometry == "crops":
            raise ValueError(
                "--geometry is crops, and --method chaitanya_global_local compares the same regions of both views, which must show one "
                "crop; leave it out, or give shared or none"
            )

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, R, E) of the regions."""
        with torch.no_grad():
            maps = self.network.backbone(self.normalise(image)).feature_maps
        return unit(self.head(region_patches(self.project(self.network.decoder(list(maps))))))

    def forward(self, image: Tensor, enhanced: Tensor, **rest) -> dict[str, Tensor]:
        """image, enhanced (B, 3, H, W) uint8, of one crop."""
        return {"loss": region_contrast(*self.both(self.embed, image, enhanced), self.temperature)}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"regions": self.embed(image)}
