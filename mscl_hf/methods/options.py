"""Options of the pre-training methods; each says in its constructor which of them it reads, and their defaults."""

from dataclasses import dataclass, field
from typing import NamedTuple


def _option(text: str):
    """One that is not given."""
    return field(default=None, metadata={"help": text})


class Limits(NamedTuple):
    """What may be given."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    choose: tuple[str, ...] = ()


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
    dense_axis: str | None = _option("cp2: softmax over positions of the key (paper) or of the query (release)")
    grid: int | None = _option("densecl: side of the grid that maps are pooled to")
    ppm_gamma: float | None = _option("pixpro: sharpness of the pixel propagation; below 1 its gradient is infinite")
    ppm_layers: int | None = _option("pixpro: layers of its transformation, 0 = none")
    match_radius: float | None = _option("pixpro, pixcontrast: cells nearer than this, in cell diagonals, belong together")
    match_empty: str | None = _option("pixpro: pairs of crops without overlap: skip, or zero as in the release")
    instance_weight: float | None = _option("pixpro: weight of an image-level loss beside")
    variant: str | None = _option("zhao: published, released; chaitanya: GR, GD-, GD")
    partitions: int | None = _option("chaitanya: parts of a volume that hold alike slices")

    def __post_init__(self):
        for name, (least, above, most, choose) in LIMITS.items():
            value = getattr(self, name)
            if value is None:
                continue
            flag = f"--{name.replace('_', '-')} is {value!r}"
            if choose and value not in choose:
                raise ValueError(f"{flag}; choose one of {', '.join(choose)}")
            if above is not None and not value > above:
                raise ValueError(f"{flag}; it must be above {above}")
            if (least is not None and not value >= least) or (most is not None and not value <= most):
                raise ValueError(f"{flag}; it must be at least {least}" + (f" and at most {most}" if most is not None else ""))

    def given(self) -> dict:
        """Those that were set."""
        return {name: value for name, value in vars(self).items() if value is not None}


LIMITS = {
    "temperature": Limits(above=0),
    "embed_dim": Limits(least=1),
    "hidden_dim": Limits(least=1),
    "head_layers": Limits(least=1),
    "ema_momentum": Limits(least=0, most=1),
    "bank_loss": Limits(choose=("softmax", "nce", "batch")),
    "nce_draws": Limits(least=1),
    "proximal": Limits(least=0),
    "dense_weight": Limits(least=0),
    "dense_warmup": Limits(least=0, most=1),
    "dense_temperature": Limits(above=0),
    "dense_axis": Limits(choose=("key", "query")),
    "grid": Limits(least=1),
    "ppm_gamma": Limits(least=1),
    "ppm_layers": Limits(least=0),
    "match_radius": Limits(above=0),
    "match_empty": Limits(choose=("skip", "zero")),
    "instance_weight": Limits(least=0),
    "partitions": Limits(least=2),
}
