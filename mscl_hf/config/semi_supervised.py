"""How fine-tuning uses images without masks, and the contrast of pixels beside its loss."""

from dataclasses import dataclass
from typing import Literal

from .fields import Section, option


@dataclass(frozen=True)
class SemiSupervisedConfig(Section):
    """Consistency with an EMA teacher on unlabelled images, and contrast of pixels (default: from the method's paper, see
    --list-semi-supervised)."""

    unlabelled: str = option("none", "unlabelled images: none, rest (of the training split), or a folder of images")
    unlabelled_streaming: bool = option(
        False, "read --unlabelled, a folder of parquet files or a name on the Hub, during training instead of downloading it first"
    )
    semi_supervised: Literal["none", "mean_teacher", "fixmatch", "unimatch", "unimatch_v2"] = option(
        "none", "method that trains on unlabelled images; see --list-semi-supervised"
    )
    unlabelled_batch_size: int | None = option(
        None, "unlabelled images per forward pass, over all processes (default: --batch-size)", at_least=1
    )
    unlabelled_weight: float | None = option(None, "weight of the loss of unlabelled images (default: 1)", at_least=0)
    unlabelled_ramp: float | None = option(
        None, "share of training during which this weight rises to its value (default: 0; mean_teacher: 0.25)", at_least=0, at_most=1
    )
    confidence_threshold: float | None = option(
        None, "least probability of the teacher's label of a pixel that is used (default: 0.95; mean_teacher: 0)", at_least=0, at_most=1
    )
    class_thresholds: bool = option(
        False, "lower this threshold for classes that the teacher predicts with less confidence than the others"
    )
    ema_momentum: float | None = option(
        None, "largest momentum of the EMA teacher (default: the method's value, scaled to the run)", at_least=0, at_most=1
    )
    cutmix_probability: float | None = option(
        None, "probability that a rectangle of another image is pasted into a view (default: 0.5; mean_teacher: 0)", at_least=0, at_most=1
    )
    publish: Literal["teacher", "network"] = option(
        "teacher", "weights that are measured and published: of the EMA teacher or of the trained network"
    )
    pixel_contrast: float = option(
        0.0, "weight of the contrast of pixels, with labels from masks and confident predictions of the teacher; 0 = none", at_least=0
    )
    contrast_sampling: Literal["all", "reco"] = option(
        "all", "all = each labelled pixel against all others, as --losses p of pre-training; reco = hard pixels against the mean of their "
        "class and pixels of similar classes",
    )  # fmt: skip
    contrast_temperature: float | None = option(None, "temperature of this contrast (default: 0.07; reco: 0.5)", above=0)
