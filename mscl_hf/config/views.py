"""Options of the views of pre-training and of the crops of fine-tuning."""

from dataclasses import dataclass
from typing import Literal

from .fields import Section, option

IN_RANGE = {"at_least": 0.001, "at_most": 1000}  # scales outside this range give empty or constant crops
SMALLEST = "smallest random scale, as a factor of --base-size"
LARGEST = "largest random scale, as a factor of --base-size"


class ScaledSection(Section):
    """A section with random scales, of which the smallest must not be above the largest."""

    def __post_init__(self):
        super().__post_init__()
        if self.min_scale > self.max_scale:
            raise ValueError(f"--min-scale is {self.min_scale} and --max-scale {self.max_scale}; expected min <= max.")


@dataclass(frozen=True)
class ViewConfig(ScaledSection):
    """Geometry and color of the views. By the column "views" of --list-methods, a method with pair reads all but --preset and --min-area,
    and any other method reads only these two."""

    geometry: Literal["shared", "crops", "none"] | None = option(
        None, "crops = a random scale, crop and flip for each view, with overlap; shared = one crop for both; none = the central crop "
        "(default: crops for mscl, shared for other methods with views pair)",
    )  # fmt: skip
    min_scale: float = option(0.5, SMALLEST, **IN_RANGE)
    max_scale: float = option(2.0, LARGEST, **IN_RANGE)
    min_overlap: float = option(0.3, "with --geometry crops: least share of a crop that the other crop covers", above=0, at_most=1)
    color_strength: float = option(1.0, "strength of SimCLR's color distortion; 0 = none", at_least=0, at_most=100)
    blur: float = option(0.5, "probability of a Gaussian blur", at_least=0, at_most=1)
    augment_both: bool = option(False, "distort the colors of both views, not only of the second")
    preset: Literal["simclr", "moco_v1", "moco_v2", "byol", "cmc", "chaitanya"] | None = option(
        None, "augmentation of a published method: colors, and the area of random resized crops (default: the method's)"
    )
    min_area: float | None = option(
        None, "least share of the image that a random resized crop covers (default: the preset's)", above=0, at_most=1
    )


@dataclass(frozen=True)
class CropConfig(ScaledSection):
    """Training crops of fine-tuning."""

    image_size: int | None = option(None, "height of the training crop in px (default: as pre-trained)", at_least=16)
    image_width: int | None = option(None, "width of the training crop in px (default: as pre-trained, or the height)", at_least=16)
    base_size: int | None = option(
        None, "short side in px that images are scaled to before cropping; 0 = as they are (default: as pre-trained)", at_least=0
    )
    min_scale: float = option(0.5, SMALLEST, **IN_RANGE)
    max_scale: float = option(2.0, LARGEST, **IN_RANGE)
    color_strength: float = option(0.3, "strength of the color distortion; 0 = none", at_least=0, at_most=100)
