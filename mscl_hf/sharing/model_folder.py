"""Write a model folder that the Hugging Face libraries open: weights, configuration, image processor and code."""

import shutil
from pathlib import Path
from statistics import median_low

from transformers import PreTrainedConfig, PreTrainedModel, SegformerImageProcessor

from ..data.dataset import SegmentationData
from ..records.files import UNFINISHED


def write_model(network: PreTrainedModel, out: Path, size: tuple[int, int] | None = None) -> None:
    """Write config.json, model.safetensors (float32), preprocessor_config.json and the code of the model into `out`.

    size: of the image processor, see `typical_size`. Each file is renamed into place when it is complete, config.json last.
    """
    temporary = out / f"{UNFINISHED}model"
    shutil.rmtree(temporary, ignore_errors=True)
    network.float().save_pretrained(temporary)
    image_processor(network.config, size).save_pretrained(temporary)
    for file in sorted(temporary.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        file.replace(out / file.name)
    temporary.rmdir()


def image_processor(config: PreTrainedConfig, size: tuple[int, int] | None = None) -> SegformerImageProcessor:
    """Return the image processor of a model.

    size: (height, width) [px] of all images (None: scale the short side to the base size, as the evaluation does).
    """
    resize = {"size": {"shortest_edge": config.base_size}} if config.base_size else {"do_resize": False}
    if size is not None:
        resize = {"size": {"height": size[0], "width": size[1]}}
    means = {"image_mean": config.image_mean, "image_std": config.image_std}
    return SegformerImageProcessor(**resize, **means, do_convert_rgb=config.num_channels == 3)


def typical_size(data: SegmentationData | None, base_size: int | None, count: int = 32) -> tuple[int, int] | None:
    """Return one (height, width) [px] for all images, so that an image processor can batch them; None without data.

    It has the median aspect ratio of `count` images spread over the data, at the size of the evaluation. base_size: short side [px];
    0 or None keeps the size of the images.
    """
    if data is None:
        return None
    shapes = [data.read(index).image.shape[:2] for index in range(0, len(data), max(1, len(data) // count))]
    aspect = median_low(width / height for height, width in shapes)
    short = base_size or median_low(map(min, shapes))
    return round(short * max(1, 1 / aspect)), round(short * max(1, aspect))
