"""InstDisc: every image is a class, with its embedding in a memory bank as the class weights."""

import torch
from torch import Tensor

from ..losses import instance_nce, instance_softmax, nce_normalizer
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .heads import mlp, pooled
from .memory import MemoryBank

BANK_LOSSES = ("softmax", "nce")


class InstanceLoss(torch.nn.Module):
    """A memory bank with its loss: softmax over all images, or noise-contrastive estimation (the original), with its normalizer."""

    def __init__(self, images: int, dim: int, temperature: float, loss_name: str, draws: int):
        super().__init__()
        if loss_name not in BANK_LOSSES:
            raise ValueError(f"--bank-loss is {loss_name!r}; expected one of {', '.join(BANK_LOSSES)}.")
        self.loss_name, self.temperature, self.draws = loss_name, temperature, draws
        self.bank = MemoryBank(images, dim)
        self.register_buffer("normalizer", torch.zeros(()))
        self.has_normalizer = False  # avoids waiting for the device in every step

    def forward(self, vectors: Tensor, index: Tensor) -> Tensor:
        """Return the loss of unit vectors (B, E) of images index (B,) against the bank before this batch."""
        rows = self.bank.read()
        if self.loss_name == "softmax":
            return instance_softmax(vectors, index, rows, self.temperature)
        draws = torch.randint(len(rows), (len(vectors), self.draws), device=rows.device)
        normalizer, self.has_normalizer = self.normalizer, self.has_normalizer or bool(self.normalizer > 0)
        if not self.has_normalizer:
            normalizer = nce_normalizer(vectors, index, rows, draws, self.temperature)
            if self.training:
                self.normalizer.copy_(normalizer)
        return instance_nce(vectors, index, rows, draws, normalizer, self.temperature)


class InstDisc(Method):
    """One view of each image, a linear head, a memory bank."""

    title = "InstDisc"
    paper = "Wu et al., CVPR, arXiv:1805.01978"
    year = 2018
    views = "single"
    preset = "moco_v1"
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
        """images: rows of the bank. bank_loss: softmax, or nce as in the paper. proximal: weight of |v - m|^2 (paper: 30, release: 0)."""
        super().__init__(network)
        self.proximal = proximal
        self.head = pooled(mlp(self.channels(), embed_dim))
        self.instance = InstanceLoss(images, embed_dim, temperature, bank_loss, nce_draws)

    def forward(self, image: Tensor, index: Tensor, **_) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8; index (B,): numbers of the images in the data set."""
        vectors = self.embed(image)
        loss = self.instance(vectors, index)
        if self.proximal:
            loss = loss + self.proximal * (vectors - self.instance.bank.read()[index]).square().sum(1).mean()
        if self.training:
            self.instance.bank.write(index, vectors)
        return {"loss": loss}

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": self.embed(image)}
