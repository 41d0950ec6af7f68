"""Options of the pre-training methods; each says in its constructor which of them it reads, and their defaults."""

from dataclasses import dataclass, field


def _option(text: str):
    return field(default=None, metadata={"help": text})


@dataclass(frozen=True)
class MethodOptions:
    """Of the methods other than mscl; left out = the paper's value, or one that fits the data. The log says which."""

    temperature: float | None = _option("of the contrast")
    embed_dim: int | None = _option("size of the embeddings")
    hidden_dim: int | None = _option("width of the heads' hidden layers")
    head_layers: int | None = _option("simclr: layers of the head")
    ema_momentum: float | None = _option("of the teacher that follows the network: moco, byol, pixpro, densecl, cp2")
    bank_loss: str | None = _option("instdisc, cmc: softmax over all images, or nce; cmc also batch")
    nce_draws: int | None = _option("bank loss nce: how many images are drawn as noise")
    proximal: float | None = _option("instdisc: weight of the squared distance to the remembered embedding")
    dense_weight: float | None = _option("densecl, cp2: weight of the dense loss")
    dense_warmup: float | None = _option("densecl: share of training without the dense loss")
    dense_temperature: float | None = _option("cp2: of the dense loss")
    dense_axis: str | None = _option("cp2: softmax over the positions of the key (paper) or of the query (release)")
    grid: int | None = _option("densecl: side of the grid that maps are pooled to")
    ppm_gamma: float | None = _option("pixpro: sharpness of the pixel propagation")
    ppm_layers: int | None = _option("pixpro: layers of its transformation, 0 = none")
    match_radius: float | None = _option("pixpro, pixcontrast: cells nearer than this, in cell diagonals, belong together")
    match_empty: str | None = _option("pixpro: pairs of crops without overlap: skip, or zero as in the release")
    instance_weight: float | None = _option("pixpro: weight of an image-level loss beside")
    variant: str | None = _option("zhao: published, released; chaitanya: GR, GD-, GD")
    partitions: int | None = _option("chaitanya: parts of a volume that hold alike slices")

    def __post_init__(self):
        for name in ("temperature", "dense_temperature", "match_radius", "ppm_gamma"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be positive")
        for name in ("embed_dim", "hidden_dim", "head_layers", "nce_draws", "grid", "partitions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("proximal", "dense_weight", "instance_weight", "ppm_layers"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")
        for name in ("ema_momentum", "dense_warmup"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must lie in 0..1")

    def given(self) -> dict:
        """Those that were set."""
        return {name: value for name, value in vars(self).items() if value is not None}
