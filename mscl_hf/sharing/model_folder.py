"""The end of a run: a folder that the Hugging Face ecosystem opens - weights, configuration, processor, code, pictures."""

import shutil
from pathlib import Path
from statistics import median_low

from transformers import PreTrainedConfig, PreTrainedModel, SegformerImageProcessor

from ..data.dataset import SegmentationData
from ..records.files import UNFINISHED


def publish(network: PreTrainedModel, out: Path, size: tuple[int, int] | None = None) -> None:
    """Write config.json, model.safetensors (float32), preprocessor_config.json, and the code that opens them, into `out`.

    size: of the image processor, see `typical_size`. Each file appears there whole, config.json last.
    """
    temporary = out / f"{UNFINISHED}model"
    shutil.rmtree(temporary, ignore_errors=True)
    network.float().save_pretrained(temporary)
    image_processor(network.config, size).save_pretrained(temporary)
    for file in sorted(temporary.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        file.replace(out / file.name)
    temporary.rmdir()


def image_processor(config: PreTrainedConfig, size: tuple[int, int] | None = None) -> SegformerImageProcessor:
    """What makes a model's input of images of any mode. size: height and width in px that it brings every image to; None = the short side
    to the base size, as evaluation does it."""
    resize = {"size": {"shortest_edge": config.base_size}} if config.base_size else {"do_resize": False}
    if size is not None:
        resize = {"size": {"height": size[0], "width": size[1]}}
    means = {"image_mean": config.image_mean, "image_std": config.image_std}
    return SegformerImageProcessor(**resize, **means, do_convert_rgb=config.num_channels == 3)


def typical_size(data: SegmentationData | None, base_size: int | None, count: int = 32) -> tuple[int, int] | None:
    """Height and width in px that an image processor can bring all images to, so that any of them make a batch; None without data.

    The shape, of width over height the median of `count` images spread over the data, that evaluation gives the network: that of all
    images where they have one. base_size: of the short side; 0 or None = as it is.
    """
    if data is None:
        return None
    shapes = [data.read(index).image.shape[:2] for index in range(0, len(data), max(1, len(data) // count))]
    aspect = median_low(width / height for height, width in shapes)
    short = base_size or median_low(map(min, shapes))
    return round(short * max(1, 1 / aspect)), round(short * max(1, aspect))


def hub_folder() -> Path:
    """The folder `hub`, with the model card's template and the Spaces: within an installed copy, or beside the package in the sources."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "hub", package.parent / "hub") if folder.is_dir())
