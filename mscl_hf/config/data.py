"""Options of the data set: where images and masks are, how masks are read, and which of them training uses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from .fields import Section, option

OWN_MASKS = ("folder", "list", "hf")  # layouts whose masks need a label map or a table of colors; the others have their own
OWN_DATA = (*OWN_MASKS, "coco", "labelme", "cvat")  # layouts of data of one's own: any classes, any files


@dataclass(frozen=True)
class DatasetConfig(Section):
    """The data set: where images and masks are, and how masks are read."""

    dataset: Literal["synthetic", "camvid", "voc2012", "cityscapes", "ade20k", "folder", "list", "coco", "labelme", "cvat", "hf"] = option(
        "synthetic", "layout of the data; synthetic scenes are generated and need no files"
    )
    data_dir: str | None = option(
        None, "folder of the data; for list a CSV or JSON file, for hf also a parquet file, a Hub name or s3://... "
        "(default: none; synthetic needs none)"
    )  # fmt: skip
    max_bad_images: int = option(0, "unreadable images or masks to skip before the run stops", at_least=0)
    image_dir: str | None = option(
        None, "folder, coco, labelme, cvat: folder of the images (default: DATA_DIR/images, or beside the annotations)"
    )
    annotations: str | None = option(None, "coco, cvat: file of the annotations (default: that of the split in DATA_DIR)")
    mask_dir: str | None = option(None, "folder: folder of the masks (default: DATA_DIR/masks, labels, annotations, ...)")
    mask_suffix: str | None = option(None, "folder: ending of a mask's name after that of its image, such as _mask (default: detected)")
    masked_only: bool = option(False, "folder: leave out images without masks")
    label_map: str | None = option(
        None, "folder, list, hf: STORED:CLASS,... such as 255:1,128:255; class 255 is ignored (default: stored ids are class ids)"
    )
    class_colors: str | None = option(
        None, "folder, list, hf: file with the color of each class, for masks of colors: CSV (name,r,g,b), JSON or a label map of CVAT"
    )
    ignored_colors: list[str] | None = option(None, "folder, list, hf: R,G,B ..., colors of masks that are ignored (default: none)")
    resize_masks: bool = option(False, "resize masks of another size but the same aspect (within 2 %) to their images, by nearest neighbor")
    image_column: str | None = option(None, "hf: column of the images (default: the only one with a usual name)")
    mask_column: str | None = option(None, "hf: column of the masks (default: the only one with a usual name)")
    subset: str | None = option(None, "hf: configuration of a Hub data set (default: its default)")
    data_revision: str | None = option(None, "hf: revision of a Hub data set (default: the newest)")
    streaming: bool = option(False, "hf: read the data set during training instead of downloading it first")
    reduce_labels: bool = option(False, "folder, list, hf: ignore label 0 and subtract 1 from the others")
    classes: list[str] | None = option(
        None, "data of your own: class names, or a text file with a name a line (default: from the masks or annotations)"
    )
    num_classes: int | None = option(None, "folder, list, hf: number of classes without names (default: from ids in the masks)")
    image_range: list[int] | None = option(
        None, "data of your own: LOW HIGH, the values of black and white in images of more than 8 bits (default: the model's, or 0 to the "
        "highest value of the 8, 10, 12, 14 or 16 bits that the training images need)",
    )  # fmt: skip

    bands: list[int] | None = option(
        None, "bands of the images to read, in this order and counted from 1, such as 4 3 2 8: as many as the network has input channels "
        "(default: the model's, or RGB)", at_least=1,
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.bands is not None and (not self.bands or len(set(self.bands)) < len(self.bands)):
            shown = " ".join(map(str, self.bands)) or "empty"
            raise ValueError(f"--bands is {shown}; expected one or more bands, each once. Count them from 1, such as 1 2 3 4.")
        image_range = self.image_range
        if image_range is not None and (len(image_range) != 2 or not -(2**31) <= image_range[0] < image_range[1] < 2**31):
            shown = " ".join(map(str, image_range))
            raise ValueError(f"--image-range is {shown}; expected two whole numbers LOW < HIGH, such as 0 4095.")

    def with_range_of(self, model: str | None, image_range: Sequence[int] | None) -> Self:
        """Return the options with the image range of a model, if it has one. Raises ValueError if they have another."""
        if image_range is None:
            return self
        if self.image_range is not None and list(self.image_range) != list(image_range):
            low, high = self.image_range
            raise ValueError(
                f"--image-range is {low} {high}; expected {image_range[0]} {image_range[1]}, with which {model} was trained. Leave it out."
            )
        return replace(self, image_range=list(image_range))

    def with_bands_of(self, model: str | None, bands: Sequence[int] | None, channels: int) -> Self:
        """Return the options with the bands of a model, None = RGB. Raises ValueError if they have others.

        channels: input channels of the model. A model that names no bands takes any that are as many.
        """
        if bands is not None and self.bands is not None and list(self.bands) != list(bands):
            shown, expected = (" ".join(map(str, numbers)) for numbers in (self.bands, bands))
            raise ValueError(f"--bands is {shown}; expected {expected}, with which {model} was trained. Leave it out.")
        bands = self.bands if bands is None else bands
        if (3 if bands is None else len(bands)) != channels:
            given = "missing" if bands is None else " ".join(map(str, bands))
            raise ValueError(f"--bands is {given}; expected {channels}, the input channels of {model}. Give as many, or another model.")
        return replace(self, bands=None if bands is None else list(bands))


@dataclass(frozen=True)
class DataConfig(DatasetConfig):
    """The data set: where images and masks are, how masks are read, and which of them are used to train and to measure."""

    train_split: str | None = option(None, "split to train on (default: train; voc2012 also has trainaug)")
    val_split: str | None = option(
        None, "held-out split to measure on, or a .txt file with the names of training images to hold out (default: val, or validation for "
        "hf); none = no split",
    )  # fmt: skip
    val_fraction: float | None = option(
        None, "data without a held-out split: share of the training images to hold out, listed in OUTPUT_DIR/val_split.txt (default: none)",
        above=0, below=1,
    )  # fmt: skip
    train_fraction: float | None = option(None, "share of the training masks to use (default: all); subsets are nested")
    train_count: int | None = option(None, "number of training masks to use (default: all); subsets are nested")
    subset_seed: int = option(0, "seed of the choice of training masks, and of the images to hold out")
    tile: list[int] | None = option(
        None, "SIZE OVERLAP: train on tiles of SIZE x SIZE px that overlap by OVERLAP px, each counted as an image; for huge images "
        "(default: whole images)",
    )  # fmt: skip
    image_cache_gb: float = option(
        10.0, "size of the image cache in GB: decoded images in ~/.cache/mscl_hf, or MSCL_HF_CACHE; 0 = no cache", at_least=0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.tile is not None and (len(self.tile) != 2 or not 0 <= self.tile[1] < self.tile[0]):
            raise ValueError(
                f"--tile is {' '.join(map(str, self.tile))}; expected SIZE OVERLAP in px, 0 <= OVERLAP < SIZE. Give two such as 512 64."
            )

    def scale_of_tiles(self, base_size: int | None) -> int | None:
        """Return the --base-size to use: 0 with --tile, which is at the stored size. Raises ValueError for another one with --tile."""
        if self.tile is None:
            return base_size
        if base_size:
            raise ValueError(f"--base-size is {base_size}; expected 0 with --tile, which divides images as they are stored. Leave it out.")
        return 0
