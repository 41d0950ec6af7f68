"""InstDisc: every image is a class of its own, whose weights are its remembered embedding."""

import torch
from torch import Tensor

from ..losses import instance_nce, instance_softmax, nce_normaliser
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from .bank import MemoryBank
from .base import Method, feature_map
from .heads import mlp, pooled

BANK_LOSSES = ("softmax", "nce")


class InstanceLoss(torch.nn.Module):
    """A bank's loss: the full softmax over all images, or the original's noise-contrastive estimate of it, with its normaliser."""

    def __init__(self, images: int, dim: int, temperature: float, kind: str, draws: int):
        super().__init__()
        if kind not in BANK_LOSSES:
            raise ValueError(f"--bank-loss is {kind!r}; choose one of {', '.join(BANK_LOSSES)}")
        self.kind, self.temperature, self.draws = kind, temperature, draws
        self.bank = MemoryBank(images, dim)
        self.register_buffer("normaliser", torch.zeros(()))
        self.normalised = False  # is it known that there is one? Asks the device only until there is

    def forward(self, vectors: Tensor, index: Tensor) -> Tensor:
        """Unit vectors (B, E) of images index (B,) against the bank as it was before this batch."""
        rows = self.bank.read()
        if self.kind == "softmax":
            return instance_softmax(vectors, index, rows, self.temperature)
        draws = torch.randint(len(rows), (len(vectors), self.draws), device=rows.device)
        normaliser, self.normalised = self.normaliser, self.normalised or bool(self.normaliser > 0)
        if not self.normalised:
            normaliser = nce_normaliser(vectors, index, rows, draws, self.temperature)
            if self.training:
                self.normaliser.copy_(normaliser)
        return instance_nce(vectors, index, rows, draws, normaliser, self.temperature)


class InstDisc(Method):
    """One view of each image, a linear head, a memory bank."""

    title = "InstDisc"
    paper = "Wu et al., CVPR, arXiv:1805.01978"
    year = 2018
    views = "single"
    preset = "moco_v1"
    labels = "no"
    transfers = "backbone"
    state = "memory bank"

    def __init__(
        self,
        network: MsclForPreTraining,
        images: int,
        temperature: float = 0.07,
        embed_dim: int = 128,
        bank_loss: str = "softmax",
        nce_draws: int = 4096,
        proximal: float = 0.0,
    ):
        """images: how many there are. bank_loss: softmax, or nce as in the paper. proximal: weight of |v - m|^2 (the paper has 30, the
        release none)."""
        super().__init__(network)
        self.proximal = proximal
        self.head = pooled(mlp(self.channels(), embed_dim))
        self.instance = InstanceLoss(images, embed_dim, temperature, bank_loss, nce_draws)

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E)."""
        return unit(self.head(feature_map(self.parts(), self.normalise(image))))

    def forward(self, image: Tensor, index: Tensor, **rest) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8; index (B,): which image of the data each is."""
        vectors = self.embed(image)
        loss = self.instance(vectors, index)
        if self.proximal:
            loss = loss + self.proximal * (vectors - self.instance.bank.read()[index]).square().sum(1).mean()
        if self.training:
            self.instance.bank.write(index, vectors)
        return {"loss": loss}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": self.embed(image)}
