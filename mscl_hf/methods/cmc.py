"""CMC: contrast the lightness of an image with its color, each encoded by a network of its own."""

import torch
from torch import Tensor

from ..losses import global_contrast
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .heads import mlp, pooled
from .instdisc import InstanceLoss


class CMC(Method):
    """Two towers of half width on L and ab of the image in Lab, which are saved together, each with a memory bank."""

    title = "CMC"
    paper = "Tian et al., ECCV, arXiv:1906.05849"
    year = 2020
    views = "single"
    preset = "cmc"
    trained_parts = "backbone (two towers)"
    state = "two memory banks"
    two_towers = True

    def __init__(
        self,
        network: MsclForPreTraining,
        images: int | None = None,
        temperature: float = 0.07,
        embed_dim: int = 128,
        bank_loss: str = "softmax",
        nce_draws: int = 16384,
    ):
        """images: rows of the banks. bank_loss: softmax over the bank, nce as in the paper, or batch: without a bank."""
        super().__init__(network)
        if "decoder" in self.parts():
            raise ValueError("--attach is decoder; expected backbone or ancestor with --method cmc, which has a head on each tower.")
        self.temperature = temperature
        self.tower_heads = torch.nn.ModuleList(pooled(mlp(self.channels() // 2, embed_dim)) for _ in range(2))
        self.min_batch = 2 if bank_loss == "batch" else 1
        banks = (InstanceLoss(images, embed_dim, temperature, bank_loss, nce_draws) for _ in self.tower_heads)
        self.banks = None if bank_loss == "batch" else torch.nn.ModuleList(banks)

    def embed(self, image: Tensor) -> list[Tensor]:
        """Return unit vectors (B, E) of lightness and of color."""
        backbone = self.network.backbone
        maps = backbone.timm_model.split(backbone(self.normalize(image)).feature_maps[-1])
        return [unit(head(x)) for head, x in zip(self.tower_heads, maps)]

    def forward(self, image: Tensor, index: Tensor, **_) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8; index (B,): numbers of the images in the data set."""
        light, color = self.embed(image)
        if self.banks is None:
            return {"loss": 2 * global_contrast(light, color, self.temperature, symmetric=True)}
        light_loss, color_loss = self.banks
        loss = color_loss(light, index) + light_loss(color, index)
        if self.training:
            light_loss.bank.write(index, light)
            color_loss.bank.write(index, color)
        return {"loss": loss}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        light, color = self.embed(image)
        return super().embeddings(image) | {"lightness": light, "color": color}
