"""CMC: the lightness of an image must be found by its colours, and the other way round; one network for each."""

import torch
from torch import Tensor

from ..losses import global_contrast
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .heads import mlp, pooled
from .instdisc import InstanceLoss


class CMC(Method):
    """Two towers of half width on L and ab of the image in Lab, which are handed on together; a memory bank of each."""

    title = "CMC"
    paper = "Tian et al., ECCV, arXiv:1906.05849"
    year = 2020
    views = "single"
    preset = "cmc"
    labels = "no"
    transfers = "backbone (two towers)"
    state = "two memory banks"
    two_towers = True
    min_batch = 1

    def __init__(
        self,
        network: MsclForPreTraining,
        images: int | None = None,
        temperature: float = 0.07,
        embed_dim: int = 128,
        bank_loss: str = "softmax",
        nce_draws: int = 16384,
    ):
        """images: how many there are, for banks. bank_loss: softmax over the bank, nce as in the paper, or batch: without a bank."""
        super().__init__(network)
        if "decoder" in self.parts():
            raise ValueError("--method cmc has a head on each of its towers, which a decoder mixes; leave out --attach decoder")
        self.temperature = temperature
        self.tower_heads = torch.nn.ModuleList(pooled(mlp(self.channels() // 2, embed_dim)) for _ in range(2))
        self.banks = None
        if bank_loss != "batch":
            self.banks = torch.nn.ModuleList(
                InstanceLoss(images, embed_dim, temperature, bank_loss, nce_draws) for _ in self.tower_heads
            )
        else:
            self.min_batch = 2

    def towers(self):
        return self.network.backbone.timm_model

    def embed(self, image: Tensor) -> list[Tensor]:
        """Unit vectors (B, E) of lightness and of colour."""
        maps = self.towers().split(self.network.backbone(self.normalise(image)).feature_maps[-1])
        return [unit(head(x)) for head, x in zip(self.tower_heads, maps)]

    def forward(self, image: Tensor, index: Tensor, **rest) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8; index (B,): which image of the data each is."""
        light, colour = self.embed(image)
        if self.banks is None:
            return {"loss": 2 * global_contrast(light, colour, self.temperature, symmetric=True)}
        of_light, of_colour = self.banks
        loss = of_colour(light, index) + of_light(colour, index)
        if self.training:
            of_light.bank.write(index, light)
            of_colour.bank.write(index, colour)
        return {"loss": loss}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        light, colour = self.embed(image)
        return super().embeddings(image) | {"lightness": light, "colour": colour}
