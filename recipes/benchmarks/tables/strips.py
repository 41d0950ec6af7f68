"""Pictures of the tables: the same images with their masks, and what two networks make of them."""

from dataclasses import fields
from pathlib import Path

import torch

from mscl_hf.config import DataConfig, InferenceConfig
from mscl_hf.data.build import open_whole_split
from mscl_hf.evaluation.inference import predict_ids
from mscl_hf.models.loading import open_model
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.visual.figures import comparison_strip

IMAGES = 5


def draw_strip(models: dict[str, Path], evaluation: dict, path: Path) -> None:
    """Image, truth and one column for each of the fine-tuned models, by title. evaluation: flags of the runs that measured them."""
    flags = {key.replace("-", "_"): value for key, value in evaluation.items()}
    names = {field.name for field in fields(DataConfig)}
    data = open_whole_split(DataConfig(**{key: value for key, value in flags.items() if key in names}), flags["split"])
    samples = [data.read(index) for index in range(len(data) // (2 * IMAGES), len(data), len(data) // IMAGES)][:IMAGES]
    columns = {"truth": [sample.mask for sample in samples]}
    for title, folder in models.items():
        network = open_model(MsclForSemanticSegmentation, str(folder)).eval()
        columns[title] = [predicted(network, sample.image) for sample in samples]
    comparison_strip([sample.image for sample in samples], columns, data.classes, path)


def predicted(network: MsclForSemanticSegmentation, image):
    """Class ids (H, W) of an image (H, W, 3), at the size that the network was trained at."""
    config = network.config
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.image_mean, config.image_std))
    return predict_ids(network, (pixels - mean) / std, image.shape[:2], InferenceConfig(base_size=config.base_size)).numpy()
