"""Options of the pre-training methods other than mscl. The constructor of a method lists those that it reads, and their defaults."""

from dataclasses import dataclass
from typing import Literal

from .fields import Section, option


@dataclass(frozen=True)
class MethodConfig(Section):
    """Options of the methods other than mscl (default: from the method's paper, or scaled to the data set and logged)."""

    temperature: float | None = option(None, "methods other than mscl: temperature of the loss", above=0)
    embed_dim: int | None = option(None, "dimension of the embeddings", at_least=1)
    hidden_dim: int | None = option(None, "width of the hidden layers of the heads", at_least=1)
    head_layers: int | None = option(None, "simclr: layers of the head", at_least=1)
    ema_momentum: float | None = option(None, "moco, byol, pixpro, densecl, cp2: momentum of the EMA teacher", at_least=0, at_most=1)
    bank_loss: Literal["softmax", "nce", "batch"] | None = option(
        None, "instdisc, cmc: softmax over all images, or noise-contrastive estimation; cmc also the other images of the batch"
    )
    nce_draws: int | None = option(None, "bank loss nce: noise samples per image", at_least=1)
    proximal: float | None = option(None, "instdisc: weight of the squared distance to the stored embedding", at_least=0)
    dense_weight: float | None = option(None, "densecl, cp2: weight of the dense loss", at_least=0)
    dense_warmup: float | None = option(None, "densecl: share of training without the dense loss", at_least=0, at_most=1)
    dense_temperature: float | None = option(None, "cp2: temperature of the dense loss", above=0)
    dense_axis: Literal["key", "query"] | None = option(
        None, "cp2: softmax over positions of the key, as in the paper, or of the query, as in the authors' code"
    )
    grid: int | None = option(None, "densecl: side of the grid that feature maps are pooled to", at_least=1)
    ppm_gamma: float | None = option(None, "pixpro: exponent of the pixel propagation", at_least=1)
    ppm_layers: int | None = option(None, "pixpro: layers of the transformation in the pixel propagation; 0 = none", at_least=0)
    match_radius: float | None = option(
        None, "pixpro, pixcontrast: distance, in diagonals of a feature-map position, up to which two positions are positives", above=0
    )
    match_empty: Literal["skip", "zero"] | None = option(
        None, "pixpro, pixcontrast: leave out crops without overlap (skip), or count them as zero, as in the authors' code (zero)"
    )
    instance_weight: float | None = option(None, "pixpro: weight of an additional image-level loss", at_least=0)
    variant: Literal["published", "released", "GR", "GD-", "GD"] | None = option(
        None, "zhao: as in the paper (published) or in the authors' code (released); chaitanya: GR, GD- or GD"
    )
    teacher: str | None = option(None, "distill: timm name of the frozen backbone to learn from")
    teacher_weights: str | None = option(None, "distill: safetensors file with timm's weights of the teacher")
    teacher_pretrained: bool = option(False, "distill: the teacher's weights are timm's, from the Hub")
    token_loss: Literal["cosine", "relations"] | None = option(
        None, "distill: cosine = match the direction of each position; relations = match the similarities between the positions of an image"
    )
    partitions: int | None = option(None, "chaitanya: parts of a volume, whose slices are not negatives of each other", at_least=2)
